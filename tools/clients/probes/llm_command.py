"""Simon Willison's llm, as people use it: on the command line."""

import os
import subprocess
import tempfile
from pathlib import Path

import probe

home = Path(tempfile.mkdtemp(prefix="llm-"))
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: ours\n  model_name: {probe.MODEL}\n  api_base: {probe.API}\n  api_key_name: none\n  vision: true\n"
)
environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}


def llm(*arguments: str) -> str:
    done = subprocess.run(
        ["llm", *arguments], env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return done.stdout


def second_turn() -> str:
    llm("-m", "ours", probe.PROMPT, "-a", str(probe.PICTURE))
    return llm("-c", probe.AGAIN)


probe.run(
    picture=lambda: llm("-m", "ours", probe.PROMPT, "-a", str(probe.PICTURE)),
    pdf=lambda: llm("-m", "ours", probe.PROMPT, "-a", str(probe.PDF)),
    system=lambda: llm("-m", "ours", "-s", probe.SYSTEM, probe.PROMPT, "-a", str(probe.PICTURE)),
    second_turn=second_turn,
)
