"""Layout detectors: the traced graphs against transformers' own modules, and what checkpoints are refused."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optimum")

from safetensors.torch import load_file, save_file  # noqa: E402 - after torch is known to be there

import export.layout  # noqa: E402
from export.check import cuda_works  # noqa: E402
from export.checkpoint import Checkpoint  # noqa: E402
from export.export_errors import ExportError  # noqa: E402
from export.layout import pipeline, rewrites  # noqa: E402
from export.layout.checking import drawn_page  # noqa: E402
from export.layout.loading import load_detector  # noqa: E402
from export.layout.pipeline import export_detector  # noqa: E402
from models.layout.decode import decode  # noqa: E402
from models.layout.detectors import DETECTORS, KnownDetector  # noqa: E402
from models.layout.labels import LABELS  # noqa: E402
from models.layout.manifest import LayoutManifest  # noqa: E402
from models.layout.resize import pixel_values  # noqa: E402
from models.manifest import FILE_NAME  # noqa: E402
from runtime.layout import LayoutModel  # noqa: E402
from tests.export.layout_exports import Exported, job  # noqa: E402
from tools import layout_parity  # noqa: E402
from tools.layout_checkpoints import write_layout_checkpoint  # noqa: E402

SIDE = 128


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export a scaled-down detector with random weights, once each."""
    made: dict[str, Exported] = {}

    def export_(name: str) -> Exported:
        if name not in made:
            place = tmp_path_factory.mktemp(f"layout-{name}")
            checkpoint = write_layout_checkpoint(place / "checkpoint", name)
            manifest, folder = export_detector(job(checkpoint, place), lambda line: None)
            made[name] = Exported(checkpoint, folder, manifest)
        return made[name]

    return export_


both = pytest.mark.parametrize("name", ["v2", "v3"])


def pages() -> list[Image.Image]:
    """Several sizes: upright, across, tiny, a strip."""
    drawn = drawn_page()
    noise = np.random.default_rng(3).integers(0, 256, (90, 700, 3), np.uint8)
    return [drawn, drawn.rotate(90, expand=True), drawn.resize((61, 83)), Image.fromarray(noise)]


@both
def test_the_whole_graph_equals_transformers_module_on_pages_of_several_sizes(
    exported: Callable[[str], Exported], name: str
) -> None:
    """As near as PyTorch's own float32 is to its float64, or nearer than anybody could see."""
    detector = exported(name)
    module, exact, session = detector.module, detector.module.double(), detector.session()
    names = {"logits": 1e-4, "pred_boxes": 1e-5, "order_logits": 1e-3}
    for page in pages():
        pixels = pixel_values(page, SIDE, SIDE)
        found = dict(zip(names, session.run(list(names), {"pixel_values": pixels}), strict=True))
        expected = layout_parity.run_module(module, pixels)
        truth = layout_parity.run_module(exact, pixels.astype(np.float64))
        assert expected["logits"].std() > 0.3  # random, and not vanished
        assert expected["pred_boxes"].std() > 0.05
        for output, bound in names.items():
            noise = np.abs(expected[output] - truth[output]).max()
            assert np.abs(found[output] - truth[output]).max() < max(bound, 4 * noise), output


@both
def test_the_halves_equal_and_the_encoder_is_as_near_to_float64_as_pytorch(
    exported: Callable[[str], Exported], name: str
) -> None:
    detector = exported(name)
    measured = layout_parity.measure(detector.checkpoint, detector.folder, drawn_page())
    assert measured.encoder < 1e-3
    assert measured.logits < 1e-4
    assert measured.boxes < 1e-3
    assert measured.order < 2e-3
    assert (measured.masks is None) == (name == "v2")
    assert measured.masks is None or measured.masks < 1e-4
    assert measured.found
    assert measured.same_regions
    pixels = pixel_values(drawn_page(), SIDE, SIDE)
    ours = layout_parity.run_with_features(detector.folder / "layout.onnx", pixels)
    theirs = layout_parity.run_module(detector.module, pixels)
    exact = layout_parity.run_module(detector.module.double(), pixels.astype(np.float64))
    for feature in layout_parity.feature_names(ours):
        theirs_off, ours_off = (np.abs(one[feature] - exact[feature]).max() for one in (theirs, ours))
        assert ours_off < 4 * theirs_off


def test_the_masks_of_v3_are_the_product_of_the_factors(exported: Callable[[str], Exported]) -> None:
    detector = exported("v3")
    pixels = pixel_values(drawn_page(), SIDE, SIDE)
    queries, features = detector.session().run(["mask_queries", "mask_features"], {"pixel_values": pixels})
    masks = layout_parity.run_module(detector.module, pixels)["out_masks"]
    product = (queries[0] @ features[0].reshape(features.shape[1], -1)).reshape(masks.shape[1:])
    assert np.abs(product - masks[0]).max() < 1e-3 * masks.std()


@both
def test_detections_and_their_order_are_those_of_transformers_post_processing(
    exported: Callable[[str], Exported], name: str
) -> None:
    detector, page = exported(name), drawn_page()
    outputs = layout_parity.run_module(detector.module, pixel_values(page, SIDE, SIDE))
    tensors = SimpleNamespace(**{key: torch.from_numpy(value) for key, value in outputs.items()})
    (expected,) = _post_processing()(tensors, 0.3, torch.tensor([page.size[::-1]]))
    found = decode(outputs, *page.size)
    found = found.take(found.scores >= np.float32(0.3))
    assert len(found) > 5
    expected = {key: value.numpy() for key, value in expected.items()}
    # A query that comes under two labels has one place in the order: which of both is first is nobody's business.
    ours, theirs = (
        np.lexsort((-scores, ranks))
        for scores, ranks in (
            (found.scores, found.ranks),
            (expected["scores"], expected["order_seq"]),
        )
    )
    assert found.labels[ours].tolist() == expected["labels"][theirs].tolist()
    assert found.ranks[ours].tolist() == expected["order_seq"][theirs].tolist()
    assert np.allclose(found.scores[ours], expected["scores"][theirs], atol=1e-6)
    assert np.allclose(found.boxes[ours], expected["boxes"][theirs], atol=1e-2)


@both
def test_a_loaded_detector_finds_what_the_module_finds(exported: Callable[[str], Exported], name: str) -> None:
    detector, page = exported(name), drawn_page()
    measured = layout_parity.measure(detector.checkpoint, detector.folder, page)
    with LayoutModel.open(detector.folder, "cpu", 1) as model:
        found = model.detect(page)
    assert found
    assert [(one.label, one.box, one.order) for one in found] == [
        (one.label, one.box, one.order) for one in measured.expected
    ]


@both
def test_the_manifest_says_what_the_export_holds(exported: Callable[[str], Exported], name: str) -> None:
    detector = exported(name)
    manifest = LayoutManifest.load(detector.folder)
    manifest.verify(detector.folder)
    assert manifest.id == f"pp-doclayout-{name}"
    assert manifest.labels == LABELS
    assert (manifest.image.height, manifest.image.width) == (SIDE, SIDE)
    assert manifest.rules == DETECTORS[manifest.id].rules
    assert manifest.source.name == str(detector.checkpoint)
    assert {Path(file).name for file in manifest.source.files} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert manifest.checked["cpu"] == "run"
    assert set(manifest.files) == {file.name for file in detector.folder.iterdir()} - {FILE_NAME}
    stored = detector.session().get_inputs()[0]
    assert (stored.name, stored.shape) == ("pixel_values", [1, 3, SIDE, SIDE])


def test_a_present_export_is_left_and_force_makes_it_anew(exported: Callable[[str], Exported]) -> None:
    detector = exported("v3")
    cache = detector.folder.parents[2]
    before = (detector.folder / FILE_NAME).stat().st_mtime_ns
    lines: list[str] = []
    again, folder = export_detector(job(detector.checkpoint, cache), lines.append)
    assert (again, folder) == (detector.manifest, detector.folder)
    assert (detector.folder / FILE_NAME).stat().st_mtime_ns == before
    assert "is there already" in lines[0]


# Convolutions in float16.


@both
def test_convolutions_in_float16_round_and_change_no_more(
    exported: Callable[[str], Exported], name: str, tmp_path: Path
) -> None:
    from export.layout.half import write_half

    detector = exported(name)
    write_half(detector.folder / "layout.onnx", tmp_path / "half.onnx")
    pixels = pixel_values(drawn_page(), SIDE, SIDE)
    wide = layout_parity.run_with_features(detector.folder / "layout.onnx", pixels)
    half = layout_parity.run_with_features(tmp_path / "half.onnx", pixels)
    for feature in layout_parity.feature_names(wide):
        error = np.linalg.norm(half[feature].astype(np.float32) - wide[feature]) / np.linalg.norm(wide[feature])
        assert 1e-5 < error < 0.1  # rounded, which noise of a random net grows from, and no noise itself
    assert (tmp_path / "half.onnx.data").stat().st_size < (detector.folder / "layout.onnx.data").stat().st_size


@pytest.mark.gpu
@both
def test_cuda_finds_what_the_cpu_finds(exported: Callable[[str], Exported], name: str) -> None:
    detector = exported(name)
    if not cuda_works(detector.folder / detector.manifest.layout.files["cuda"]):
        pytest.skip("no GPU that ONNX Runtime can use")
    assert detector.manifest.checked["cuda"] == "run"
    pixels = pixel_values(drawn_page(), SIDE, SIDE)
    with LayoutModel.open(detector.folder, "cuda") as model, LayoutModel.open(detector.folder, "cpu") as reference:
        found, expected = model.run(pixels), reference.run(pixels)
    half = detector.manifest.layout.compute["cuda"] == "float16"
    assert np.abs(found["logits"] - expected["logits"]).mean() < (0.05 if half else 1e-3)


# What the modules are changed to.


def test_boxes_of_masks_are_the_modules_own() -> None:
    module = importlib.import_module("transformers.models.pp_doclayout_v3.modeling_pp_doclayout_v3")
    masks = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 40, 25, 31)) > 2.8)
    masks[0, 0] = False
    masks[1, 1] = True
    masks[1, 2] = False
    masks[1, 2, 24, 30] = True
    assert torch.equal(rewrites.mask_boxes(masks, torch.float32), module.mask_to_box_coordinate(masks, torch.float32))


def test_queries_are_sorted_as_by_a_stable_sort() -> None:
    sure = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, 300)).astype(np.int32))
    expected = torch.argsort(sure, dim=1, descending=True, stable=True)
    assert torch.equal(rewrites.stable_argsort(sure, dim=1, descending=True), expected)


@both
def test_folded_normalisations_change_no_feature(exported: Callable[[str], Exported], name: str) -> None:
    detector = exported(name)
    pixels = pixel_values(drawn_page(), SIDE, SIDE)
    folded = detector.module.double()
    expected = layout_parity.run_module(folded, pixels.astype(np.float64))
    rewrites.fold_norms(folded)
    found = layout_parity.run_module(folded.double(), pixels.astype(np.float64))
    norms = [part for part in folded.modules() if "BatchNorm" in type(part).__name__]
    assert not norms
    for feature in layout_parity.feature_names(found):
        error = np.linalg.norm(found[feature] - expected[feature]) / np.linalg.norm(expected[feature])
        assert error < 1e-5  # the weights are in float32 again


# What is refused.


@pytest.fixture
def changed(exported: Callable[[str], Exported], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint with other tensors, or other words in its files."""

    def change(
        name: str, tensors: Callable[[dict[str, Any]], Any] | None = None, config: dict[str, Any] | None = None,
        preprocessor: dict[str, Any] | None = None,
    ) -> Path:  # fmt: skip
        source, folder = exported(name).checkpoint, tmp_path / "changed"
        folder.mkdir()
        held = load_file(source / "model.safetensors")
        if tensors is not None:
            tensors(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        for file, words in (("config.json", config), ("preprocessor_config.json", preprocessor)):
            said = json.loads((source / file).read_text())
            (folder / file).write_text(json.dumps(said | (words or {})))
        return folder

    return change


def refused(folder: Path, tmp_path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        export_detector(job(folder, tmp_path / "cache"), lambda line: None)
    assert not list((tmp_path / "cache").rglob(FILE_NAME))
    return str(caught.value)


@both
def test_missing_unexpected_and_misshapen_tensors_are_all_named(
    changed: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["model.enc_output.0.weight"]
        del tensors["model.backbone.model.embedder.stem1.normalization.running_mean"]
        tensors["model.extra.weight"] = torch.zeros(2)
        tensors["model.enc_output.1.bias"] = torch.zeros(5)

    message = refused(changed(name, spoil), tmp_path)
    for problem in (
        "missing: model.enc_output.0.weight", "missing: model.backbone.model.embedder.stem1.normalization.running_mean",
        "unexpected: model.extra.weight", "wrong shape: model.enc_output.1.bias is [5], expected [32]",
    ):  # fmt: skip
        assert problem in message


def test_heads_of_v3_are_tied_whether_they_are_stored_once_or_twice(
    changed: Callable[..., Path], exported: Callable[[str], Exported]
) -> None:
    def twice(tensors: dict[str, Any]) -> None:
        for kind in ("weight", "bias"):
            tensors[f"model.decoder.class_embed.{kind}"] = tensors[f"model.enc_score_head.{kind}"].clone()

    for folder in (exported("v3").checkpoint, changed("v3", twice)):
        model = load_detector(Checkpoint(folder), DETECTORS["pp-doclayout-v3"]).model.model
        stored = load_file(folder / "model.safetensors")
        assert torch.equal(model.decoder.class_embed.weight, stored["model.enc_score_head.weight"])
        assert torch.equal(model.decoder.bbox_embed.layers[2].weight, stored["model.enc_bbox_head.layers.2.weight"])


def test_heads_of_v3_that_differ_are_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    def differ(tensors: dict[str, Any]) -> None:
        tensors["model.decoder.class_embed.weight"] = tensors["model.enc_score_head.weight"] + 1

    assert "model.decoder.class_embed.weight and model.enc_score_head.weight are one tensor" in refused(
        changed("v3", differ), tmp_path
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"config": {"model_type": "pp_doclayout_v4"}}, "model_type 'pp_doclayout_v4', and the layout detectors"),
        ({"config": {"model_type": None}}, "model_type None"),
        ({"config": {"class_thresholds": None}}, "class_thresholds is None; pp-doclayout-v2 needs a number for each"),
        ({"config": {"class_order": [1, 2]}}, "class_order is [1, 2]"),
        ({"config": {"d_model": "wide"}}, "transformers cannot load"),
        ({"preprocessor": {"image_mean": [0.5, 0.5, 0.5]}}, "image_mean is [0.5, 0.5, 0.5]; this version prepares"),
        ({"preprocessor": {"size": {"height": 800, "width": 801}}}, "height and width have to be multiples of 32"),
        ({"preprocessor": {"size": 800}}, "size is 800"),
        ({"preprocessor": {"rescale_factor": 1.0}}, "rescale_factor is 1.0"),
    ],
)
def test_configs_that_no_detector_has_are_refused(
    changed: Callable[..., Path], tmp_path: Path, words: dict[str, Any], expected: str
) -> None:
    assert expected in refused(changed("v2", **words), tmp_path)


def test_a_detector_of_other_labels_is_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    def fewer(tensors: dict[str, Any]) -> None:
        tensors["model.enc_score_head.weight"] = torch.zeros(7, 32)

    assert "tells 7 kinds of blocks apart, and pp-doclayout-v3 25" in refused(changed("v3", fewer), tmp_path)


def test_a_checkpoint_of_another_detector_than_the_wanted_one_is_refused(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    wanted: KnownDetector = DETECTORS["pp-doclayout-v2"]
    with pytest.raises(ExportError, match="holds pp-doclayout-v3, and pp-doclayout-v2 is wanted"):
        export_detector(job(exported("v3").checkpoint, tmp_path, wanted=wanted), lambda line: None)


def test_without_the_extra_the_error_has_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(export.layout, "loading", raising=False)
    monkeypatch.setitem(sys.modules, "export.layout.loading", None)
    with pytest.raises(ExportError, match=r"needs more packages .*pip install 'ocr-onnx\[layout\]'"):
        pipeline.require_extra()


def test_thresholds_of_v2_are_the_checkpoints_own(changed: Callable[..., Path]) -> None:
    values = [0.5] * 25
    values[LABELS.index("seal")] = 0.2
    folder = changed("v2", config={"class_thresholds": values})
    assert load_detector(Checkpoint(folder), DETECTORS["pp-doclayout-v2"]).rules.thresholds == {"seal": 0.2}


def _post_processing() -> Callable[..., Any]:
    """transformers' function for V2, which has no use for OpenCV, from its source: it cannot be imported without
    torchvision."""
    transformers = pytest.importorskip("transformers")
    names: dict[str, Any] = {"torch": torch, "TensorType": Any}
    for kind, wanted in (("v3", "_get_order_seqs"), ("v2", "post_process_object_detection")):
        module = f"models/pp_doclayout_{kind}/image_processing_pp_doclayout_{kind}.py"
        tree = ast.parse((Path(transformers.__file__).parent / module).read_text(encoding="utf-8"))
        (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == wanted]
        function.decorator_list = []
        exec(compile(ast.Module([function], []), module, "exec"), names)
    processor = SimpleNamespace(_get_order_seqs=lambda logits: names["_get_order_seqs"](None, logits))
    return lambda *values: names["post_process_object_detection"](processor, *values)
