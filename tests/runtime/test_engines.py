"""Several devices as one: requests go where there is least to do, and nothing is lost between them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from models.config import is_device, load_config
from models.model_errors import ConfigError
from runtime import model as model_module
from runtime import providers
from runtime.engines import EngineGroup
from runtime.model import Model
from runtime.providers import Device, each_card, find_device
from runtime.requests import EngineLoad
from runtime.runtime_errors import RuntimeUnavailable


class FakeEngine:
    def __init__(self, queued: int, active: int, *, alive: bool = True) -> None:
        self.queue_depth, self.active, self.alive = queued, active, alive
        self.loads = [EngineLoad(f"cuda:{queued}", 4, active, queued, alive)]
        self.taken: list[Any] = []
        self.closed: list[bool] = []

    def submit(self, sequence: Any) -> None:
        self.taken.append(sequence)
        self.queue_depth += 1

    def drain(self, timeout: float | None = None) -> bool:
        return not self.taken

    def close(self, *, wait: bool = True) -> None:
        self.closed.append(wait)


def test_a_request_goes_to_the_engine_with_the_fewest_and_then_to_the_next() -> None:
    engines = [FakeEngine(2, 1), FakeEngine(0, 1), FakeEngine(0, 2)]
    group = EngineGroup(engines)  # type: ignore[arg-type]
    for request in "abcd":
        group.submit(request)  # type: ignore[arg-type]
    assert [engine.taken for engine in engines] == [["d"], ["a", "b"], ["c"]]
    assert (group.queue_depth, group.active) == (6, 4)


def test_the_load_of_each_engine_is_told_by_its_card() -> None:
    group = EngineGroup([FakeEngine(0, 1), FakeEngine(1, 3, alive=False)])  # type: ignore[list-item]
    assert group.loads == [EngineLoad("cuda:0", 4, 1, 0, True), EngineLoad("cuda:1", 4, 3, 1, False)]


def test_a_failed_engine_gets_nothing_and_makes_the_whole_be_replaced() -> None:
    engines = [FakeEngine(0, 0, alive=False), FakeEngine(3, 3)]
    group = EngineGroup(engines)  # type: ignore[arg-type]
    group.submit("a")  # type: ignore[arg-type]
    assert (engines[0].taken, engines[1].taken) == ([], ["a"])
    assert not group.alive


def test_all_are_told_to_close_before_any_is_waited_for() -> None:
    engines = [FakeEngine(0, 0), FakeEngine(0, 0)]
    group = EngineGroup(engines)  # type: ignore[arg-type]
    assert group.drain(1.0)
    group.close()
    assert [engine.closed for engine in engines] == [[False, True], [False, True]]


def test_a_model_on_two_devices_reads_on_both(random_model_folder, picture, monkeypatch) -> None:
    monkeypatch.setattr(model_module, "each_card", lambda name: ["first", "second"])
    monkeypatch.setattr(model_module, "find_device", lambda name, threads: Device("cpu", 1))
    with Model.open(random_model_folder, slots=1) as model:
        assert model.slots == 2
        engines = model.engine.engines  # type: ignore[union-attr]
        took = [0, 0]
        for index, engine in enumerate(engines):
            submit = engine.submit

            def counting(sequence: Any, index: int = index, submit: Any = submit) -> None:
                took[index] += 1
                submit(sequence)

            monkeypatch.setattr(engine, "submit", counting)
        with ThreadPoolExecutor(4) as pool:
            read = lambda _: model.read(picture(100, 100), max_new_tokens=16, stop_on_loop=False).tokens
            answers = list(pool.map(read, range(4)))
    assert answers == [answers[0]] * 4
    assert took == [2, 2]


@pytest.fixture
def two_cards(monkeypatch) -> None:
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(providers.ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(providers, "card_count", lambda: 2)


def test_a_small_model_that_has_many_pages_reads_them_in_engines_of_one_thread(random_model_folder, picture) -> None:
    def texts(many: bool) -> list[str]:
        with Model.open(random_model_folder, device="cpu", threads=2, slots=2, many=many) as model:
            engines = 2 if many else 1
            assert [load.slots for load in model.loads] == [2] * engines
            assert model.slots == 2 * engines
            pages = [picture(64, 48, seed) for seed in range(6)]
            with ThreadPoolExecutor(model.slots) as pool:
                return list(pool.map(lambda page: model.read(page, max_new_tokens=8).text, pages))

    assert texts(many=True) == texts(many=False)


def test_cards_are_named_by_number_and_all_together(two_cards) -> None:
    assert each_card("cuda:all") == ["cuda:0", "cuda:1"]
    assert [each_card(name) for name in ("cuda:1", "cpu", "auto")] == [["cuda:1"], ["cpu"], ["auto"]]
    assert [find_device(name).index for name in ("cuda", "cuda:0", "cuda:1", "auto")] == [0, 0, 1, 0]
    assert find_device("cuda:1").label == "cuda:1"


def test_a_card_that_is_not_there_is_named(two_cards) -> None:
    with pytest.raises(RuntimeUnavailable, match="cuda:2 asks for card 2, and this machine has 2, which count from 0"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cpu:1", "coreml:all", "cuda:-1"])
def test_what_is_no_device_is_refused_everywhere(name, tmp_path) -> None:
    assert not is_device(name)
    if name != "cuda:":
        with pytest.raises(ValueError, match="is unknown"):
            find_device(name)
    (tmp_path / "c.toml").write_text(f'[inference]\ndevice = "{name}"\n')
    with pytest.raises(ConfigError, match="device"):
        load_config(tmp_path / "c.toml")


def test_config_takes_a_card_by_its_number(tmp_path) -> None:
    (tmp_path / "c.toml").write_text('[inference]\ndevice = "cuda:1"\n')
    assert load_config(tmp_path / "c.toml").device == "cuda:1"
