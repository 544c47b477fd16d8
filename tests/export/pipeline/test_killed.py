"""An export is published whole or not at all, whenever the exporter is killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.manifest import Manifest, retired_folder
from models.model_errors import ManifestError
from tests.export.jobs import PATIENCE, ROOT, TINY, export, leftovers
from tools.checkpoints import Sizes, write_random_checkpoint

# Killed at any moment.

# Runs the command line and, at one moment, says so and waits for a line on standard input.
HELD = """
import pathlib, shutil, sys
from export import cli, pipeline, publish, weights

def hold(*_):
    print("held", flush=True)
    sys.stdin.readline()

def before(function):
    return lambda *args: (hold(), function(*args))[1]

add, rename, rmtree, count = weights.DataFile.add, pathlib.Path.rename, shutil.rmtree, 0

def held_add(*args):
    global count
    count += 1
    if count == 40:
        hold()
    return add(*args)

def held_rename(path, other):
    rename(path, other)
    if str(other).endswith(".retired"):
        hold()

def held_rmtree(path, **options):
    if str(path).endswith(".retired"):
        hold()
    rmtree(path, **options)

moment = sys.argv.pop(1)
if moment == "writing":
    weights.DataFile.add = held_add
elif moment == "checking":
    pipeline.check_graphs = before(pipeline.check_graphs)
elif moment == "flushing":
    publish.sync = before(publish.sync)
elif moment == "swap half done":
    pathlib.Path.rename = held_rename
elif moment == "swapped":
    publish.shutil.rmtree = held_rmtree
sys.exit(cli.main())
"""


@pytest.fixture
def start(tmp_path: Path, target: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a real exporter, ``moment`` says where it is to be held (None: nowhere)."""
    running: list[subprocess.Popen[str]] = []

    def launch(checkpoint: Path, moment: str | None = None) -> subprocess.Popen[str]:
        program = ["-m", "export"] if moment is None else ["-c", HELD, moment]
        arguments = ["deepseek-ocr", "--source", str(checkpoint), "--output", str(target), "--dtype", "f32"]
        process = subprocess.Popen(
            [sys.executable, *program, *arguments, "--config", str(tmp_path / "config.toml"), "--init-config"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield launch
    for process in running:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)


@pytest.mark.parametrize("moment", ["writing", "checking", "flushing", "swap half done", "swapped"])
def test_killed_at_any_moment_a_good_export_serves_and_the_next_run_starts_clean(
    tmp_path, checkpoint, target, start, moment
) -> None:
    older, _ = export(checkpoint, target, model_id="deepseek-ocr")
    newer = write_random_checkpoint(tmp_path / "newer", TINY, seed=1)
    process = start(newer, moment)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    kill(process)
    assert leftovers(target)
    serving = Manifest.load(target)
    serving.verify(target)
    assert (serving == older) is (moment != "swapped")
    manifest, _ = export(newer, target, model_id="deepseek-ocr")
    manifest.verify(target)
    assert manifest.source.name == str(newer)
    assert not leftovers(target)


def test_killed_without_an_older_export_nothing_is_there_until_the_next_run(checkpoint, target, start) -> None:
    process = start(checkpoint, "checking")
    assert process.stdout.readline() == "held\n", process.stderr.read()
    kill(process)
    with pytest.raises(ManifestError, match="is missing"):
        Manifest.load(target)
    export(checkpoint, target)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_unchanged_exporter_killed_while_it_writes_leaves_nothing_that_the_next_run_cannot_sweep(
    tmp_path, target, start, share
) -> None:
    """share: of the data that is written when the signal comes."""
    sizes = Sizes(
        **{**vars(TINY), "layers": 3, "experts": 48, "hidden": 256, "heads": 4, "kv_heads": 4, "expert_mlp": 256}
    )
    large = write_random_checkpoint(tmp_path / "large", sizes)
    total = 2 * sum(file.stat().st_size for file in large.glob("*.safetensors"))
    process = start(large)
    deadline = time.monotonic() + PATIENCE
    written = -1
    while written < share * total and process.poll() is None and time.monotonic() < deadline:
        partial = [file for folder in target.parent.glob(".*.partial-*") for file in _files(folder)]
        written = sum(partial) if partial else -1
        time.sleep(0.001)
    kill(process)
    assert written >= share * total, process.stderr.read()
    export(large, target)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def _files(folder: Path) -> list[int]:
    """Sizes of the files in a folder that somebody else is writing."""
    try:
        return [file.stat().st_size for file in folder.iterdir()]
    except FileNotFoundError:  # just renamed
        return []


def test_a_swap_cut_off_between_its_renames_is_undone_by_the_next_run(checkpoint, target) -> None:
    first, _ = export(checkpoint, target)
    target.rename(retired_folder(target))
    again, lines = export(checkpoint, target)
    assert again == first
    assert "is there already" in lines[-1]
    assert not leftovers(target)


def test_a_swap_cut_off_after_its_renames_is_finished_by_the_next_run(checkpoint, target) -> None:
    export(checkpoint, target)
    shutil.copytree(target, retired_folder(target))
    assert "is there already" in export(checkpoint, target)[1][-1]
    assert not leftovers(target)


def test_of_two_exports_at_once_the_second_says_that_it_waits_and_both_succeed(checkpoint, target, start) -> None:
    first = start(checkpoint, "writing")
    assert first.stdout.readline() == "held\n", first.stderr.read()
    second = start(checkpoint)
    line = second.stderr.readline()
    assert line == f"another export is writing {target}; waiting for it to finish\n"
    assert not target.exists()
    _, errors = first.communicate("\n", PATIENCE)
    assert first.returncode == 0, errors
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert "is there already" in errors
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_the_second_exports_itself_when_the_first_is_killed(checkpoint, target, start) -> None:
    first = start(checkpoint, "writing")
    assert first.stdout.readline() == "held\n", first.stderr.read()
    second = start(checkpoint)
    assert "waiting" in second.stderr.readline()
    kill(first)
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert f"published {target}" in errors
    Manifest.load(target).verify(target)
    assert not leftovers(target)
