"""The command line: flags, defaults, what is said when it cannot start."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from models.config import load_config
from models.config_template import SERVER_KEYS
from models.model_errors import ConfigError
from runtime.library.source import ModelSource
from runtime.runtime_errors import ModelUnavailable
from server import flags
from server.http import cli
from server.options import ServerOptions, server_options
from tests.server.conftest import MODELS


@pytest.fixture(autouse=True)
def keep_logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.logs.configure", lambda form, level="info": None)


def parse(*arguments: str) -> dict[str, Any]:
    return vars(cli.build_parser().parse_args(arguments))


def test_a_flag_that_is_not_given_leaves_no_trace() -> None:
    assert parse() == {}


def test_defaults_are_the_documented_ones() -> None:
    text = re.sub(r"\s+", " ", cli.build_parser().format_help())
    for flag, default in {
        "--model": "deepseek-ocr", "--device": "cpu",
        "--base-size": "1024", "--image-size": "640", "--crop-mode": "true",
        "--max-new-tokens": "512", "--do-sample": "false", "--temperature": "0.0", "--top-p": "1.0", "--top-k": "none",
        "--repetition-penalty": "1.0", "--no-repeat-ngram-size": "20", "--host": "0.0.0.0", "--port": "8000",
        "--max-body-mb": "50", "--shutdown-timeout": "30", "--max-loaded-models": "1", "--log-format": "text",
    }.items():  # fmt: skip
        help_text = text[text.index(f" {flag} ") + len(flag) :]
        assert default in help_text[: help_text.index(")")], flag
    for flag in (
        "--tokenizer",
        "--weights",
        "--config",
        "--model-config",
        "--dtype",
        "--seed",
        "--api-key",
        "--cors-origin",
    ):
        assert f" {flag} " in text


def test_the_options_have_the_defaults_of_the_table() -> None:
    options = ServerOptions()
    for key in SERVER_KEYS:
        default = tuple(key.default) if isinstance(key.default, list) else key.default
        assert getattr(options, key.name) == default


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--crop-mode"], {"crop_mode": True}),
        (["--crop-mode", "false"], {"crop_mode": False}),
        (["--do-sample", "TRUE", "--port", "1"], {"do_sample": True, "port": 1}),
        (["--top-k", "none"], {"top_k": None}),
        (["--top-k", "0", "--seed", "5"], {"top_k": None, "seed": 5}),
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--api-key", "a", "--api-key", "b"], {"api_keys": ["a", "b"]}),
        (["--cors-origin", "http://x"], {"cors_origins": ["http://x"]}),
        (["--device", "metal", "--dtype", "f16"], {"device": "metal", "dtype": "f16"}),
        (["--shutdown-timeout", "5"], {"shutdown_timeout": 5.0}),
    ],
)
def test_flags_are_read(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parse(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "expected a port number"),
        (["--crop-mode", "maybe"], "expected true or false"),
        (["--device", "tpu"], "'tpu' is not one of cpu, cuda, coreml, metal, auto; did you mean 'cpu'?"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--max-new-tokens", "none"], "expected an integer"),
        (["--remote-images", "all"], "off, public or any"),
    ],
)
def test_wrong_flags_are_explained(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_flags_win_over_the_file_and_lists_are_joined() -> None:
    file = {"port": 1, "max_queue": 2, "api_keys": ["a"]}
    options = server_options(file, {"port": 3, "api_keys": ["b", "a"]})
    assert (options.port, options.max_queue, options.api_keys, options.host) == (3, 2, ("a", "b"), "0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nope"], "known models: deepseek-ocr"),
        (["--model", "hunyuan-ocr"], "does not support"),
        (["--tokenizer", "/nowhere/tokenizer.json"], "tokenizer file of model"),
        (["--device", "cuda"], "onnxruntime-gpu"),
        (["--api-key-file", "/nowhere"], "cannot be read"),
        (["--host", "999.1.1.1", "--port", "0"], "cannot listen"),
    ],
)
def test_what_keeps_the_server_from_starting_is_said(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "cuda" in arguments and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    assert cli.main(["--init-config", "--config", str(tmp_path / "c.toml"), *arguments]) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert words in error or (words == "onnxruntime-gpu" and "ocr-onnx[cuda]" in error)


def test_without_onnx_runtime_the_install_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "runtime.providers", raising=False)
    assert cli.main(["--init-config", "--config", str(tmp_path / "c.toml")]) == 1
    assert "pip install 'ocr-onnx[cpu]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (ServerOptions(host="0.0.0.0"), True),
        (ServerOptions(host="192.168.1.5"), True),
        (ServerOptions(host="::"), True),
        (ServerOptions(host="127.0.0.1"), False),
        (ServerOptions(host="localhost"), False),
        (ServerOptions(host="::1"), False),
        (ServerOptions(host="0.0.0.0", api_keys=("k",)), False),
    ],
)
def test_an_open_server_on_the_network_is_warned_about(
    options: ServerOptions, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cli.warn_when_open(options)
    assert ("without an API key" in caplog.text) == warned


def source(tmp_path: Path, text: str = "", *, device: str = "cpu", **options: Any) -> ModelSource:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return ModelSource(load_config(path), ServerOptions(**options), device)


def test_replaced_files_apply_to_the_started_model_and_change_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"w")
    models = source(tmp_path, model="tiny-ocr", weights=weights)
    assert models.key(models.entry("tiny-ocr")).folder.parent.name.startswith("onnx-")
    assert models.key(models.entry("deepseek-ocr")).folder.parent.name == "onnx"
    command = models.export_command(models.key(models.entry("tiny-ocr")))
    assert command[-2:] == ["--weights", str(weights)]
    assert command[1:4] == ["-P", "-m", "export"]


def test_the_dtype_comes_from_flag_entry_file_device_in_this_order(tmp_path: Path) -> None:
    text = "[inference]\nprecision = 'f16'\n[models.entries.deepseek-ocr]\ndtype = 'bf16'\n"
    for options, model_id, expected in (
        ({"dtype": "q4"}, "deepseek-ocr", "q4"),
        ({}, "deepseek-ocr", "bf16"),
        ({"dtype": "f32"}, "deepseek-ocr-q8", "q8"),
        ({}, "tiny-ocr", "f16"),
    ):
        models = source(tmp_path, text, device="cuda", **options)
        assert models.key(models.entry(model_id)).dtype == expected
    models = source(tmp_path, "[models.entries.mine]\nsource = 'x/y'\n")
    assert models.key(models.entry("mine")).dtype == "q8"
    assert models.key(models.entry("deepseek-ocr-q8")).dtype == "q8"


def test_a_dtype_that_the_device_does_not_compute_in_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    models = source(tmp_path, dtype="bf16")
    with pytest.raises(
        ConfigError, match="bf16 is for --device cuda; cpu has no products in bfloat16: take --dtype q8"
    ):
        models.key(models.entry("deepseek-ocr"))


def test_without_the_export_extra_the_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {"onnxscript": None, "safetensors": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.get(name, name))
    models = source(tmp_path)
    with pytest.raises(
        ModelUnavailable, match=r"onnxscript, safetensors.*pip install 'ocr-onnx\[export\]'.*ocr-onnx export deepseek"
    ):
        models.load(models.key(models.entry("deepseek-ocr")))


def test_a_file_without_a_supported_model_still_lists_the_catalogue(tmp_path: Path) -> None:
    models = source(tmp_path, "[models.entries.other]\nkind = 'hunyuan_ocr'\n")
    assert models.model_ids() == MODELS
    with pytest.raises(ConfigError, match="does not support"):
        models.entry("other")


def test_the_ceiling_of_tiles_and_their_default_are_two_flags() -> None:
    given = vars(cli.build_parser().parse_args(["--max-tiles", "3", "--max-tiles-limit", "5"]))
    assert server_options({}, given).max_tiles == 5
    assert server_options({"max_tiles": 7}, {"max_tiles": 3}).max_tiles == 7
    assert flags.given_settings(given)["max_tiles"] == 3
