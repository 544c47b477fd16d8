"""Greedy reading of held-out pages and its character error rate.

The project's end-to-end tests import `edit_distance`; `python -m tools.train_tiny evaluate` prints a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import UnlimitedOcrForConditionalGeneration
from transformers.cache_utils import DynamicCache

from . import tokens
from .checkpoint import load_checkpoint, read_spec
from .held_out import CATEGORIES, held_out_pages
from .model import TinySpec, use_training_kernels
from .render import Page
from .views import Views, make_views, normalise


@dataclass(frozen=True)
class Score:
    """The result of one category."""

    pages: int
    characters: int  # of the truth
    errors: int  # edits that turn what was read into the truth
    exact: int  # pages without an error

    @property
    def rate(self) -> float:
        """Character error rate over the category; for blank pages, characters read per page; 0 without any page."""
        return self.errors / max(1, self.characters or self.pages)


def edit_distance(read: str, truth: str) -> int:
    """Return the least number of insertions, deletions and substitutions between two strings."""
    previous = list(range(len(truth) + 1))
    for row, character in enumerate(read, 1):
        current = [row]
        for column, wanted in enumerate(truth, 1):
            substituted = previous[column - 1] + (character != wanted)
            current.append(min(previous[column] + 1, current[-1] + 1, substituted))
        previous = current
    return previous[-1]


def character_error_rate(read: str, truth: str) -> float:
    """Return edits per character of the truth; of an empty truth, 0 for an empty reading and 1 for anything else."""
    if not truth:
        return float(bool(read))
    return edit_distance(read, truth) / len(truth)


@torch.inference_mode()
def read_views(
    model: UnlimitedOcrForConditionalGeneration, tokenizer: Tokenizer, views: Sequence[Views], limit: int = 600
) -> list[str]:
    """Read pages that have the same number of image tokens, together and greedily; at most `limit` tokens each."""
    prompt = tokens.prompt_ids(tokenizer, len(views[0].probe))
    dtype, device = model.dtype, model.device
    inputs: dict[str, object] = {
        "input_ids": torch.tensor([prompt] * len(views), device=device),
        "pixel_values": normalise(torch.stack([torch.from_numpy(view.global_view) for view in views]), device, dtype),
    }
    if len(views[0].tiles):
        inputs["pixel_values_local"] = normalise(
            torch.cat([torch.from_numpy(view.tiles) for view in views]), device, dtype
        )
        inputs["num_local_patches"] = [len(view.tiles) for view in views]
        inputs["patches_grid"] = [list(view.grid) for view in views]
    text_config: Any = model.config.text_config
    cache = DynamicCache(config=text_config)
    hidden = model.model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    written: list[list[int]] = [[] for _ in views]
    open_rows = set(range(len(views)))
    for _ in range(limit):
        chosen = model.lm_head(hidden[:, -1]).float().argmax(-1)
        for row in tuple(open_rows):
            if chosen[row] == tokens.EOS_ID:
                open_rows.remove(row)
            else:
                written[row].append(int(chosen[row]))
        if not open_rows:
            break
        embedded = model.model.language_model.embed_tokens(chosen[:, None])
        hidden = model.model.language_model(
            inputs_embeds=embedded, past_key_values=cache, use_cache=True
        ).last_hidden_state
    return [tokenizer.decode(ids).strip() for ids in written]


def read_pages(
    model: UnlimitedOcrForConditionalGeneration,
    pages: Sequence[Page],
    spec: TinySpec,
    crop: bool = True,
    batch: int = 16,
) -> list[str]:
    """Read pages in crop mode, or without crop as one padded global view; pages of one shape go through together."""
    tokenizer = tokens.build_tokenizer()
    by_shape: dict[tuple[int, int], list[int]] = {}
    all_views = [
        make_views(page, spec.base_size, spec.image_size, spec.max_tiles, spec.token_pixels, crop) for page in pages
    ]
    for index, views in enumerate(all_views):
        by_shape.setdefault(views.grid, []).append(index)
    texts = [""] * len(pages)
    for indices in by_shape.values():
        for start in range(0, len(indices), batch):
            chosen = indices[start : start + batch]
            limit = 20 + max(2 * len(pages[index].text) for index in chosen)
            for index, text in zip(
                chosen, read_views(model, tokenizer, [all_views[i] for i in chosen], limit), strict=True
            ):
                texts[index] = text
    return texts


def score(pages: Sequence[Page], texts: Sequence[str]) -> Score:
    """Compare readings with the truth."""
    errors = [edit_distance(text, page.text) for page, text in zip(pages, texts, strict=True)]
    return Score(len(pages), sum(len(page.text) for page in pages), sum(errors), errors.count(0))


def evaluate_folder(
    folder: Path,
    count: int,
    seed: int = 1,
    categories: Sequence[str] = CATEGORIES,
    device: str = "cpu",
    tile: int | None = None,
) -> Iterator[tuple[str, Score]]:
    """Yield each category with its score on `count` pages, of a checkpoint folder as it is shipped: float16 weights,
    computed in float32; in tiles of `tile` pixels, or of the folder's where that is None."""
    model, spec = nn.Module.to(load_checkpoint(folder), device), read_spec(folder)
    spec = spec if tile is None else replace(spec, image_size=tile)
    use_training_kernels(model)
    for category in categories:
        pages = held_out_pages(category, count, seed)
        yield category, score(pages, read_pages(model, pages, spec))
