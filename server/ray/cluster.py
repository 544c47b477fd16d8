"""Joins a cluster of Ray, or starts one, and counts the engines that its CPUs and GPUs are enough for."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.command.command_errors import CommandFailed, UsageError

MISSING = "--ray needs the package ray: pip install 'ocr-onnx[ray]'"
HERE = "here"  # --ray without an address: the cluster of RAY_ADDRESS or of this machine, else one of our own
THREADS = 4  # of an engine on CPUs, where --threads is not given
DRAWING = 1  # CPUs, at least, that --actors auto leaves to the drawing of pages


@dataclass(frozen=True)
class Pool:
    """How many actors read, each with one engine, and what each reserves of the cluster."""

    actors: int
    threads: int  # of each engine on CPUs; 0 on GPUs, where ONNX Runtime chooses
    num_cpus: float
    num_gpus: float
    drawing: int  # tasks that draw pages at the same time


def check_address(address: str) -> None:
    """Check the value of ``--ray``. argparse takes the next word for that value, even where a document was meant.

    Raises
    ------
    UsageError
        when the value is no address.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: Ray Client carries no datasets; run this on a machine of the cluster, with --ray auto, "
            "or send it there with `ray job submit -- ocr-onnx read ... --ray`"
        )
    host, _, port = address.rpartition(":")
    if address not in (HERE, "auto", "local") and not (host and port.isdecimal()):
        raise UsageError(
            f"--ray {address!r} is no address; write host:6379, auto (a cluster that runs here), local (one of this "
            "program's own) or nothing, and name the documents before it"
        )


@contextlib.contextmanager
def joined(address: str, *, quiet: bool = False) -> Iterator[None]:
    """Be a driver of the cluster until the block ends. A cluster that was started for the block ends with the block.

    Raises
    ------
    UsageError
        when Ray is not installed.
    CommandFailed
        when there is no cluster at the address, or none can be started.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(MISSING)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CUDA_VISIBLE_DEVICES stays in actors without GPU
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a late thread must not join another cluster
    import ray

    mine = not ray.is_initialized()
    if mine:
        how: dict[str, Any] = {} if address == HERE else {"address": address}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                **how, include_dashboard=False, logging_level=logging.ERROR if quiet else logging.WARNING,
                log_to_driver=not quiet, configure_logging=False,
            )  # fmt: skip
        except Exception as error:  # Ray raises Exception itself for a node that does not start in time
            raise CommandFailed(f"no cluster of Ray can be joined (--ray {address}): {error}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # that of Ray ends the program at once
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def has_gpus() -> bool:
    """Whether the cluster has GPUs."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) >= 1)


def pool_of(actors: str, threads: int, *, gpu: bool) -> Pool:
    """The engines for ``--actors N|auto``.

    auto : one engine for each GPU; on CPUs as many engines as find room beside the drawing of pages, which gets an
    eighth of the CPUs and at least one. threads : of each engine on CPUs; 0 for the usual number.

    Raises
    ------
    UsageError
        when the cluster has fewer CPUs or GPUs than the engines need.
    """
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if gpu:
        count = gpus if actors == "auto" else int(actors)
        if not 1 <= count <= gpus:
            raise UsageError(f"--actors {actors}: the cluster has {gpus} GPUs, and each engine takes one")
        return Pool(count, 0, 1, 1, max(DRAWING, cpus - count))
    threads = threads or max(1, min(THREADS, cpus - DRAWING))
    most = (cpus - DRAWING) // threads
    count = max(1, (cpus - max(DRAWING, cpus // 8)) // threads) if actors == "auto" else int(actors)
    if count > most:
        raise UsageError(
            f"--actors {actors}: the cluster has {cpus} CPUs, enough for {most} engines of {threads} threads beside "
            "the drawing of pages; lower --actors or --threads"
        )
    return Pool(count, threads, threads, 0, cpus - count * threads)
