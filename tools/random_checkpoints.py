"""What the generators of random checkpoints share: a folder in the published layout, its weights and its tokenizer.

Every weight is drawn anew (repeated weights would flatter a benchmark, since sessions share identical buffers), and
scaled so that activations keep their size from layer to layer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

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


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator, bar: tqdm[Any]) -> None:
    """Stream random bfloat16 tensors into one safetensors file."""
    with path.open("wb") as file:
        file.write(_header(shapes))
        for name, shape in shapes.items():
            data = random_tensor(name, shape, rng).tobytes()
            file.write(data)
            bar.update(len(data))


def write_without_values(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of bfloat16 tensors that has their length and takes no disk: a header and a hole."""
    header = _header(shapes)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * sum(map(math.prod, shapes.values())))


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """What comes before the data of a safetensors file: eight bytes with the length of the JSON that follows."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random values that keep activations in range: norms near 1, matrices scaled by their fan-in."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name or ".neck.1." in name or ".neck.3." in name:
        values *= 0.1
        values += 0.0 if name.endswith("bias") else 1.0
    elif name.endswith("bias"):
        values *= 0.1
    elif "rel_pos" in name or "pos" in name:
        values *= 0.2
    elif name == "model.embed_tokens.weight" or len(shape) == 1:
        values *= 1.0
    elif name == "lm_head.weight":
        values *= 3.0 / math.sqrt(shape[1])
    elif ".mlp.gate.weight" in name:
        values *= 2.0 / math.sqrt(shape[1])
    else:
        values *= 1.0 / math.sqrt(math.prod(shape[1:]))
    return values.astype(ml_dtypes.bfloat16)


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
