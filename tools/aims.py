"""What the built-in model is to reach, and how far it is from that: the aims, measured through the server.

    python -m tools.aims                      three draws of 80 pages of each kind, in f32, q8 and q4: hours
    python -m tools.aims --pages 8 --seeds 1 --dtypes f32 --categories receipts,demo
    python -m tools.aims --checkpoint RUN/tiny-ocr           weights that have been trained just now

The pages are those of ``tools.train_tiny.held_out``. Each dtype is exported and served by a server of its own, as users
have them. ``tools.accuracy`` compares dtypes and other readers on the same pages, and asks for other tasks too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from models.catalog import CATALOG
from tools.accuracy import PageQuestion, drawn, scores, served, shown, together
from tools.demo import DemoModel, server, write_config
from tools.train_tiny.checkpoint import read_spec
from tools.train_tiny.evaluate import Score

AIMS: Mapping[str, float] = {
    "one_line": 0.5, "clean": 0.5, "figures": 0.5, "degraded": 1.5, "receipts": 0.5, "invoices": 0.5, "small": 1.0,
    "large": 1.0, "dense": 2.0, "blank": 0.0, "demo": 0.0,
}  # fmt: skip
"""Per cent of the characters that may be wrong, exported in f32; of blank pages, characters that are read."""
DTYPE_AIMS: Mapping[str, float] = {"q8": 0.1, "q4": 0.5}
"""Points that a dtype may cost beside the first, over all pages."""
NAME = "tiny-ocr"

Draws = Mapping[int, Mapping[str, Score]]
"""Seed -> category -> score."""


def aim_rows(draws: Draws) -> Iterator[str]:
    """A Markdown table of every category against its aim."""
    seeds = list(draws)
    heads = ("category", "pages", "characters", *(f"wrong, seed {seed}" for seed in seeds), "all", "aim", "")
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for category in draws[seeds[0]]:
        if category == "all":
            continue
        of_seeds = [draws[seed].get(category) for seed in seeds]
        total = together([one for one in of_seeds if one])
        aim = AIMS.get(category)
        missed = aim is not None and 100 * total.rate > aim
        cells = [category, str(total.pages), str(total.characters), *(shown(one) if one else "" for one in of_seeds)]
        cells += [shown(total), "" if aim is None else f"{aim:g}%"]
        yield f"| {' | '.join(cells)} | {'' if aim is None else 'MISSED' if missed else 'met'} |"


def dtype_rows(found: Mapping[str, Draws]) -> Iterator[str]:
    """A Markdown table of what each dtype costs beside the first, over all pages that have text."""
    first, *_ = found
    yield f"| dtype | wrong | points against {first} | aim | |"
    yield "| --- | --- | --- | --- | --- |"
    rates = {dtype: together([draw["all"] for draw in draws.values()]).rate for dtype, draws in found.items()}
    for dtype, rate in rates.items():
        points, aim = 100 * (rate - rates[first]), None if dtype == first else DTYPE_AIMS.get(dtype)
        verdict = "" if aim is None else "MISSED" if points > aim else "met"
        yield f"| {dtype} | {rate:.2%} | {points:+.2f} | {'' if aim is None else f'{aim:g}'} | {verdict} |"


def entry_of(checkpoint: Path) -> str:
    """Return the entry of config.toml under which a checkpoint folder is served, in tiles of the folder's own size.

    The catalogue's entry names the size of the built-in weights, which would win over that of the folder.
    """
    tile = read_spec(checkpoint).image_size
    return (
        f'[models.entries.{NAME}]\nkind = "deepseek-ocr"\nsource = {json.dumps(str(checkpoint.resolve()))}\n'
        f"defaults = {{ image_size = {tile} }}\n"
    )


def served_as(dtype: str, checkpoint: Path, pages: Mapping[int, Mapping[str, list[PageQuestion]]]) -> Draws:
    """Export the checkpoint in ``dtype``, serve it, and read all pages."""
    with tempfile.TemporaryDirectory(prefix="ocr-onnx-aims-") as work:
        folder = Path(work)
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
        model = DemoModel(NAME, True, environment, write_config(folder, entry_of(checkpoint)))
        export = [sys.executable, "-m", "export", NAME, "--config", str(model.config), "--dtype", dtype]
        subprocess.run(export, env=environment, check=True, stdout=sys.stderr)
        with redirect_stdout(sys.stderr), server(model, "cpu", dtype, folder / "server.log") as url:
            read = served(f"{url}/v1", NAME, True)
            return {seed: scores(read, of_draw).scores for seed, of_draw in pages.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables. Returns 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path(CATALOG[NAME].source), help="default: the built-in one")
    parser.add_argument("--pages", type=int, default=80, help="of each category and draw (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the draws (default: 1 2 3)")
    parser.add_argument("--dtypes", default=",".join(("f32", *DTYPE_AIMS)), help="default: %(default)s")
    parser.add_argument("--categories", default=",".join(AIMS), help="default: %(default)s")
    args = parser.parse_args(argv)
    chosen = args.categories.split(",")
    if unknown := sorted({*chosen} - {*AIMS}):
        parser.error(f"no aim for {', '.join(unknown)}; there are aims for {', '.join(AIMS)}")
    # The demonstration's pages are the same in every draw, so that only the first draw has the demonstration.
    draws = {seed: [one for one in chosen if one != "demo" or seed == args.seeds[0]] for seed in args.seeds}
    pages = {seed: drawn(categories, args.pages, seed) for seed, categories in draws.items() if categories}
    found = {dtype: served_as(dtype, args.checkpoint, pages) for dtype in args.dtypes.split(",")}
    table = [*aim_rows(next(iter(found.values()))), "", *dtype_rows(found)]
    print("\n".join(table))
    return int(any("MISSED" in row for row in table))


if __name__ == "__main__":
    sys.exit(main())
