"""manifest.json: what is written is read back, and every kind of damage is an error that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from models.manifest import (
    FILE_NAME,
    FORMAT,
    DecoderInfo,
    FileInfo,
    Graph,
    Manifest,
    SourceInfo,
    TokenIds,
    lock_file,
    retired_folder,
)
from models.model_errors import ManifestError
from models.registry import family_of

CONTENT = {"decoder.onnx": b"graph", "decoder.onnx.data": b"\0" * 1000, "tokenizer.json": b"{}"}


def graph(name: str) -> Graph:
    return Graph(
        files={"cpu": f"{name}.onnx", "cuda": f"{name}.cuda.onnx"}, compute={"cpu": "float32", "cuda": "float16"}
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of the folder ``tmp_path``, which holds its files."""
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    return Manifest(
        id="my-model", family="deepseek-ocr", dtype="f16", created_by="ocr-onnx 0", parameters=123,
        source=SourceInfo(origin="huggingface", name="a/b", revision="c0ffee", fingerprint="f"),
        vision=graph("vision"), embed=graph("embed"), decoder=graph("decoder"),
        sizes=DecoderInfo(layers=12, hidden_size=1280, kv_heads=10, head_dim=128, vocabulary=129280, max_length=8192),
        tokens=TokenIds(bos=0, eos=(1, 2), image=128815),
        image={"patch_size": 16, "downsample": 4, "grid": 64, "clip_grid": 16, "mean": [0.5, 0.5, 0.5]},
        report={"logits_error": 0.001},
        files={
            name: FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in CONTENT.items()
        },
    )  # fmt: skip


@pytest.fixture
def rewrite(manifest: Manifest, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Save the manifest, changed as JSON."""

    def write(change: Callable[[dict[str, Any]], None]) -> None:
        manifest.save(tmp_path)
        document = json.loads((tmp_path / FILE_NAME).read_text())
        change(document)
        (tmp_path / FILE_NAME).write_text(json.dumps(document))

    return write


def test_what_was_saved_is_loaded(manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.max_length == 8192
    loaded.verify(tmp_path)


def test_a_folder_that_is_not_there_or_empty_says_how_to_export(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / "nothing" / "f32"):
        with pytest.raises(ManifestError, match=r"is missing; export the model first: ocr-onnx export"):
            Manifest.load(folder)


def test_a_file_in_place_of_the_folder_is_an_error_with_its_name(tmp_path) -> None:
    (tmp_path / "f32").write_text("")
    with pytest.raises(ManifestError, match="f32"):
        Manifest.load(tmp_path / "f32")


def test_a_folder_in_place_of_the_manifest_is_an_error_with_its_name(tmp_path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ManifestError, match=FILE_NAME):
        Manifest.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_manifest_that_may_not_be_read_is_an_error_with_its_name(manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    (tmp_path / FILE_NAME).chmod(0)
    with pytest.raises(ManifestError, match=FILE_NAME):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", f'{{"format": {FORMAT}}}'.encode(), b"\0" * 100]
)
def test_a_damaged_manifest_is_an_error_that_names_the_file_and_the_remedy(tmp_path, content) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        Manifest.load(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)
    assert "export the model again with --force" in str(caught.value)


def test_a_manifest_cut_off_anywhere_is_an_error(manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    for length in range(0, len(content.rstrip()), 37):
        (tmp_path / FILE_NAME).write_bytes(content[:length])
        with pytest.raises(ManifestError):
            Manifest.load(tmp_path)


FIELDS = ["id", "family", "dtype", "source", "vision", "decoder", "sizes", "tokens", "image", "files", "parameters"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(rewrite, tmp_path, field) -> None:
    rewrite(lambda document: document.pop(field))
    with pytest.raises(ManifestError, match=field):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_wrong_type_is_named(rewrite, tmp_path, field) -> None:
    rewrite(lambda document: document.update({field: 1.5}))
    with pytest.raises(ManifestError, match=field):
        Manifest.load(tmp_path)


def test_a_nested_field_is_named_with_its_path(rewrite, tmp_path) -> None:
    rewrite(lambda document: document["sizes"].update(layers="many"))
    with pytest.raises(ManifestError, match=r"sizes\.layers"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("more", [{}, {"field_of_tomorrow": 1}])
def test_another_format_says_both_numbers_whatever_else_it_holds(rewrite, tmp_path, more) -> None:
    rewrite(lambda document: document.update(format=FORMAT + 1, **more))
    with pytest.raises(ManifestError, match=rf"format {FORMAT + 1}, this version reads {FORMAT}"):
        Manifest.load(tmp_path)


def test_a_missing_file_and_one_of_another_size_are_named_with_both_sizes(manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    (tmp_path / "decoder.onnx.data").write_bytes(b"\0" * 999)
    with pytest.raises(ManifestError, match=r"decoder\.onnx\.data is 999 bytes, expected 1000 bytes"):
        Manifest.load(tmp_path)
    (tmp_path / "decoder.onnx.data").unlink()
    with pytest.raises(ManifestError, match=r"decoder\.onnx\.data is missing, expected 1000 bytes"):
        Manifest.load(tmp_path)


def test_verify_finds_a_changed_byte_that_load_cannot_see(manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    content = bytearray(CONTENT["decoder.onnx.data"])
    content[500] ^= 1
    (tmp_path / "decoder.onnx.data").write_bytes(content)
    loaded = Manifest.load(tmp_path)
    with pytest.raises(ManifestError) as caught:
        loaded.verify(tmp_path)
    assert "decoder.onnx.data" in str(caught.value)
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert hashlib.sha256(CONTENT["decoder.onnx.data"]).hexdigest() in str(caught.value)


def test_an_unknown_family_is_named_beside_the_known_ones(manifest) -> None:
    with pytest.raises(ManifestError, match="'another-ocr' is unknown to this version, which knows deepseek-ocr"):
        family_of(manifest.model_copy(update={"family": "another-ocr"}))


def test_an_export_that_a_killed_exporter_had_moved_aside_is_put_back(manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    target = tmp_path.parent / f"{tmp_path.name}-target"
    tmp_path.rename(retired_folder(target))
    assert Manifest.load(target) == manifest
    assert not retired_folder(target).exists()
    target.rename(tmp_path)


def test_an_export_in_its_place_is_not_touched_by_an_older_one_beside_it(manifest, tmp_path) -> None:
    target = tmp_path / "f32"
    target.mkdir()
    for name, content in CONTENT.items():
        (target / name).write_bytes(content)
    manifest.save(target)
    retired_folder(target).mkdir()
    assert Manifest.load(target) == manifest
    assert retired_folder(target).exists()


def test_a_reader_waits_while_a_living_exporter_swaps_the_folders(manifest, tmp_path) -> None:
    """The exporter holds the lock, has moved the old export aside, and brings the new one."""
    manifest.save(tmp_path)
    target = tmp_path.parent / f"{tmp_path.name}-target"
    retired_folder(target).mkdir()
    loaded: list[Manifest] = []
    reader = threading.Thread(target=lambda: loaded.append(Manifest.load(target)))
    with FileLock(lock_file(target)):
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        tmp_path.rename(target)
    reader.join(30)
    assert loaded == [manifest]
    assert retired_folder(target).exists()
    target.rename(tmp_path)
