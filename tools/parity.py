"""How far an exported model is from transformers' own modules, on the checkpoint that it was made from.

    python -m tools.parity CHECKPOINT_DIR EXPORTED_FOLDER [EXPORTED_FOLDER ...] [--image page.png] [--steps 64]

Both sides are fed the same tokens (the reference's greedy ones), so that one flipped near-tie does not spoil the rest.
The reference runs first, in float32, and is freed before the exports are loaded: DeepSeek-OCR at full size wants 16 GB
of memory.
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

from export.divergence import cosine, divergence
from models.family import task_prompt
from models.manifest import Manifest
from models.registry import family_of
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.vision import VisionTower
from tools.reference_family import Reference, load_family


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

    def prompt_ids(image_tokens: Sequence[int]) -> list[int]:
        encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
        return family.prompt_ids(prompt, image_tokens, encode)

    known = tokenizer.get_vocab_size(with_added_tokens=True)
    return load_family(checkpoint).read(manifest, [image], steps, prompt_ids, known)


def measure(folder: Path, image: Image.Image, reference: Reference) -> Parity:
    """Feed an export what the reference was fed, and compare."""
    manifest = Manifest.load(folder)
    family = family_of(manifest)
    device = find_device("cpu")
    prepared = family.prepare_image(image, {})
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
        feature_cosine=cosine([features], reference.features),
        feature_error=_relative(features, reference.features[0]),
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
