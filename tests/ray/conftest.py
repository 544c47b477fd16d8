"""A cluster of three machines, each a raylet on this one, and a reader that needs no model."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.documents import How, Limits, Workers, never
from server.command.folder import OutputFolder
from server.command.plan import DocumentPlan
from server.command.progress import PageWork, Progress
from server.command.readers import Reading
from server.command.source import DocumentSource
from server.ray.cluster import Pool
from server.ray.drawing import Drawing
from server.ray.reading import ReadingJob

# As ``server.ray.cluster.joined`` does it, which these clusters are not started by; Ray reads it when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Ray's workers would run at nice 15: whatever else the machine does would leave them next to nothing, for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")
NOT_HERE = "Ray is not installed: pip install 'ocr-onnx[ray]'"
STORE = 200 << 20  # bytes of each node's object store


@pytest.fixture
def three_nodes() -> Iterator[Any]:
    """A cluster of three nodes of two CPUs each, joined. CPUs are counted here, not taken."""
    ray = pytest.importorskip("ray", reason=NOT_HERE)
    from ray.cluster_utils import Cluster

    # The reader below goes to the actors with its code: their processes cannot import tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=STORE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@dataclass(frozen=True)
class StubReader:
    """See ``readers.Reader``. A page's text is its colour; some colours kill the process that reads them."""

    seconds: float = 0.0
    deadly: tuple[int, ...] = ()
    cannot_start: str = ""
    pids: list[int] = field(default_factory=list)

    def start(self) -> int:
        if self.cannot_start:
            from server.command.command_errors import CommandFailed

            raise CommandFailed(self.cannot_start)
        return 2

    def identity(self) -> str:
        return "stub"

    def seen_pixels(self) -> int | None:
        return None

    def describe(self) -> dict[str, object]:
        return {"model": "stub"}

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        red, green, blue = page.getpixel((0, 0))  # type: ignore[misc]
        number = red * 65_536 + green * 256 + blue
        if number in self.deadly:
            os._exit(9)
        time.sleep(self.seconds)
        return Reading(f"page {number}")

    def close(self) -> None: ...


def colour(number: int) -> tuple[int, int, int]:
    return number >> 16, number >> 8 & 255, number & 255


def picture_pages(path: Path, first: int, count: int) -> Path:
    """A TIFF whose pages say their number in their colour."""
    pages = [Image.new("RGB", (40, 30), colour(first + index)) for index in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def plan_of(path: Path, pages: int) -> DocumentPlan:
    plan = DocumentPlan(
        DocumentSource(path, Path(path.name)), path.stem, version="v", fingerprint="f", page_count=pages
    )
    plan.pages = plan.todo = range(pages)
    return plan


def read_with(
    reader: StubReader, plans: list[DocumentPlan], out: Path, *, actors: int, batch: int = 4,
    stop: threading.Event | None = None,
) -> None:  # fmt: skip
    """Read the plans on the cluster that is joined, into a folder."""
    from server.ray.batch import ClusterRun

    drawing = Drawing(How(), Limits())
    job = ReadingJob(lambda: reader, "")
    with OutputFolder(out, ["txt"], overlay=False) as folder:
        folder.begin(reader.describe(), plans, resume=False)
        run = ClusterRun(
            job, drawing, Pool(actors, 1, 1, 0, 2), folder, lambda plan: {"page_count": plan.page_count},
            lambda plan: plan.source.open(How(), Workers(1), never), Progress(0, quiet=True),
            stop or threading.Event(), batch=batch,
        )  # fmt: skip
        run.read_all(plans)
