"""What the pages say: random strings, words, prose, numbers, prices, dates, code-like strings and receipts.

Words and prose are split by a hash into a training pool and a held-out pool that share no word-list entry and no
paragraph. Sources: Debian's `wamerican` list and the language reference that every Python ships (`pydoc_data.topics`).
"""

import random
import re
import string
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics

WORD_LIST = Path("/usr/share/dict/words")
PRINTABLE = "".join(chr(code) for code in range(33, 127))
LINE_END = "\n"
"""What a word ends with that is the last of its line, however much room is left."""
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
UNITS = ["kg", "g", "mm", "cm", "km", "ml", "l", "MB", "GB", "ms", "s", "h", "%", "EUR", "USD", "pcs"]


def is_held_out(key: str) -> bool:
    """Say whether a word or paragraph belongs to the held-out tenth."""
    return zlib.crc32(key.encode()) % 10 == 0


@lru_cache(maxsize=2)
def word_pool(held_out: bool) -> tuple[str, ...]:
    """Return the ASCII words of the pool; those of the prose where the word list is not installed."""
    if WORD_LIST.exists():
        words = WORD_LIST.read_text(encoding="utf-8").split()
    else:
        words = sorted({word for text in topics.values() for word in re.findall(r"[A-Za-z]{2,}", text)})
    return tuple(word for word in words if word.isascii() and is_held_out(word) == held_out)


@lru_cache(maxsize=2)
def prose_pool(held_out: bool) -> tuple[tuple[str, ...], ...]:
    """Return paragraphs as tuples of words of at most 20 characters."""
    paragraphs = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = tuple(word for word in paragraph.split() if word.isascii() and len(word) <= 20)
            wordy = len(words) >= 8 and sum(word.isalpha() for word in words) >= len(words) / 2
            if wordy and is_held_out(" ".join(words)) == held_out:
                paragraphs.append(words)
    return tuple(paragraphs)


def random_string(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield strings of any printable characters."""
    while True:
        yield "".join(rng.choices(PRINTABLE, k=rng.randint(1, 8)))


def letters(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield random letters and digits, with the cases of real text."""
    while True:
        count = rng.randint(1, 7)
        alphanumeric = string.ascii_letters + string.digits
        pool = rng.choice((string.ascii_lowercase, string.ascii_uppercase, alphanumeric, string.digits))
        yield "".join(rng.choices(pool, k=count))


def words(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield words of the list, some capitalised, some in capitals, some with punctuation."""
    pool = word_pool(held_out)
    while True:
        word = rng.choice(pool)
        style = rng.random()
        word = word.upper() if style < 0.12 else word.capitalize() if style < 0.35 else word
        mark = rng.random()
        if mark < 0.2:
            word += rng.choice(",.;:!?")
        elif mark < 0.25:
            frame = rng.choice(('"{}"', "'{}'", "({})", "[{}]", "{}-", "*{}*", "`{}`", "<{}>", "#{}", "&{}"))
            word = frame.format(word)
        yield word


def prose(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield running prose from a random place of a random paragraph, then of another."""
    pool = prose_pool(held_out)
    while True:
        paragraph = rng.choice(pool)
        yield from paragraph[rng.randrange(len(paragraph) - 4) :]


def number(rng: random.Random) -> str:
    """Return one number as people write them."""
    kind = rng.randrange(8)
    if kind == 0:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if kind == 1:
        return f"{rng.randrange(10 ** rng.randint(4, 8)):,}"
    if kind == 2:
        return f"{rng.uniform(-100, 1000):.{rng.randint(1, 4)}f}"
    if kind == 3:
        return f"{rng.randint(0, 100)}%"
    if kind == 4:
        return f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}"
    if kind == 5:
        return f"{rng.randint(1, 999)}/{rng.randint(1, 999)}"
    if kind == 6:
        return f"#{rng.randint(1, 99999)}"
    return f"{rng.randint(1, 500)} {rng.choice(UNITS)}"


def price(rng: random.Random) -> str:
    """Return one amount of money."""
    amount = f"{rng.randrange(10 ** rng.randint(1, 4)):{rng.choice(('', ','))}}.{rng.randrange(100):02}"
    return rng.choice(("${}", "{}", "{} EUR", "USD {}", "${}", "-{}", "${}/h")).format(amount)


def date(rng: random.Random) -> str:
    """Return one date or time."""
    year, month, day = rng.randint(1950, 2040), rng.randint(1, 12), rng.randint(1, 28)
    name = MONTHS[month - 1]
    clock = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    return rng.choice((
        f"{year}-{month:02}-{day:02}", f"{day:02}/{month:02}/{year}", f"{day}.{month}.{year}", f"{day} {name} {year}",
        f"{name} {day}, {year}", f"{name[:3]} {day}", clock, f"{clock}:{rng.randrange(60):02}",
    ))  # fmt: skip


def code(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield addresses, paths, identifiers and Markdown marks."""
    pool = word_pool(held_out)

    def word() -> str:
        return rng.choice(pool).lower().replace("'", "")

    while True:
        yield rng.choice((
            f"{word()}@{word()}.com", f"https://{word()}.org/{word()}", f"/usr/{word()}/{word()}.py",
            f"{word()}_{word()}()",
            f"--{word()}", f"{word()}={rng.randrange(1000)}", f"# {word().capitalize()}", f"- {word()}", f"`{word()}`",
            f"**{word()}**", f"{word()}[{rng.randrange(100)}]", "{" + word() + "}", f"{word()}|{word()}", f"~{word()}",
            f"{word()} + {word()}", f"{word()} == {rng.randrange(10)}", f"{word()}\\{word()}",
            f"{rng.randrange(1, 20)}.",
        ))  # fmt: skip


def figures(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield numbers, prices and dates, now and then with a word between, as on a receipt."""
    pool = word_pool(held_out)
    while True:
        kind = rng.random()
        if kind < 0.3:
            yield number(rng)
        elif kind < 0.6:
            yield price(rng)
        elif kind < 0.8:
            yield date(rng)
        elif kind < 0.9:
            yield f"{rng.randint(1, 20)} x {rng.choice(pool)}"
        else:
            yield rng.choice(("Total", "Tax", "Qty", "No.", "Sum:", "Net", "Price", "Date:", "Invoice", "Page", "Tel."))


def receipt(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield the words of short lines that end as their neighbours do; `LINE_END` closes the last word of each."""
    pool = word_pool(held_out)
    currency = rng.choice(("EUR", "USD", "GBP", ""))

    def money() -> str:
        return f"{rng.randrange(10 ** rng.randint(1, 3))}.{rng.randrange(100):02} {currency}".strip()

    while True:
        item = rng.choice(pool)
        line = rng.choice((
            f"{rng.randint(1, 30)} {item} at {money()}", f"{rng.randint(1, 30)} x {item} {money()}",
            f"{item} {money()}",
            f"{rng.choice(('Total', 'Tax', 'Sum', 'Net', 'Paid', 'Due', 'Change'))}: {money()}",
            f"{item.capitalize()}, {rng.randint(1, 900)} {rng.choice(pool)}", f"Thank you, {rng.choice(pool)}!",
            f"{rng.choice(('Invoice', 'Order', 'No.', 'Ref.'))} {rng.randint(1950, 2040)}-{rng.randrange(1000):03}",
            f"Date: {date(rng)}",
        ))  # fmt: skip
        yield from (line + LINE_END).split(" ")


KINDS: dict[str, Callable[[random.Random, bool], Iterator[str]]] = {
    "random": random_string,
    "letters": letters,
    "words": words,
    "prose": prose,
    "figures": figures,
    "code": code,
    "receipt": receipt,
}
"""Text kind -> stream of words, endless; arguments are the generator and whether to draw from the held-out pool."""
