"""What is told of several engines, and how many requests a server with several cards lets in."""

from __future__ import annotations

import pytest

from runtime import providers
from runtime.requests import EngineLoad
from server.http.arguments import build_parser, options_of
from server.http.metrics import Metrics
from server.options import ServerOptions


def test_each_engine_has_gauges_that_go_with_it() -> None:
    metrics = Metrics()
    loads = [("m", EngineLoad("cuda:0", 16, 3, 0, True)), ("m", EngineLoad("cuda:1", 16, 16, 5, False))]
    metrics.watch_engines(lambda: loads)
    text = metrics.text().decode()
    assert 'ocr_engine_slots{device="cuda:0",model="m"} 16.0' in text
    assert 'ocr_engine_active{device="cuda:1",model="m"} 16.0' in text
    assert 'ocr_engine_queued{device="cuda:1",model="m"} 5.0' in text
    assert 'ocr_engine_alive{device="cuda:1",model="m"} 0.0' in text
    loads.clear()
    assert "ocr_engine_slots{" not in metrics.text().decode()


def test_a_server_with_several_cards_lets_in_what_fills_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.config import load_config

    monkeypatch.setattr(providers, "card_count", lambda: 8)
    monkeypatch.setattr(providers, "load_cuda_libraries", lambda: None)
    given = vars(build_parser().parse_args(["--device", "cuda:all", "--slots", "16", "--max-queue", "10"]))
    assert options_of(load_config(None), given, {}).capacity == 8 * 16 + 10
    assert ServerOptions(slots=16, max_queue=10).capacity == 16 + 10
