"""How far an exported model is from transformers' own modules, on the checkpoint that it was made from.

    python -m tools.parity CHECKPOINT_DIR EXPORTED_FOLDER [EXPORTED_FOLDER ...] [--image page.png] [--steps 64]

Both sides are fed the same tokens (the reference's greedy ones), so that one flipped near-tie does not spoil the rest.
The reference runs first, in float32, and is freed before the exports are loaded: full size wants 16 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer

from models.deepseek_ocr.family import DeepseekOcr
from models.deepseek_ocr.images import make_views, normalise
from models.manifest import Manifest
from models.settings import InferenceSettings
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.vision import VisionTower

PROMPT = "<image>\nFree OCR."


@dataclass(frozen=True)
class Reference:
    """What transformers computes.

    features : [image tokens, hidden]; logits : [steps + 1, vocabulary]; tokens : [steps + 1].
    """

    features: np.ndarray
    logits: np.ndarray
    tokens: list[int]
    prompt_ids: list[int]


@dataclass(frozen=True)
class Parity:
    """Distances of one export: maximum errors relative to the largest reference value, mean KL in nats."""

    feature_cosine: float
    feature_error: float
    logit_error: float
    divergence: float
    top_1_agreement: float


def run_reference(checkpoint: Path, folder: Path, image: Image.Image, steps: int) -> Reference:
    """Load the checkpoint into transformers and decode greedily. ``folder``: any export of it, for the image rules."""
    from tools.reference import embed, greedy_logits, image_features, load_reference

    manifest = Manifest.load(folder)
    family = DeepseekOcr(manifest)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    views = make_views(image, InferenceSettings(), family.rules)
    tiles = None if views.tiles is None else normalise(views.tiles, family.rules)
    model = load_reference(checkpoint)
    features = image_features(model, normalise(views.whole, family.rules), tiles, views.grid)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    prompt_ids = family.prompt_ids(PROMPT, [len(features)], encode)
    embeddings = embed(model, prompt_ids).copy()
    embeddings[np.array(prompt_ids) == manifest.tokens.image] = features
    logits, tokens = greedy_logits(model, embeddings, steps, tokenizer.get_vocab_size(with_added_tokens=True))
    return Reference(features, logits, tokens, prompt_ids)


def measure(folder: Path, image: Image.Image, reference: Reference) -> Parity:
    """Feed an export what the reference was fed, and compare."""
    manifest = Manifest.load(folder)
    device = find_device("cpu")
    prepared = DeepseekOcr(manifest).prepare_image(image, InferenceSettings())
    vision = VisionTower(folder, manifest, device)
    features = prepared.assemble([vision.encode(make()) for make in prepared.passes])
    del vision
    decoder = Decoder(folder, manifest, device, slots=1)
    embeddings = decoder.embed(reference.prompt_ids).copy()
    embeddings[np.array(reference.prompt_ids) == manifest.tokens.image] = features
    rows = [decoder.prefill(0, embeddings)]
    for i, token in enumerate(reference.tokens[:-1]):
        rows.append(decoder.step([token], [len(reference.prompt_ids) + i])[0].copy())
    logits = np.stack(rows)
    return Parity(
        feature_cosine=_cosine(features, reference.features),
        feature_error=_relative(features, reference.features),
        logit_error=_relative(logits, reference.logits),
        divergence=_divergence(reference.logits, logits),
        top_1_agreement=float((logits.argmax(-1) == reference.logits.argmax(-1)).mean()),
    )


def sample_page() -> Image.Image:
    """A page of text that gives tiles, where no picture is named."""
    page = Image.new("RGB", (900, 1200), "white")
    draw = ImageDraw.Draw(page)
    for i in range(24):
        draw.text((60, 50 + 45 * i), f"Line {i + 1}: parity of the export, {i * 137 % 1000} of 1000", "black",
                  font=ImageFont.load_default(26))  # fmt: skip
    return page


def _relative(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def _cosine(ours: np.ndarray, reference: np.ndarray) -> float:
    a, b = ours.ravel().astype(np.float64), reference.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _divergence(reference: np.ndarray, ours: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the next-token distributions, from the reference to ours."""
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, ours))
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row for each export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder")
    parser.add_argument("--image", type=Path, help="picture to read (default: a generated page)")
    parser.add_argument("--steps", type=int, default=64, help="tokens to decode")
    args = parser.parse_args(argv)
    image = Image.open(args.image) if args.image else sample_page()
    reference = run_reference(args.checkpoint, args.folders[0], image, args.steps)
    gc.collect()
    print("| export | features: cosine | max error | logits: max error | KL, nats | top-1 |\n|---|---|---|---|---|---|")
    for folder in args.folders:
        p = measure(folder, image, reference)
        print(
            f"| {folder.name} | {p.feature_cosine:.6f} | {p.feature_error:.1e} | {p.logit_error:.1e} "
            f"| {p.divergence:.2e} | {100 * p.top_1_agreement:.1f} % |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
