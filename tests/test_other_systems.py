"""What is done on Windows and macOS, as far as Linux can show it: each branch on the system, with the system played."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import pipeline
from runtime.documents import open_document, workers
from runtime.documents.workers import Workers
from runtime.library import export_process, memory
from runtime.library.export_process import ExportProcess
from runtime.machine import processors, step_back
from server.command import doctor
from server.http.door import raise_file_limit
from server.ray import pinning
from tests.pdfs import text_pdf
from tests.waiting import until

# What a worker does not find on Windows (the last of them before Python 3.12).
WITHOUT = (
    "import os, signal, sys, psutil; sys.modules['resource'] = None; "  # psutil itself has it on Linux
    "[vars(module).pop(name, None) for module, name in ((signal, 'setitimer'), (os, 'set_blocking'))]; "
)
# Says when it can be interrupted, and which way it was.
EXPORTER = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGINT, lambda *_: sys.exit('error: interrupted'))\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit('error: terminated'))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.fixture(params=["darwin", "win32"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Not Linux."""
    monkeypatch.setattr(sys, "platform", request.param)
    return str(request.param)


def refuse(*_: object) -> None:
    raise AssertionError("this system has no such thing")


def test_no_c_library_is_asked_where_it_may_not_be_glibc(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    memory.settle_malloc()
    memory.give_memory_back()


def test_a_thread_steps_back_on_linux_only(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setpriority", refuse, raising=False)
    step_back(3)


def test_processes_are_pinned_on_linux_only(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    assert pinning.pin(1) is None


def test_where_no_affinity_is_told_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 12 if logical else 6)
    assert processors(tmp_path, tmp_path / "no membership") == 6


def test_the_remedy_for_fonts_is_named_where_it_is_known(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_fontconfig", lambda: False)
    assert doctor.fonts().remedy is None
    monkeypatch.setattr(sys, "platform", "linux")
    assert doctor.fonts().remedy == "apt-get install fontconfig"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has one of the two ways")
@pytest.mark.parametrize(("system", "way"), [("posix", "interrupted"), ("nt", "terminated")])
def test_an_exporter_is_interrupted_and_on_windows_which_cannot_is_terminated(
    system: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = ExportProcess("m", [sys.executable, "-c", EXPORTER])
    reasons: list[str | None] = []
    runner = threading.Thread(target=lambda: reasons.append(process.run()))
    runner.start()
    until(lambda: process.progress == "ready")
    monkeypatch.setattr(export_process, "os", SimpleNamespace(name=system, environ=os.environ))
    process.end()
    runner.join(30)
    assert reasons == [way]


def test_pages_are_drawn_and_warned_about_where_a_worker_has_no_limits_no_alarm_and_no_pipe_that_never_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "PROGRAM", WITHOUT + workers.PROGRAM)
    with Workers(1) as made, open_document(text_pdf(["one", "two"]), workers=made) as document:
        assert [document.page(index).size for index in range(2)] == [(1190, 1684)] * 2


def test_warnings_are_heard_where_a_pipe_would_wait() -> None:
    said = (
        "import os, warnings\n"
        "from runtime.documents.mutters import Mutters\n"
        "answers = os.fdopen(os.dup(1), 'w')\n"
        "mutters = Mutters()\n"
        "warnings.warn('the picture is cut off')\n"
        "print(mutters.taken(), mutters.taken(), file=answers, flush=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT + "\n" + said], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert run.stdout == "('the library that decodes it says: the picture is cut off',) ()\n", run.stderr


class Resource(SimpleNamespace):
    """The module of that name, of a system that answers so."""

    RLIMIT_NOFILE, RLIM_INFINITY, RUSAGE_SELF = 7, -1, 0


def test_sockets_are_no_files_on_windows_and_macos_may_refuse_what_it_says_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert raise_file_limit(4000) == 4000
    asked: list[tuple[int, int]] = []

    def setrlimit(which: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setitem(sys.modules, "resource", Resource(getrlimit=lambda which: (256, -1), setrlimit=setrlimit))
    assert raise_file_limit(4000) == 256
    assert asked == [(4000, -1)]


@pytest.mark.parametrize(("system", "peak"), [("darwin", 3_000_000_000), ("linux", 2_929_688)])
def test_the_peak_of_an_export_is_counted_in_bytes_on_macos_and_in_kilobytes_on_linux(
    system: str, peak: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setitem(sys.modules, "resource", Resource(getrusage=lambda who: SimpleNamespace(ru_maxrss=peak)))
    assert pipeline.peak_memory() == " (peak memory 3.00 GB)"
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    assert pipeline.peak_memory() == ""
