"""Held-out pages with their truth, by category.

Fonts and texts of these pages never occur in training (`fonts.HELD_OUT_FAMILIES`, `text.is_held_out`), but for the
demonstration's pages, half of which are in Pillow's own face. The project's end-to-end tests import `held_out_pages`.
"""

import random

import numpy as np

from ..demo_page import FONT_SIZE, PAGE_TEXT, demo_page
from .fonts import HELD_OUT_FAMILIES, PILLOW, FontFace, faces_of, family_faces, load_face
from .layout import faces_for, render_document
from .render import Page, PageStyle, blank_page, render_page, turned

CATEGORIES = ("one_line", "clean", "figures", "degraded", "blank")
"""What the aims of the dtypes and the tables of the README are about."""
MORE_CATEGORIES = ("receipts", "invoices", "tables", "small", "large", "latin", "dense", "turned", "demo")
DEMO_PAGES = (
    PAGE_TEXT,
    "Invoice 2027-042\nInk, 12 bottles\n6 cases at 9.50 EUR\nTotal: 57.00 EUR\nThank you!",
    "Order 1998-7\nGlue, 30 tubes\n30 tubes at 1.20 USD\nTotal: 36.00 USD\nPaid in cash",
    "Receipt 5501\n2 x Coffee 5.80 EUR\n1 x Cake 3.20 EUR\nTotal: 9.00 EUR\nGoodbye!",
    "Date: 2026-03-14\nTax 19%: 2.26 EUR\nNet: 11.89 EUR\nTotal: 14.15 EUR\nTable 12",
    "Hotel Miramar\n3 nights at 88.00 GBP\nBreakfast 24.00 GBP\nTotal: 288.00 GBP\nSee you soon",
    "Ticket 40-118-2\nPlatform 9, coach 14\nSeat 61, window\nPrice: 49.90 CHF\nNot refundable",
    "Pencils, 24 pieces\nErasers, 10 pieces\n34 pieces at 0.35 USD\nTotal: 11.90 USD\nThanks a lot!",
    "Library card 77\n2 books until 4 May\n1 map until 11 May\nFee: 0.50 EUR\nMonday closed",
    "Invoice 2031-900\nWood, 8 boards\n8 boards at 17.25 EUR\nTotal: 138.00 EUR\nThank you!",
)
"""The demonstration's page and nine like it; every other one in Pillow's own face."""


def held_out_pages(category: str, count: int, seed: int = 1) -> list[Page]:
    """Return `count` pages of a category, the same every time; of "demo", as many as there are at most.

    one_line: one line of words or prose, 24 to 36 pixels. clean: 1 to 10 lines of words and prose, black on white.
    figures: 1 to 6 lines of numbers, prices and dates. degraded: as clean, with noise, blur, JPEG, tints and up to 2
    degrees of rotation. blank: no text. receipts: till receipts of 4 to 11 lines. invoices: of 6 to 11 lines, half of
    them with a table. tables: articles with headings, lists, tables and figures. small, large: as clean, type of 12 to
    18 and of 44 to 64 pixels. latin: as clean, with accents, typographic quotes, dashes and currency signs. dense: A4
    with 45 lines. turned: as clean, upside down or sideways, to be read as nothing. demo: what DEMO_PAGES say.
    """
    if category == "demo":
        return [demo_like(index) for index in range(min(count, len(DEMO_PAGES)))]
    rng = random.Random(f"held out/{category}/{seed}")
    families = faces_of(HELD_OUT_FAMILIES)
    pages = []
    for index in range(count):
        style = style_of(category, rng, index)
        family = families[rng.choice(sorted(families))]
        if category == "blank":
            pages.append(blank_page(rng, style))
        elif category in ("receipts", "invoices", "tables"):
            pages.append(render_document(rng, style, faces_for(rng, family), held_out=True))
        else:
            page = render_page(rng, style, rng.choice(family), held_out=True)
            pages.append(turned(rng, page) if category == "turned" else page)
    return pages


def style_of(category: str, rng: random.Random, index: int) -> PageStyle:
    """Return what the next page of a category looks like."""
    if category == "dense":
        return PageStyle(794, 1123, rng.randint(14, 17), 45, "prose", 20, colours=False, fill=1.0)
    if category in ("receipts", "invoices", "tables"):
        kind = {"receipts": "till", "invoices": "invoice", "tables": "article"}[category]
        least = {"receipts": 4, "invoices": 6, "tables": 5}[category]
        width, size = rng.randint(320, 620), rng.randint(18, 28)
        return PageStyle(width, width, size, least + index % (12 - least), kind, 12, colours=False)
    most = {"one_line": 1, "figures": 1 + index % 6, "small": 1 + index % 12, "large": 1 + index % 4}.get(
        category, 1 + index % 10
    )
    size = rng.randint(*{"small": (12, 18), "large": (44, 64)}.get(category, (24, 36)))
    width = rng.randint(*{"small": (200, 420), "large": (500, 1100)}.get(category, (280, 620)))
    height = round(most * size * 1.45 + size * rng.uniform(1.0, 1.8))
    return PageStyle(
        width=width,
        height=height if category == "large" else min(620, height),
        font_size=size,
        max_lines=most,
        kind=category if category in ("figures", "latin") else rng.choice(("prose", "words")),
        max_words=12,
        wear=1.0 if category == "degraded" else 0.0,
        colours=category in ("degraded", "blank"),
        fill=1.0,
    )


def demo_like(index: int) -> Page:
    """Return page `index` of DEMO_PAGES."""
    faces: list[FontFace] = [*family_faces(PILLOW), *(family_faces(family)[0] for family in HELD_OUT_FAMILIES)]
    face = faces[0 if index % 2 == 0 else 1 + index // 2]
    return Page(demo_page(DEMO_PAGES[index], load_face(face, FONT_SIZE)), DEMO_PAGES[index], "", np.zeros((0, 2)))
