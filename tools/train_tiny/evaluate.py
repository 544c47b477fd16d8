"""Held-out pages with their truth, greedy reading, and the character error rate.

Fonts and texts of these pages never occur in training (`fonts.HELD_OUT_FAMILIES`, `text.is_held_out`). The project's
end-to-end tests import `held_out_pages` and `character_error_rate`;
`python -m tools.train_tiny evaluate` prints a table.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import UnlimitedOcrForConditionalGeneration
from transformers.cache_utils import DynamicCache

from . import tokens
from .checkpoint import load_checkpoint, read_spec
from .fonts import HELD_OUT_FAMILIES, faces_of
from .model import TinySpec, use_training_kernels
from .render import Page, PageStyle, blank_page, render_page
from .views import Views, make_views

CATEGORIES = ("one_line", "clean", "figures", "degraded", "blank")


@dataclass(frozen=True)
class Score:
    """The result of one category."""

    pages: int
    characters: int  # of the truth
    errors: int  # edits that turn what was read into the truth
    exact: int  # pages without an error

    @property
    def rate(self) -> float:
        """Character error rate over the category; for blank pages, characters read per page."""
        return self.errors / (self.characters or self.pages)


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


def held_out_pages(category: str, count: int, seed: int = 1) -> list[Page]:
    """Return `count` pages of a category of CATEGORIES in held-out fonts and with held-out texts, the same every time.

    one_line: one line of words or prose, 24 to 36 pixels. clean: 1 to 10 lines of words and prose, black on white.
    figures: 1 to 6 lines of numbers, prices and dates. degraded: as clean, with noise, blur, JPEG, tints and up to 2
    degrees of rotation. blank: no text.
    """
    rng = random.Random(f"held out/{category}/{seed}")
    families = faces_of(HELD_OUT_FAMILIES)
    pages = []
    for index in range(count):
        most = {"one_line": 1, "figures": 1 + index % 6}.get(category, 1 + index % 10)
        size = rng.randint(24, 36)
        width = rng.randint(280, 620)
        height = min(620, round(most * size * 1.45 + size * rng.uniform(1.0, 1.8)))
        style = PageStyle(
            width=width,
            height=height,
            font_size=size,
            max_lines=most,
            kind="figures" if category == "figures" else rng.choice(("prose", "words")),
            max_words=12,
            wear=1.0 if category == "degraded" else 0.0,
            colours=category in ("degraded", "blank"),
            fill=1.0,
        )
        face = rng.choice(families[rng.choice(sorted(families))])
        pages.append(blank_page(rng, style) if category == "blank" else render_page(rng, style, face, held_out=True))
    return pages


@torch.inference_mode()
def read_views(
    model: UnlimitedOcrForConditionalGeneration, tokenizer: Tokenizer, views: Sequence[Views], limit: int = 600
) -> list[str]:
    """Read pages that have the same number of image tokens, together and greedily; at most `limit` tokens each."""
    prompt = tokens.prompt_ids(tokenizer, len(views[0].probe))
    dtype, device = model.dtype, model.device
    inputs: dict[str, object] = {
        "input_ids": torch.tensor([prompt] * len(views), device=device),
        "pixel_values": torch.stack([torch.from_numpy(view.global_view) for view in views]).to(device, dtype),
    }
    if len(views[0].tiles):
        inputs["pixel_values_local"] = torch.cat([torch.from_numpy(view.tiles) for view in views]).to(device, dtype)
        inputs["num_local_patches"] = [len(view.tiles) for view in views]
        inputs["patches_grid"] = [list(view.grid) for view in views]
    cache = DynamicCache(config=model.config.text_config)
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


def evaluate_model(
    model: UnlimitedOcrForConditionalGeneration, spec: TinySpec, count: int, seed: int = 1
) -> dict[str, Score]:
    """Return the score of every category on `count` pages each."""
    scores = {}
    for category in CATEGORIES:
        pages = held_out_pages(category, count, seed)
        scores[category] = score(pages, read_pages(model, pages, spec))
    return scores


def evaluate_folder(folder: Path, count: int, seed: int = 1) -> dict[str, Score]:
    """Evaluate a checkpoint folder as it is shipped: float16 weights, computed in float32."""
    model = load_checkpoint(folder)
    use_training_kernels(model)
    return evaluate_model(model, read_spec(folder), count, seed)
