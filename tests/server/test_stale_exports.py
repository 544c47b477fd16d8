"""An export whose source has changed since is never served unnoticed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.config import load_config
from models.manifest import Manifest, SourceInfo
from models.registration import ModelEntry
from models.source_files import difference
from runtime.library.source import ModelKey, ModelSource
from runtime.runtime_errors import ModelUnavailable
from server.options import ServerOptions
from tests.export.jobs import TINY, WEIGHTS, edit_json
from tools.checkpoints import write_random_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "mine", TINY)


@pytest.fixture
def source_info(checkpoint: Path, export_checkpoint: Callable[..., Path]) -> SourceInfo:
    return Manifest.load(export_checkpoint(checkpoint)).source


def entry(source: str | Path, revision: str | None = None) -> ModelEntry:
    return ModelEntry("mine", "deepseek-ocr", str(source), revision=revision)


def rewrite(file: Path, when: int) -> None:
    """The same number of bytes, written at another time."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(when, when))


def test_an_untouched_source_is_the_same_also_where_it_was_copied_to(
    checkpoint: Path, source_info: SourceInfo, tmp_path: Path
) -> None:
    assert difference(source_info, entry(checkpoint)) is None
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "other name", copy_function=shutil.copyfile)  # new times
    assert difference(source_info, entry(tmp_path / "elsewhere" / "other name")) is None
    told = difference(source_info, entry(tmp_path / "not here any more"))
    assert told is not None
    assert f"to keep it, set source = '{source_info.name}' in [models.entries.\"mine\"] of config.toml" in told
    shutil.rmtree(checkpoint)
    assert difference(source_info, entry(checkpoint)) is None  # nothing to compare with


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_file_that_was_replaced_in_place_is_named(checkpoint: Path, source_info: SourceInfo, name: str) -> None:
    rewrite(checkpoint / name, when=2_000_000_000_000_000_000)
    assert difference(source_info, entry(checkpoint)) == f"{checkpoint / name} has another content now"


def test_a_large_file_of_another_time_counts_as_another_file(checkpoint: Path, source_info: SourceInfo) -> None:
    files = {path: of.model_copy(update={"sha256": None}) for path, of in source_info.files.items()}
    large = source_info.model_copy(update={"files": files})
    assert difference(large, entry(checkpoint)) is None
    for when, words in ((2_000_000_000, "has been written since"), (1_000_000_000, "is another, older file now")):
        os.utime(checkpoint / WEIGHTS, (when, when))
        assert difference(large, entry(checkpoint)) == f"{checkpoint / WEIGHTS} {words}"


def test_another_folder_with_the_same_last_name_is_another_model(source_info: SourceInfo, tmp_path: Path) -> None:
    other = write_random_checkpoint(tmp_path / "elsewhere" / "mine", TINY, seed=9)
    found = difference(source_info, entry(other))
    assert found is not None
    assert f"exported from {source_info.name}, and {other / WEIGHTS} has another content now" in found


def test_a_single_file_that_came_beside_the_shards_is_what_would_be_read_now(
    checkpoint: Path, source_info: SourceInfo
) -> None:
    shutil.copyfile(checkpoint / WEIGHTS, checkpoint / "model.safetensors")
    found = difference(source_info, entry(checkpoint))
    assert found == f"{checkpoint / 'model.safetensors'} has come since, and is what would be read now"


def test_hub_ids_are_compared_by_name_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    old, new = "a" * 40, "b" * 40
    made = SourceInfo(origin="huggingface", name="acme/ocr", revision=old, fingerprint="")
    for same in (entry("acme/ocr"), entry("acme/ocr", old), entry("acme/ocr", "v1")):
        assert difference(made, same) is None
    assert difference(made, entry("acme/ocr", new)) == (
        f"it was exported from acme/ocr at {old}; revision {new} is wanted now"
    )
    refs = tmp_path / "hub/models--acme--ocr/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(old)
    assert difference(made, entry("acme/ocr")) is None
    (refs / "main").write_text(new)
    assert f"revision {new} is wanted now" in str(difference(made, entry("acme/ocr")))
    assert "its entry says acme/other" in str(difference(made, entry("acme/other")))
    assert f"its entry says {tmp_path}" in str(difference(made, entry(tmp_path)))


def test_an_export_of_an_older_version_says_no_more_than_its_folder(tmp_path: Path) -> None:
    made = SourceInfo(origin="directory", name="/gone/mine", fingerprint="")
    (tmp_path / "mine").mkdir()
    assert difference(made, entry(tmp_path / "mine")) is None
    assert "exported from /gone/mine" in str(difference(made, entry(tmp_path)))


@pytest.fixture
def stale(
    checkpoint: Path, export_checkpoint: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[ModelSource, ModelKey]]:
    """A model whose weights changed after its export, for a server with the given setting."""
    folder = tmp_path / "export" / "f32"
    shutil.copytree(export_checkpoint(checkpoint, model_id="mine"), folder)
    other = write_random_checkpoint(tmp_path / "new", TINY, seed=9)
    shutil.copyfile(other / WEIGHTS, checkpoint / WEIGHTS)
    edit_json(checkpoint / INDEX, lambda index: index.update(json.loads((other / INDEX).read_text())))

    def make(**options: str) -> tuple[ModelSource, ModelKey]:
        config = tmp_path / "config.toml"
        config.write_text(f"[models.entries.mine]\nkind = 'deepseek-ocr'\nsource = '{checkpoint}'\n")
        source = ModelSource(load_config(config), ServerOptions(model="mine", dtype="f32", **options), "cpu")  # type: ignore[arg-type]
        return source, ModelKey(folder, "f32", source.entry("mine"))

    return make


def test_the_server_says_refuses_or_exports_anew(
    stale: Callable[..., tuple[ModelSource, ModelKey]], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    source, key = stale()
    with caplog.at_level(logging.WARNING):
        source.load(key).close()
    assert "the export of model mine (f32) is stale: " in caplog.text
    assert "To export it anew: ocr-onnx export mine --dtype f32 --force" in caplog.text
    before = (key.folder / "decoder.onnx.data").read_bytes()

    source, key = stale(stale_exports="refuse")
    with pytest.raises(ModelUnavailable, match=r"is stale: .* --stale-exports say or export"):
        source.load(key)

    source, key = stale(stale_exports="export")
    source.load(key).close()
    assert (key.folder / "decoder.onnx.data").read_bytes() != before
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        source.load(key).close()
    assert "stale" not in caplog.text
