"""Runs real clients against a server with the built-in model: ``python -m tools.clients [NAME ...]``.

Each client is installed into a throw-away environment and sends a picture, a PDF, a picture after a system prompt, and
a second turn. The text that the client shows is compared with that of the page. The table goes to --table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from server.scores.text import score_text

from ..demo import built_in_model, server
from .catalogue import CASES, CLIENTS, Client
from .environments import CannotInstall, Environment

PROBES = Path(__file__).parent / "probes"
PROBE_SECONDS = 900
MARK = "<!-- written by tools.clients -->"
MOST_WRONG = 0.05  # of the characters
# The built-in model reads both pages without an error with the prompts that it was trained with.
PAGES = ("Invoice 4711\nTotal due 128.50 EUR", "Delivery note 31\nTwo boxes of pens")
PAGE_SIZE, FONT_SIZE = (640, 240), 26  # pixels


@dataclass
class Outcome:
    """What came of one client."""

    client: Client
    version: str = "-"
    cells: dict[str, str] = field(default_factory=dict)  # case -> ok, a reason, or what was wrong
    failed: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every case of every client that could be installed is right."""
    parser = argparse.ArgumentParser(prog="python -m tools.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"clients: {', '.join(one.name for one in CLIENTS)}")
    parser.add_argument("--open-webui", action="store_true", help="Open WebUI too, which takes GBs and minutes")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="keep the environments here for the next run")
    parser.add_argument("--url", metavar="URL", help="a server that runs already, with tiny-ocr (default: start one)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table into this Markdown file")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - {one.name for one in CLIENTS}:
        parser.error(f"there is no client {', '.join(sorted(unknown))}")
    chosen = [
        one
        for one in CLIENTS
        if (one.name in args.names if args.names else not one.optional or args.open_webui)
    ]  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ocr-onnx-clients-")))
        url = args.url or stack.enter_context(server(built_in_model(folder), "cpu", "f32", folder / "server.log"))
        variables = {**_pages(folder), "CLIENT_URL": url, "CLIENT_MODEL": "tiny-ocr"}
        outcomes = [try_client(one, args.environments or folder, variables) for one in chosen]
    table = render(outcomes)
    print(table)
    if args.table:
        write_table(args.table, table)
    return int(any(outcome.failed for outcome in outcomes))


def try_client(client: Client, root: Path, variables: Mapping[str, str]) -> Outcome:
    """Install one client and run its probe."""
    print(f"{client.name} ...", file=sys.stderr, flush=True)
    outcome = Outcome(client)
    environment = Environment(root, client)
    try:
        environment.install()
        outcome.version = environment.version()
    except CannotInstall as error:
        outcome.cells = dict.fromkeys(CASES, f"not installed: {error}")
        return outcome
    try:
        done = subprocess.run(
            environment.command(PROBES / client.probe), env={**os.environ, **environment.variables, **variables},
            capture_output=True, text=True, timeout=PROBE_SECONDS, cwd=root, check=False,
        )  # fmt: skip
        lines, complaint = done.stdout.splitlines(), done.stderr.strip()
    except subprocess.TimeoutExpired:
        lines, complaint = [], f"no end after {PROBE_SECONDS} s"
    for line in lines:
        if line.startswith('{"case"'):
            entry = json.loads(line)
            outcome.cells[entry["case"]] = judge(entry)
    for case in CASES:
        outcome.cells.setdefault(
            case, f"no answer: {complaint.splitlines()[-1][:150] if complaint else 'it said nothing'}"
        )
    outcome.failed = any(not (cell == "ok" or cell.startswith("(")) for cell in outcome.cells.values())
    if outcome.failed:
        print(complaint[-3000:], file=sys.stderr)
    return outcome


def judge(entry: Mapping[str, str]) -> str:
    """What the table says of one case."""
    if "skipped" in entry:
        return f"({entry['skipped']})"
    if "error" in entry:
        return f"error: {entry['error'][:150]}"
    truth = "\n".join(PAGES) if entry["case"] == "pdf" else PAGES[0]
    score = score_text(truth, plain(entry["text"]))
    wrong = score.wrong_characters / score.characters
    return "ok" if wrong <= MOST_WRONG else f"{wrong:.0%} of the characters wrong: {entry['text'][:80]!r}"


def plain(text: str) -> str:
    """Without what a client puts around Markdown: escapes, hard line ends."""
    return text.replace("\\", "").replace("  \n", "\n")


def render(outcomes: Sequence[Outcome]) -> str:
    """The page of the docs."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [
        "## Tried",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, `python -m tools.clients`, the server with `tiny-ocr`, Python {python}.",
        f"ok: what the client shows is the text of the page, at most {MOST_WRONG:.0%} of its characters wrong.",
        "In parentheses: why there is nothing to try.",
        "The second turn is a message without a picture after the first answer.",
        "",
        f"| client | version | {' | '.join(CASES)} |",
        f"| --- | --- |{' --- |' * len(CASES)}",
    ]
    for outcome in outcomes:
        cells = [outcome.cells[case].replace("|", "\\|").replace("\n", " ") for case in CASES]
        lines.append(f"| {outcome.client.name} | {outcome.version} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(page: Path, table: str) -> None:
    """Replace the table that an earlier run wrote; the text above that table stays."""
    head, found, _ = page.read_text(encoding="utf-8").partition(MARK) if page.is_file() else ("", "", "")
    page.write_text(f"{head}{found}\n\n{table}" if found else table, encoding="utf-8")


def _pages(folder: Path) -> dict[str, str]:
    """The picture and the PDF on disk, as the variables that probes read."""
    picture, pdf = folder / "page.png", folder / "page.pdf"
    first, second = map(_draw, PAGES)
    first.save(picture)
    # At the server's own dots per inch, and with hardly a trace of JPEG.
    first.save(pdf, save_all=True, append_images=[second], resolution=144, quality=95)
    return {"CLIENT_PICTURE": str(picture), "CLIENT_PDF": str(pdf)}


def _draw(text: str) -> Image.Image:
    page = Image.new("RGB", PAGE_SIZE, "white")
    ImageDraw.Draw(page).text((24, 24), text, fill="black", font=ImageFont.load_default(FONT_SIZE), spacing=10)
    return page


if __name__ == "__main__":
    sys.exit(main())
