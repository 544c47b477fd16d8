"""A PaddleOCR-VL checkpoint of random weights, exported, beside transformers' own modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from models.manifest import Manifest
from models.registry import family_of
from runtime import Model
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.vision import VisionTower
from tools.paddle_checkpoints import (
    PaddleSizes,
)
from tools.paddle_reference import greedy, image_processor, load_paddle, page_features

ROOT = Path(__file__).parents[3]


STEPS = 32


GREEDY: dict[str, Any] = {"max_new_tokens": STEPS, "no_repeat_ngram_size": 0, "stop_on_loop": False, "raw": True}


# Scaled-down models; the last has the real head sizes, of which 72 is no power of two.
SIZES = {
    "default": PaddleSizes(),
    "no unused tensors": PaddleSizes(unused=False),
    "other heads": PaddleSizes(hidden=96, heads=6, kv_heads=1, layers=2, vision_heads=3, width=72, vision_layers=3),
    "real heads": PaddleSizes(
        hidden=128, layers=2, heads=4, head_dim=128, sections=(16, 24, 24), width=144, image_size=112
    ),
}  # fmt: skip


@dataclass
class Pair:
    """One checkpoint, exported and as the reference."""

    checkpoint: Path
    folder: Path

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.load(self.folder)

    @cached_property
    def reference(self) -> Any:
        return load_paddle(self.checkpoint)

    @cached_property
    def processor(self) -> Any:
        return image_processor(self.checkpoint)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def allowed(self) -> np.ndarray:
        return np.sort(np.fromiter(self.tokenizer.get_vocab(with_added_tokens=True).values(), np.int64))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def expected(self, images: list[Image.Image], text: str) -> Expected:
        """What transformers does with the images and the text, from its own prompt on."""
        found = [page_features(self.reference, self.processor, image) for image in images]
        template = (self.checkpoint / "chat_template.jinja").read_text()
        slots = "".join(
            f"<|IMAGE_START|>{'<|IMAGE_PLACEHOLDER|>' * len(features)}<|IMAGE_END|>" for features, _ in found
        )
        end = "Assistant:\n" if "Assistant:\\n" in template else "Assistant: "
        ids = self.encode(f"<|begin_of_sentence|>User: {slots}{text}\n{end}")
        features, grids = [f for f, _ in found], [grid for _, grid in found]
        logits, tokens = greedy(self.reference, ids, features, grids, STEPS, self.allowed)
        ends = [i for i, token in enumerate(tokens) if token in self.manifest.tokens.eos]
        return Expected(ids, features, logits, tokens, tokens[: ends[0] if ends else STEPS][:STEPS])


@dataclass
class Expected:
    prompt_ids: list[int]
    features: list[np.ndarray]
    logits: np.ndarray  # after the prompt and after each token
    tokens: list[int]
    answer: list[int]  # without the end token and what would follow it


def ours(
    pair: Pair, folder: Path, images: list[Image.Image], expected: Expected
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of each image, and logits with them after the prompt and after each of the reference's tokens."""
    manifest, device = Manifest.load(folder), find_device("cpu")
    family, vision = family_of(manifest), VisionTower(folder, manifest, device)
    prepared = [family.prepare_image(image, {}) for image in images]
    features = [one.assemble([vision.encode(make()) for make in one.passes]) for one in prepared]
    ids = expected.prompt_ids
    positions = family.positions(ids, prepared)
    decoder = Decoder(folder, manifest, device, slots=1)
    embeddings = decoder.embed(ids).copy()
    if features:
        embeddings[np.array(ids) == manifest.tokens.image] = np.concatenate(features)
    logits = [decoder.prefill(0, embeddings, positions.axes)]
    for i, token in enumerate(expected.tokens[:-1]):
        logits.append(decoder.step([token], [len(ids) + i], [positions.next + i])[0].copy())
    return features, np.stack(logits)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file, which need not be there yet."""
    document = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**document, **changes}))


def relative_error(mine: np.ndarray, reference: np.ndarray) -> float:
    assert mine.shape == reference.shape
    return float(np.abs(mine - reference).max() / np.abs(reference).max())


PairOf = Callable[..., Pair]


def check_against_reference(pair: Pair, images: list[Image.Image], text: str = "OCR:") -> None:
    """Features and logits within 1e-4, and the Python API's prompt and text identical to the reference's."""
    expected = pair.expected(images, text)
    features, logits = ours(pair, pair.folder, images, expected)
    for mine, theirs in zip(features, expected.features, strict=True):
        assert relative_error(mine, theirs) < 1e-4
    for step in range(STEPS + 1):
        assert relative_error(logits[step], expected.logits[step]) < 1e-4, f"step {step}"
    with Model.open(pair.folder, device="cpu", slots=1) as model:
        result = model.read(images, text, **GREEDY)
    assert result.finished.usage.prompt_tokens == len(expected.prompt_ids)
    assert result.tokens == expected.answer
    assert result.text == pair.tokenizer.decode(expected.answer, skip_special_tokens=False).strip()
