"""The memory of one vision pass over a large page, in a process of its own: its peak is nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from models.manifest import Manifest
from models.registry import family_of
from runtime.providers import find_device
from runtime.vision import VisionTower

ROOT = Path(__file__).parents[2]


def largest_pass(folder: Path, side: int, **settings: Any) -> tuple[int, int, int]:
    """(patches, image tokens, bytes by which the peak grew) for a square page of so many pixels a side."""
    command = [sys.executable, "-m", "tests.export.largest_pass", str(folder), str(side), json.dumps(settings)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    patches, tokens, grown = json.loads(run.stdout)
    return patches, tokens, grown


def _measure(folder: Path, side: int, settings: dict[str, Any]) -> None:
    manifest = Manifest.load(folder)
    page = family_of(manifest).prepare_image(Image.effect_noise((side, side), 90), settings)
    feeds = page.passes[0]()
    tower = VisionTower(folder, manifest, find_device("cpu"))
    before = _peak()
    features = tower.encode(feeds)["features"]
    print(json.dumps([len(feeds["rotary_cos"]), len(features), _peak() - before]))


def _peak() -> int:
    """Most resident bytes of this process so far."""
    import resource  # not on Windows

    if sys.platform == "linux":  # where ru_maxrss begins with what the process had that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
