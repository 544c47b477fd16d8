"""A recording has the GPUs for itself, and everything else shares them."""

from __future__ import annotations

import threading

import pytest

from runtime.recording import Recording

PATIENCE = 30.0  # seconds until a test that hangs fails


def test_runs_go_side_by_side() -> None:
    recording, together = Recording(), threading.Barrier(3)

    def run() -> None:
        with recording.run():
            together.wait(PATIENCE)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not together.broken


def test_a_recording_waits_for_runs_keeps_new_ones_away_and_comes_before_them() -> None:
    recording = Recording()
    order: list[str] = []
    started = threading.Event()

    def record() -> None:
        started.set()
        with recording.record():
            order.append("recorded")

    def run() -> None:
        with recording.run():
            order.append("ran")

    with recording.run():
        recorder = threading.Thread(target=record)
        recorder.start()
        started.wait(PATIENCE)
        while not recording.waiting:
            pass
        runner = threading.Thread(target=run)
        runner.start()
        runner.join(0.05)
        assert order == []
    recorder.join(PATIENCE)
    runner.join(PATIENCE)
    assert order == ["recorded", "ran"]


def test_a_recording_that_fails_lets_the_others_go_on() -> None:
    recording = Recording()
    with pytest.raises(RuntimeError), recording.record():
        raise RuntimeError("no memory")
    entered: list[bool] = []

    def run() -> None:
        with recording.run():
            entered.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert entered
