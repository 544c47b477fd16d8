"""On a card: every dtype gives what float32 gives on the CPU, recorded or not, however rows and caches move.

Marked ``gpu`` and skipped without one. Run with ``pytest -m gpu``; tools/docs/cuda.md has the rest of a session.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.manifest import Manifest
from models.registry import family_of
from models.settings import InferenceSettings
from runtime import kv_cache
from runtime import model as model_module
from runtime.candidates import Chooser, certain_tokens
from runtime.decoder import Decoder
from runtime.kv_cache import kept
from runtime.model import Model
from runtime.providers import Device, find_device, ort
from runtime.runtime_errors import RuntimeUnavailable
from runtime.small_graphs import identity_graph
from runtime.vision import VisionTower
from tests.runtime.test_together import logits_of
from tools.checkpoints import Sizes, write_random_checkpoint
from tools.deepseek2_checkpoints import DEEPSEEK_OCR_2, Sizes2
from tools.dots_checkpoints import DotsSizes, write_dots_checkpoint
from tools.glm_checkpoints import GlmSizes, write_glm_checkpoint
from tools.lighton_checkpoints import LightOnSizes, write_lighton_checkpoint
from tools.paddle_checkpoints import PaddleSizes, write_paddle_checkpoint
from tools.unlimited_checkpoints import UNLIMITED_OCR, UnlimitedSizes

pytestmark = pytest.mark.gpu

PROMPTS = (37, 300, 1100, 3000)  # tokens
STEPS = 12
ROW_COUNTS = (1, 3, 8, 33, 64)
DTYPES = ("f32", "f16", "bf16", "q8", "q4")

# Large enough for the kernels that the full size takes: heads of 64, experts that are multiples of 128.
SIZES = Sizes(hidden=256, heads=4, kv_heads=4, layers=3, experts=16, top_k=4, expert_mlp=128, dense_mlp=512,
              max_positions=4096)  # fmt: skip
SECOND = Sizes2(hidden=256, heads=4, kv_heads=4, layers=3, experts=16, top_k=4, expert_mlp=128, dense_mlp=512,
                max_positions=4096)  # fmt: skip
UNLIMITED = UnlimitedSizes(**vars(SIZES), window=5)
PADDLE = PaddleSizes(hidden=256, heads=4, kv_heads=2, head_dim=64, sections=(8, 12, 12), mlp=512)

CHECKPOINTS: dict[str, tuple[Callable[..., Path], Any]] = {
    "deepseek-ocr": (write_random_checkpoint, SIZES),
    "deepseek-ocr-2": (partial(write_random_checkpoint, layout=DEEPSEEK_OCR_2), SECOND),
    "unlimited-ocr": (partial(write_random_checkpoint, layout=UNLIMITED_OCR), UNLIMITED),
    "paddleocr-vl": (write_paddle_checkpoint, PADDLE),
    "glm-ocr": (write_glm_checkpoint, GlmSizes()), "dots-ocr": (write_dots_checkpoint, DotsSizes(hidden=256)),
    "lighton-ocr": (write_lighton_checkpoint, LightOnSizes(head_dim=64)),
}  # fmt: skip


@pytest.fixture(scope="module")
def cuda() -> Device:
    try:
        device = find_device("cuda")
    except RuntimeUnavailable as error:
        pytest.skip(f"no CUDA: {error}")
    if device.small_session(identity_graph()).get_providers()[0] != device.provider:
        pytest.skip("onnxruntime-gpu finds no card")
    return device


@pytest.fixture(scope="module")
def export_of(tmp_path_factory, export_checkpoint) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}
    checkpoints: dict[str, Path] = {}

    def export(family: str, dtype: str) -> Path:
        if family not in checkpoints:
            target = tmp_path_factory.mktemp(family) / "checkpoint"
            write, sizes = CHECKPOINTS[family]
            checkpoints[family] = write(target, sizes)
        if (family, dtype) not in made:
            made[family, dtype] = export_checkpoint(checkpoints[family], dtype, family, family)
        return made[family, dtype]

    return export


def logits(folder: Path, device: Device, rows: int = 4) -> np.ndarray:
    """Of prompts of every length, of steps of rows of different lengths, and after a row has moved.

    Where answers have a window, the last steps are behind its end.
    """
    manifest = Manifest.load(folder)
    window = manifest.sizes.window
    decoder = Decoder(folder, manifest, device, slots=rows)
    random = np.random.default_rng(5)
    prompts = [random.integers(10, 200, PROMPTS[row % 4] if rows <= 4 else 20 + row).tolist() for row in range(rows)]
    found = [decoder.prefill(row, decoder.embed(one), window=window).copy() for row, one in enumerate(prompts)]
    for step in range(STEPS):
        lengths = [len(prompt) + kept(step, window) for prompt in prompts]
        positions = [len(prompt) + step for prompt in prompts]
        found.extend(decoder.step(random.integers(10, 200, rows).tolist(), lengths, positions).copy())
    length = len(prompts[-1]) + kept(STEPS, window)
    decoder.move(rows - 1, 0, length)
    found.append(decoder.step([77], [length], [len(prompts[-1]) + STEPS])[0].copy())
    return np.stack(found)


def compare(ours: np.ndarray, reference: np.ndarray, bound: float) -> None:
    assert np.isfinite(ours).all()
    errors = np.linalg.norm(ours - reference, axis=1) / np.linalg.norm(reference, axis=1)
    same = (ours.argmax(1) == reference.argmax(1)).mean()
    print(f"mean relative error {errors.mean():.4f}, largest {errors.max():.4f}, first choice the same {same:.1%}")
    assert errors.mean() < bound
    assert same >= 0.95


@pytest.fixture(scope="module")
def reference(export_of, tmp_path_factory) -> Callable[[str, str, int], np.ndarray]:
    """float32's logits on the CPU; of quantised exports their own there, with products in float32."""
    made: dict[tuple[str, str, int], np.ndarray] = {}

    def find(family: str, dtype: str, rows: int) -> np.ndarray:
        kind = dtype if dtype in ("q8", "q4") else "f32"
        if (family, kind, rows) not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ORT_QMOE_CPU_QNBIT_GEMM", "fp32")
                folder = with_float_products(export_of(family, kind), tmp_path_factory.mktemp("float"))
                made[family, kind, rows] = logits(folder, Device("cpu", 0), rows)
        return made[family, kind, rows]

    return find


def with_float_products(folder: Path, target: Path) -> Path:
    """The export with the same weights, and activations that the CPU does not round to 8 bits, as a card does not."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    name = Manifest.load(folder).decoder.files["cpu"]
    graph = onnx.load(folder / name, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 1  # float32
    onnx.save(graph, target / name)
    return target


@pytest.mark.parametrize("replays", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_every_dtype_gives_what_the_cpu_gives(cuda, export_of, reference, family, dtype, replays) -> None:
    bound = 1e-3 if dtype == "f32" else 1e-2
    found = logits(export_of(family, dtype), replace(cuda, replays=replays))
    compare(found, reference(family, dtype, 4), bound)


@pytest.mark.parametrize("rows", ROW_COUNTS)
@pytest.mark.parametrize("family", ["deepseek-ocr", "unlimited-ocr"])
def test_rows_of_different_lengths_give_what_the_cpu_gives(cuda, export_of, reference, family, rows) -> None:
    compare(logits(export_of(family, "f16"), cuda, rows), reference(family, "f32", rows), 1e-2)


@pytest.mark.parametrize("dtype", ["f16", "q4"])
def test_a_cache_that_grows_while_rows_are_replayed_changes_nothing(cuda, export_of, monkeypatch, dtype) -> None:
    roomy = logits(export_of("deepseek-ocr", dtype), cuda)
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 64)
    compare(logits(export_of("deepseek-ocr", dtype), cuda), roomy, 1e-3)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_vision_features_point_where_the_cpus_point(cuda, export_of, picture, family, dtype) -> None:
    found = []
    for folder, device in ((export_of(family, "f32"), Device("cpu", 0)), (export_of(family, dtype), cuda)):
        manifest = Manifest.load(folder)
        tower = VisionTower(folder, manifest, device)
        prepared = family_of(manifest).prepare_image(picture(1240, 900), {})
        found.append(prepared.assemble([tower.encode(make()) for make in prepared.passes]).astype(np.float64))
    cosine = (found[0] * found[1]).sum() / np.linalg.norm(found[0]) / np.linalg.norm(found[1])
    assert cosine > {"f32": 0.99999, "f16": 0.9999, "bf16": 0.999}[dtype]


def test_candidates_are_those_of_the_whole_rows(cuda, export_of) -> None:
    folder = export_of("deepseek-ocr", "f16")
    decoder = Decoder(folder, Manifest.load(folder), cuda, slots=5)
    for row in range(5):
        decoder.prefill(row, decoder.embed([0, *range(3, 20 + row)]))
    choosers = [Chooser(InferenceSettings(), np.array([3, 5])) for _ in range(5)]
    for step in range(6):
        scores = decoder.score([5 + row for row in range(5)], [18 + row + step for row in range(5)])
        assert scores.candidates is not None
        whole = np.stack([scores.whole(row) for row in range(5)])
        exact = whole.astype(np.float64)
        sums = exact.max(1) + np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1))
        np.testing.assert_allclose(scores.candidates.log_sum_exp, sums, rtol=1e-4)
        whole[:, [3, 5]] = -np.inf
        assert certain_tokens(choosers, scores.candidates) == whole.argmax(1).tolist()


def test_a_page_reads_alike_with_recordings_and_candidates_and_without(cuda, export_of, monkeypatch, picture) -> None:
    answers = []
    for device in (cuda, replace(cuda, replays=False, picks=False)):
        monkeypatch.setattr(model_module, "find_device", lambda name, threads, device=device: device)
        with Model.open(export_of("deepseek-ocr", "f16"), slots=4, warm_up="quick") as model:
            answers.append(model.read(picture(1240, 900), max_new_tokens=40, stop_on_loop=False).tokens)
    same = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    assert same >= 38


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q4"])
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_prompts_in_one_run_give_what_each_gives_alone(cuda, export_of, family, dtype) -> None:
    """In rows whose memory is not a number before, behind a row that decodes."""
    folder = export_of(family, dtype)
    alone, together = (logits_of(folder, cuda, together=how) for how in (False, True))
    compare(together.reshape(-1, together.shape[-1]), alone.reshape(-1, alone.shape[-1]), 1e-2)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_features_stay_on_the_card_and_change_no_answer(cuda, export_of, monkeypatch, picture, family, dtype) -> None:
    copies: list[tuple[int, ...]] = []
    copy = ort.OrtValue.numpy
    monkeypatch.setattr(ort.OrtValue, "numpy", lambda value: copies.append(tuple(value.shape())) or copy(value))
    hidden = Manifest.load(export_of(family, dtype)).sizes.hidden_size
    answers, features = [], []
    for device in (replace(cuda, resident=False), cuda):
        monkeypatch.setattr(model_module, "find_device", lambda name, threads, device=device: device)
        with Model.open(export_of(family, dtype), slots=4, warm_up="none") as model:
            copies.clear()
            ask = partial(model.read, max_new_tokens=20, stop_on_loop=False)
            answers.append(ask(picture(600, 500)).tokens + ask([picture(300, 200), picture(200, 300, 1)]).tokens)
            features.append([shape for shape in copies if shape[-1:] == (hidden,) and len(shape) > 1])
    assert features[0], "what is counted is not what is copied"
    assert features[1] == []
    same = sum(ours == theirs for ours, theirs in zip(*answers, strict=False))
    assert same >= 0.95 * max(map(len, answers))


def test_a_long_answer_with_a_window_reads_alike_on_a_card_and_on_a_cpu(cuda, export_of, monkeypatch, picture) -> None:
    """Tokens leave the window from the fifth on, rows share a batch, and full attention is another answer."""
    answers = []
    for device, dtype in ((Device("cpu", 0), "f32"), (cuda, "f32")):
        monkeypatch.setattr(model_module, "find_device", lambda name, threads, device=device: device)
        with Model.open(export_of("unlimited-ocr", dtype), slots=4) as model:
            read = partial(model.read, picture(300, 400), max_new_tokens=60, stop_on_loop=False)
            answers.append((read().tokens, read(full_attention=True).tokens))
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]
