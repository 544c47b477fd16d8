"""How far an exported model is from transformers' own modules, on the checkpoint that it was made from.

    python -m tools.parity CHECKPOINT_DIR EXPORTED_FOLDER [EXPORTED_FOLDER ...] [--image page.png] [--steps 64]
    python -m tools.parity ... --task pages --image 1.png --image 2.png     several pages in one answer

A layout detector's checkpoint and its export are compared in halves and as a whole, on the first image; see
``tools.layout_parity``.

Both sides are fed the same tokens (the reference's greedy ones), so that one flipped near-tie does not spoil the rest.
A model whose answers look back through a window answers far beyond that window, and the distances there are told apart.
The reference runs first, in float32, and is freed before the exports are loaded: DeepSeek-OCR at full size wants 16 GB
of memory.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer

from export.divergence import cosine, divergence
from models.family import task_prompt
from models.layout.manifest import LayoutManifest
from models.manifest import Manifest, kind_of
from models.pixels import upright_rgb
from models.registry import family_of
from runtime.decoder import Decoder
from runtime.kv_cache import kept
from runtime.providers import find_device
from runtime.vision import VisionTower
from tools.reference_family import Reference, load_family


@dataclass(frozen=True)
class Parity:
    """Distances of one export: maximum errors relative to the largest reference value, mean KL in nats.

    beyond : of the logits alone, from the first token that no longer sees the whole answer before it; None: there is no
    such token.
    """

    feature_cosine: float
    feature_error: float
    logit_error: float
    divergence: float
    top_1_agreement: float
    beyond: Parity | None = None


def default_steps(manifest: Manifest) -> int:
    """Tokens to decode without --steps: 64, and with a window twice the window's length more."""
    return 64 if manifest.sizes.window is None else 64 + 2 * manifest.sizes.window


def run_reference(
    checkpoint: Path, folder: Path, images: Sequence[Image.Image], steps: int, task: str | None = None
) -> Reference:
    """Load the checkpoint into transformers and decode greedily what a task asks for; None: the family's default.

    folder : any export of the checkpoint, for the prompt and, with DeepSeek-OCR, the image rules.
    """
    manifest = Manifest.load(folder)
    family = family_of(manifest)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompt = task_prompt(family.tasks, task or family.default_task, images=len(images))

    def prompt_ids(image_tokens: Sequence[int]) -> list[int]:
        encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
        return family.prompt_ids(prompt, image_tokens, encode)

    known = tokenizer.get_vocab_size(with_added_tokens=True)
    return load_family(checkpoint).read(manifest, images, steps, prompt_ids, known)


def measure(folder: Path, images: Sequence[Image.Image], reference: Reference) -> Parity:
    """Feed an export what the reference was fed, as the runtime does, and compare."""
    manifest = Manifest.load(folder)
    family = family_of(manifest)
    device = find_device("cpu")
    prepared = [family.prepare_image(image, {}, "", len(images)) for image in images]
    vision = VisionTower(folder, manifest, device)
    features = [one.assemble([vision.encode(make()) for make in one.passes]) for one in prepared]
    del vision
    decoder = Decoder(folder, manifest, device, slots=1)
    ids, window = reference.prompt_ids, family.window({})
    embeddings = decoder.embed(ids).copy()
    embeddings[np.array(ids) == manifest.tokens.image] = np.concatenate(features)
    positions = family.positions(ids, prepared)
    rows = [decoder.prefill(0, embeddings, positions.axes, window)]
    for i, token in enumerate(reference.tokens[:-1]):
        rows.append(decoder.step([token], [len(ids) + kept(i, window)], [positions.next + i])[0].copy())
    ours, theirs = np.concatenate(features), np.concatenate(reference.features)
    found = Parity(cosine([ours], [theirs]), _relative(ours, theirs), *_logits(np.stack(rows), reference.logits))
    if window is None or len(rows) <= window + 1:
        return found
    behind = slice(window + 1, None)  # after the row of the prompt and a row for each token of the window
    error, mean_kl, agreement = _logits(np.stack(rows[behind]), reference.logits[behind])
    beyond = replace(found, logit_error=error, divergence=mean_kl, top_1_agreement=agreement)
    return replace(found, beyond=beyond)


def _logits(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Largest error, mean KL and agreement of the first choice, over [positions, vocabulary]."""
    found = divergence(reference, ours)
    return _relative(ours, reference), found["mean_kl"], found["top_1_agreement"]


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


def _row(p: Parity) -> str:
    return f"| {p.logit_error:.1e} | {p.divergence:.2e} | {100 * p.top_1_agreement:.1f} % |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row for each export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder")
    parser.add_argument("--image", type=Path, action="append", help="picture to read (default: a generated page)")
    parser.add_argument("--task", help="what to ask (default: the family's default task)")
    parser.add_argument(
        "--steps", type=int, help="tokens to decode (default: 64, and twice the window where it has one)"
    )
    args = parser.parse_args(argv)
    images = [Image.open(file) for file in args.image] if args.image else [sample_page()]
    if kind_of(args.folders[0]) == LayoutManifest.KIND:
        from tools import layout_parity  # which needs the extra layout

        layout_parity.report(args.checkpoint, args.folders, upright_rgb(images[0]))
        return 0
    steps = args.steps or default_steps(Manifest.load(args.folders[0]))
    reference = run_reference(args.checkpoint, args.folders[0], images, steps, args.task)
    gc.collect()
    print("| export | features: cosine | max error | logits: max error | KL, nats | top-1 |\n|---|---|---|---|---|---|")
    for folder in args.folders:
        p = measure(folder, images, reference)
        print(f"| {folder.name} | {p.feature_cosine:.6f} | {p.feature_error:.1e} {_row(p)}", flush=True)
        if p.beyond is not None:
            print(f"| {folder.name}, beyond the window | | {_row(p.beyond)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
