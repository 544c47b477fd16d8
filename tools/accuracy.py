"""What fewer bits cost a model that really reads: character error rates of its exports on held-out pages.

    python -m tools.accuracy                       the built-in model in every dtype, 50 pages of each category
    python -m tools.accuracy --pages 10 --dtypes f32,q4,q4+q8
    python -m tools.accuracy --dtypes f32 --categories receipts,invoices,tables,demo --peers
    python -m tools.accuracy --dtypes f32 --categories tables --task markdown
    python -m tools.accuracy --server http://127.0.0.1:8000/v1 --model tiny-ocr     the same pages through HTTP

``q4+q8`` is the q4 decoder with the 8-bit vision tower; without a + the exporter chooses the tower. The pages come from
``tools.train_tiny.held_out``: no training has seen their fonts and texts. The runtime reads them with its defaults, as
for any user. The other dtypes are compared with the first. ``--peers`` adds rows of tesseract and RapidOCR, where these
programs are installed; all rows then count typographic quotes and dashes as plain ones. ``--task`` asks for something
else than the plain text: texts are compared without boxes, and boxes apart from texts. Seconds a page are wall time
over all pages, of which eight are asked for at the same time.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from export.pipeline import Dtype, Job, VisionDtype, export_model
from export.source import Source
from models.catalog import CATALOG
from models.grounding import parse_boxes
from runtime import Model
from tools import peers
from tools.train_tiny.evaluate import Score, score
from tools.train_tiny.held_out import CATEGORIES, MORE_CATEGORIES, held_out_pages
from tools.train_tiny.render import Page
from tools.train_tiny.tasks import PROMPTS, question

DTYPES = ("f32", "f16", "q8", "q4", "q8+q8", "q4+q8")
# Points of character error rate that a dtype may cost, over all pages.
BARS: Mapping[str, float] = {"q8": 0.3, "q4": 1.0}
_TOGETHER = 8
# Pages of the other categories for each dense page, which has as much text as twenty such pages.
_DENSE_SHARE = 10


def export_as(checkpoint: Path, dtype: str, folder: Path) -> Path:
    """Export a checkpoint folder of the family in ``DTYPE`` or ``DTYPE+VISION_DTYPE``."""
    decoder, _, vision = cast("tuple[Dtype, str, VisionDtype | Literal['']]", dtype.partition("+"))  # of DTYPES
    source = Source(checkpoint, str(checkpoint), None, "directory")
    target = folder / dtype
    export_model(
        Job("tiny-ocr", "deepseek-ocr", source, decoder, target, vision_dtype=vision or None), lambda line: None
    )
    return target


@dataclass(frozen=True)
class PageQuestion:
    """A page, what is asked about it, and what is to be answered."""

    image: Image.Image
    prompt: str | None  # None: the model's default
    text: str

    @property
    def budget(self) -> int:
        """Tokens, which are characters in the built-in model: enough for twice the text."""
        return 20 + 2 * len(self.text)


Read = Callable[[PageQuestion], str]


@contextmanager
def reader(folder: Path, crop_mode: bool, threads: int | None = None) -> Iterator[Read]:
    """Reads with an export; may be called from ``_TOGETHER`` threads."""
    with Model.open(folder, device="cpu", threads=threads, slots=_TOGETHER) as model:

        def read(page: PageQuestion) -> str:
            return model.read(page.image, page.prompt, max_new_tokens=page.budget, crop_mode=crop_mode).text

        yield read


def served(url: str, model: str, crop_mode: bool) -> Read:
    """Reads through a running server, as OpenAI's client asks it."""
    import openai  # of the dev extra

    client = openai.OpenAI(base_url=url, api_key="none")

    def read(page: PageQuestion) -> str:
        file = io.BytesIO()
        page.image.save(file, "PNG")
        data = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content: list[Any] = [{"type": "image_url", "image_url": {"url": data}}]
        if page.prompt:
            content.append({"type": "text", "text": page.prompt.removeprefix("<image>\n")})
        answer = client.chat.completions.create(
            model=model, max_tokens=page.budget, extra_body={"crop_mode": crop_mode},
            messages=[{"role": "user", "content": content}],
        )  # fmt: skip
        return answer.choices[0].message.content or ""

    return read


@dataclass(frozen=True)
class Found:
    """What one reader made of the pages."""

    scores: Mapping[str, Score]  # category -> its score; "all": of all pages with text
    seconds: float  # a page
    placed: float | None = None  # share of the boxes that are in the right place; None where no page has boxes


def asked_about(page: Page, task: str) -> PageQuestion:
    """What ``task`` asks about a page; the same every time."""
    if task == "free":
        return PageQuestion(page.image, None, page.text)
    return PageQuestion(page.image, *question(random.Random(page.text), page, task))


def drawn(categories: Sequence[str], count: int, seed: int, task: str = "free") -> dict[str, list[PageQuestion]]:
    """``count`` pages of each category, with what ``task`` asks about them."""
    return {
        category: [
            asked_about(page, task)
            for page in held_out_pages(category, -(-count // (_DENSE_SHARE if category == "dense" else 1)), seed)
        ]
        for category in categories
    }


def without_boxes(text: str) -> str:
    """An answer without its boxes."""
    return re.sub(r"<\|det\|>.*?<\|/det\|>", "", text)


def well_placed(read: str, truth: str) -> tuple[int, int]:
    """How many of the boxes of ``truth`` are in ``read``, edges within 2 % of the page, and how many there are."""
    found = parse_boxes(read, 1000, 1000)
    wanted = parse_boxes(truth, 1000, 1000)
    hits = 0
    for box in wanted:
        near = [
            one
            for one in found
            if one.label == box.label and max(abs(a - b) for a, b in zip(one.box, box.box, strict=True)) <= 20
        ]
        if near:
            found.remove(near[0])
            hits += 1
    return hits, len(wanted)


def together(scored: Sequence[Score]) -> Score:
    """The score of all these pages."""
    return Score(*(sum(getattr(one, name) for one in scored) for name in Score.__dataclass_fields__))


def shown(one: Score) -> str:
    """A score as its rate, or, on pages without text, as the number of characters that were read there."""
    return f"{one.rate:.2%}" if one.characters else f"{one.errors} read"


def _read_by(peer: peers.Read, page: PageQuestion) -> str:
    return peer(page.image)


def scores(read: Read, pages: Mapping[str, Sequence[PageQuestion]], alike: Callable[[str], str] = str) -> Found:
    """Read all pages. ``alike`` is applied to readings and truths before they are compared."""
    started = time.perf_counter()
    with ThreadPoolExecutor(_TOGETHER) as pool:
        texts = {category: list(pool.map(read, of_category)) for category, of_category in pages.items()}
    seconds = (time.perf_counter() - started) / sum(map(len, pages.values()))
    found = {}
    for category, read_texts in texts.items():
        truths: Any = [replace(page, text=alike(page.text)) for page in pages[category]]  # score takes but the text
        found[category] = score(truths, [alike(text) for text in read_texts])
    written = [one for one in found.values() if one.characters]
    found["all"] = together(written)
    pairs = [
        (text, page.text) for category in pages for text, page in zip(texts[category], pages[category], strict=True)
    ]
    hits, boxes = map(sum, zip(*(well_placed(*pair) for pair in pairs), strict=True))
    return Found(found, seconds, hits / boxes if boxes else None)


def rows(by_reader: Mapping[str, Found]) -> Iterator[str]:
    """A Markdown table; the first reader is the one to compare with."""
    first, *_ = by_reader
    categories = list(by_reader[first].scores)
    boxed = by_reader[first].placed is not None
    more = " boxes within 2 % |" if boxed else ""
    yield f"| dtype | {' | '.join(categories)} | points against {first} | bar | s a page |{more}"
    yield "| --- " * (len(categories) + 4 + boxed) + "|"
    exact = by_reader[first].scores["all"].rate
    for dtype, found in by_reader.items():
        rates = map(shown, found.scores.values())
        points = 100 * (found.scores["all"].rate - exact)
        bar = BARS.get(dtype.partition("+")[0])
        verdict = "" if bar is None else f"<= {bar} {'met' if points <= bar else 'MISSED'}"
        yield f"| {dtype} | {' | '.join(rates)} | {points:+.2f} | {verdict} | {found.seconds:.2f} |" + (
            f" {found.placed:.0%} |" if found.placed is not None else ""
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(CATALOG["tiny-ocr"].source), help="default: the built-in model"
    )
    parser.add_argument("--pages", type=int, default=50, help="of each category")
    parser.add_argument(
        "--categories", default=",".join((*CATEGORIES, *MORE_CATEGORIES)), help="default: all, %(default)s"
    )
    parser.add_argument("--task", choices=PROMPTS, default="free", help="what is asked (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="rows of tesseract and RapidOCR too, where installed")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"default: {','.join(DTYPES)}")
    parser.add_argument("--seed", type=int, default=1, help="of the pages")
    parser.add_argument("--no-crop", action="store_true", help="every page as one view, without tiles")
    parser.add_argument("--server", metavar="URL", help="read through this server's /v1, with the model that it serves")
    parser.add_argument("--model", default="tiny-ocr", help="that the server is asked for (default: tiny-ocr)")
    parser.add_argument("--threads", type=int, help="default: one for each core")
    args = parser.parse_args(argv)
    chosen = args.categories.split(",")
    if unknown := sorted({*chosen} - {*CATEGORIES, *MORE_CATEGORIES}):
        parser.error(f"no category {', '.join(unknown)}; there are {', '.join((*CATEGORIES, *MORE_CATEGORIES))}")
    others = peers.installed() if args.peers else {}
    if args.peers and not others:
        parser.error("neither tesseract nor RapidOCR is installed: apt-get install tesseract-ocr, pip install rapidocr")
    pages = drawn(chosen, args.pages, args.seed, args.task)
    alike = peers.plain if others else str if args.task == "free" else without_boxes
    found = {}
    if args.server:
        found["served"] = scores(served(args.server, args.model, not args.no_crop), pages, alike)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for dtype in args.dtypes.split(","):
                print(f"reading in {dtype}", file=sys.stderr, flush=True)
                export = export_as(args.checkpoint, dtype, Path(folder))
                with reader(export, not args.no_crop, args.threads) as read:
                    found[dtype] = scores(read, pages, alike)
    for name, peer in others.items():
        print(f"reading with {name}", file=sys.stderr, flush=True)
        found[name] = scores(partial(_read_by, peer), pages, alike)
    table = list(rows(found))
    print("\n".join(table))
    return int(any("MISSED" in row for row in table))


if __name__ == "__main__":
    raise SystemExit(main())
