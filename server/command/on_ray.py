"""``read --ray``: the flags, and the parts of a run on a cluster. ray itself is imported on demand."""

from __future__ import annotations

import argparse
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from models.config import Config
from models.settings import InferenceSettings
from runtime.documents import Document
from runtime.runtime_errors import ModelUnavailable
from server.options import ServerOptions
from server.ray import cluster
from server.ray.arguments import add_address
from server.ray.drawing import Drawing
from server.ray.reading import ReadingJob

from .command_errors import CommandFailed, UsageError
from .plan import DocumentPlan
from .progress import Progress
from .readers import LocalReader
from .run import Sink

BATCH = 8  # pages that an engine gets at once without --slots


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of reading on a cluster."""
    group = parser.add_argument_group("a cluster of Ray (extra ray) instead of this machine")
    add_address(group.add_argument, "read")
    parser.set_defaults(ray=None)  # flags that are left out are None for ``read``, and absent for ``serve``
    group.add_argument(
        "--actors",
        metavar="N|auto",
        type=_actors,
        default=None,
        help="engines that read (default: auto, one for each GPU, or as many as there are CPUs for; --threads says how "
        "many each takes)",
    )


def check(given: Mapping[str, Any]) -> None:
    """Raises UsageError for flags that do not go together."""
    if given["ray"] is None:
        if given["actors"] is not None:
            raise UsageError("--actors belongs to --ray")
        return
    if given["server"] is not None:
        raise UsageError("--ray reads with models on a cluster, --server with those of a server; leave one out")
    if given["jobs"] is not None:
        raise UsageError("--jobs belongs to a model in this process; with --ray say --actors and --slots")
    if ":" in given.get("device", ""):
        raise UsageError(f"--device {given['device']}: Ray gives each engine a GPU of its own; say --device cuda")
    cluster.check_address(given["ray"])


class ClusterReader(LocalReader):
    """The head's knowledge of the model, without loading it; the engines on the cluster read."""

    def __init__(
        self, config: Config, options: ServerOptions, prompt: str, settings: InferenceSettings, stop: threading.Event,
        *, raw: bool, schema: str | None, several: InferenceSettings | None, address: str, actors: str, quiet: bool,
    ) -> None:  # fmt: skip
        """Join the cluster. Raises as ``cluster.joined`` and ``cluster.pool_of``, and ConfigError as LocalReader."""
        self._exit = ExitStack()
        self._exit.enter_context(cluster.joined(address, quiet=quiet))
        try:
            device = options.device
            if device == "auto":
                device = "cuda" if cluster.has_gpus() else "cpu"
            self._pool = cluster.pool_of(actors, options.threads, gpu=device == "cuda")
            super().__init__(
                config, options, prompt, settings, stop, raw=raw, schema=schema, several=several, device=device
            )
        except BaseException:
            self._exit.close()
            raise
        # Settings that another machine's environment leaves unset are as on this machine.
        here = replace(config, cache=config.cache_dir)
        there = replace(options, device=device, threads=self._pool.threads)
        self._make = functools.partial(engine_of, here, there, prompt, settings, raw, schema, several)
        self._batch = options.slots or BATCH

    def start(self) -> int:
        """Export the model if needed. Returns 1: the cluster decides how many pages are read at once."""
        try:
            if not self._source.is_exported(self.key):
                self._source.export(self.key, self._source.exporter(self.key))
        except ModelUnavailable as error:
            raise CommandFailed(str(error)) from error
        return 1

    def read_all(
        self, plans: Sequence[DocumentPlan], drawing: Drawing, sink: Sink,
        head: Callable[[DocumentPlan], Mapping[str, Any]], open_source: Callable[[DocumentPlan], Document],
        progress: Progress, min_confidence: float,
    ) -> None:  # fmt: skip
        """Read all pages; raises as ``ClusterRun.read_all``."""
        from server.ray.batch import ClusterRun

        job = ReadingJob(
            self._make, self.model_files(), min_confidence, self._pool.threads, drawing if self.joint else None
        )
        run = ClusterRun(job, drawing, self._pool, sink, head, open_source, progress, self._stop, batch=self._batch)
        run.read_all(plans)

    def close(self) -> None:
        """Leave the cluster."""
        self._exit.close()
        super().close()


def engine_of(
    config: Config, options: ServerOptions, prompt: str, settings: InferenceSettings, raw: bool, schema: str | None,
    several: InferenceSettings | None,
) -> LocalReader:  # fmt: skip
    """The reader of an actor, in the actor's process."""
    return LocalReader(config, options, prompt, settings, threading.Event(), raw=raw, schema=schema, several=several)


def _actors(text: str) -> str:
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected auto or an integer of at least 1, found {text!r}")
    return text
