"""What all probes share. A probe runs in the client's own environment, without this project.

Each case is a function that gives back the text that a person would see. One JSON line a case goes to standard output.
"""

import base64
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

URL = os.environ["CLIENT_URL"]  # of the server, without /v1
API = f"{URL}/v1"
MODEL = os.environ["CLIENT_MODEL"]
PICTURE = Path(os.environ["CLIENT_PICTURE"])
PDF = Path(os.environ["CLIENT_PDF"])
PROMPT = "Please transcribe this image."
SYSTEM = "You are a helpful assistant."
AGAIN = "Please read it once more."


def data_url(path: Path) -> str:
    mime = "application/pdf" if path.suffix == ".pdf" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def run(**cases: Callable[[], str] | str) -> None:
    """Run the cases; a string is the reason why the client has no such thing."""
    for name, case in cases.items():
        entry = {"case": name.replace("_", " ")}
        try:
            entry |= {"skipped": case} if isinstance(case, str) else {"text": case()}
        except Exception as error:  # whatever a client raises is its answer
            traceback.print_exc(file=sys.stderr)
            entry["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(entry), flush=True)
