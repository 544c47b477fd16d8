"""Where configuration and models live, on each platform."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import platformdirs.macos
import platformdirs.unix
import platformdirs.windows
import pytest

from models import paths
from models.model_errors import ConfigError
from models.registration import ModelEntry


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith("XDG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_linux_uses_dot_config_and_dot_cache(home: Path) -> None:
    dirs = paths.platform_dirs(platformdirs.unix.Unix)
    assert Path(dirs.user_config_dir) == home / ".config/deepseek-ocr"
    assert Path(dirs.user_cache_dir) == home / ".cache/deepseek-ocr"


def test_linux_honours_xdg_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/conf")
    monkeypatch.setenv("XDG_CACHE_HOME", "/quick")
    dirs = paths.platform_dirs(platformdirs.unix.Unix)
    assert PurePosixPath(dirs.user_config_dir) == PurePosixPath("/conf/deepseek-ocr")
    assert PurePosixPath(dirs.user_cache_dir) == PurePosixPath("/quick/deepseek-ocr")


def test_macos_uses_library_folders(home: Path) -> None:
    dirs = paths.platform_dirs(platformdirs.macos.MacOS)
    assert Path(dirs.user_config_dir) == home / "Library/Application Support/deepseek-ocr"
    assert Path(dirs.user_cache_dir) == home / "Library/Caches/deepseek-ocr"


def test_windows_uses_appdata_without_author_or_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"CSIDL_APPDATA": r"C:\Users\u\AppData\Roaming", "CSIDL_LOCAL_APPDATA": r"C:\Users\u\AppData\Local"}
    monkeypatch.setattr(platformdirs.windows, "get_win_folder", folders.__getitem__)
    dirs = paths.platform_dirs(platformdirs.windows.Windows)
    assert PureWindowsPath(dirs.user_config_dir) == PureWindowsPath(r"C:\Users\u\AppData\Roaming\deepseek-ocr")
    assert PureWindowsPath(dirs.user_cache_dir) == PureWindowsPath(r"C:\Users\u\AppData\Local\deepseek-ocr")


def test_a_plain_entry_is_exported_below_its_id_and_dtype(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    entry = ModelEntry("deepseek-ocr", "deepseek-ocr", "deepseek-ai/DeepSeek-OCR")
    assert paths.export_dir(entry, "f32") == home / "cache/deepseek-ocr/models/deepseek-ocr/onnx/f32"


def test_replaced_files_are_part_of_the_cache_identity(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    plain = ModelEntry("m", "deepseek-ocr", "x/y")
    tuned = ModelEntry("m", "deepseek-ocr", "x/y", weights=weights)
    as_tokenizer = ModelEntry("m", "deepseek-ocr", "x/y", tokenizer=weights)
    folders = {paths.export_dir(entry, "f32") for entry in (plain, tuned, as_tokenizer)}
    weights.write_bytes(b"trained further")
    folders.add(paths.export_dir(tuned, "f32"))
    assert len(folders) == 4
    assert paths.export_dir(tuned, "f32") == paths.export_dir(tuned, "f32")


def test_a_missing_replacement_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    entry = ModelEntry("m", "deepseek-ocr", "x/y", tokenizer=tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"tokenizer.*none\.json"):
        paths.export_dir(entry, "f32")


@pytest.mark.parametrize(
    "model_id",
    ["", "..", ".", "../x", "a/b", "a\\b", "/abs", "C:x", "a..b", "nul", "con.x", "a\n", "x" * 101, "é", "a."],
)
def test_ids_that_are_no_safe_folder_names_are_refused(model_id: str) -> None:
    with pytest.raises(ConfigError, match="model id"):
        paths.export_dir(ModelEntry(model_id, "deepseek-ocr", "x/y"), "f32")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dtype '\.\./f32'"):
        paths.export_dir(ModelEntry("m", "deepseek-ocr", "x/y"), "../f32")
