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
    import resource  # not on Windows

    manifest = Manifest.load(folder)
    page = family_of(manifest).prepare_image(Image.effect_noise((side, side), 90), settings)
    feeds = page.passes[0]()
    tower = VisionTower(folder, manifest, find_device("cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    features = tower.encode(feeds)["features"]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([len(feeds["rotary_cos"]), len(features), grown * (1 if sys.platform == "darwin" else 1024)]))


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
