"""Worker processes: what goes beyond the limits is killed and explained, and none outlives whoever started it."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from models.model_errors import InvalidInput
from runtime.documents import Limits, Stopped, Workers, open_document, open_picture
from tests.pdfs import field_bomb_pdf, nested_pdf, repeated, scanned_pdf, text_pdf
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def workers_of(process: psutil.Process) -> set[psutil.Process]:
    found = set()
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a child that ends meanwhile
            until(child.cmdline)  # which is empty for a moment, before the child's program begins
            if "runtime.documents.worker" in " ".join(child.cmdline()):
                found.add(child)
    return found


@pytest.fixture
def hasty() -> Iterator[Workers]:
    """Workers that give a page half a second of processor time."""
    with Workers(2, Limits(seconds=0.5, patience=60)) as workers:
        yield workers


@pytest.mark.parametrize("data", [nested_pdf(), field_bomb_pdf()], ids=["nested forms", "nested fields"])
def test_a_page_that_draws_for_ever_is_one_failed_page_and_others_are_drawn(hasty: Workers, data: bytes) -> None:
    assert len(data) < 5000
    with open_document(text_pdf(["fine"]), workers=hasty) as fine:
        with (
            pytest.raises(InvalidInput, match=r"(page 1 of bomb cannot be drawn|bomb cannot be opened): it took more "),
            open_document(data, name="bomb", workers=hasty) as bomb,
        ):
            bomb.page(0)
        assert fine.page(0).size == (1190, 1684)


def test_the_clock_limits_a_page_too() -> None:
    with (
        Workers(1, Limits(seconds=30, patience=0.02)) as workers,
        pytest.raises(InvalidInput, match=r"it was not done after \d s; leave it out, lower the dots"),
        open_document(nested_pdf(), workers=workers) as bomb,
    ):
        bomb.page(0)


def test_after_some_killed_pages_the_rest_of_a_document_is_not_tried() -> None:
    with (
        Workers(1, Limits(seconds=0.3, patience=60, most_killed=2)) as workers,
        open_document(nested_pdf(pages=4), workers=workers) as bomb,
    ):
        for index in range(2):
            with pytest.raises(InvalidInput, match=r"it took more than 0\.3 s"):
                bomb.page(index)
        for index in range(2, 4):
            with pytest.raises(InvalidInput, match="2 pages went beyond the limits; the rest is not tried"):
                bomb.page(index)


def test_whoever_waits_may_stop_a_page_and_its_worker_is_gone() -> None:
    stop = threading.Event()
    with Workers(1) as workers, open_document(nested_pdf(), workers=workers) as bomb:
        before = workers_of(psutil.Process())
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(Stopped):
            bomb.page(0, stop.is_set)
        assert not any(process.is_running() for process in before)
        with open_document(text_pdf(["fine"]), workers=workers) as fine:
            assert fine.page(0).width == 1190


def test_a_worker_that_is_stopped_just_after_its_answer_is_given_to_nobody_else() -> None:
    """The caller's connection breaks while the page comes back: the watch ends the worker, which has done its work."""
    gone = threading.Event()
    with Workers(1) as workers, open_document(text_pdf(["next"]), workers=workers) as document:
        with workers.worker(workers.number(), gone.is_set) as worker:
            gone.set()
            until(lambda: worker.process.poll() is not None)
        assert document.page(0).size == (1190, 1684)


def test_closing_the_workers_stops_what_they_draw() -> None:
    workers = Workers(1)
    bomb = open_document(nested_pdf(), workers=workers)
    threading.Timer(0.3, workers.close).start()
    with pytest.raises(Stopped):
        bomb.page(0)
    until(lambda: not workers_of(psutil.Process()))


def test_a_picture_that_needs_too_much_memory_is_refused_and_the_workers_go_on() -> None:
    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG")
    with Workers(1, Limits(memory=100_000_000)) as workers:
        with (
            pytest.raises(InvalidInput, match=r"it took more than 95 MiB of memory|ran out of memory"),
            open_picture(buffer.getvalue(), name="big", max_pixels=10**9, workers=workers) as big,
        ):
            big.page(0)
        with open_document(text_pdf(["fine"]), workers=workers) as fine:
            assert fine.page(0).width == 1190


def test_pages_of_a_document_are_drawn_by_several_workers_at_once() -> None:
    with Workers(2) as workers, open_document(text_pdf(["a", "b"] * 8), workers=workers) as document:
        pages: list[Image.Image] = []
        together = threading.Barrier(8)

        def draw(number: int) -> None:
            together.wait(60)
            pages.append(document.page(number))

        threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pages) == 8
        assert len(workers_of(psutil.Process())) == 2


def test_a_worker_that_has_grown_is_replaced() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2500, 3000, 3), np.uint8)
    scans = repeated(scanned_pdf([Image.fromarray(noise)]), 8)
    with Workers(1) as workers, open_document(scans, workers=workers) as document:
        first = workers_of(psutil.Process())
        heaviest = 0
        for index in range(8):  # pdfium keeps 22 MB of each of them, beside the document's 180 MB
            assert document.page(index).size == (3000, 2500)
            heaviest = max([heaviest, *(one.memory_info().rss for one in workers_of(psutil.Process()))])
        assert workers_of(psutil.Process()).isdisjoint(first)
    assert heaviest < 400e6


def test_a_document_without_workers_of_its_callers_ends_its_own() -> None:
    before = workers_of(psutil.Process())
    with open_document(text_pdf(["one"])) as document:
        document.page(0)
        assert len(workers_of(psutil.Process()) - before) == 1
    assert workers_of(psutil.Process()) == before


def test_workers_see_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCR_ONNX_API_KEY", "a secret")
    monkeypatch.setenv("HF_TOKEN", "another")
    with Workers(1) as workers:
        workers.warm()
        (worker,) = workers_of(psutil.Process())
        assert not {"OCR_ONNX_API_KEY", "HF_TOKEN"} & set(worker.environ())


ORPHAN = """
import sys, threading
sys.path.insert(0, {root!r})
from runtime.documents import Workers, open_document
from tests.pdfs import nested_pdf
document = open_document(nested_pdf(), workers=Workers(1))
threading.Timer(0.5, lambda: print("drawing", flush=True)).start()
document.page(0)
"""


def test_no_worker_outlives_its_parent_not_even_while_it_draws() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN.format(root=str(ROOT))], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"drawing\n"
    orphans = workers_of(psutil.Process(parent.pid))
    assert len(orphans) == 1
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(orphans, timeout=30)
    assert not alive
    assert gone
    parent.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fork of a threaded process is what is avoided")
def test_a_worker_is_not_a_copy_of_this_process() -> None:
    others = workers_of(psutil.Process())  # of tests before, which may be about to end
    with Workers(1) as workers:
        workers.warm()
        (worker,) = (one for one in workers_of(psutil.Process()) if one not in others)
        until(lambda: worker.memory_info().rss > 20e6)
        assert worker.memory_info().rss < 150e6


def png_of_rows(width: int, height: int) -> bytes:
    """A PNG of zeros, made row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    body = b"".join([*(packer.compress(bytes(width + 1)) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_the_pixels_of_a_page_do_not_stand_twice_in_this_process() -> None:
    data = png_of_rows(7000, 7000)
    process = psutil.Process()
    with Workers(1) as workers, open_picture(data, name="it", workers=workers) as document:
        before, peak, done = process.memory_info().rss, 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.002):
                peak = max(peak, process.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        page = document.page(0)
        done.set()
        watching.join()
    assert page.size == (7000, 7000)
    assert peak - before < 4 * 49e6 + 40e6
