"""How far an exported model is from transformers' own modules, on the checkpoint that it was made from.

    python -m tools.parity CHECKPOINT_DIR EXPORTED_FOLDER [EXPORTED_FOLDER ...] [--image page.png] [--steps 64]

Both sides are fed the same tokens (the reference's greedy ones), so that one flipped near-tie does not spoil the rest.
The reference runs first, in float32, and is freed before the exports are loaded: DeepSeek-OCR at full size wants 16 GB
of memory.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer

from export.divergence import cosine, divergence
from models.family import task_prompt
from models.manifest import Manifest
from models.registry import family_of
from models.settings import InferenceSettings
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.vision import VisionTower

PromptIds = Callable[[int], list[int]]  # number of image tokens -> token ids


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
    """Load the checkpoint into transformers and decode greedily what the family's default task asks for.

    folder : any export of the checkpoint, for the prompt and, with DeepSeek-OCR, the image rules.
    """
    manifest = Manifest.load(folder)
    family = family_of(manifest)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompt = task_prompt(family.tasks, family.default_task)

    def prompt_ids(image_tokens: int) -> list[int]:
        encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
        return family.prompt_ids(prompt, [image_tokens], encode)

    run = run_paddle if manifest.family == "paddleocr-vl" else run_deepseek
    return run(checkpoint, manifest, image, steps, prompt_ids, tokenizer.get_vocab_size(with_added_tokens=True))


def run_deepseek(
    checkpoint: Path, manifest: Manifest, image: Image.Image, steps: int, prompt_ids: PromptIds, vocabulary: int
) -> Reference:
    """vocabulary : tokens that may be chosen; the logits of random weights have padding rows too."""
    from models.deepseek_ocr.images import ImageRules, make_views, normalise
    from tools.reference import embed, greedy_logits, image_features, load_reference

    rules = ImageRules.model_validate(manifest.image)
    views = make_views(image, InferenceSettings(), rules)
    tiles = None if views.tiles is None else normalise(views.tiles, rules)
    model = load_reference(checkpoint)
    features = image_features(model, normalise(views.whole, rules), tiles, views.grid)
    ids = prompt_ids(len(features))
    embeddings = embed(model, ids).copy()
    embeddings[np.array(ids) == manifest.tokens.image] = features
    logits, tokens = greedy_logits(model, embeddings, steps, vocabulary)
    return Reference(features, logits, tokens, ids)


def run_paddle(
    checkpoint: Path, manifest: Manifest, image: Image.Image, steps: int, prompt_ids: PromptIds, vocabulary: int
) -> Reference:
    """The library's own processor cuts the image and its own code counts the positions."""
    from tools.paddle_reference import greedy, image_processor, load_paddle, page_features

    model = load_paddle(checkpoint)
    features, grid = page_features(model, image_processor(checkpoint), image)
    ids = prompt_ids(len(features))
    logits, tokens = greedy(model, ids, [features], [grid], steps, np.arange(manifest.sizes.vocabulary))
    return Reference(features, logits, tokens, ids)


def measure(folder: Path, image: Image.Image, reference: Reference) -> Parity:
    """Feed an export what the reference was fed, and compare."""
    manifest = Manifest.load(folder)
    family = family_of(manifest)
    device = find_device("cpu")
    prepared = family.prepare_image(image, InferenceSettings())
    vision = VisionTower(folder, manifest, device)
    features = prepared.assemble([vision.encode(make()) for make in prepared.passes])
    del vision
    decoder = Decoder(folder, manifest, device, slots=1)
    ids = reference.prompt_ids
    embeddings = decoder.embed(ids).copy()
    embeddings[np.array(ids) == manifest.tokens.image] = features
    positions = family.positions(ids, [prepared])
    rows = [decoder.prefill(0, embeddings, positions.axes)]
    for i, token in enumerate(reference.tokens[:-1]):
        rows.append(decoder.step([token], [len(ids) + i], [positions.next + i])[0].copy())
    logits = np.stack(rows)
    found = divergence(reference.logits, logits)
    return Parity(
        feature_cosine=cosine([features], [reference.features]),
        feature_error=_relative(features, reference.features),
        logit_error=_relative(logits, reference.logits),
        divergence=found["mean_kl"],
        top_1_agreement=found["top_1_agreement"],
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
