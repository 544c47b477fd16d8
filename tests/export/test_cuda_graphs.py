"""The graphs for CUDA, as far as they can be told from right and wrong ones without a GPU: attributes and types."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export import check, sam_cuda
from export.export_errors import ExportError
from export.pipeline import Job, export_model
from export.source import Source
from models.manifest import FILE_NAME, GRAPH_VERSION, Manifest
from models.registry import family_of
from runtime.decoder import Decoder
from runtime.kv_cache import kept
from runtime.model import Model
from runtime.providers import Device, find_device
from runtime.runtime_errors import RuntimeUnavailable
from runtime.vision import VisionTower
from tests.export.twins import twin_of
from tools.checkpoints import write_random_checkpoint
from tools.deepseek2_checkpoints import DEEPSEEK_OCR_2, Sizes2
from tools.dots_checkpoints import write_dots_checkpoint
from tools.glm_checkpoints import write_glm_checkpoint
from tools.lighton_checkpoints import write_lighton_checkpoint
from tools.paddle_checkpoints import write_paddle_checkpoint
from tools.unlimited_checkpoints import UNLIMITED_OCR, UnlimitedSizes

DTYPES = ("f32", "f16", "bf16", "q8", "q4")
UNLIMITED = UnlimitedSizes(patch=4, image_size=256, clip_image_size=224, layers=2, window=3)
LINE = {
    "deepseek-ocr-2": partial(write_random_checkpoint, sizes=Sizes2(), layout=DEEPSEEK_OCR_2),
    "unlimited-ocr": partial(write_random_checkpoint, sizes=UNLIMITED, layout=UNLIMITED_OCR),
}


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
    with pytest.raises(RuntimeUnavailable, match=r"noise on cuda; .* ocr-onnx export deepseek-ocr --dtype q8 --force"):
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


# Families whose towers take a page of any proportions.
PATCHES = {
    "paddleocr-vl": write_paddle_checkpoint, "glm-ocr": write_glm_checkpoint, "dots-ocr": write_dots_checkpoint,
    "lighton-ocr": write_lighton_checkpoint,
}  # fmt: skip


@pytest.fixture(scope="module")
def export_of(export_checkpoint, random_checkpoint, tmp_path_factory):
    """The export of a family's small checkpoint in a dtype, made once."""
    made: dict[tuple[str, str], Path] = {}
    checkpoints: dict[str, Path] = {"deepseek-ocr": random_checkpoint}

    def export(family: str, dtype: str) -> Path:
        if family not in checkpoints:
            target = tmp_path_factory.mktemp(family) / "checkpoint"
            checkpoints[family] = {**LINE, **PATCHES}[family](target)
        if (family, dtype) not in made:
            made[family, dtype] = export_checkpoint(checkpoints[family], dtype, family, family)
        return made[family, dtype]

    return export


def logits(folder: Path) -> np.ndarray:
    """Of three prompts, steps of three rows beyond a window if there is one, and a step after a row has moved.

    [rows, vocabulary]
    """
    manifest = Manifest.load(folder)
    window = manifest.sizes.window
    decoder = Decoder(folder, manifest, find_device("cpu"), slots=3)
    random = np.random.default_rng(5)
    prompts = [random.integers(10, 200, count).tolist() for count in (30, 7, 61)]
    found = [decoder.prefill(row, decoder.embed(one), window=window).copy() for row, one in enumerate(prompts)]
    for step in range(6):
        lengths = [len(prompt) + kept(step, window) for prompt in prompts]
        positions = [len(prompt) + step for prompt in prompts]
        found.extend(decoder.step(random.integers(10, 200, 3).tolist(), lengths, positions).copy())
    length = len(prompts[2]) + kept(6, window)
    decoder.move(2, 0, length)
    found.append(decoder.step([77], [length], [len(prompts[2]) + 6])[0].copy())
    return np.stack(found)


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def reference_of(folder: Path, target: Path) -> Path:
    """The export as a CPU runs it; a bfloat16 one keeps such graphs, and its manifest does not offer them."""
    target.mkdir()
    manifest = json.loads((folder / FILE_NAME).read_bytes())
    for file in folder.iterdir():
        if file.name != FILE_NAME:
            shutil.copyfile(file, target / file.name)
    for name in ("vision", "embed", "decoder"):
        manifest[name] = {"files": {"cpu": f"{name}.onnx"}, "compute": {"cpu": "float32"}}
    (target / FILE_NAME).write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize("family", ["deepseek-ocr", *LINE, *PATCHES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_graphs_for_cuda_compute_what_the_graphs_for_a_cpu_compute(
    family, dtype, export_of, tmp_path, monkeypatch, picture
) -> None:
    monkeypatch.setenv("ORT_QMOE_CPU_QNBIT_GEMM", "fp32")  # else 8-bit sums make more of the last bits
    folder = export_of(family, dtype)
    theirs, ours = reference_of(folder, tmp_path / "cpu"), twin_of(folder, tmp_path / "twin")
    assert relative(logits(ours), logits(theirs)) < 1e-5
    features = []
    for side in (theirs, ours):
        manifest = Manifest.load(side)
        tower = VisionTower(side, manifest, find_device("cpu"))
        prepared = family_of(manifest).prepare_image(picture(500, 300), {})
        features.append(prepared.assemble([tower.encode(make()) for make in prepared.passes]))
    # DeepSeek-OCR-2's encoder keeps its angles in what it computes in, and the twin has them as they are then rounded.
    bound = {"f32": 1e-5, "bf16": 5e-3}.get(dtype, 5e-4) if family == "deepseek-ocr-2" else 1e-5
    assert relative(features[1], features[0]) < bound


def types_in(file: Path) -> set[ir.DataType]:
    graph = ir.load(file).graph
    return {value.dtype for value in graph.initializers.values()}


@pytest.mark.parametrize("family", ["deepseek-ocr", "unlimited-ocr", "paddleocr-vl"])
def test_a_bfloat16_export_computes_in_bfloat16_between_float32_borders(family, export_of) -> None:
    folder = export_of(family, "bf16")
    manifest = Manifest.load(folder)
    assert set(manifest.decoder.files) == {"cuda"}
    assert {graph.compute["cuda"] for graph in (manifest.vision, manifest.embed, manifest.decoder)} == {"bfloat16"}
    for name in ("vision", "embed", "decoder"):
        model = ir.load(folder / f"{name}.cuda.onnx")
        for value in (*model.graph.inputs, *model.graph.outputs):
            cache = value.name.startswith(("past_key_values", "present"))
            assert value.dtype != ir.DataType.FLOAT16
            assert (value.dtype == ir.DataType.BFLOAT16) == cache
        assert ir.DataType.FLOAT16 not in types_in(folder / f"{name}.cuda.onnx")
    gates = [name for name in ir.load(folder / "decoder.cuda.onnx").graph.initializers if ".mlp.gate." in name]
    assert len(gates) == {"deepseek-ocr": 2, "unlimited-ocr": 1, "paddleocr-vl": 0}[family]
    initializers = ir.load(folder / "decoder.cuda.onnx").graph.initializers
    assert {initializers[name].dtype for name in gates} <= {ir.DataType.FLOAT}
    widths = {value.dtype.itemsize for name, value in initializers.items() if name.endswith("_proj.weight")}
    assert widths == {2}


def test_a_float32_export_has_a_graph_for_cuda_without_the_kernel_that_has_no_float32_there(export_of) -> None:
    folder = export_of("deepseek-ocr", "f32")
    assert nodes(folder / "decoder.onnx", "GroupQueryAttention")
    assert not nodes(folder / "decoder.cuda.onnx", "GroupQueryAttention")
    assert Manifest.load(folder).decoder.compute == {"cpu": "float32", "cuda": "float32"}


@pytest.mark.parametrize(("device", "instead"), [("cpu", "q8"), ("coreml", "q8")])
def test_a_bfloat16_export_elsewhere_says_what_to_take(export_of, device, instead) -> None:
    folder = export_of("deepseek-ocr", "bf16")
    with pytest.raises(RuntimeUnavailable, match=rf"no graph for {device}; make one with: .* --dtype {instead}"):
        Device(device, 0).require(folder, Manifest.load(folder))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_export_without_a_gpu_says_that_its_graphs_for_cuda_have_not_been_run(dtype, export_of) -> None:
    if check.best_device() == "cuda":
        pytest.skip("this machine has the CUDA build")
    checked = Manifest.load(export_of("deepseek-ocr", dtype)).checked
    assert checked == {"cpu": "run", "cuda": "structure only, not run"}


def changed(file: Path, target: Path, change) -> Path:
    """The graph at ``file`` after ``change`` of its nodes, beside a copy of its data."""
    shutil.copyfile(file.with_name("decoder.onnx.data"), target / "decoder.onnx.data")
    model = ir.load(file)
    change(model.graph)
    ir.save(model, target / file.name)
    return target / file.name


def test_experts_that_do_not_say_that_they_are_not_packed_are_not_published(export_of, tmp_path) -> None:
    def forget(graph: ir.Graph) -> None:
        for node in graph:
            node.attributes.pop("weights_prepacked", None)

    file = export_of("deepseek-ocr", "q4") / "decoder.cuda.onnx"
    check.check_structure(file)
    with pytest.raises(ExportError, match="does not say weights_prepacked=0"):
        check.check_structure(changed(file, tmp_path, forget))


def test_nodes_that_cuda_has_no_kernel_for_are_not_published(export_of, tmp_path) -> None:
    def slow(graph: ir.Graph) -> None:
        graph.extend([ir.node("ReduceMax", [graph.inputs[0]])])

    file = export_of("deepseek-ocr", "bf16") / "decoder.cuda.onnx"
    with pytest.raises(ExportError, match="ReduceMax has no kernel on CUDA"):
        check.check_structure(changed(file, tmp_path, slow))
    for family in ("deepseek-ocr", "deepseek-ocr-2", *PATCHES):
        for name in ("vision", "embed", "decoder"):
            check.check_structure(export_of(family, "bf16") / f"{name}.cuda.onnx")


def test_a_graph_whose_types_do_not_fit_is_not_published(export_of, tmp_path) -> None:
    def mix(graph: ir.Graph) -> None:
        next(node for node in graph if node.op_type == "Cast").attributes["to"] = ir.AttrInt64("to", ir.DataType.DOUBLE)

    file = export_of("deepseek-ocr", "bf16") / "decoder.cuda.onnx"
    check.check_structure(file)
    with pytest.raises(ExportError, match=r"cannot load decoder\.cuda\.onnx"):
        check.check_structure(changed(file, tmp_path, mix))


def test_float32_attention_by_the_kernel_that_has_none_on_cuda_is_not_published(export_of, tmp_path) -> None:
    with pytest.raises(ExportError, match="in float32 has no kernel on CUDA"):
        check.check_structure(export_of("deepseek-ocr", "f32") / "decoder.onnx")


@pytest.mark.parametrize(("error", "published"), [(0.0, True), (0.7, False)])
def test_graphs_that_give_something_else_on_cuda_are_not_published(
    export_of, tmp_path, monkeypatch, error, published
) -> None:
    """With the twin's session in place of a GPU's, and noise of the size that unpacked experts gave."""
    folder = export_of("deepseek-ocr", "f16")
    twin = twin_of(folder, tmp_path / "twin")

    class Session:
        def __init__(self, file: Path) -> None:
            self._session = check.mapped_session(twin / file.name.replace(".cuda", ""))

        def __getattr__(self, name: str):
            return getattr(self._session, name)

        def run_with_ort_values(self, names, values):
            (logits,) = (value.numpy() for value in self._session.run_with_ort_values(names, values))
            noise = np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
            noise *= error * np.linalg.norm(logits) / np.linalg.norm(noise)
            return [check.ort.OrtValue.ortvalue_from_numpy(logits + noise)]

    monkeypatch.setattr(check, "cuda_works", lambda file: True)
    monkeypatch.setattr(check, "cuda_session", Session)
    manifest = Manifest.load(folder)
    if published:
        assert check.check_graphs(folder, manifest) == {"cpu": "run", "cuda": "run"}
    else:
        with pytest.raises(ExportError, match=r"logits of the graphs for CUDA differ from the CPU's by 0\.7"):
            check.check_graphs(folder, manifest)


@pytest.mark.parametrize("family", ["deepseek-ocr", *LINE, *PATCHES])
def test_vision_graphs_for_cuda_pad_nothing_and_compute_no_shapes(family, export_of) -> None:
    """Each was seen to cost a GPU more than the arithmetic around it."""
    kinds = {node.op_type for node in ir.load(export_of(family, "f16") / "vision.cuda.onnx").graph}
    assert not kinds & {"Pad", "Shape", "Expand", "Mod", "Size"}


def test_channels_of_attention_are_what_fused_kernels_take() -> None:
    assert [sam_cuda.keys_side(side, 64) for side in (14, 40, 64, 41)] == [16, 40, 64, 44]
    assert sam_cuda.keys_side(14, 16) == 16


@pytest.mark.parametrize(("base", "tile"), [(256, 160), (208, 144), (320, 64)])
def test_views_of_any_size_are_windowed_alike_for_cuda_and_a_cpu(export_of, tmp_path, picture, base, tile) -> None:
    """Sides that are a multiple of a window's, smaller than one, and others; several views in one pass."""
    folder = export_of("deepseek-ocr", "f32")
    views = []
    for side in (reference_of(folder, tmp_path / "cpu"), twin_of(folder, tmp_path / "twin")):
        manifest = Manifest.load(side)
        tower = VisionTower(side, manifest, find_device("cpu"))
        prepared = family_of(manifest).prepare_image(picture(900, 500), {"base_size": base, "image_size": tile})
        feeds = [dict(make()) for make in prepared.passes]
        found = [tower.encode(one)["features"] for one in feeds]
        tiles = [one for one in feeds if one["pixel_values"].shape == feeds[0]["pixel_values"].shape]
        together = {**tiles[0], "pixel_values": np.concatenate([one["pixel_values"] for one in tiles])}
        found.append(tower.encode(together)["features"])
        views.append(found)
    for theirs, ours in zip(*views, strict=True):
        assert relative(ours, theirs) < 1e-5
