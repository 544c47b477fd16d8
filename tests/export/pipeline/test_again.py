"""A second export of the same model, beside good, damaged and strangers' files in its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export import pipeline
from export.export_errors import ExportError
from models.manifest import FILE_NAME, Manifest
from tests.export.jobs import WEIGHTS, edit_tensors, export, leftovers


def modified(target: Path) -> int:
    return (target / FILE_NAME).stat().st_mtime_ns


def test_a_second_run_finds_the_export_and_force_makes_it_again(checkpoint, target) -> None:
    first, _ = export(checkpoint, target)
    before = modified(target)
    again, lines = export(checkpoint, target)
    assert again == first
    assert lines == [f"{target} is there already; --force exports it again"]
    assert modified(target) == before
    _, lines = export(checkpoint, target, force=True)
    assert lines[-1].startswith(f"published {target}")
    assert modified(target) != before
    assert not leftovers(target)


def test_defaults_that_are_spelled_out_name_the_same_export(checkpoint, target) -> None:
    export(checkpoint, target, dtype="q8")
    _, lines = export(checkpoint, target, dtype="q8", vision_dtype="f16", block_size=128)
    assert lines == [f"{target} is there already; --force exports it again"]
    for change in ({"vision_dtype": "q8"}, {"block_size": 32}):
        assert "published" in export(checkpoint, target, dtype="q8", **change)[1][-1]


def test_a_report_stays_with_its_export_and_is_made_where_it_is_missing(checkpoint, target) -> None:
    export(checkpoint, target, dtype="q8")
    measured, lines = export(checkpoint, target, dtype="q8", report=True)
    assert measured.report
    assert "published" in lines[-1]
    for report in (False, True):
        again, lines = export(checkpoint, target, dtype="q8", report=report)
        assert lines == [f"{target} is there already; --force exports it again"]
        assert again.report == measured.report


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", WEIGHTS])
def test_a_changed_source_file_is_exported_again(checkpoint, target, name) -> None:
    export(checkpoint, target)
    status = (checkpoint / name).stat()
    os.utime(checkpoint / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert export(checkpoint, target)[1][-1].startswith("published")


@pytest.mark.parametrize("change", [{"dtype": "f16"}, {"model_id": "other"}])
def test_another_dtype_or_model_is_not_taken_for_the_one_that_is_there(checkpoint, target, change) -> None:
    export(checkpoint, target)
    manifest, lines = export(checkpoint, target, **change)
    assert lines[-1].startswith("published")
    assert {"dtype": manifest.dtype, "model_id": manifest.id}.items() >= change.items()


def test_a_damaged_export_is_made_again(checkpoint, target) -> None:
    export(checkpoint, target)
    (target / "vision.onnx.data").write_bytes(b"")
    export(checkpoint, target)
    Manifest.load(target).verify(target)
    (target / FILE_NAME).write_text("{")
    export(checkpoint, target)
    Manifest.load(target).verify(target)


def test_a_failed_export_leaves_the_older_good_one(checkpoint, target) -> None:
    export(checkpoint, target)
    edit_tensors(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ExportError):
        export(checkpoint, target, force=True)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_an_export_whose_check_fails_leaves_the_older_good_one(checkpoint, target, monkeypatch) -> None:
    export(checkpoint, target)

    def fail(*_: object) -> None:
        raise ExportError("the decoder gives values that are not finite")

    monkeypatch.setattr(pipeline, "check_graphs", fail)
    with pytest.raises(ExportError):
        export(checkpoint, target, force=True)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_a_rename_that_fails_brings_the_older_export_back(checkpoint, target, monkeypatch) -> None:
    export(checkpoint, target)
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        export(checkpoint, target, force=True)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_files_that_no_export_made_are_never_deleted(checkpoint, target) -> None:
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds files that no export made"):
        export(checkpoint, target, force=True)
    assert (target / "thesis.txt").read_text() == "years of work"
    file = target.with_name("file")
    file.write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export(checkpoint, file)
    assert file.read_text() == "mine"


def test_an_empty_folder_may_be_the_target(checkpoint, target) -> None:
    target.mkdir(parents=True)
    export(checkpoint, target)
    Manifest.load(target)


def test_leftovers_of_a_target_with_pattern_characters_in_its_name_are_swept(checkpoint, tmp_path) -> None:
    target = tmp_path / "models" / "a[1]*"
    (target.parent / f".{target.name}.partial-abc").mkdir(parents=True)
    stranger = target.parent / ".a1x.partial-abc"
    stranger.mkdir()
    export(checkpoint, target)
    assert leftovers(target) == {stranger.name}
