"""Where one head stops: any number of engines that only sleep for the time of a page, and the real head.

    python -m tools.scale --engines 1,10,100,1000 --seconds 0.43

Engines are coroutines in a few actors of Ray (1,000 processes would take 60 GB), each with two batches in flight, as
for ``read --ray``. Their answers come back through Ray and are kept by the code of ``read --ray``: parts and the run
manifest on a disk. The table says how many pages a second the head takes, beside what the engines could give.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from runtime.documents import How, Limits, Workers, never
from server.command.folder import OutputFolder
from server.command.plan import DocumentPlan
from server.command.progress import Progress
from server.command.readers import Reader
from server.command.source import DocumentSource
from server.ray.batch import ClusterRun
from server.ray.cluster import Pool
from server.ray.drawing import Drawing
from server.ray.reading import PageAnswer, ReadingJob
from server.writers import PageResult

PROCESSES = 4
TEXT = "A line of a page as it is read, of some sixty letters.\n" * 60  # 3 kB, a dense page
PAGES = 1_000_000  # of the one document that the answers belong to


class Sleepers:
    """Many engines in one process."""

    async def read(self, first: int, batch: int, seconds: float) -> bytes:
        """Read pages from a number on, for ``seconds`` each."""
        await asyncio.sleep(seconds * batch)
        return pickle.dumps([PageAnswer(0, PageResult(first + index, "done", text=TEXT), {}) for index in range(batch)])


def measure(
    engines: int, seconds: float, batch: int, length: float, folder: Path, *, keep: bool
) -> tuple[float, float]:
    """Pages a second that the head took from so many engines, and its share of a core while it did.

    seconds : of an engine for a page, with all its slots busy. length : seconds to measure for. keep : write the pages.
    """
    import ray

    processes: list[Any] = [
        ray.remote(Sleepers).options(num_cpus=0, max_concurrency=2 * engines + 2).remote()
        for _ in range(min(PROCESSES, engines))
    ]
    ray.get([process.read.remote(0, 1, 0.0) for process in processes])  # started
    number = 0
    waiting: dict[Any, Any] = {}

    def send(process: Any) -> None:
        nonlocal number
        # An engine has two batches on the way, of which it works on one: the second one comes back a batch later.
        waiting[process.read.remote(number + 1, batch, 2 * seconds)] = process
        number += batch

    plan = DocumentPlan(DocumentSource(folder / "a.pdf", Path("a.pdf")), "a", page_count=PAGES)
    plan.pages = plan.todo = range(PAGES)
    with OutputFolder(folder, ["md"], overlay=False) as output:
        output.begin({}, [plan], resume=False)
        run = ClusterRun(
            ReadingJob(_no_reader, ""), Drawing(How(), Limits()), Pool(engines, 1, 1, 0, 1), output, lambda plan: {},
            lambda plan: plan.source.open(How(), Workers(1), never), Progress(0, quiet=True),
            threading.Event(), batch=batch,
        )  # fmt: skip
        for index in range(2 * engines):
            send(processes[index % len(processes)])
        me = psutil.Process()
        taken = 0
        started = begun = time.monotonic()
        busy = sum(me.cpu_times()[:2])
        warm = 2 * seconds * batch  # until the first answers can be there
        while time.monotonic() < begun + warm + length:
            if time.monotonic() < begun + warm:
                taken, started, busy = 0, time.monotonic(), sum(me.cpu_times()[:2])
            done, _ = ray.wait(list(waiting), num_returns=min(16, len(waiting)), timeout=0.05)
            for ref, content in zip(done, ray.get(done), strict=True):
                for answer in pickle.loads(content):
                    if keep:
                        run.take(plan, answer)
                    taken += 1
                send(waiting.pop(ref))
        passed = time.monotonic() - started
        busy = sum(me.cpu_times()[:2]) - busy
    for process in processes:
        ray.kill(process)
    return taken / passed, busy / passed


def _no_reader() -> Reader:
    raise AssertionError("nobody reads here")


def main() -> None:
    """Print a line for each number of engines."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="1,10,100,1000", help="numbers of engines, with commas between")
    parser.add_argument("--seconds", type=float, default=0.43, help="of an engine for a page (default: 0.43)")
    parser.add_argument("--batch", type=int, default=8, help="pages in a batch (default: 8)")
    parser.add_argument("--length", type=float, default=15.0, help="seconds for each measurement (default: 15)")
    given = parser.parse_args()
    ray.init(
        address="local", num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20
    )
    print("engines  pages/s could  pages/s taken  of a core  and kept on disk")
    for engines in map(int, given.engines.split(",")):
        row: list[float] = []
        for keep in (False, True):
            with tempfile.TemporaryDirectory(prefix="scale-") as folder:
                row += measure(engines, given.seconds, given.batch, given.length, Path(folder), keep=keep)
        print(
            f"{engines:7}  {engines / given.seconds:13.1f}  {row[0]:13.1f}  {row[1]:9.2f}  {row[2]:16.1f}", flush=True
        )


if __name__ == "__main__":
    main()
