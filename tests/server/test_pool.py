"""Who gets which model when: switching, waiting, failing, closing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.runtime_errors import ModelUnavailable
from server.api_errors import ApiError, ClientGone
from server.http.pool import Lease, ModelPool
from tests.server.fake import ScriptedModel
from tests.waiting import until

WAIT = 20.0


class Loader:
    """Counts loads and what is in memory; can be held up and made to fail."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.models: list[ScriptedModel] = []
        self.at_once = 0
        self.most_at_once = 0
        self.most_in_memory = 0
        self.go = threading.Event()
        self.go.set()
        self.problem: Exception | None = None

    def __call__(self, key: str) -> ScriptedModel:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.order.append(key)
        self.go.wait(WAIT)
        self.at_once -= 1
        if self.problem is not None:
            raise self.problem
        model = ScriptedModel()
        self.models.append(model)
        self.most_in_memory = max(self.most_in_memory, sum(not one.closed for one in self.models))
        return model


class Asker:
    """Asks for a model on a thread of its own."""

    def __init__(self, pool: ModelPool[str], key: str, **options: Any) -> None:
        self.lease: Lease[str] | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._pool, self._key, self._options = pool, key, options
        before = pool.waiting
        threading.Thread(target=self._ask, daemon=True).start()
        until(lambda: self.done.is_set() or pool.waiting > before)

    def _ask(self) -> None:
        try:
            self.lease = self._pool.acquire(self._key, **self._options)
        except BaseException as error:
            self.error = error
        self.done.set()

    def result(self) -> Lease[str]:
        assert self.done.wait(WAIT)
        assert self.lease is not None, self.error
        return self.lease


@pytest.fixture
def loader() -> Loader:
    return Loader()


def test_a_model_is_loaded_once_for_many_who_wait(loader: Loader) -> None:
    loader.go.clear()
    pool = ModelPool(loader)
    askers = [Asker(pool, "a") for _ in range(10)]
    loader.go.set()
    assert len({id(asker.result().model) for asker in askers}) == 1
    assert loader.order == ["a"]


def test_a_switch_waits_for_users_closes_the_old_model_and_loads_the_other(loader: Loader) -> None:
    pool = ModelPool(loader)
    first = pool.acquire("a")
    waiting = Asker(pool, "b")
    assert not loader.models[0].closed
    first.release()
    assert waiting.result().model is loader.models[1]
    assert loader.models[0].closed
    assert loader.order == ["a", "b"]
    assert loader.most_in_memory == 1


def test_requests_for_the_loaded_model_are_served_before_a_switch(loader: Loader) -> None:
    pool = ModelPool(loader, patience=WAIT)
    first = pool.acquire("a")
    other = Asker(pool, "b")
    second = pool.acquire("a", timeout=0)  # at once
    first.release()
    third = pool.acquire("a", timeout=0)
    second.release()
    assert other.lease is None
    third.release()
    other.result().release()


def test_a_waiting_model_gets_its_turn_when_patience_is_over(loader: Loader) -> None:
    pool = ModelPool(loader, patience=0.0)
    first = pool.acquire("a")
    other = Asker(pool, "b")
    until(lambda: pool.loaded_keys() == [])  # a takes no new users
    late = Asker(pool, "a")
    assert not late.done.is_set()
    first.release()
    other.result().release()
    late.result().release()
    assert loader.order == ["a", "b", "a"]


def test_models_are_loaded_in_the_order_in_which_they_were_asked_for(loader: Loader) -> None:
    pool = ModelPool(loader)
    first = pool.acquire("a")
    askers = [Asker(pool, key) for key in ("b", "c", "b")]
    first.release()
    for asker in (askers[0], askers[2], askers[1]):
        asker.result().release()
    assert loader.order == ["a", "b", "c"]
    assert loader.most_at_once == 1


def test_more_models_stay_loaded_when_allowed_and_the_least_used_one_goes(loader: Loader) -> None:
    pool = ModelPool(loader, max_loaded=2)
    for key in ("a", "b", "a", "c", "a"):
        pool.acquire(key).release()
    assert loader.order == ["a", "b", "c"]
    assert sorted(pool.loaded_keys()) == ["a", "c"]
    assert loader.most_in_memory == 2


def test_two_models_are_never_loaded_at_once(loader: Loader) -> None:
    pool = ModelPool(loader, max_loaded=4)
    loader.go.clear()
    askers = [Asker(pool, key) for key in "abcd"]
    until(lambda: loader.at_once == 1)
    loader.go.set()
    for asker in askers:
        asker.result().release()
    assert loader.most_at_once == 1


def test_whoever_waits_for_a_failing_load_gets_its_error_and_the_next_tries_again(loader: Loader) -> None:
    pool = ModelPool(loader)
    loader.problem = ModelUnavailable("no")
    loader.go.clear()
    askers = [Asker(pool, "a") for _ in range(3)]
    other = Asker(pool, "b")
    loader.go.set()
    for asker in askers:
        assert asker.done.wait(WAIT)
        assert isinstance(asker.error, ModelUnavailable)
    assert other.done.wait(WAIT)
    loader.problem = None
    pool.acquire("a").release()
    assert loader.order == ["a", "b", "a"]


def test_a_client_that_hangs_up_stops_waiting(loader: Loader) -> None:
    pool = ModelPool(loader)
    with pool.acquire("a"):
        gone = threading.Event()
        asker = Asker(pool, "b", is_gone=gone.is_set)
        gone.set()
        assert asker.done.wait(WAIT)
        assert isinstance(asker.error, ClientGone)
        assert pool.waiting == 0
    assert loader.order == ["a"]


def test_a_wait_ends_with_503_at_the_deadline(loader: Loader) -> None:
    pool = ModelPool(loader)
    with pool.acquire("a"), pytest.raises(ApiError) as caught:
        pool.acquire("b", timeout=0.05)
    assert caught.value.status_code == 503
    assert caught.value.headers is not None
    assert "Retry-After" in caught.value.headers


def test_a_load_goes_on_when_nobody_waits_for_it_any_more(loader: Loader) -> None:
    pool = ModelPool(loader)
    loader.go.clear()
    with pytest.raises(ApiError):
        pool.acquire("a", timeout=0.05)
    loader.go.set()
    until(lambda: pool.loaded_keys() == ["a"])


def test_a_broken_model_is_closed_and_loaded_anew(loader: Loader) -> None:
    pool = ModelPool(loader)
    first, second = pool.acquire("a"), pool.acquire("a")
    first.release(broken=True)
    asker = Asker(pool, "a")
    assert not loader.models[0].closed
    second.release()
    assert asker.result().model is loader.models[1]
    assert loader.models[0].closed


def test_releasing_twice_counts_once(loader: Loader) -> None:
    pool = ModelPool(loader)
    first, second = pool.acquire("a"), pool.acquire("a")
    first.release()
    first.release()
    other = Asker(pool, "b")
    assert not other.done.is_set()
    second.release()
    other.result().release()


def test_closing_refuses_who_waits_and_closes_all_models(loader: Loader) -> None:
    pool = ModelPool(loader, max_loaded=1)
    pool.acquire("a")
    waiting = Asker(pool, "b")
    pool.close()
    assert waiting.done.wait(WAIT)
    assert isinstance(waiting.error, ApiError)
    assert loader.models[0].closed


def test_a_model_that_finishes_loading_after_the_close_is_closed(loader: Loader) -> None:
    pool = ModelPool(loader)
    loader.go.clear()
    asker = Asker(pool, "a")
    until(lambda: loader.at_once == 1)
    pool.close()
    assert asker.done.wait(WAIT)
    loader.go.set()
    until(lambda: bool(loader.models) and loader.models[0].closed)


def test_many_clients_of_many_models_all_get_theirs(loader: Loader) -> None:
    pool = ModelPool(loader, max_loaded=2, patience=0.05)
    served: list[str] = []

    def client(number: int) -> None:
        for step in range(5):
            key = "abc"[(number + step) % 3]
            with pool.acquire(key) as lease:
                assert not lease.model.closed  # type: ignore[attr-defined]
                served.append(key)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(served) == 100
    assert loader.most_at_once == 1
    assert loader.most_in_memory <= 2
