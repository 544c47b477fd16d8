"""One contender in a process of its own: its memory is its own, and closing it gives all of it back.

Parent and child speak JSON lines. The child (``python -m tools.bench.worker``) is started by ``WorkerContender``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

from .plan import KINDS, Case, Kind, Plan
from .turns import BenchError

ROOT = Path(__file__).resolve().parents[2]


class Subject(Protocol):
    """What runs inside the child."""

    def prepare(self, part: str, value: int) -> None: ...
    def sample(self, part: str, value: int) -> Mapping[str, float]: ...


class Worker:
    """The parent's end of one child."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.bench.worker"], cwd=ROOT, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self.ask(dict(setup))

    def ask(self, message: Mapping[str, Any]) -> dict[str, float]:
        """Send one request and wait for its answer.

        Raises
        ------
        BenchError
            when the child failed or died; its last lines are in the message.
        """
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            killed = " (killed: out of memory?)" if code == -9 else ""
            raise BenchError(f"the worker ended with status {code}{killed}: {self._tail()}")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise BenchError(found["error"])
        values: dict[str, float] = found["values"]
        return values

    def close(self) -> None:
        for pipe in self._pipes():
            pipe.close()  # the end of its input ends the child
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def _tail(self) -> str:
        self._log.seek(0)
        return " | ".join(self._log.read().splitlines()[-6:])


class WorkerContender:
    """The half of a ``turns.Contender`` that measures in a child: subclasses add its name, cases and memory."""

    module: str  # of the subject, with a function ``subject(setup)``

    def __init__(self, setup: Mapping[str, Any], plan: Plan) -> None:
        self._setup, self._plan = dict(setup), plan
        self._worker: Worker | None = None
        self._kind: Kind | None = None
        self._warm: set[Case] = set()

    def prepare(self, case: Case) -> None:
        """See ``turns.Contender``: starts the child, or another one when another kind of thing must be loaded."""
        if case not in self._warm or self._kind != KINDS[case.part]:
            self._ask("prepare", case)
            self._warm.add(case)

    def sample(self, case: Case) -> Mapping[str, float]:
        """See ``turns.Contender``."""
        return self._ask("sample", case)

    def close(self) -> None:
        """End the child."""
        if self._worker is not None:
            self._worker.close()
        self._worker, self._kind = None, None
        self._warm.clear()

    def _ask(self, action: str, case: Case) -> dict[str, float]:
        kind = KINDS[case.part]
        if self._kind != kind:
            self.close()
        if self._worker is None:
            self._kind = kind
            try:
                self._worker = Worker({"module": self.module, "kind": kind, "plan": asdict(self._plan), **self._setup})
            except BenchError:
                self._kind = None
                raise
        try:
            return self._worker.ask({"do": action, "part": case.part, "value": case.value})
        except BenchError:
            if self._worker.process.poll() is not None:
                self.close()
            raise


def plan_from(values: Mapping[str, Any]) -> Plan:
    """A plan that went through JSON."""
    tuples: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Plan(**{**values, **tuples})


def main() -> None:
    """Read requests from standard input until it ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    subject: Subject | None = None
    for line in sys.stdin:
        message = json.loads(line)
        values: Mapping[str, float] | None = None
        try:
            if subject is None:
                subject = _subject(message)
            elif message["do"] == "prepare":
                subject.prepare(message["part"], message["value"])
            else:
                values = subject.sample(message["part"], message["value"])
            answer: dict[str, Any] = {"values": values or {}}
        except Exception as error:  # told to the parent, which leaves this case out
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _subject(setup: dict[str, Any]) -> Subject:
    from importlib import import_module

    made: Subject = import_module(setup["module"]).subject(setup)
    return made


if __name__ == "__main__":
    main()
