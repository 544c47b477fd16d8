"""What documents say: articles, invoices and till receipts as blocks, of which `layout` makes pages.

All is a function of the `random.Random` passed in; words come from the pools of `text`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from . import text

COMPANIES = ("Ltd.", "Inc.", "GmbH", "& Co.", "& Sons", "Bakery", "Hotel", "Books", "Tools", "Paper", "Store")


@dataclass(frozen=True)
class Heading:
    """A title (level 1) or a section's (level 2)."""

    words: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    """Running words; the bold ones are marked."""

    words: tuple[tuple[str, bool], ...]  # word, whether it is bold


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]
    numbered: bool = False


@dataclass(frozen=True)
class Line:
    """A line of its own, or a label on the left with an amount at the right edge."""

    words: str
    amount: str = ""
    centred: bool = False


@dataclass(frozen=True)
class Table:
    """Cells in rows of one length; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]
    ruled: bool = True


@dataclass(frozen=True)
class Figure:
    """A picture without text."""

    height: float  # share of the page's width


Block = Heading | Paragraph | Bullets | Line | Table | Figure


@dataclass(frozen=True)
class Source:
    """Where a document takes its words from."""

    rng: random.Random
    held_out: bool
    ascii_only: bool

    def word(self) -> str:
        """Return a word; now and then an accented one where the face has those."""
        if not self.ascii_only and self.rng.random() < 0.08:
            return self.rng.choice(text.accented_pool(self.held_out))
        return self.rng.choice(text.word_pool(self.held_out))

    def phrase(self, most: int) -> str:
        """Return up to `most` words, the first capitalised."""
        return " ".join(self.word() for _ in range(self.rng.randint(1, most))).capitalize()

    def money(self, currency: str = "") -> str:
        """Return an amount, in `currency` where that is given."""
        amount = f"{self.rng.randrange(10 ** self.rng.randint(1, 4))}.{self.rng.randrange(100):02}"
        return f"{currency}{amount}" if currency in ("$", *text.CURRENCIES) else f"{amount} {currency}".strip()

    def currency(self) -> str:
        """Return what a document's amounts are in."""
        signs = () if self.ascii_only else tuple(text.CURRENCIES[:3])
        return self.rng.choice(("EUR", "USD", "GBP", "CHF", "$", "", *signs))


def company(source: Source) -> str:
    """Return the name of a firm."""
    name = f"{source.word().capitalize()} {source.rng.choice(COMPANIES)}"
    return name.upper() if source.rng.random() < 0.3 else name


def closing(source: Source) -> list[Block]:
    """Return what stands at the end of bills."""
    if source.rng.random() < 0.4:
        return []
    thanks = ("Thank you!", "Thank you for your order.", "Have a nice day!", "Paid, thank you.", "www.{}.com")
    return [Line(source.rng.choice(thanks).format(source.word()))]


def invoice(source: Source, lines: int) -> list[Block]:
    """Return a bill for about `lines` lines: who, when, a table of items, totals."""
    rng, currency = source.rng, source.currency()
    number = f"{rng.randint(1990, 2035)}-{rng.randrange(1000):03}"
    title = rng.choice((f"Invoice {number}", company(source), f"Invoice No. {number}", "INVOICE"))
    blocks: list[Block] = [Heading(title) if rng.random() < 0.7 else Line(title)]
    facts = [
        Line(f"Date: {text.date(rng)}"), Line(f"Due: {text.date(rng)}"), Line(f"Customer {rng.randint(1, 99999)}"),
        Line(company(source)), Line(f"{rng.randint(1, 200)} {source.phrase(1)} Street"), Line(f"Order {number}"),
        Line(f"{source.phrase(1)}, {rng.randint(1, 900)} {source.word()}"),
    ]  # fmt: skip
    blocks += rng.sample(facts, min(len(facts), rng.randint(0, max(1, lines // 4))))
    items = max(1, lines - len(blocks) - 3)
    if rng.random() < 0.35:
        blocks += [
            Line(f"{rng.randint(1, 30)} {source.phrase(2).lower()} at {source.money(currency)}") for _ in range(items)
        ]
    else:
        header = rng.choice((("Item", "Qty", "Price"), ("Description", "Amount"), ("Qty", "Item", "Unit", "Total")))
        blocks.append(Table((header, *(bill_row(source, header) for _ in range(items))), ruled=rng.random() < 0.7))
    names = rng.sample(("Net", "Tax 19%", "Total", "VAT", "Shipping", "Discount"), rng.randint(0, 2))
    aligned = rng.random() < 0.6
    for name in (*names, rng.choice(("Total", "Amount due", "Sum", "TOTAL"))):
        amount = source.money(currency)
        blocks.append(Line(f"{name}:", amount) if aligned else Line(f"{name}: {amount}"))
    return blocks + closing(source)


def bill_row(source: Source, header: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cells of one item under the header's columns."""
    cells = {"Qty": str(source.rng.randint(1, 60)), "Item": source.phrase(2), "Description": source.phrase(3)}
    return tuple(cells.get(name) or source.money() for name in header)


def till(source: Source, lines: int) -> list[Block]:
    """Return a till receipt of about `lines` lines: shop, items with amounts at the edge, totals, payment."""
    rng, currency = source.rng, source.currency()
    centred = rng.random() < 0.6
    blocks: list[Block] = [Line(company(source), centred=centred)]
    if rng.random() < 0.5:
        blocks.append(Line(f"{text.date(rng)} {rng.randrange(24):02}:{rng.randrange(60):02}", centred=centred))
    for _ in range(max(1, lines - len(blocks) - 2)):
        name = source.phrase(2)
        blocks.append(Line(f"{rng.randint(1, 9)} x {name}" if rng.random() < 0.4 else name, source.money()))
    blocks.append(Line(rng.choice(("TOTAL", "Total", "Sum", "Total:")), source.money(currency)))
    if rng.random() < 0.6:
        blocks.append(Line(rng.choice(("Cash", "Card", "VISA", "Change", "Tax 7%")), source.money(currency)))
    return blocks + closing(source)


def article(source: Source, lines: int) -> list[Block]:
    """Return headings, paragraphs with bold words, lists, a table or a figure, for about `lines` lines."""
    rng = source.rng
    blocks: list[Block] = [Heading(source.phrase(3))] if rng.random() < 0.8 else []
    room = lines - len(blocks)
    while room > 0:
        kind = rng.random()
        if kind < 0.45:
            blocks.append(paragraph(source, min(room, rng.randint(1, 4))))
            room -= 3
        elif kind < 0.62:
            items = rng.randint(2, 4)
            blocks.append(Bullets(tuple(source.phrase(3) for _ in range(items)), numbered=rng.random() < 0.3))
            room -= items
        elif kind < 0.82:
            rows = rng.randint(2, 5)
            blocks.append(Table(table_rows(source, rows, rng.randint(2, 4)), ruled=rng.random() < 0.8))
            room -= rows
        elif kind < 0.9:
            blocks.append(Figure(rng.uniform(0.15, 0.5)))
            room -= 2
        else:
            blocks += [Heading(source.phrase(2), level=2), paragraph(source, 1)]
            room -= 3
    return blocks


def paragraph(source: Source, lines: int) -> Paragraph:
    """Return words for a few lines, now and then some in bold."""
    stream = text.KINDS[source.rng.choice(("prose", "words", "prose"))](source.rng, source.held_out)
    words = list(islice(stream, source.rng.randint(3, 6) * lines))
    bold = range(0)
    if source.rng.random() < 0.35:
        first = source.rng.randrange(len(words))
        bold = range(first, min(len(words), first + source.rng.randint(1, 3)))
    return Paragraph(tuple((word, index in bold) for index, word in enumerate(words)))


def table_rows(source: Source, rows: int, columns: int) -> tuple[tuple[str, ...], ...]:
    """Return a header and rows of words, counts or amounts, one kind a column; a cell may be empty."""
    makers: list[Callable[[], str]] = [
        lambda: source.phrase(1), lambda: str(source.rng.randrange(1000)), source.money, lambda: text.date(source.rng),
    ]  # fmt: skip
    kinds = [makers[0], *(source.rng.choice(makers) for _ in range(columns - 1))]
    body = [tuple(make() if source.rng.random() > 0.04 else "" for make in kinds) for _ in range(rows - 1)]
    return (tuple(source.phrase(1) for _ in kinds), *body)


KINDS: dict[str, Callable[[Source, int], list[Block]]] = {"article": article, "invoice": invoice, "till": till}
"""Document kind -> its blocks; arguments are where words come from and about how many lines."""
