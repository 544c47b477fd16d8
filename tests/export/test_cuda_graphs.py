"""The graphs for CUDA, as far as they can be told from right and wrong ones without a GPU: attributes and types."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from export.hub import Source
from export.pipeline import Job, export_model
from models.manifest import FILE_NAME, GRAPH_VERSION, Manifest
from runtime.errors import RuntimeUnavailable
from runtime.model import Model
from runtime.providers import Device


def nodes(file: Path, kind: str) -> list[ir.Node]:
    return [node for node in ir.load(file).graph if node.op_type == kind]


@pytest.fixture(scope="module", params=["q8", "q4"])
def quantised(request, random_checkpoint, export_checkpoint) -> Path:
    return export_checkpoint(random_checkpoint, request.param)


@pytest.fixture
def old_export(tmp_path, random_checkpoint, export_checkpoint) -> Path:
    """A q8 export as it was made before graphs had a version."""
    folder = tmp_path / "old"
    folder.mkdir()
    for file in export_checkpoint(random_checkpoint, "q8").iterdir():
        (folder / file.name).hardlink_to(file)
    manifest = json.loads((folder / FILE_NAME).read_bytes())
    assert manifest.pop("graph_version") == GRAPH_VERSION
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("file", ["decoder.onnx", "decoder.cuda.onnx"])
def test_quantised_experts_say_that_their_weights_are_not_packed(quantised, file) -> None:
    experts = nodes(quantised / file, "QMoE")
    assert len(experts) == 2
    assert {node.attributes["weights_prepacked"].as_int() for node in experts} == {0}


def test_an_old_quantised_export_is_refused_on_cuda_with_the_command_that_makes_it_anew(old_export) -> None:
    manifest = Manifest.load(old_export)
    with pytest.raises(RuntimeUnavailable, match=r"noise on cuda; .* python -m export deepseek-ocr --dtype q8 --force"):
        Device("cuda", 0).require(old_export, manifest)


def test_a_model_that_is_opened_on_cuda_is_refused_before_any_graph_is_loaded(old_export, monkeypatch) -> None:
    monkeypatch.setattr("runtime.model.find_device", lambda name, threads: Device("cuda", 0))
    monkeypatch.setattr("runtime.providers.ort.InferenceSession", lambda *_, **__: pytest.fail("a graph was loaded"))
    with pytest.raises(RuntimeUnavailable, match="make it anew"):
        Model.open(old_export, device="cuda")


def test_an_old_quantised_export_still_serves_on_a_cpu(
    old_export, export_checkpoint, random_checkpoint, picture
) -> None:
    answers = []
    for folder in (old_export, export_checkpoint(random_checkpoint, "q8")):
        with Model.open(folder, device="cpu", slots=1) as model:
            answers.append(model.read(picture(64, 64), max_new_tokens=8, stop_on_loop=False).tokens)
    assert answers[0] == answers[1] != []


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_old_exports_in_float_are_as_good_as_new_ones(dtype, random_checkpoint, export_checkpoint) -> None:
    folder = export_checkpoint(random_checkpoint, dtype)
    old = Manifest.load(folder).model_copy(update={"graph_version": 1})
    Device("cuda", 0).require(folder, old)
    assert not old.outdated_on("cpu")


def test_the_next_export_does_not_take_an_old_one_for_good(old_export, random_checkpoint) -> None:
    source = Source(random_checkpoint, str(random_checkpoint), None, "directory")
    lines: list[str] = []
    export_model(Job("deepseek-ocr", "deepseek-ocr", source, "q8", old_export), lines.append)
    assert lines[-1].startswith("published")
    assert Manifest.load(old_export).graph_version == GRAPH_VERSION
