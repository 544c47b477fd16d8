"""What reading takes of memory has a bound, whatever the documents: that of all processes of a run together."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from runtime.documents import Stopped
from server.command.pixel_budget import PixelBudget
from tests.command.conftest import ROOT, command, environment
from tests.pdfs import text_pdf

CASES = Path(__file__).parents[1] / "documents"
BOUND = 900_000_000  # bytes, with tiny-ocr


def peak_of(arguments: list[str], home: Path, said: Path) -> tuple[int, int]:
    """Resident bytes of a run's processes together, at their most, and its exit code; ``said`` gets its words."""
    with said.open("w") as log:
        running = psutil.Popen(
            command(*arguments), cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=log
        )  # fmt: skip
    peak = 0
    while running.poll() is None:
        total = 0
        for process in [running, *running.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    return peak, running.returncode


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures Linux's resident memory")
@pytest.mark.parametrize("kind", ["A0", "14,400 points", "large pictures"])
def test_no_document_takes_more_than_the_bound(kind: str, tiny_home: Path, tmp_path: Path) -> None:
    document = CASES / "a0_16pages.pdf"
    if kind == "14,400 points":
        document = tmp_path / "wall.pdf"
        document.write_bytes(text_pdf(["as drawn"] * 4, (14_400, 14_400), 600))
    elif kind == "large pictures":
        document = tmp_path / "large"
        document.mkdir()
        for number in range(4):
            Image.new("RGB", (8000, 6000), (250, 250, number)).save(document / f"{number}.jpg")
    arguments = ["read", str(document), "--model", "tiny-ocr", "--dtype", "f32", "--max-new-tokens", "4"]
    peak, code = peak_of([*arguments, "-o", str(tmp_path / "out")], tiny_home, tmp_path / "said")
    assert code == 0, (tmp_path / "said").read_text()
    assert peak < BOUND, f"{peak / 1e6:.0f} MB"


def test_pages_wait_for_each_others_pixels_and_one_that_is_too_large_goes_alone() -> None:
    budget = PixelBudget(100)
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with budget.share() as share:
            share.take(1000, lambda: False)  # more than there is at all
            order.append("second")

    with budget.share() as share:
        share.take(60, lambda: False)
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        with budget.share() as other:
            other.take(40, lambda: False)  # which fits beside it
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    with budget.share() as share:
        share.take(100, lambda: False)


def test_who_waits_for_pixels_may_be_stopped_and_leaves_none_behind() -> None:
    budget = PixelBudget(100)
    with budget.share() as share:
        share.take(100, lambda: False)
        with pytest.raises(Stopped), budget.share() as other:
            other.take(1, lambda: True)
    with budget.share() as share:
        share.take(100, lambda: False)
