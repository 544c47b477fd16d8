"""What the command lines of all programs have in common: errors first, the nearest right word, config.toml."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from models.arguments import Parser, add_config_flags, read_config
from models.config import load_config
from models.model_errors import ConfigError
from models.nearest import did_you_mean

DTYPES = ("f32", "f16", "bf16", "q8", "q4")


def parser() -> Parser:
    made = Parser(prog="ocr", argument_default=argparse.SUPPRESS)
    add_config_flags(made)
    sub = made.add_subparsers(dest="command", required=True).add_parser("read")
    sub.add_argument("--dtype", choices=DTYPES)
    sub.add_argument("--max-new-tokens", type=int)
    return made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["read", "--dtype", "fp16"],
            "error: argument --dtype: 'fp16' is not one of f32, f16, bf16, q8, q4; did you mean 'f16'?",
        ),
        (["read", "--dtype", "int4"], "q8, q4; did you mean 'q4'?"),
        (["raed"], "'raed' is not one of read; did you mean 'read'?"),
        (["read", "--max-tokens=5"], "unrecognized arguments: --max-tokens=5; did you mean '--max-new-tokens'?"),
        (["read", "--zzzzzz"], "unrecognized arguments: --zzzzzz"),
    ],
)
def test_an_error_is_one_line_before_the_usage_and_names_the_nearest_word(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == 2
    first, empty, usage = capsys.readouterr().err.split("\n", 2)
    assert first.startswith("error: ")
    assert first.endswith(line)
    assert empty == ""
    assert usage.startswith("usage: ocr")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("gpu", ("cpu", "cuda", "coreml"), "cuda"),  # by its letters cpu is nearer
        ("gpu", ("cpu",), "cpu"),
        ("Deepseek-OCR", ("deepseek-ocr", "glm-ocr"), "deepseek-ocr"),
        ("xyz", ("cpu", "cuda"), None),
    ],
)
def test_the_nearest_word_is_what_people_mean(word: str, known: tuple[str, ...], meant: str | None) -> None:
    assert did_you_mean(word, known) == (f"; did you mean {meant!r}?" if meant else "")


def test_a_named_config_is_there_or_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    with pytest.raises(ConfigError, match="is not there; --init-config"):
        read_config(vars(parser().parse_args(["--config", str(file), "read"])))
    assert read_config(vars(parser().parse_args(["--config", str(file), "--init-config", "read"]))).path == file
    assert file.is_file()


def test_words_of_config_toml_get_the_nearest_one_too(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    for text, words in (
        ("[serve]\n", "did you mean 'server'?"),
        ("[inference]\ndtype = 'fp16'\n", "found 'fp16'; did you mean 'f16'?"),
        ("[server]\nprot = 1\n", "did you mean 'port'?"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(file)
        assert words in str(caught.value)


def test_the_cache_is_where_the_environment_else_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    monkeypatch.delenv("OCR_ONNX_CACHE", raising=False)
    file.write_text("[models]\ncache = 'here'\n")
    config = load_config(file)
    assert config.cache_dir == tmp_path / "here"
    assert config.export_dir(config.entry("tiny-ocr"), "f32") == tmp_path / "here/models/tiny-ocr/onnx/f32"
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "there"))
    assert config.cache_dir == tmp_path / "there"
    monkeypatch.setenv("OCR_ONNX_CACHE", "")  # as good as unset
    assert config.cache_dir == tmp_path / "here"
