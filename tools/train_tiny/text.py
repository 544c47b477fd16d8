"""What the pages say: random strings, words, prose, numbers, prices, dates, code-like strings, receipts and languages.

Words and prose are split by a hash into a training pool and a held-out pool that share no word-list entry and no
paragraph. Sources: the word lists of pyspellchecker (extra `dev`), most frequent words first, and the language
reference that every Python ships (`pydoc_data.topics`).
"""

import gzip
import json
import random
import string
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pydoc_data.topics import topics

ENGLISH_WORDS = 80_000
FOREIGN_WORDS = 20_000  # of each of the languages
LANGUAGES = ("de", "es", "fr", "it", "nl", "pt")
ACCENTED = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝŒŠŽßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœšž"
QUOTES = ("“{}”", "‘{}’", "„{}“", "«{}»", "‹{}›", "¿{}?", "¡{}!")
CURRENCIES = "€£¥¢"
TYPOGRAPHIC = ACCENTED + "“”‘’„«»‹›¿¡" + CURRENCIES + "–—…§°©®™×±·•"
"""What training pages have beyond printable ASCII; in UTF-8 two or three tokens each."""
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


def word_list(language: str) -> list[str]:
    """Return the words that pyspellchecker has for a language, the most frequent first."""
    packed = (files("spellchecker") / f"resources/{language}.json.gz").read_bytes()
    counts: dict[str, int] = json.loads(gzip.decompress(packed))
    return sorted(counts, key=lambda word: (-counts[word], word))


@lru_cache(maxsize=1)
def english_words() -> tuple[str, ...]:
    """Return the frequent ASCII words of English."""
    return tuple(word for word in word_list("en") if word.isascii() and word.isalpha())[:ENGLISH_WORDS]


@lru_cache(maxsize=1)
def accented_words() -> tuple[str, ...]:
    """Return the frequent words of the other languages that have an accented letter, each once."""
    found: dict[str, None] = {}
    for language in LANGUAGES:
        accented = (word for word in word_list(language) if not word.isascii())
        found |= dict.fromkeys(islice((word for word in accented if is_latin(word)), FOREIGN_WORDS))
    return tuple(found)


def is_latin(word: str) -> bool:
    """Say whether all letters of a word are ASCII or in ACCENTED."""
    return all(letter.isascii() or letter in ACCENTED for letter in word)


@lru_cache(maxsize=2)
def word_pool(held_out: bool) -> tuple[str, ...]:
    """Return the English words of the pool."""
    return tuple(word for word in english_words() if is_held_out(word) == held_out)


@lru_cache(maxsize=2)
def accented_pool(held_out: bool) -> tuple[str, ...]:
    """Return the accented words of the pool."""
    return tuple(word for word in accented_words() if is_held_out(word) == held_out)


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

    def reference() -> str:
        return "-".join(str(rng.randrange(10 ** rng.randint(1, 4))) for _ in range(rng.randint(2, 4)))

    while True:
        item = rng.choice(pool)
        line = rng.choice((
            f"{rng.randint(1, 30)} {item} at {money()}", f"{rng.randint(1, 30)} x {item} {money()}",
            f"{item} {money()}",
            f"{rng.choice(('Total', 'Tax', 'Sum', 'Net', 'Paid', 'Due', 'Change'))}: {money()}",
            f"{item.capitalize()}, {rng.randint(1, 900)} {rng.choice(pool)}", f"Thank you, {rng.choice(pool)}!",
            f"{rng.choice(('Invoice', 'Order', 'No.', 'Ref.'))} {rng.randint(1950, 2040)}-{rng.randrange(1000):03}",
            f"Date: {date(rng)}", f"{rng.choice(('Tel.', 'No.', 'Ref.', item.capitalize()))} {reference()}",
        ))  # fmt: skip
        yield from (line + LINE_END).split(" ")


def latin(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Yield words with accents, typographic quotes and dashes, and amounts with currency signs."""
    accented, plain = accented_pool(held_out), word_pool(held_out)
    while True:
        style = rng.random()
        word = rng.choice(accented if style < 0.55 else plain)
        word = word.upper() if rng.random() < 0.1 and "ß" not in word else word.capitalize() if style < 0.2 else word
        kind = rng.random()
        if kind < 0.14:
            word = rng.choice(QUOTES).format(word)
        elif kind < 0.2:
            word = rng.choice(
                ("–", "—", f"{word}…", f"{word}’s", f"• {word}", f"{word}™", f"{word}®", f"© {word}", f"§ {word}")
            )
        elif kind < 0.3:
            sign, amount = rng.choice(CURRENCIES), f"{rng.randrange(2000)}.{rng.randrange(100):02}"
            word = rng.choice((f"{sign}{amount}", f"{amount} {sign}", f"{sign} {amount}", f"{amount.split('.')[0]} °C"))
        elif kind < 0.34:
            word = rng.choice(("{}–{}", "{} × {}", "±{}.{}", "{}·{}")).format(rng.randrange(90), rng.randrange(90))
        elif kind < 0.46:
            word += rng.choice(",.;:!?")
        elif kind < 0.5:
            word = "".join(rng.choices(ACCENTED, k=rng.randint(1, 6)))
        yield word


KINDS: dict[str, Callable[[random.Random, bool], Iterator[str]]] = {
    "random": random_string,
    "letters": letters,
    "words": words,
    "prose": prose,
    "figures": figures,
    "code": code,
    "receipt": receipt,
    "latin": latin,
}
"""Text kind -> stream of words, endless; arguments are the generator and whether to draw from the held-out pool."""
