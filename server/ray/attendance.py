"""Whether the actors of a round are alive; ``batch`` asks while no answer comes, and ends the actors after a round.

Ray Data itself waits for ever for an actor that cannot be started, and says nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

LONELY_SECONDS = 600.0  # without an answer and without a living actor, after which a round is over
LOOK_SECONDS = 5.0  # between two questions to Ray


class Attendance:
    """When the actors of one class were last known to be alive, in one round."""

    def __init__(self, class_name: str) -> None:
        self._class_name = class_name
        self._last = self._looked = time.monotonic()
        self.met = False  # whether any actor has been alive in this round

    def answered(self) -> None:
        """Note that an answer has come, which only a living actor sends."""
        self.met, self._last = True, time.monotonic()

    def is_over(self) -> bool:
        """Whether all actors have been gone for ``LONELY_SECONDS``: no answer will come any more."""
        now = time.monotonic()
        if now < self._looked + min(LOOK_SECONDS, LONELY_SECONDS):
            return False
        self._looked = now
        if lives(self._class_name):
            self.answered()
        return now > self._last + LONELY_SECONDS


def lives(class_name: str) -> bool:
    """Whether an actor of the class is alive in this program's job. An actor that still loads its model is not."""
    return "ALIVE" in _actors(class_name).values()


def release(class_name: str) -> None:
    """Kill the actors of a round that is over.

    Ray ends an actor when no reference to that actor is left. An actor that died leaves some: its failed calls raised
    errors, and their frames refer to the actor. Ray would start that actor again and reserve its CPUs or its GPU, for
    which the actors of the next round would wait.
    """
    import ray
    from ray._private.worker import global_worker

    core: Any = vars(global_worker)["core_worker"]  # compiled, without types
    for actor, doing in _actors(class_name).items():
        if doing != "DEAD":
            with contextlib.suppress(ValueError):  # the actor has ended meanwhile
                core.kill_actor(ray.ActorID.from_hex(actor), True)


def dismiss() -> None:
    """Shut the executors of Ray Data down, with the actors that they hold."""
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        # The iterator over an executor's answers then ends. Ray has no public call that does this from another thread.
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)


def _actors(class_name: str) -> dict[str, str]:
    """This program's actors of a class: the id of each -> its state, such as ALIVE or DEAD."""
    import ray
    from ray._private import state  # the public list of actors needs a dashboard; clusters of our own have none

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actors(None, job, None)
    return {key: actor["State"] for key, actor in actors.items() if class_name in actor["ActorClassName"]}
