"""How often pages that training never saw are turned right, wrongly or not at all, and how long that takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from models.turned import back, quarters_and_rest, turned
from runtime.documents.upright import degrees_to_upright

from . import pages, scripts

TURNS = (0, 90, 180, 270)
_STRAIGHT = 0.5  # degrees
Draw = Callable[[random.Random], Image.Image]


@dataclass
class Score:
    """Of the pages of one kind, each shown in all four directions."""

    pages: int = 0
    turned_upright: int = 0  # pages that stood, and were turned
    right: int = 0  # pages that did not stand, and were turned upright
    wrong: int = 0  # that were turned otherwise
    left: int = 0  # that were left alone
    seconds: list[float] = field(default_factory=list)  # of processor time, each
    leaned: int = 0  # times that a page was shown askew
    straightened: int = 0  # of those, so that less than half a degree is left
    bent: int = 0  # of those and of all that were shown straight: by more than half a degree from where they belong

    def add(self, page: Image.Image) -> None:
        """Show a page that stands in all four directions."""
        self.pages += 1
        for turn in TURNS:
            shown = turned(page, turn)
            started = time.process_time()
            found, _ = quarters_and_rest(degrees_to_upright(shown))
            self.seconds.append(time.process_time() - started)
            if turn == 0:
                self.turned_upright += found != 0
            elif found == 0:
                self.left += 1
            else:
                self.right += found == back(turn)
                self.wrong += found != back(turn)

    def lean(self, page: Image.Image, askew: float) -> None:
        """Show a page that is straight, and the same page askew by so many degrees."""
        for shown in (0.0, askew):
            _, found = quarters_and_rest(degrees_to_upright(turned(page, shown)))
            self.bent += found != 0 and abs(found + shown) > _STRAIGHT
        self.leaned += 1
        self.straightened += found != 0 and abs(found + askew) <= _STRAIGHT

    def leaning_row(self, kind: str) -> str:
        """As a row of the second table."""
        return f"| {kind} | {self.leaned} | {self.straightened / self.leaned:.0%} | {self.bent} of {2 * self.leaned} |"

    def row(self, kind: str) -> str:
        """As a row of the table."""
        lying = max(1, 3 * self.pages)
        shares = (self.right / lying, self.left / lying, self.wrong / lying)
        median = sorted(self.seconds)[len(self.seconds) // 2] * 1000
        return (
            f"| {kind} | {self.pages} | {self.turned_upright} | "
            + " | ".join(f"{s:.2%}" for s in shares)
            + f" | {median:.0f} |"
        )


HEAD = (
    "| pages | number | upright ones turned | others: turned right | left alone | turned wrongly | ms |\n"
    "|---|---|---|---|---|---|---|"
)


def _text(kind: str, script: str, how: str) -> Draw:
    return lambda rng: pages.page(rng, kind, script, how, held_out=True)


def _pictures(rng: random.Random) -> Image.Image:
    return pages.picture(rng, *rng.choice(pages.SIZES))


def kinds() -> Mapping[str, Draw]:
    """What is measured; scripts without a held-out font on this machine are left out."""
    made: dict[str, Draw] = {
        f"{kind}, {how}": _text(kind, "Latin", how)
        for kind in ("text", "columns", "table", "figures")
        for how in ("clean", "degraded", "photographed")
    }
    made |= {kind: _text(kind, "Latin", "degraded") for kind in ("capitals", "digits", "sparse")}
    for script in (*scripts.KNOWN[1:], *scripts.FOREIGN):
        if scripts.faces(script, held_out=True):
            made[script] = _text("text", script, "degraded")
    if "Japanese" in made:
        made["Japanese, vertical"] = _text("vertical", "Japanese", "clean")
        made["Chinese, vertical"] = _text("vertical", "Chinese", "clean")
    return {**made, "blank": pages.blank, "pictures only": _pictures}


def measure(count: int, seed: int, wanted: Sequence[str] | None) -> Iterator[str]:
    """Lines of a table, as they are known. count : pages of each kind. wanted : the kinds; None: all."""
    yield HEAD
    for kind, draw in kinds().items():
        if wanted and kind not in wanted:
            continue
        rng, score = random.Random(f"{kind}/{seed}"), Score()
        for _ in range(count):
            score.add(draw(rng))
        yield score.row(kind)


def measure_leaning(count: int, seed: int) -> Iterator[str]:
    """Lines of a table: pages that are drawn straight, and shown askew by 1.5 to 5 degrees. count : of each kind."""
    yield "| pages | number | shown askew: straightened | bent |\n|---|---|---|---|"
    straight = {kind: _text(kind, "Latin", "clean") for kind in ("text", "columns", "table", "figures", "digits")}
    if scripts.faces("Arabic", held_out=True):
        straight["Arabic"] = _text("text", "Arabic", "clean")
    for kind, draw in {**straight, "pictures only": _pictures}.items():
        rng, score = random.Random(f"leaning {kind}/{seed}"), Score()
        for _ in range(count):
            score.lean(draw(rng), rng.choice((-1, 1)) * rng.uniform(1.5, 5))
        yield score.leaning_row(kind)
