"""What fewer bits cost a model that really reads: character error rates of its exports on held-out pages.

    python -m tools.accuracy                       the built-in model in every dtype, 50 pages of each category
    python -m tools.accuracy --pages 10 --dtypes f32,q4,q4+q8
    python -m tools.accuracy --server http://127.0.0.1:8000/v1 --model tiny-ocr     the same pages through HTTP

``q4+q8`` is the q4 decoder with the 8-bit vision tower; without a + the tower is what the exporter takes by itself. The
pages are those of ``tools.train_tiny.evaluate``, whose fonts and texts no training has seen; they are read as users
read them, by the runtime with its defaults. The first of the dtypes is what the others are compared with.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from export.pipeline import Job, export_model
from export.source import Source
from models.catalog import CATALOG
from runtime import Model
from tools.train_tiny.evaluate import Score, score
from tools.train_tiny.held_out import CATEGORIES, held_out_pages
from tools.train_tiny.render import Page

DTYPES = ("f32", "f16", "q8", "q4", "q8+q8", "q4+q8")
# Points of character error rate that a dtype may cost, over all pages.
BARS: Mapping[str, float] = {"q8": 0.3, "q4": 1.0}
_TOGETHER = 8


def export_as(checkpoint: Path, dtype: str, folder: Path) -> Path:
    """Export a checkpoint folder of the family in ``DTYPE`` or ``DTYPE+VISION_DTYPE``."""
    decoder, _, vision = dtype.partition("+")
    source = Source(checkpoint, str(checkpoint), None, "directory")
    target = folder / dtype
    export_model(
        Job("tiny-ocr", "deepseek-ocr", source, decoder, target, vision_dtype=vision or None), lambda line: None
    )
    return target


Read = Callable[[Page], str]


@contextmanager
def reader(folder: Path, crop_mode: bool, threads: int | None = None) -> Iterator[Read]:
    """Reads with an export; may be called from ``_TOGETHER`` threads."""
    with Model.open(folder, device="cpu", threads=threads, slots=_TOGETHER) as model:
        yield lambda page: model.read(page.image, max_new_tokens=_budget(page), crop_mode=crop_mode).text


def served(url: str, model: str, crop_mode: bool) -> Read:
    """Reads through a running server, as OpenAI's client asks it."""
    import openai  # of the dev extra

    client = openai.OpenAI(base_url=url, api_key="none")

    def read(page: Page) -> str:
        file = io.BytesIO()
        page.image.save(file, "PNG")
        data = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        answer = client.chat.completions.create(
            model=model, max_tokens=_budget(page), extra_body={"crop_mode": crop_mode},
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data}}]}],
        )  # fmt: skip
        return answer.choices[0].message.content or ""

    return read


def scores(read: Read, pages: Mapping[str, Sequence[Page]]) -> dict[str, Score]:
    """The score of each category's pages, and of all that have text as ``all``."""
    with ThreadPoolExecutor(_TOGETHER) as pool:
        texts = {category: list(pool.map(read, of_category)) for category, of_category in pages.items()}
    found = {category: score(pages[category], of_category) for category, of_category in texts.items()}
    written = [one for one in found.values() if one.characters]
    found["all"] = Score(*(sum(getattr(one, name) for one in written) for name in Score.__dataclass_fields__))
    return found


def rows(by_dtype: Mapping[str, Mapping[str, Score]]) -> Iterator[str]:
    """A Markdown table; the first dtype is the one to compare with."""
    first, *_ = by_dtype
    categories = list(by_dtype[first])
    yield f"| dtype | {' | '.join(categories)} | points against {first} | bar |"
    yield "| --- " * (len(categories) + 3) + "|"
    exact = by_dtype[first]["all"].rate
    for dtype, found in by_dtype.items():
        rates = (f"{one.rate:.2%}" if one.characters else f"{one.errors} read" for one in found.values())
        points = 100 * (found["all"].rate - exact)
        bar = BARS.get(dtype.partition("+")[0])
        verdict = "" if bar is None else f"<= {bar} {'met' if points <= bar else 'MISSED'}"
        yield f"| {dtype} | {' | '.join(rates)} | {points:+.2f} | {verdict} |"


def _budget(page: Page) -> int:
    """Tokens, which are characters in the built-in model: enough for twice the text."""
    return 20 + 2 * len(page.text)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(CATALOG["tiny-ocr"].source), help="default: the built-in model"
    )
    parser.add_argument("--pages", type=int, default=50, help="of each category")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"default: {','.join(DTYPES)}")
    parser.add_argument("--seed", type=int, default=1, help="of the pages")
    parser.add_argument("--no-crop", action="store_true", help="every page as one view, without tiles")
    parser.add_argument("--server", metavar="URL", help="read through this server's /v1, with the model that it serves")
    parser.add_argument("--model", default="tiny-ocr", help="that the server is asked for (default: tiny-ocr)")
    parser.add_argument("--threads", type=int, help="default: one for each core")
    args = parser.parse_args(argv)
    pages = {category: held_out_pages(category, args.pages, args.seed) for category in CATEGORIES}
    found = {}
    if args.server:
        found["served"] = scores(served(args.server, args.model, not args.no_crop), pages)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for dtype in args.dtypes.split(","):
                print(f"reading in {dtype}", file=sys.stderr, flush=True)
                export = export_as(args.checkpoint, dtype, Path(folder))
                with reader(export, not args.no_crop, args.threads) as read:
                    found[dtype] = scores(read, pages)
    table = list(rows(found))
    print("\n".join(table))
    return int(any("MISSED" in row for row in table))


if __name__ == "__main__":
    raise SystemExit(main())
