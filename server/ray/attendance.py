"""Whether the engines of a round are there: looked up while no answer comes, since Ray Data waits for them for ever."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

LONELY_SECONDS = 600.0  # without an answer and without a living engine, after which a round is over
LOOK_SECONDS = 5.0  # between two looks


class Attendance:
    """Of the actors of one class, in one round."""

    def __init__(self, class_name: str) -> None:
        self._class_name = class_name
        self._last = self._looked = time.monotonic()
        self.met = False  # whether one has ever lived

    def answered(self) -> None:
        """An answer has come."""
        self.met, self._last = True, time.monotonic()

    def is_over(self) -> bool:
        """Whether all have been gone for so long that nobody will answer."""
        now = time.monotonic()
        if now < self._looked + min(LOOK_SECONDS, LONELY_SECONDS):
            return False
        self._looked = now
        if lives(self._class_name):
            self.answered()
        return now > self._last + LONELY_SECONDS


def lives(class_name: str) -> bool:
    """Whether an actor of the class works for this program; while it starts, and loads its model, it does not."""
    return "ALIVE" in _actors(class_name).values()


def release(class_name: str) -> None:
    """End the actors of a round that is over.

    Ray ends an actor when nobody refers to it, but the failed calls of one that died do: errors, their frames, and
    whoever keeps those. Started again, it would keep its CPUs or its GPU, and the next round's would wait for them.
    """
    import ray
    from ray._private.worker import global_worker

    core: Any = vars(global_worker)["core_worker"]  # which has no type
    for actor, doing in _actors(class_name).items():
        if doing != "DEAD":
            with contextlib.suppress(ValueError):  # it has gone meanwhile
                core.kill_actor(ray.ActorID.from_hex(actor), True)


def dismiss() -> None:
    """End the executors of a round that nobody will end, with the actors that they hold."""
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        # Whoever waits for its answers is told that there are no more. There is no public way to end it from outside.
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)


def _actors(class_name: str) -> dict[str, str]:
    """This program's actors of a class: what Ray calls them, and what they are doing."""
    import ray
    from ray._private import state  # the public list of actors needs a dashboard, which our own clusters have not got

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actors(None, job, None)
    return {key: actor["State"] for key, actor in actors.items() if class_name in actor["ActorClassName"]}
