"""Batches: step number and seed in, tensors out. The same step gives the same batch, so training resumes exactly."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import documents, tokens
from .curriculum import Canvas, Stage, Trained, stage_of
from .fonts import TRAIN_FAMILIES, faces_of
from .layout import faces_for, render_document
from .model import TinySpec
from .render import Page, PageStyle, blank_page, render_page, turned
from .tasks import question
from .views import IGNORE, Views, choose_grid, make_views, normalise


@dataclass
class Batch:
    """What one training step needs."""

    input_ids: Tensor  # (pages, length), padded on the right
    labels: Tensor  # (pages, length): the id to predict AT each position, or IGNORE
    probe: Tensor  # (image tokens of all pages, SLOTS)
    pixel_values: Tensor  # (pages, 3, view, view), bytes
    pixel_values_local: Tensor | None  # (tiles of all pages, 3, tile, tile), bytes
    num_local_patches: list[int]
    patches_grid: list[list[int]]
    trained: Trained = "both"

    def model_inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
        """Return the keyword arguments of the transformers model."""
        inputs: dict[str, object] = {
            "input_ids": self.input_ids.to(device),
            "pixel_values": normalise(self.pixel_values, device, dtype),
            "use_cache": False,
        }
        if self.pixel_values_local is not None:
            inputs["pixel_values_local"] = normalise(self.pixel_values_local, device, dtype)
            inputs["num_local_patches"] = self.num_local_patches
            inputs["patches_grid"] = self.patches_grid
        return inputs


def collate(views: list[Views], questions: list[tuple[str, str]], tokenizer: Tokenizer) -> Batch:
    """Put pages of one view size, each with a prompt and its answer, into a batch; the loss falls on the answer and its
    EOS only."""
    rows, labels = [], []
    for view, (asked, text) in zip(views, questions, strict=True):
        prompt = tokens.prompt_ids(tokenizer, len(view.probe), asked)
        answer = [*tokenizer.encode(text, add_special_tokens=False).ids, tokens.EOS_ID]
        rows.append(prompt + answer[:-1])
        labels.append([IGNORE] * (len(prompt) - 1) + answer)
    length = max(map(len, rows))
    tiles = np.concatenate([view.tiles for view in views])
    return Batch(
        input_ids=torch.tensor([row + [tokens.PAD_ID] * (length - len(row)) for row in rows]),
        labels=torch.tensor([row + [IGNORE] * (length - len(row)) for row in labels]),
        probe=torch.from_numpy(np.concatenate([view.probe for view in views])),
        pixel_values=torch.from_numpy(np.stack([view.global_view for view in views])),
        pixel_values_local=torch.from_numpy(tiles) if len(tiles) else None,
        num_local_patches=[len(view.tiles) for view in views],
        patches_grid=[list(view.grid) for view in views],
    )


def page_size(rng: random.Random, canvas: Canvas, spec: TinySpec) -> tuple[int, int]:
    """Return a width and height that `canvas` shows as it says: with its tiles, or without."""
    if canvas.tiles is None:
        if not canvas.crop and canvas.view <= spec.image_size:  # stretched
            return canvas.view, int(canvas.view * rng.uniform(0.75, 1.0))
        limit = min(canvas.view, spec.image_size) if canvas.crop else 2 * canvas.view
        long = int(limit * rng.uniform(0.6, 1.0)) if limit > 96 else limit
        return long, int(long * rng.uniform(0.35, 1.0))
    columns, rows = canvas.tiles
    for _ in range(20):
        scale = rng.uniform(0.6, 1.4)
        width = int(spec.image_size * columns * scale * rng.uniform(0.9, 1.1))
        height = int(spec.image_size * rows * scale * rng.uniform(0.9, 1.1))
        if choose_grid(width, height, spec.image_size, spec.max_tiles) == canvas.tiles:
            return width, height
    return spec.image_size * columns, spec.image_size * rows


def draw_page(rng: random.Random, canvas: Canvas, stage: Stage, spec: TinySpec) -> Page:
    """Render one training page for `canvas`."""
    smallest, largest = canvas.sizes
    size = smallest * (largest / smallest) ** rng.random()
    lines = rng.randint(canvas.least, canvas.lines) if canvas.natural else canvas.lines
    if canvas.natural:
        width = rng.randint(*canvas.widths)
        height = round(lines * size * rng.uniform(1.2, 1.6) + size * rng.uniform(0.6, 2.0))
    else:
        width, height = page_size(rng, canvas, spec)
        size /= spec.image_size * canvas.tiles[1] / height if canvas.tiles else canvas.view / max(width, height)
    kinds = {kind: weight for kind, weight in stage.kinds.items() if canvas.natural or kind not in documents.KINDS}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    families = faces_of(TRAIN_FAMILIES)
    family = families[rng.choice(sorted(families))]
    face = rng.choice(family)
    style = PageStyle(
        width=width,
        height=height,
        font_size=max(8, round(size)),
        max_lines=lines,
        kind="words" if kind == "latin" and face.ascii_only else kind,
        max_words=canvas.words if canvas.fill or rng.random() < 0.8 else 2,
        wear=rng.random() if rng.random() < stage.wear else 0.0,
        fill=canvas.fill,
    )
    if rng.random() < stage.blank:
        return blank_page(rng, style)
    if kind in documents.KINDS:
        page = render_document(rng, style, faces_for(rng, family))
    else:
        page = render_page(rng, style, face)
    return turned(rng, page) if rng.random() < stage.turned else page


class Pages(Dataset[Batch]):
    """Training batches by step number; `scale` times as many pages in each as the canvases say."""

    def __init__(self, stages: tuple[Stage, ...], spec: TinySpec, seed: int, scale: int = 1) -> None:
        self.stages, self.spec, self.seed, self.scale = stages, spec, seed, scale
        self.tokenizer = tokens.build_tokenizer()

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/{step}")
        stage = stage_of(self.stages, step)
        canvas = rng.choices([canvas for _, canvas in stage.canvases], [weight for weight, _ in stage.canvases])[0]
        spec = self.spec
        pages: list[Page] = []
        room = canvas.batch * self.scale
        while room > 0:
            pages.append(draw_page(rng, canvas, stage, spec))
            columns, rows = choose_grid(*pages[-1].image.size, spec.image_size, spec.max_tiles)
            room -= columns * rows + 1 if canvas.natural else 1
        sizes = (canvas.view, spec.image_size, spec.max_tiles, spec.token_pixels)
        views = [make_views(page, *sizes, crop=canvas.crop) for page in pages]
        asked = rng.choices(list(stage.tasks), list(stage.tasks.values()), k=len(pages))
        questions = [question(rng, page, task) for page, task in zip(pages, asked, strict=True)]
        batch = collate(views, questions, self.tokenizer)
        batch.trained = stage.trained
        return batch


def batch_stream(pages: Dataset[Batch], first_step: int, last_step: int, workers: int = 1) -> Iterator[Batch]:
    """Yield the batches of the steps [first_step, last_step), rendered or read in `workers` processes."""
    loader = DataLoader(
        pages, batch_size=None, sampler=range(first_step, last_step), num_workers=workers,
        prefetch_factor=4 if workers else None, multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    yield from loader
