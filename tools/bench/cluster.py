"""``python -m tools.bench run --ray``: pages a minute of ``read`` with two threads, and with Ray with 1 or 2 actors.

Each way is a program of its own that reads the same document. The time is that of the document's last three quarters,
by the run manifest, so that neither loading nor the start of Ray counts. In turns, as all measurements here.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tools.demo_page import demo_page

from .turns import BenchError

CONTENDERS: dict[str, Sequence[str]] = {
    "two threads, without Ray": ("--threads", "2"),
    "--ray, one actor of one thread": ("--ray", "local", "--actors", "1", "--threads", "1"),
    "--ray, two actors of one thread": ("--ray", "local", "--actors", "2", "--threads", "1"),
}
CPUS = 3  # that Ray is told of: two actors, and one for drawing


def run(model: str, pages: int, rounds: int, tell: Callable[[str], None]) -> None:
    """Measure, and tell a line for each contender: the median of the rounds.

    Raises
    ------
    BenchError
        when a reading fails.
    """
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as folder:
        document = Path(folder) / "pages.tif"
        page = demo_page()
        page.save(document, save_all=True, append_images=[page] * (pages - 1))
        for turn in range(rounds):
            for number, (name, flags) in enumerate(CONTENDERS.items()):
                rates[name].append(_rate(document, Path(folder) / f"{turn}-{number}", model, flags))
                tell(f"{name}: {rates[name][-1]:.0f} pages a minute")
    for name, found in rates.items():
        tell(f"{statistics.median(found):8.0f} pages a minute: {name} (median of {rounds})")


def _rate(document: Path, out: Path, model: str, flags: Sequence[str]) -> float:
    """Pages a minute between the first page that was read and the last."""
    command = [sys.executable, "-m", "server.command", "read", str(document), "-o", str(out), "--model", model,
               "--quiet", *flags]  # fmt: skip
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": CPUS})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    lines = map(json.loads, (out / "ocr-run.jsonl").read_text(encoding="utf-8").splitlines())
    times = [datetime.fromisoformat(line["time"]) for line in lines if line["type"] == "page"]
    first = len(times) // 4  # before that, the first batches come all at once
    if len(times) < 2 or times[-1] == times[first]:
        raise BenchError(f"{len(times)} pages tell no rate; read more of them")
    return 60 * (len(times) - 1 - first) / (times[-1] - times[first]).total_seconds()
