"""config.toml: what is read, what is refused, what is written; and who wins over whom."""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from models import precedence
from models.config import UnknownModel, load_config
from models.config_template import SERVER_KEYS, render
from models.model_errors import ConfigError, InvalidInput
from models.settings import SETTING_NAMES, InferenceSettings


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_a_missing_file_is_written_with_commented_defaults_and_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.toml"
    with pytest.raises(ConfigError, match=r"config\.toml is not there; --init-config writes it"):
        load_config(path)
    assert not path.parent.exists()
    config = load_config(path, create=True)
    assert path.read_text() == render()
    assert (config.active, config.inference, config.server, config.entries) == ("deepseek-ocr", {}, {}, {})
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


def test_the_default_place_is_used_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.paths.config_path", lambda: tmp_path / "c.toml")
    assert load_config().path == tmp_path / "c.toml"
    assert (tmp_path / "c.toml").exists()


def test_an_existing_file_is_never_rewritten(tmp_path: Path) -> None:
    path = write(tmp_path, "# mine\n[server]\nport = 1234\n")
    before = path.stat().st_mtime_ns
    assert load_config(path).server == {"port": 1234}
    assert path.stat().st_mtime_ns == before
    assert path.read_text().startswith("# mine")


def test_every_line_of_the_written_file_is_valid_once_uncommented(tmp_path: Path) -> None:
    text = re.sub(r"^# (?=(\w+ = |\[))", "", render(), flags=re.MULTILINE)
    config = load_config(write(tmp_path, text))
    assert config.server == {key.name: key.default for key in SERVER_KEYS}
    assert set(config.inference) == SETTING_NAMES
    for name, value in config.inference.items():
        if precedence.BY_NAME[name].default is not None:
            assert value == precedence.BY_NAME[name].default
    assert config.entry("my-model").source == str(tmp_path / "my-checkpoint")
    assert tomllib.loads(text)["models"]["active"] == config.active


def test_a_folder_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "file" / "config.toml")
    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(PermissionError("read-only")))
        assert load_config(tmp_path / "config.toml", create=True).active == "deepseek-ocr"
    assert "read-only" in caplog.text


def _load_and_read(path: Path) -> str:
    load_config(path, create=True)
    return path.read_text()


def test_instances_starting_at_once_never_see_a_torn_file(tmp_path: Path) -> None:
    files = [tmp_path / str(n) / "config.toml" for n in range(20) for _ in range(2)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        texts = pool.map(_load_and_read, files, chunksize=1)
    assert set(texts) == {render()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nprot = 1\n", r"config.toml: \[server\] prot: unknown key; expected one of .*port"),
        ("[sever]\n", r"sever: unknown key; expected one of inference, models, server"),
        ("[server]\nport = 'x'\n", r"\[server\] port: expected a port number.*found 'x'"),
        ("[server]\nport = 70000\n", r"\[server\] port: expected a port number.*found 70000"),
        ("[server]\nmax_queue = true\n", r"\[server\] max_queue: expected an integer of at least 1, found True"),
        ("[inference]\ntemperature = 'hot'\n", r"\[inference\] temperature: expected a number, found 'hot'"),
        ("[inference]\ntemperature = -1\n", r"\[inference\] temperature: temperature is -1.0; it must be between"),
        ("[inference]\nmax_new_tokens = true\n", r"\[inference\] max_new_tokens: expected an integer, found True"),
        ("[inference]\nspeed = 1\n", r"\[inference\] speed: unknown key; expected one of .*device.*temperature"),
        ("[inference]\ndevice = 'tpu'\n", r"\[inference\] device: expected one of cpu, cuda.*found 'tpu'"),
        ("[models]\nactive = 3\n", r"\[models\] active: expected a model id, found 3"),
        ("[models.entries]\nx = 3\n", r"\[models.entries\] x: expected a table, found 3"),
        (
            "[models.entries.x]\nkind = 'gpt'\n",
            r"\[models.entries.x\] kind: expected one of .*deepseek-ocr.*found 'gpt'",
        ),
        ("[models.entries.x]\ndtype = 'f8'\n", r"\[models.entries.x\] dtype: expected one of f32.*found 'f8'"),
        (
            "[models.entries.x]\nlayout = 'v9'\n",
            r"\[models.entries.x\] layout: layout detector 'v9' is unknown; .* none",
        ),
        ("[models.entries.'a/b']\n", r"\[models.entries\]: model id 'a/b' cannot be used"),
        ("[models.entries.x.defaults]\nfoo = 1\n", r"\[models.entries.x.defaults\] foo: unknown key"),
        (
            "[models.entries.x.defaults.inference]\ntop_p = 2\n",
            r"\[models.entries.x.defaults.inference\] top_p: .* 2.0",
        ),
        ("models = 1\n", r"models: expected a table, found 1"),
        ("[models\n", r"config.toml is not valid TOML: .*line 1"),
    ],
)
def test_mistakes_are_errors_that_name_file_key_and_expectation(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(write(tmp_path, text))
    assert str(tmp_path / "config.toml") in str(caught.value)


DEEPSEEK_OCR_RS = """
[models]
active = "deepseek-ocr"

[models.entries.deepseek-ocr]
kind = "deepseek"
[models.entries.deepseek-ocr.defaults.inference]
base_size = 1024
image_size = 640
crop_mode = true

[models.entries.deepseek-ocr-2]
kind = "deepseek"
[models.entries.deepseek-ocr-2.defaults.inference]
base_size = 1024
image_size = 768
crop_mode = true

[models.entries.deepseek-ocr-q6k]
kind = "deepseek"
[models.entries.deepseek-ocr-q6k.snapshot]
dtype = "Q6_K"
[models.entries.deepseek-ocr-q6k.defaults.inference]
base_size = 1024

[models.entries.deepseek-ocr-q4k]
kind = "deepseek"
snapshot = { dtype = "Q4_K" }
defaults = {}

[models.entries.dots-ocr]
kind = "dots_ocr"
[models.entries.dots-ocr.defaults]

[models.entries.glm-ocr]
kind = "glm_ocr"
[models.entries.glm-ocr.defaults.inference]
template = "plain"
max_new_tokens = 8192
seed = 0

[models.entries.paddleocr-vl]
kind = "paddle_ocr_vl"

[models.entries.paddleocr-vl-q8k]
kind = "paddle_ocr_vl"
snapshot = { dtype = "Q8_0" }

[inference]
device = "cpu"
precision = "f16"
template = "plain"
base_size = 1024
image_size = 640
crop_mode = true
max_new_tokens = 512
do_sample = false
temperature = 0.0
top_p = 1.0
repetition_penalty = 1.0
no_repeat_ngram_size = 20
use_cache = true

[server]
host = "0.0.0.0"
port = 8000
"""


def test_a_file_of_deepseek_ocr_rs_loads_and_names_once_what_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        config = load_config(write(tmp_path, DEEPSEEK_OCR_RS))
    (record,) = caplog.records
    for name in ("inference.template", "inference.use_cache", "glm-ocr.defaults.inference.template", "q6k.snapshot"):
        assert name in record.getMessage()
    assert (config.device, config.dtype) == ("cpu", "f16")
    assert config.entry("deepseek-ocr").family == "deepseek-ocr"
    assert config.entry("deepseek-ocr-2").family == "deepseek-ocr-2"
    assert config.entry("paddleocr-vl-q8k").dtype == "q8"
    assert config.entry("glm-ocr").defaults == {"max_new_tokens": 8192, "seed": 0}
    quantised = config.entry("deepseek-ocr-q6k")
    assert (quantised.id, quantised.dtype, quantised.defaults["base_size"]) == ("deepseek-ocr", "q8", 1024)
    assert config.entry("deepseek-ocr-q4k").dtype == "q4"
    tiny = precedence.resolve(config.inference, config.entry("tiny-ocr").defaults, {}, {})
    assert (tiny.value("base_size"), tiny.value("image_size")) == (256, 224)


def test_an_entry_lays_its_fields_over_the_catalogue(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            "[models.entries.deepseek-ocr]\nrevision = 'abc'\ntokenizer = 'tok.json'\n"
            "defaults = {top_k = 0, top_p = 1}\n"
            "[models.entries.mine]\nkind = 'deepseek_ocr'\nsource = 'me/mine'\ndtype = 'f16'\n"
            "[models.entries.mine-q8]\nsource = 'me/mine-quantised'\n",
        )
    )
    entry = config.entry("deepseek-ocr")
    assert (entry.source, entry.revision, entry.tokenizer) == ("deepseek-ai/DeepSeek-OCR", "abc", tmp_path / "tok.json")
    assert entry.defaults == {"top_k": None, "top_p": 1.0}
    mine = config.entry("mine")
    assert (mine.id, mine.family, mine.source, mine.dtype) == ("mine", "deepseek-ocr", "me/mine", "f16")
    assert config.entry("mine-q4").dtype == "q4"
    other = config.entry("mine-q8")
    assert (other.id, other.source, other.dtype) == ("mine-q8", "me/mine-quantised", "q8")


def test_an_entry_may_be_given_a_layout_detector_or_none(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            "[models.entries.deepseek-ocr]\nlayout = 'v3'\n[models.entries.'paddleocr-vl-1.5']\nlayout = 'none'\n",
        )
    )
    layouts = {name: config.entry(name).layout for name in ("deepseek-ocr", "deepseek-ocr-q8", "paddleocr-vl-1.5")}
    assert layouts == {
        "deepseek-ocr": "pp-doclayout-v3",
        "deepseek-ocr-q8": "pp-doclayout-v3",
        "paddleocr-vl-1.5": None,
    }
    assert config.entry("paddleocr-vl").layout == "pp-doclayout-v2"
    assert config.entry("paddleocr-vl-1.6").layout == "pp-doclayout-v3"
    assert config.entry("tiny-ocr").layout is None


def test_variants_share_their_base_model(tmp_path: Path) -> None:
    config = load_config(tmp_path / "config.toml", create=True)
    entry = config.entry("deepseek-ocr-q8")
    assert (entry.id, entry.dtype, entry.source) == ("deepseek-ocr", "q8", "deepseek-ai/DeepSeek-OCR")


@pytest.mark.parametrize("model_id", ["gpt-4", "gpt-4-q8", "../x", "", "deepseek-ocr-q8-q8-q8"])
def test_an_unknown_model_is_an_error_that_lists_the_known_ones(tmp_path: Path, model_id: str) -> None:
    config = load_config(tmp_path / "config.toml", create=True)
    if model_id == "deepseek-ocr-q8-q8-q8":
        model_id = "x" + model_id
    with pytest.raises(UnknownModel, match=r"deepseek-ocr.*tiny-ocr"):
        config.entry(model_id)


# Five different valid values of every setting: built-in is the first source, the body the last.
LEVELS: dict[str, tuple[Any, Any, Any, Any]] = {
    "base_size": (256, 512, 1024, 1280),
    "image_size": (128, 192, 512, 640),
    "crop_mode": (False, True, False, True),
    "max_tiles": (2, 4, 6, 9),
    "full_attention": (True, False, True, False),
    "page_headers": (False, True, False, True),
    "min_pixels": (1000, 2000, 3000, 4000),
    "max_pixels": (100_000, 200_000, 300_000, 400_000),
    "max_new_tokens": (10, 20, 30, 40),
    "stop": (["a"], ["b"], ["c"], ["d", "e"]),
    "deadline_s": (1, 2.5, 3, 4.5),
    "do_sample": (True, False, True, False),
    "temperature": (0.1, 0.2, 0.3, 1),
    "top_p": (0.1, 0.2, 0.3, 0.4),
    "top_k": (5, 0, 7, 8),
    "seed": (1, 2, 3, 4),
    "repetition_penalty": (1.1, 1.2, 1.3, 1.4),
    "no_repeat_ngram_size": (0, 3, 4, 5),
    "no_repeat_ngram_window": (50, 0, 70, 80),
    "no_repeat_ngram_whitelist": ([1], [2], [3], [4, 5]),
    "stop_on_loop": (False, True, False, True),
    "transparency": ("black", "drop", "white", "black"),
    "orient": ("auto", "off", "auto", "off"),
}


@pytest.mark.parametrize("name", sorted(SETTING_NAMES))
def test_body_beats_flags_beat_entry_beat_config_beat_builtin(name: str, tmp_path: Path) -> None:
    setting = precedence.BY_NAME[name]
    in_config, in_entry, in_flags, in_body = LEVELS[name]
    expected = [precedence.check_value(setting, value) for value in LEVELS[name]]
    path = write(
        tmp_path, f"[inference]\n{name} = {_toml(in_config)}\n[models.entries.m.defaults]\n{name} = {_toml(in_entry)}\n"
    )
    config = load_config(path)
    entry = config.entry("m").defaults
    flags = {name: precedence.check_value(setting, in_flags)}

    def value(*sources: Any) -> Any:
        return precedence.resolve(*sources).value(name)

    assert value({}, {}, {}, {}) == InferenceSettings().value(name)
    assert value(config.inference, {}, {}, {}) == expected[0]
    assert value(config.inference, entry, {}, {}) == expected[1]
    assert value(config.inference, entry, flags, {}) == expected[2]
    for spelling in setting.spellings:
        assert value(config.inference, entry, flags, precedence.from_body({spelling: in_body})) == expected[3]
        assert value(config.inference, entry, flags, precedence.from_body({spelling: None})) == expected[2]


def _toml(value: Any) -> str:
    return json.dumps(value)  # which writes these alike


def test_the_table_has_every_setting_once() -> None:
    assert [setting.name for setting in precedence.SETTINGS] == list(dict.fromkeys(s.name for s in precedence.SETTINGS))
    assert set(precedence.BY_NAME) == SETTING_NAMES == set(LEVELS)
    spellings = [spelling for setting in precedence.SETTINGS for spelling in setting.spellings]
    assert len(spellings) == len(set(spellings))


def test_two_spellings_of_one_limit_may_agree_but_not_disagree() -> None:
    assert precedence.from_body({"max_tokens": 5, "max_completion_tokens": 5}) == {"max_new_tokens": 5}
    with pytest.raises(InvalidInput, match="max_completion_tokens and max_tokens"):
        precedence.from_body({"max_tokens": 5, "max_completion_tokens": 6})


@pytest.mark.parametrize(("field", "value"), [("temperature", "1"), ("max_tokens", 1.5), ("seed", True), ("stop", [1])])
def test_wrong_types_in_a_body_name_the_field_as_the_client_wrote_it(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: expected"):
        precedence.from_body({field: value})
