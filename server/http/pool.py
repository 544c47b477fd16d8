"""The loaded models: who gets one, who waits, and when one makes room for another.

A request for a loaded model is served at once. A request for another model waits until a place is free: the least
recently used model is drained, evicted and closed, then the new model is loaded, one load at a time. For ``patience``
seconds new requests for a loaded model overtake the waiting request; then they wait behind it, so that its model gets a
turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

from runtime.library.memory import give_memory_back, resident_mb
from runtime.requests import EngineLoad, TextModel
from runtime.runtime_errors import EngineClosed
from server.api_errors import ClientGone, Unavailable

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

POLL_SECONDS = 0.2  # how often a waiting request looks whether its client is still there
CLOSE_SECONDS = 30.0  # that requests in flight have to leave a model before the model is closed under them


@dataclass
class _Loaded:
    model: TextModel
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)
    retiring: bool = False  # takes no new users: the model is to make room, or its engine has failed

    @property
    def usable(self) -> bool:
        """Whether requests may come. A model whose engine has failed retires, and is loaded anew."""
        self.retiring = self.retiring or not self.model.alive
        return not self.retiring


@dataclass(eq=False)
class _Waiter(Generic[K]):
    key: K
    since: float = field(default_factory=time.monotonic)
    error: Exception | None = None


class Lease(Generic[K]):
    """The right to use a loaded model, which stays in memory until ``release``.

    As a context manager, a lease tells the pool when the model's engine has stopped.
    """

    def __init__(self, pool: ModelPool[K], key: K, loaded: _Loaded) -> None:
        self._pool, self._key, self._loaded = pool, key, loaded
        self._released = False

    @property
    def model(self) -> TextModel:
        return self._loaded.model

    def release(self, *, broken: bool = False) -> None:
        """Give the model back. ``broken``: its engine has stopped; the next request loads it anew. Idempotent."""
        if not self._released:
            self._released = True
            self._pool.give_back(self._loaded, broken)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release(broken=isinstance(error, EngineClosed))


class ModelPool(Generic[K]):
    """Up to ``max_loaded`` models by key. ``load`` makes the model of a key, on a thread of its own."""

    def __init__(
        self,
        load: Callable[[K], TextModel],
        *,
        max_loaded: int = 1,
        timeout: float = 600.0,
        patience: float = 20.0,
    ) -> None:
        self._load = load
        self._max_loaded, self._timeout, self._patience = max_loaded, timeout, patience
        self._changed = threading.Condition()  # guards everything below
        self._loaded: dict[K, _Loaded] = {}
        self._leaving = 0  # evicted models whose memory is still taken
        self._loading: K | None = None
        self._waiting: list[_Waiter[K]] = []
        self._closed = False

    def acquire(self, key: K, is_gone: Callable[[], bool] = lambda: False, timeout: float | None = None) -> Lease[K]:
        """Wait for a model, which is loaded when its turn comes.

        Raises
        ------
        ClientGone
            when ``is_gone`` turned true meanwhile.
        Unavailable
            when ``timeout`` seconds passed, or the pool was closed.
        Exception
            whatever ``load`` raised for this key while this request waited for it.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else min(timeout, self._timeout))
        waiter = _Waiter(key)
        with self._changed:
            self._waiting.append(waiter)
            try:
                while True:
                    if self._closed:
                        raise Unavailable("the server is shutting down", code="shutting_down")
                    if waiter.error is not None:
                        raise waiter.error
                    loaded = self._loaded.get(key)
                    if loaded is not None and loaded.usable:
                        loaded.users += 1
                        return Lease(self, key, loaded)
                    if is_gone():
                        raise ClientGone
                    if time.monotonic() >= deadline:
                        raise Unavailable("the model could not be loaded in time; try again later", code="model_busy")
                    self._make_progress()
                    self._changed.wait(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            finally:
                self._waiting.remove(waiter)
                self._changed.notify_all()

    def give_back(self, loaded: _Loaded, broken: bool) -> None:
        """See ``Lease.release``."""
        with self._changed:
            loaded.users -= 1
            loaded.last_used = time.monotonic()
            loaded.retiring = loaded.retiring or broken
            self._changed.notify_all()
            if loaded.retiring:
                self._make_progress()

    def close(self) -> None:
        """Refuse callers that wait, and close all models, those in use too: their requests end as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            models = [loaded.model for loaded in self._loaded.values()]
            self._loaded.clear()
        for model in models:
            model.close()

    def loaded_keys(self) -> list[K]:
        """Models that are ready for requests."""
        with self._changed:
            return [key for key, loaded in self._loaded.items() if loaded.usable]

    def replace_failed(self) -> None:
        """Load anew, in the background, models whose engine has failed.

        The next request would load such a model, too; but a load balancer sends no request to a server that is not
        ready.
        """
        with self._changed:
            failed = [key for key, loaded in self._loaded.items() if not loaded.retiring and not loaded.usable]
        for key in failed:
            log.error("the engine of model %s has failed; loading it anew", key)
            threading.Thread(target=self._reload, args=(key,), name="reload", daemon=True).start()

    @property
    def loading(self) -> K | None:
        """The model that is being exported or loaded now."""
        return self._loading

    @property
    def waiting(self) -> int:
        """Requests that wait for a model to be loaded."""
        with self._changed:
            return len(self._waiting)

    def queue_depth(self) -> int:
        """Requests that wait inside the loaded models."""
        with self._changed:
            return sum(loaded.model.queue_depth for loaded in self._loaded.values())

    def loads(self) -> list[tuple[K, EngineLoad]]:
        """The load of each engine of the loaded models."""
        with self._changed:
            return [(key, load) for key, loaded in self._loaded.items() for load in loaded.model.loads]

    def active(self) -> int:
        """Requests that the loaded models work on."""
        with self._changed:
            return sum(loaded.model.active for loaded in self._loaded.values())

    # The following methods run with the lock held.

    def _make_progress(self) -> None:
        """Take the next step towards the first waiting request's model: retire, evict or load."""
        for key, loaded in list(self._loaded.items()):
            if loaded.retiring and loaded.users == 0:
                self._evict(key)
        if self._loading is not None or self._leaving or self._closed:
            return
        first = next((waiter for waiter in self._waiting if waiter.key not in self._loaded and not waiter.error), None)
        if first is None:
            return
        if len(self._loaded) < self._max_loaded:
            self._start_loading(first.key)
            return
        # A model stays where a waiting caller, who came within the patience, is about to lease it.
        free = {key: loaded for key, loaded in self._loaded.items() if not self._is_wanted(key, first)}
        idle = [key for key, loaded in free.items() if loaded.users == 0]
        if idle:
            self._evict(min(idle, key=lambda key: free[key].last_used))
        elif (
            free
            and time.monotonic() - first.since > self._patience
            and not any(loaded.retiring for loaded in self._loaded.values())
        ):
            min(free.values(), key=lambda loaded: loaded.last_used).retiring = True

    def _is_wanted(self, key: K, first: _Waiter[K]) -> bool:
        """Whether a caller who waits for that loaded model came before the patience of ``first`` was over."""
        return any(waiter.key == key and waiter.since < first.since + self._patience for waiter in self._waiting)

    def _evict(self, key: K) -> None:
        loaded = self._loaded.pop(key)
        self._leaving += 1
        log.info("unloading model %s", key)
        threading.Thread(target=self._unload, args=(key, loaded), name="unload", daemon=True).start()

    def _start_loading(self, key: K) -> None:
        self._loading = key
        threading.Thread(target=self._run_load, args=(key,), name="load", daemon=True).start()

    # The following methods run on threads of their own, without the lock.

    def _reload(self, key: K) -> None:
        try:
            self.acquire(key).release()
        except Exception:  # the log has the reason, and the next request tries again
            log.exception("model %s is not there again", key)

    def _unload(self, key: K, loaded: _Loaded) -> None:
        model = loaded.model
        del loaded.model  # a holder of the entry (a finished request, this thread) must not keep the memory
        try:
            model.drain(CLOSE_SECONDS)
            model.close()
        except Exception:
            log.exception("closing model %s failed", key)
        finally:
            del model
            give_memory_back()
            log.info("model %s is unloaded; %.0f MB resident", key, resident_mb())
            with self._changed:
                self._leaving -= 1
                self._changed.notify_all()

    def _run_load(self, key: K) -> None:
        error: Exception | None = None
        model: TextModel | None = None
        started = time.monotonic()
        try:
            model = self._load(key)
            give_memory_back()  # trim what packing the weights has freed
            log.info("model %s is loaded, %.1f s; %.0f MB resident", key, time.monotonic() - started, resident_mb())
        except Exception as problem:
            log.error("model %s cannot be loaded: %s", key, problem)
            error = problem
        with self._changed:
            self._loading = None
            if error is not None:
                for waiter in self._waiting:
                    if waiter.key == key:
                        waiter.error = error
            elif model is not None and not self._closed:
                self._loaded[key] = _Loaded(model)
                model = None
            self._changed.notify_all()
        if model is not None:
            model.close()
