"""Which settings a PaddleOCR-VL request has when nobody says anything, on each way to the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import precedence
from models.registry import defaults_of
from models.settings import InferenceSettings
from tests.command.conftest import Program, ocr, page_of  # noqa: F401 - ocr is a fixture
from tests.server.conftest import MakeService, chat, make_service  # noqa: F401 - make_service is a fixture


def guards(settings: InferenceSettings) -> tuple[int, bool]:
    return settings.no_repeat_ngram_size, settings.stop_on_loop


def test_families_without_defaults_of_their_own_have_none() -> None:
    assert defaults_of("hunyuan-ocr") == {}
    assert defaults_of("deepseek-ocr") == {
        "no_repeat_ngram_window": 90, "no_repeat_ngram_whitelist": (128821, 128822),
    }  # fmt: skip
    assert guards(precedence.resolve(defaults_of("paddleocr-vl"), {}, {}, {})) == (0, False)


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("paddleocr-vl", "", (0, False)),
        ("paddleocr-vl", "[inference]\nno_repeat_ngram_size = 9\n", (9, False)),
        ("paddleocr-vl", "[models.entries.paddleocr-vl.defaults]\nstop_on_loop = true\n", (0, True)),
        ("deepseek-ocr", "", (20, True)),
    ],
)
def test_the_familys_defaults_hold_where_config_and_entry_are_silent(
    make_service: MakeService, ocr: Program, tmp_path: Path, model: str, config: str, expected: tuple[int, bool]  # noqa: F811
) -> None:  # fmt: skip
    service = make_service(config_text=config)
    service.post(chat(model=model))
    assert guards(service.source.models[model].requests[0].settings) == expected

    page_of(5).save(tmp_path / "a.png")
    (tmp_path / "config.toml").write_text(config)
    assert ocr("read", tmp_path / "a.png", "--model", model) == 0
    assert guards(ocr.readers[-1].settings) == expected
    assert ocr.readers[-1].settings.max_new_tokens == 8192
