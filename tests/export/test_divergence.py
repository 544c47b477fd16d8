"""The end-to-end part of ``--report``: float32 as transformers computes it, and outliers where they are meant to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from export.check import mapped_session
from export.checkpoint import Checkpoint
from export.deepseek_ocr import DeepseekOcrExport
from export.divergence import DecoderRun, Divergence, cosine, divergence
from export.export_errors import ExportError
from export.outliers import FACTOR, planted
from export.pipeline import Job, export_model
from export.source import Source
from models.catalog import CATALOG
from models.manifest import Manifest
from tools.reference import load_reference


@pytest.fixture(scope="module")
def subject(random_checkpoint: Path, random_model_folder: Path, tmp_path_factory) -> Divergence:
    """The float32 export, compared with itself: its report must be that of no difference at all."""
    checkpoint = Checkpoint(random_checkpoint)
    family = DeepseekOcrExport(checkpoint, {})
    scratch = tmp_path_factory.mktemp("scratch")
    return Divergence(random_model_folder, Manifest.load(random_model_folder), family, checkpoint, scratch)


@pytest.fixture(scope="module")
def reports(random_checkpoint: Path, tmp_path_factory) -> dict[str, dict]:
    """Reports by dtype; the vision tower in 8 bits."""
    source, folder = Source(random_checkpoint, "x", None, "directory"), tmp_path_factory.mktemp("exports")
    lines: list[str] = []
    made = {}
    for dtype in ("q8", "q4"):
        job = Job("m", "deepseek-ocr", source, dtype, folder / dtype, vision_dtype="q8", report=True)
        made[dtype] = dict(export_model(job, lines.append).report)
        assert dict(Manifest.load(folder / dtype).report) == made[dtype]
    assert sum("cosine similarity to float32 0.999" in line for line in lines) == 2
    assert sum("KL divergence from float32" in line for line in lines) == 2
    assert {entry.name for entry in folder.iterdir()} == {"q8", "q4", ".q8.lock", ".q4.lock"}  # no graph is left behind
    return made


def test_an_exact_export_has_no_divergence(subject) -> None:
    report = subject.measure(tower=None, logits=True)
    assert report["vision_features"]["cosine"] == pytest.approx(1, abs=1e-9)
    assert report["logits"]["mean_kl"] < 1e-9
    assert report["logits"]["top_1_agreement"] == 1


def test_the_float32_side_is_what_transformers_computes(subject, random_checkpoint) -> None:
    features = [np.random.default_rng(i).standard_normal((page.image.token_count, 64)).astype(np.float32)
                for i, page in enumerate(subject.pages)]  # fmt: skip
    reference = load_reference(random_checkpoint)
    for page, of_page, logits in zip(subject.pages, features, subject.reference_logits(features), strict=True):
        ids = torch.tensor([*page.prompt_ids, *page.answer_ids])
        with torch.no_grad():
            embeddings = reference.get_input_embeddings()(ids)
            embeddings[ids == subject.manifest.tokens.image] = torch.from_numpy(of_page)
            expected = reference(inputs_embeds=embeddings[None]).logits[0, len(page.prompt_ids) - 1 :].numpy()
        assert logits.shape == expected.shape == (len(page.answer_ids) + 1, expected.shape[1])
        assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-4


def test_steps_and_a_whole_pass_give_the_same_logits(subject, random_model_folder) -> None:
    session = mapped_session(random_model_folder / "decoder.onnx")
    rows = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    stepped = DecoderRun(session, np.arange(9)[None], None)
    by_steps = [stepped.feed(rows[:4]), *(stepped.feed(rows[i : i + 1]) for i in range(4, 9))]
    assert np.allclose(by_steps[-1], DecoderRun(session, np.arange(9)[None], None).feed(rows), atol=1e-4)


def test_divergence_is_that_of_the_textbook() -> None:
    p, q = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]]) + 7.0  # a constant changes nothing
    found = divergence(p, q)
    assert found["max_kl"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert found["mean_kl"] == pytest.approx(found["max_kl"] / 2)
    assert divergence(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))["top_1_agreement"] == 0.5
    assert cosine([np.array([[3.0, 0.0]])], [np.array([[3.0, 4.0]])]) == pytest.approx(0.6)


def test_planted_outliers_do_not_change_what_a_float_model_sees(subject) -> None:
    """Outside MLPs, whose activation function is no straight line; this shows that every site is the right one."""
    checkpoint, sites = subject.checkpoint, subject.family.vision_outliers
    straight = [site for site in sites if "mlp." not in site.written[0]]
    assert len(sites) * 3 == len(straight) * 4
    with subject.reference("vision", checkpoint.load) as plain, pytest.MonkeyPatch.context():
        expected = subject.features_of(mapped_session(plain))
    with subject.reference("vision", planted(checkpoint.load, straight)) as file:
        found = subject.features_of(mapped_session(file))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-4


def test_every_matrix_of_the_vision_towers_blocks_reads_an_outlier(subject) -> None:
    checkpoint, sites = subject.checkpoint, subject.family.vision_outliers
    load = planted(checkpoint.load, sites)
    read = {name for site in sites for name in site.read}
    blocks = {n for n in checkpoint.tensors if ("sam_model.blocks" in n or "transformer.layers" in n)}
    assert read == {n for n in blocks if n.endswith("weight") and len(checkpoint.shape(n)) == 2 and "norm" not in n}
    name = sites[0].read[0]
    ratio = checkpoint.load(name).astype(np.float32) / load(name)
    scaled = np.isclose(ratio[0], FACTOR)
    assert scaled.sum() == 1
    assert np.allclose(np.delete(ratio, np.flatnonzero(scaled), axis=1)[: checkpoint.shape(name)[1]], 1)
    assert np.array_equal(load("lm_head.weight"), checkpoint.load("lm_head.weight"))


def test_the_report_says_how_far_the_bits_take_the_model(reports) -> None:
    q8, q4 = reports["q8"]["logits"], reports["q4"]["logits"]
    assert 0 < q8["mean_kl"] < 0.02
    assert q8["mean_kl"] * 10 < q4["mean_kl"] < 1
    assert q8["top_1_agreement"] > 0.85
    assert q4["top_1_agreement"] < q8["top_1_agreement"]
    assert q8["positions"] == q4["positions"] > 100


def test_8_bit_vision_stays_near_float32_with_outliers_and_without(reports) -> None:
    for report in reports.values():
        assert 0.999 <= report["vision_features"]["cosine"] < 1
        assert 0.995 <= report["vision_features"]["cosine_with_outliers"] < 1


def test_outliers_are_what_breaks_a_plain_8_bit_tower(subject, reports) -> None:
    """The measurement sees the failure that it is for: weight blocks with 8-bit activations in one scale per block."""
    from export.layers import FLOAT, FLOAT16, Precision
    from export.quantize import Blocks

    blocks = Precision(FLOAT16, FLOAT, Blocks(8, 128))
    measured = subject.measure(tower=blocks, logits=False)["vision_features"]
    assert measured["cosine_with_outliers"] < reports["q8"]["vision_features"]["cosine_with_outliers"]


def test_nothing_is_written_where_the_disk_has_no_room_for_the_float32_side(random_checkpoint, tmp_path, monkeypatch):
    needed: list[int] = []
    monkeypatch.setattr("export.publish.check_disk", lambda target, bytes_: needed.append(bytes_))
    source = Source(random_checkpoint, "x", None, "directory")

    def stop(*_: object) -> Iterator[Path]:
        raise ExportError("far enough")

    monkeypatch.setattr("export.publish.staged", stop)
    for report in (False, True):
        with pytest.raises(ExportError, match="far enough"):
            export_model(Job("m", "deepseek-ocr", source, "q8", tmp_path / "q8", report=report), lambda line: None)
    assert needed[1] - needed[0] >= 2 * Checkpoint(random_checkpoint).parameter_count


def test_every_export_that_rounds_is_measured_and_one_that_does_not_says_so(random_checkpoint, tmp_path) -> None:
    source = Source(random_checkpoint, "x", None, "directory")
    lines: list[str] = []

    def report(dtype, vision_dtype=None):
        job = Job("m", "deepseek-ocr", source, dtype, tmp_path / "export", vision_dtype=vision_dtype, report=True)
        lines.clear()
        return export_model(job, lines.append).report

    for dtype, vision_dtype in (("f16", None), ("f32", "f16")):
        found = report(dtype, vision_dtype)
        assert found["vision_features"]["cosine"] == pytest.approx(1, abs=1e-4)
        assert found["logits"]["mean_kl"] < 1e-3
        assert sum("float32" in line for line in lines) == 3
    assert report("f32") == {"relative_weight_errors": {}}
    assert "a float32 export rounds nothing, so nothing is measured" in lines


def test_truncation_and_padding_in_the_tokenizers_file_mean_nothing(subject, random_model_folder, tmp_path) -> None:
    tokenizer = Tokenizer.from_file(str(random_model_folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = Divergence(tmp_path, subject.manifest, subject.family, subject.checkpoint, tmp_path / "scratch")
    for ours, theirs in zip(again.pages, subject.pages, strict=True):
        assert (ours.prompt_ids, ours.answer_ids) == (theirs.prompt_ids, theirs.answer_ids)


def test_the_built_in_model_is_the_same_reader_in_8_bits(tmp_path) -> None:
    folder = Path(CATALOG["tiny-ocr"].source)
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the built-in model's weights are not in this checkout")
    source = Source(folder, "tiny-ocr", None, "directory")
    job = Job("tiny-ocr", "deepseek-ocr", source, "q8", tmp_path / "q8", vision_dtype="q8", report=True)
    report = export_model(job, lambda line: None).report
    assert report["vision_features"]["cosine"] >= 0.999
    assert report["vision_features"]["cosine_with_outliers"] >= 0.995
    assert report["logits"]["mean_kl"] < 0.01
    assert report["logits"]["top_1_agreement"] > 0.97


def test_a_dense_model_with_positions_of_its_own_is_measured_alike(tmp_path) -> None:
    from tools.paddle_checkpoints import write_paddle_checkpoint

    source = Source(write_paddle_checkpoint(tmp_path / "checkpoint"), "x", None, "directory")
    job = Job("m", "paddleocr-vl", source, "q8", tmp_path / "q8", vision_dtype="q8", report=True)
    report = export_model(job, lambda line: None).report
    assert 0.999 <= report["vision_features"]["cosine"] < 1
    assert 0.995 <= report["vision_features"]["cosine_with_outliers"] < 1
    assert 0 < report["logits"]["mean_kl"] < 0.02
    assert report["logits"]["top_1_agreement"] > 0.85


def test_the_exporter_and_the_runtime_agree_on_the_kernels(monkeypatch, random_model_folder) -> None:
    """The report is about what will be served: QMoE's 8-bit activations are chosen by the environment."""
    import os

    from export.divergence import served_session
    from runtime import providers  # noqa: F401 - sets it

    chosen = os.environ["ORT_QMOE_CPU_QNBIT_GEMM"]
    monkeypatch.delenv("ORT_QMOE_CPU_QNBIT_GEMM")
    served_session(random_model_folder / "embed.onnx")
    assert os.environ["ORT_QMOE_CPU_QNBIT_GEMM"] == chosen == "int8"
