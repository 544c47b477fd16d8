"""What the generators of random checkpoints share: a folder in the published layout, and a byte-level tokenizer.

See ``tools.checkpoints`` for how the weights are drawn.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

from .checkpoints import write_safetensors

Sizes = TypeVar("Sizes")


def byte_tokenizer(special: Mapping[str, int], others: Mapping[str, int] | None = None, *, start: int = 0) -> Tokenizer:
    """Byte-level without merges: 256 byte tokens from ``start`` on, and added tokens at their published ids.

    others : added tokens that the published tokenizer does not call special.
    """
    others = others or {}
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start)}
    tokenizer = Tokenizer(models.BPE(vocab={**special, **others, **alphabet}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in others])
    return tokenizer


def write_folder(
    folder: Path, documents: Mapping[str, object], tokenizer: Tokenizer, shapes: Mapping[str, tuple[int, ...]], *,
    seed: int, progress: bool,
) -> Path:  # fmt: skip
    """Random bfloat16 weights beside the model's files, one tensor in memory at a time.

    documents : JSON files by their name; a text is written as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in documents.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
    tokenizer.save(str(folder / "tokenizer.json"))
    total = sum(map(math.prod, shapes.values())) * 2
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
        write_safetensors(folder / "model.safetensors", dict(shapes), np.random.default_rng(seed), bar)
    return folder


def main(write: Callable[..., Path], small: Sizes, full: Sizes, full_size: str, doc: str | None) -> None:
    """The command line of a generator.

    write : takes folder, sizes, seed and progress. full_size : what --full makes, in words.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help=f"the published sizes: {full_size}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, full if args.full else small, seed=args.seed, progress=True)
