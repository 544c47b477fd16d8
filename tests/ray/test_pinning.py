"""What Ray gives an actor is what its engine computes on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its CPUs")

# Takes so many CPUs with a thread that is there before and one that comes after, says where all may run, and waits.
PINS = """
import json, os, sys, threading
from pathlib import Path
from server.ray.pinning import pin
threading.Thread(target=sys.stdin.read, daemon=True).start()
pinned = pin(int(sys.argv[1]))
threading.Thread(target=threading.Event().wait, daemon=True).start()
where = {thread.name: sorted(os.sched_getaffinity(int(thread.name))) for thread in Path("/proc/self/task").iterdir()}
print(json.dumps([sorted(pinned.cpus) if pinned else None, list(where.values())]), flush=True)
while True:
    threading.Event().wait()
"""


def pinned(count: int) -> tuple[subprocess.Popen[str], list[int] | None, list[list[int]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PINS, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    cpus, where = json.loads(process.stdout.readline())
    return process, cpus, where


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other runs on this machine have CPUs of ours."""
    name = f"\\0ocr-onnx/test-{os.getpid()}/{{}}"
    prelude = f"import server.ray.pinning\nserver.ray.pinning._NAME = '{name}'\n"
    monkeypatch.setattr(sys.modules[__name__], "PINS", prelude + PINS)


@pytest.mark.usefixtures("own_names")
def test_each_process_has_cpus_of_its_own_until_it_is_killed_and_all_its_threads_stay_there() -> None:
    here = sorted(os.sched_getaffinity(0))
    processes = []
    try:
        for cpu in here[:2]:
            process, cpus, where = pinned(1)
            processes.append(process)
            assert cpus == [cpu]
            assert len(where) >= 3
            assert where == [[cpu]] * len(where)
        process, cpus, where = pinned(len(here))  # more than are left
        processes.append(process)
        assert cpus is None
        assert where == [here] * len(where)
        processes[0].kill()
        processes[0].wait()
        process, cpus, _ = pinned(1)
        processes.append(process)
        assert cpus == here[:1]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.ray
def test_an_engine_of_read_ray_computes_on_as_many_cpus_as_it_has_threads(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ocr-onnx[ray]'")
    from server.ray.reading import PageActor, ReadingJob

    from .conftest import StubReader

    if ray.is_initialized():
        pytest.skip("a cluster runs in this process, whose size is not ours")
    ray.cloudpickle.register_pickle_by_value(sys.modules[StubReader.__module__])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class Looking(PageActor):
        def where(self) -> tuple[list[int] | None, list[list[int]]]:
            time.sleep(0.1)
            own = sorted(self._pinned.cpus) if self._pinned else None
            places = []
            for thread in Path("/proc/self/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    places.append(sorted(os.sched_getaffinity(int(thread.name))))
            return own, places

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        actor: Any = ray.remote(Looking).options(num_cpus=1).remote(ReadingJob(StubReader, "", cpus=1))
        own, where = ray.get(actor.where.remote(), timeout=120)
    finally:
        ray.shutdown()
    if own is None:
        pytest.skip("other runs on this machine have taken all CPUs")
    assert len(own) == 1
    assert where == [own] * len(where)
