"""What is trained when: the stages, from one short line on a small canvas to several lines over many tiles."""

from dataclasses import dataclass, field, replace
from typing import Literal

Trained = Literal["vision", "both", "decoder"]
"""Which part of the model a step trains: the vision tower by the reading probe, the decoder, or both."""


@dataclass(frozen=True)
class Canvas:
    """One way to show a page to the model, the same for all pages of a batch."""

    view: int  # side of the global view, pixels; sizes below the base size only exist in training
    batch: int  # pages; of natural pages, tiles
    sizes: tuple[int, int]  # font size, pixels of the model's input; of natural pages, of the page
    lines: int  # at most
    tiles: tuple[int, int] | None = None  # columns and rows of the tiles; None: no tiles
    crop: bool = True  # False: no-crop mode, stretched where the view is a tile's size
    words: int = 12  # of a line, at most
    natural: bool = False  # pages as people make them, as high as their lines need, whatever tiles that gives
    least: int = 1  # lines of a natural page, at least
    widths: tuple[int, int] = (200, 720)  # of a natural page, pixels
    fill: float = 0.0  # the least share of `lines` that a page has


@dataclass(frozen=True)
class Stage:
    """A mixture of canvases and texts, for a number of steps."""

    steps: int
    canvases: tuple[tuple[float, Canvas], ...]  # weight, canvas
    kinds: dict[str, float] = field(default_factory=dict)  # kind of text or, of natural pages, document -> weight
    tasks: dict[str, float] = field(default_factory=lambda: {"free": 1.0})  # of tasks.PROMPTS -> weight
    wear: float = 0.0  # share of the pages that are worn
    blank: float = 0.01  # share of the pages without text
    turned: float = 0.0  # share of the pages that stand on their side or upside down, with an empty answer
    trained: Trained = "both"
    learning_rate: float = 1.5e-3


def stage_of(stages: tuple[Stage, ...], step: int) -> Stage:
    """Return the stage that `step` belongs to; the last one goes on for ever."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


EARLY = {"random": 0.3, "letters": 0.3, "words": 0.3, "figures": 0.1}
MIXED = {"random": 0.15, "letters": 0.2, "words": 0.35, "prose": 0.1, "figures": 0.2}
LATE = {"random": 0.08, "letters": 0.1, "words": 0.24, "prose": 0.3, "figures": 0.2, "code": 0.08}

ENGLISH = {"random": 0.04, "letters": 0.06, "words": 0.25, "prose": 0.4, "figures": 0.2, "code": 0.05}
FIGURES = {"random": 0.03, "letters": 0.05, "words": 0.2, "prose": 0.22, "figures": 0.45, "code": 0.05}
RECEIPTS = {
    "random": 0.03, "letters": 0.04, "words": 0.2, "prose": 0.25, "figures": 0.32, "receipt": 0.12, "code": 0.04
}  # fmt: skip
NATURAL = (
    (0.60, Canvas(256, 28, (16, 40), 10, natural=True, fill=0.8)),
    (0.08, Canvas(192, 20, (16, 40), 6, crop=False, fill=0.5)),
    (0.08, Canvas(256, 14, (18, 44), 6)),
    (0.08, Canvas(256, 14, (18, 40), 8, crop=False)),
    (0.04, Canvas(256, 8, (20, 60), 5, tiles=(2, 1), fill=0.5)),
    (0.04, Canvas(256, 8, (20, 60), 8, tiles=(1, 2), fill=0.5)),
    (0.04, Canvas(256, 5, (20, 60), 10, tiles=(2, 2), fill=0.5)),
    (0.04, Canvas(256, 3, (22, 60), 10, tiles=(3, 3), fill=0.5)),
)
"""Pages of natural shape (a single line becomes a strip of many tiles with very large type), and pages made to fit."""

MANY_LINES = (
    (0.85, Canvas(256, 40, (18, 38), 10, natural=True, fill=0.9)),
    (0.05, Canvas(192, 20, (16, 40), 6, crop=False, fill=0.5)),
    (0.05, Canvas(256, 14, (18, 44), 6)),
    (0.05, Canvas(256, 14, (18, 40), 8, crop=False)),
)

LONG = ((0.9, Canvas(256, 40, (18, 38), 10, natural=True, least=4, fill=0.9)), *MANY_LINES[1:])
"""As many lines, but never fewer than four of them on a natural page."""

DENSE = (
    (0.76, Canvas(256, 28, (16, 40), 10, natural=True, fill=0.6)),
    (0.08, Canvas(192, 20, (16, 40), 6, crop=False, fill=0.5)),
    (0.08, Canvas(256, 14, (18, 44), 6)),
    (0.08, Canvas(256, 14, (18, 40), 8, crop=False)),
)
"""Natural pages of a few lines to ten, and pages that fit one view."""

LONG_AND_DENSE = (
    (0.45, replace(LONG[0][1], batch=28)),
    (0.40, DENSE[0][1]),
    *((0.05, canvas) for _, canvas in DENSE[1:]),
)
"""Both at once; fewer tiles a step than the decoder alone takes."""

ALL_SIZES = (
    (0.62, Canvas(256, 40, (16, 36), 11, natural=True, fill=0.8, widths=(240, 660))),
    (0.12, Canvas(256, 40, (18, 30), 7, natural=True, least=3, fill=0.9, widths=(300, 460))),
    (0.08, Canvas(256, 40, (11, 20), 12, natural=True, fill=0.7, widths=(180, 440))),
    (0.08, Canvas(256, 40, (36, 66), 5, natural=True, fill=0.7, widths=(400, 1100))),
    (0.05, Canvas(256, 14, (18, 44), 6)),
    (0.05, Canvas(256, 14, (18, 40), 8, crop=False)),
)
"""Natural pages of ordinary type, of few lines as in the demonstration, of small type and of large type."""

DOCUMENTS = {
    "random": 0.02, "letters": 0.02, "words": 0.12, "prose": 0.18, "figures": 0.1, "receipt": 0.2, "code": 0.03,
    "latin": 0.07, "till": 0.1, "invoice": 0.1, "article": 0.06,
}  # fmt: skip

BILLS = (
    (0.45, Canvas(256, 40, (17, 30), 10, natural=True, least=3, fill=0.9, widths=(280, 640))),
    (0.40, Canvas(256, 40, (18, 28), 7, natural=True, least=3, fill=0.9, widths=(300, 460))),
    (0.05, Canvas(256, 40, (11, 20), 12, natural=True, fill=0.7, widths=(180, 440))),
    (0.05, Canvas(256, 40, (36, 66), 5, natural=True, fill=0.7, widths=(400, 1100))),
    (0.05, Canvas(256, 14, (18, 40), 6)),
)
BILL_KINDS = {"words": 0.08, "prose": 0.12, "figures": 0.1, "receipt": 0.32, "till": 0.19, "invoice": 0.19}
"""Kinds of the last steps that two cores had time for."""
PAPERS = {
    "random": 0.02, "letters": 0.02, "words": 0.1, "prose": 0.12, "figures": 0.1, "receipt": 0.18, "code": 0.02,
    "latin": 0.04, "till": 0.15, "invoice": 0.15, "article": 0.1,
}  # fmt: skip
MOSTLY_FREE = {"free": 0.75, "markdown": 0.12, "ocr": 0.08, "locate": 0.05}

ALL_TASKS = {"free": 0.55, "markdown": 0.2, "ocr": 0.15, "locate": 0.1}

EVERY_SIZE = (
    (0.50, ALL_SIZES[0][1]),
    (0.10, ALL_SIZES[1][1]),
    (0.15, ALL_SIZES[2][1]),
    (0.08, ALL_SIZES[3][1]),
    (0.07, Canvas(256, 40, (16, 44), 2, natural=True)),
    (0.05, ALL_SIZES[4][1]),
    (0.05, ALL_SIZES[5][1]),
)
"""As `ALL_SIZES`, with twice as much small type and with strips of a line or two, which `ALL_SIZES` hardly has."""
EVERY_KIND = {
    "random": 0.02, "letters": 0.02, "words": 0.1, "prose": 0.15, "figures": 0.08, "receipt": 0.15, "code": 0.02,
    "latin": 0.14, "till": 0.11, "invoice": 0.13, "article": 0.08,
}  # fmt: skip
EVERY_TASK = {"free": 0.55, "markdown": 0.18, "ocr": 0.17, "locate": 0.1}

FINEST_SIZES = (
    (0.40, ALL_SIZES[0][1]),
    (0.08, ALL_SIZES[1][1]),
    (0.20, ALL_SIZES[2][1]),
    (0.14, Canvas(256, 40, (16, 28), 7, natural=True, least=3, fill=0.9, widths=(420, 650))),
    (0.06, ALL_SIZES[3][1]),
    (0.05, EVERY_SIZE[4][1]),
    (0.04, ALL_SIZES[4][1]),
    (0.03, ALL_SIZES[5][1]),
)
"""As `EVERY_SIZE`, with more small type and with wide and low pages, whose few tiles shrink the type."""
STRIPS = ((0.35, Canvas(256, 40, (20, 40), 2, natural=True, widths=(280, 640))), *FINEST_SIZES)
"""The same, and a quarter of the steps on a line or two."""
FINEST_KINDS = {
    "random": 0.02, "letters": 0.02, "words": 0.1, "prose": 0.16, "figures": 0.08, "receipt": 0.12, "code": 0.02,
    "latin": 0.1, "till": 0.15, "invoice": 0.15, "article": 0.08,
}  # fmt: skip
FINEST_TASKS = {"free": 0.62, "markdown": 0.15, "ocr": 0.14, "locate": 0.09}

MORE_BILLS = (
    (0.30, ALL_SIZES[0][1]),
    (0.22, Canvas(256, 40, (17, 30), 11, natural=True, least=4, fill=0.9, widths=(310, 640))),
    (0.17, ALL_SIZES[2][1]),
    (0.14, STRIPS[0][1]),
    (0.08, FINEST_SIZES[3][1]),
    (0.06, ALL_SIZES[3][1]),
    (0.02, ALL_SIZES[4][1]),
    (0.01, ALL_SIZES[5][1]),
)
"""As `FINEST_SIZES`, with pages as bills have them and with strips of a line or two."""
MORE_BILLS_KINDS = {
    "random": 0.02, "letters": 0.01, "words": 0.1, "prose": 0.13, "figures": 0.06, "receipt": 0.1, "code": 0.01,
    "latin": 0.1, "till": 0.2, "invoice": 0.2, "article": 0.07,
}  # fmt: skip
MORE_BILLS_TASKS = {"free": 0.7, "markdown": 0.1, "ocr": 0.13, "locate": 0.07}
LATEST = Stage(
    1018, MORE_BILLS, MORE_BILLS_KINDS, MORE_BILLS_TASKS, wear=0.3, blank=0.01, turned=0.02, learning_rate=3e-4
)

STAGES = (
    # The vision tower learns the characters: full canvases of large type, no decoder.
    Stage(700, ((1.0, Canvas(192, 32, (24, 44), 6, crop=False, fill=0.7)),), EARLY, trained="vision"),
    # The decoder learns where to look: few vision tokens, one short line or two.
    Stage(
        1800,
        (
            (0.5, Canvas(64, 96, (20, 36), 1)),
            (0.4, Canvas(96, 64, (20, 40), 2)),
            (0.1, Canvas(192, 20, (18, 40), 6, crop=False)),
        ),
        EARLY,
    ),
    # More lines on larger canvases.
    Stage(
        300,
        (
            (0.25, Canvas(96, 64, (18, 40), 2)),
            (0.35, Canvas(128, 40, (18, 40), 3, fill=0.5)),
            (0.40, Canvas(192, 20, (16, 40), 6, crop=False, fill=0.5)),
        ),
        MIXED,
        wear=0.1,
    ),
    # The real geometry: small images in the padded global view, larger ones in tiles, made to fit them.
    Stage(
        200,
        (
            (0.10, Canvas(192, 20, (16, 40), 6, crop=False, fill=0.5)),
            (0.15, Canvas(256, 14, (18, 44), 6)),
            (0.10, Canvas(256, 14, (18, 40), 8, crop=False)),
            (0.20, Canvas(256, 8, (20, 48), 5, tiles=(2, 1), fill=0.5)),
            (0.10, Canvas(256, 6, (20, 48), 5, tiles=(3, 1), fill=0.5)),
            (0.10, Canvas(256, 8, (20, 48), 8, tiles=(1, 2), fill=0.5)),
            (0.10, Canvas(256, 5, (20, 48), 10, tiles=(2, 2), fill=0.5)),
            (0.05, Canvas(256, 4, (20, 48), 10, tiles=(3, 2), fill=0.5)),
            (0.05, Canvas(256, 4, (20, 48), 10, tiles=(2, 3), fill=0.5)),
            (0.05, Canvas(256, 3, (22, 52), 10, tiles=(3, 3), fill=0.5)),
        ),
        LATE,
        wear=0.3,
        blank=0.02,
    ),
    Stage(450, NATURAL, LATE, wear=0.3, blank=0.02),
    # Mostly clean English: what a demonstration needs first.
    Stage(4900, NATURAL, ENGLISH, wear=0.25, blank=0.02),
    # What is left of the errors are lines that are skipped or read twice: the decoder alone, on pages of many lines.
    Stage(800, MANY_LINES, ENGLISH, wear=0.35, blank=0.01, trained="decoder", learning_rate=8e-4),
    # Then figures, which people look at twice, and the tower again: its confusions (8 and 6, v and w) are what is left.
    Stage(1100, DENSE, FIGURES, wear=0.3, blank=0.01, learning_rate=6e-4),
    # That made the decoder skip lines again.
    Stage(300, LONG, ENGLISH, wear=0.3, blank=0.01, trained="decoder", learning_rate=6e-4),
    # Both halves on long pages, figures and lines that end alike, in steps small enough to keep what is there.
    Stage(900, LONG_AND_DENSE, RECEIPTS, wear=0.3, blank=0.01, learning_rate=3e-4),
    # Documents as people meet them, and accents: first the decoder, which has to find its way through columns.
    Stage(200, ALL_SIZES, DOCUMENTS, wear=0.2, blank=0.01, turned=0.01, trained="decoder", learning_rate=6e-4),
    # Then bills alone, without accents: what time there was.
    Stage(150, BILLS, BILL_KINDS, wear=0.15, blank=0.01, turned=0.01, trained="decoder", learning_rate=6e-4),
    # Documents of all kinds again, and the other prompts, which the decoder alone can learn.
    Stage(
        1200, ALL_SIZES, PAPERS, MOSTLY_FREE, wear=0.2, blank=0.01, turned=0.015, trained="decoder", learning_rate=6e-4
    ),
    # Both halves on all of it, and the other prompts.
    Stage(1400, ALL_SIZES, DOCUMENTS, ALL_TASKS, wear=0.3, blank=0.01, turned=0.02, learning_rate=6e-4),
    # The same with more of what was worst then: accents, small type, single lines.
    Stage(7842, EVERY_SIZE, EVERY_KIND, EVERY_TASK, wear=0.3, blank=0.01, turned=0.02, learning_rate=6e-4),
    # (Its last 1,042 steps were in tiles of 256, with pages of ten lines to 46 that are no longer here; see README.md.)
    # Tiles of 224, small steps: small type, and pages whose few tiles shrink it.
    Stage(1000, FINEST_SIZES, FINEST_KINDS, FINEST_TASKS, wear=0.3, blank=0.01, turned=0.02, learning_rate=3e-4),
    # Single lines, whose strips of many tiles have very large type, were worse for it.
    Stage(155, STRIPS, FINEST_KINDS, FINEST_TASKS, wear=0.3, blank=0.01, turned=0.02, learning_rate=1.5e-4),
    # Bills, what was worst then; the same again for whoever goes on, on a GPU too.
    LATEST,
    replace(LATEST, steps=1_000_000),
)
