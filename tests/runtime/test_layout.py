"""A loaded detector: what it finds on a page, what it says when something is missing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.layout.rules import GLM_OCR
from models.manifest import FILE_NAME
from models.model_errors import ConfigError, ManifestError
from models.paths import CACHE_VARIABLE
from runtime.layout import LayoutModel
from runtime.runtime_errors import EngineClosed
from tests.detectors import SIDE, write_detector

FOUND = [
    ("doc_title", (0.1, 0.05, 0.9, 0.1), 0.9),
    ("text", (0.1, 0.15, 0.45, 0.9), 0.8),
    ("text", (0.55, 0.15, 0.9, 0.5), 0.7),
    ("image", (0.55, 0.55, 0.9, 0.9), 0.35),
]
PAGE = Image.new("RGB", (1000, 2000), "white")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_detector(tmp_path / "detector", FOUND)


def test_regions_come_in_reading_order_in_pixels_of_the_page(folder: Path) -> None:
    with LayoutModel.open(folder, "cpu", 1) as detector:
        found = detector.detect(PAGE)
    assert [one.label for one in found] == ["doc_title", "text", "text", "image"]
    assert [one.order for one in found] == [0, 1, 2, 3]
    assert [one.box for one in found] == [
        (100, 100, 900, 200), (100, 300, 450, 1800), (550, 300, 900, 1000), (550, 1100, 900, 1800),
    ]  # fmt: skip
    assert [one.score for one in found] == pytest.approx([0.9, 0.8, 0.7, 0.35], abs=1e-6)


def test_rules_of_a_caller_replace_those_of_the_manifest(folder: Path) -> None:
    strict = GLM_OCR.model_copy(update={"thresholds": {"text": 0.75}})
    with LayoutModel.open(folder, "cpu", 1) as detector:
        assert [one.label for one in detector.detect(PAGE, strict)] == ["doc_title", "text", "image"]


def test_pictures_of_any_mode_are_read(folder: Path) -> None:
    with LayoutModel.open(folder, "cpu", 1) as detector:
        for mode in ("L", "RGBA", "P", "I;16", "1"):
            assert len(detector.detect(Image.new(mode, (70, 50)))) == 4


def test_pages_from_several_threads_do_not_mix(folder: Path) -> None:
    sizes = [(100 + 50 * i, 900 - 60 * i) for i in range(12)]
    with LayoutModel.open(folder, "cpu", 1) as detector, ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda size: detector.detect(Image.new("RGB", size)), sizes))
    for (width, height), regions in zip(sizes, pages, strict=True):
        assert regions[0].box == (width // 10, int(height * 0.05), int(width * 0.9), height // 10)


def test_a_detector_is_found_by_its_names_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    write_detector(tmp_path / "models" / "pp-doclayout-v3" / "onnx" / "f32", FOUND)
    for name in ("v3", "V3", "pp-doclayout-v3"):
        LayoutModel.open(name, "cpu", 1).close()
    with pytest.raises(
        ManifestError, match=r"pp-doclayout-v2 is not exported here; make it with: ocr-onnx export pp-d"
    ):
        LayoutModel.open("v2", "cpu", 1)
    with pytest.raises(ConfigError, match="'v4' is unknown; known are v2"):
        LayoutModel.open("v4", "cpu", 1)


def test_a_folder_that_holds_no_detector_is_refused(tmp_path: Path, random_model_folder: Path) -> None:
    with pytest.raises(ManifestError, match="is missing"):
        LayoutModel.open(tmp_path, "cpu", 1)
    with pytest.raises(ManifestError, match="is of a model, and a layout detector is wanted here"):
        LayoutModel.open(random_model_folder, "cpu", 1)


def test_a_detector_with_other_labels_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / FILE_NAME).read_text())
    manifest["labels"][3] = "graph"
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="other labels"):
        LayoutModel.open(folder, "cpu", 1)


def test_a_closed_detector_says_so(folder: Path) -> None:
    detector = LayoutModel.open(folder, "cpu", 1)
    detector.close()
    with pytest.raises(EngineClosed, match="layout detector was closed"):
        detector.detect(PAGE)


def test_the_graph_is_given_the_page_as_the_manifest_says(folder: Path) -> None:
    with LayoutModel.open(folder, "cpu", 1) as detector:
        outputs = detector.run(np.zeros((1, 3, SIDE, SIDE), np.float32))
    assert {name: array.shape for name, array in outputs.items()} == {
        "logits": (1, 300, 25), "pred_boxes": (1, 300, 4), "order_logits": (1, 300, 300),
    }  # fmt: skip
