"""A tokenizer.json that a training run rewrote is found at the export, not in the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from export.export_errors import ExportError
from export.pipeline import Job, export_model
from export.source import Source
from export.tokenizer_probe import check_tokenizer
from models.families import FAMILIES
from tests.export.jobs import TINY, edit_json
from tools.checkpoints import write_random_checkpoint
from tools.paddle_checkpoints import small_tokenizer

PROMPTS = FAMILIES["deepseek-ocr"].prompts


def rewritten(file: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    copy = folder / "tokenizer.json"
    copy.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return copy


def check(file: Path) -> None:
    check_tokenizer(Tokenizer.from_file(str(file)), file, PROMPTS, "deepseek-ai/DeepSeek-OCR")


def to_metaspace(document: dict[str, Any]) -> None:
    """What the issue reports: Llama's way of reading in place of byte level."""
    document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    document["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}


def test_published_and_generated_tokenizers_pass(real_tokenizer: Path, tmp_path: Path) -> None:
    check(real_tokenizer)
    check(write_random_checkpoint(tmp_path / "checkpoint", TINY) / "tokenizer.json")
    check(Path(FAMILIES["deepseek-ocr"].models[1].source) / "tokenizer.json")
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    check(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "change",
    [
        to_metaspace,
        lambda document: document.update(decoder=None),  # answers with a Ġ for every space
        lambda document: document.update(normalizer={"type": "Lowercase"}),
        lambda document: document.update(normalizer={"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}),
    ],
)
@pytest.mark.parametrize("small", [True, False])
def test_a_rewritten_file_is_refused_with_the_likely_cause_and_the_right_file(
    request: pytest.FixtureRequest, tmp_path: Path, change: Callable[[dict[str, Any]], Any], small: bool
) -> None:
    original = (
        write_random_checkpoint(tmp_path / "checkpoint", TINY) / "tokenizer.json"
        if small
        else request.getfixturevalue("real_tokenizer")
    )
    file = rewritten(original, tmp_path, change)
    with pytest.raises(
        ExportError, match=r"does not give texts back: .* a training program has probably rewritten"
    ) as e:
        check(file)
    assert str(file) in str(e.value)
    assert "take tokenizer.json of deepseek-ai/DeepSeek-OCR (--tokenizer FILE)" in str(e.value)


def test_a_file_that_cuts_the_published_prompts_otherwise_is_refused(real_tokenizer: Path, tmp_path: Path) -> None:
    """With half of the merges every text comes back, from other ids than the model was trained with."""
    file = rewritten(real_tokenizer, tmp_path, lambda document: document["model"].update(
        merges=document["model"]["merges"][:50_000]
    ))  # fmt: skip
    words = r"encodes '\\nFree OCR\.' as \[201, 21431, 541, 8002, 16\], the published one as \[201, 21431, 126041, 16\]"
    with pytest.raises(ExportError, match=words):
        check(file)


def test_the_export_stops_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint", TINY)
    edit_json(folder / "tokenizer.json", to_metaspace)
    source = Source(folder, str(folder), None, "directory")
    with pytest.raises(ExportError, match="does not give texts back"):
        export_model(Job("m", "deepseek-ocr", source, "f32", tmp_path / "out"), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_truncation_that_a_training_run_left_behind_does_no_harm(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint", TINY)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    source = Source(folder, str(folder), None, "directory")
    export_model(Job("m", "deepseek-ocr", source, "f32", tmp_path / "out"), lambda line: None)
