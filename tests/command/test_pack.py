"""``ocr-onnx pack`` and ``unpack``: an export travels as one file, and nothing else gets in with it."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from models.manifest import Manifest
from tests.command.conftest import Program
from tests.detectors import write_detector


@pytest.fixture
def packed(ocr: Program, tmp_path: Path, random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that one machine wrote; the cache is another machine's from then on."""
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "here"))
    shutil.copytree(random_model_folder, tmp_path / "here/models/deepseek-ocr/onnx/f32")
    assert ocr("pack", "deepseek-ocr", "-o", "model.tar") == 0
    assert f"model.tar: deepseek-ocr f32, {(tmp_path / 'model.tar').stat().st_size / 1e6:.1f} MB" in ocr.out
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "there"))
    return tmp_path / "model.tar"


def test_an_export_arrives_as_it_was(ocr: Program, packed: Path, tmp_path: Path, random_model_folder: Path) -> None:
    assert ocr("unpack", packed) == 0
    target = tmp_path / "there/models/deepseek-ocr/onnx/f32"
    assert f"unpacked to {target}" in ocr.out
    Manifest.load(target).verify(target)
    files = {file.name: file.read_bytes() for file in random_model_folder.iterdir()}
    assert {file.name: file.read_bytes() for file in target.iterdir()} == files
    assert [path.name for path in (tmp_path / "there/models").iterdir()] == ["deepseek-ocr"]
    assert ocr("unpack", packed) == 1
    assert f"{target} is there already; --force replaces it" in ocr.err
    (target / "tokenizer.json").unlink()
    assert ocr("unpack", packed, "--force") == 0
    Manifest.load(target).verify(target)


def test_which_export_is_meant_is_asked_when_there_are_several(
    ocr: Program, packed: Path, tmp_path: Path, random_model_folder: Path
) -> None:
    assert ocr("pack", "deepseek-ocr", "-o", "x.tar") == 2
    assert "model 'deepseek-ocr' has no export" in ocr.err
    assert ocr("unpack", packed) == 0
    shutil.copytree(random_model_folder, tmp_path / "there/models/deepseek-ocr/onnx/q8")
    assert ocr("pack", "deepseek-ocr", "-o", "x.tar") == 2
    assert "has several exports; choose with --dtype" in ocr.err
    assert ocr("pack", "deepseek-ocr-q8", "-o", "x.tar") == 0
    assert ocr("pack", "deepseek-ocr", "--dtype", "f32", "-o", "x.tar") == 0
    assert ocr("pack", random_model_folder, "-o", "x.tar") == 0
    (tmp_path / "there/models/deepseek-ocr/onnx/q8/decoder.onnx").write_bytes(b"x")
    assert ocr("pack", "deepseek-ocr-q8", "-o", "y.tar") == 1
    assert not list(tmp_path.glob("*y.tar*"))


def rewritten(packed: Path, change: str) -> Path:
    """The file with one thing wrong in it."""
    out = packed.with_name("wrong.tar")
    with tarfile.open(packed) as source, tarfile.open(out, "w") as target:
        members = source.getmembers()
        for member in reversed(members) if change == "order" else members:
            content = source.extractfile(member)
            assert content is not None
            data = bytearray(content.read())
            if member.name.endswith("tokenizer.json") and change == "content":
                data[len(data) // 2] ^= 1
            if member.name.endswith("tokenizer.json") and change == "size":
                data += b" "
                member.size += 1
            if member.name.endswith("tokenizer.json") and change == "missing":
                continue
            target.addfile(member, io.BytesIO(bytes(data)))
        extra = tarfile.TarInfo({"stranger": "deepseek-ocr-f32/evil.py"}.get(change, "x/tokenizer.json"))
        if change == "stranger":
            target.addfile(extra, io.BytesIO())
        if change == "link":
            extra.type, extra.linkname = tarfile.SYMTYPE, "/etc/passwd"
            target.addfile(extra)
    return out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("content", "tokenizer.json has sha256"),
        ("size", "tokenizer.json has"),
        ("missing", "tokenizer.json is missing"),
        ("order", "is no file of ocr-onnx pack: it holds"),
        ("stranger", "it holds 'deepseek-ocr-f32/evil.py'"),
        ("link", "it holds 'x/tokenizer.json'"),
    ],
)
def test_what_is_not_whole_or_not_ours_is_not_published(
    ocr: Program, packed: Path, tmp_path: Path, change: str, words: str
) -> None:
    assert ocr("unpack", rewritten(packed, change)) == 1
    assert words in ocr.err
    assert not list((tmp_path / "there/models").iterdir())


@pytest.mark.parametrize("content", [b"", b"x" * 2000])
def test_a_file_that_is_no_tar_is_named(ocr: Program, packed: Path, content: bytes) -> None:
    packed.write_bytes(content)
    assert ocr("unpack", packed) == 1
    assert str(packed) in ocr.err


def test_a_layout_detector_travels_too(ocr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "here"))
    place = "models/pp-doclayout-v3/onnx/f32"
    folder = write_detector(tmp_path / "here" / place, [("text", (0.1, 0.1, 0.9, 0.9), 0.9)])
    assert ocr("pack", "pp-doclayout-v3", "-o", "layout.tar") == 0
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "there"))
    assert ocr("unpack", "layout.tar") == 0
    assert "config.toml has no" not in ocr.out
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "there" / place).iterdir()} == files
