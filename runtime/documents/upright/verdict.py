"""What three networks have to say for a page to be turned.

Thresholds are those at which no page of scripts that the networks confuse was turned wrongly (Tamil, Hebrew, Chinese
and Japanese from top to bottom), and nearly all others right; see tools/docs/orient.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LEAST_OF_PAGE = 0.5  # probability of the whole page: below that nothing is sure


@dataclass(frozen=True)
class Votes:
    """What the pieces of one direction say, or the strips."""

    pieces: int = 0
    up: int = 0
    down: int = 0

    def are_letters(self, share: float) -> bool:
        """Whether at least this share of the pieces, and one, stands or is on its head, rather than is no line."""
        return self.up + self.down >= max(1, share * self.pieces)

    def agree(self, aside: Votes, of_opposite: float, of_aside: float) -> bool:
        """Whether so many times as many stand as are on their heads, and as say anything of the other direction."""
        return self.up >= max(1, of_opposite * self.down, of_aside * max(aside.up, aside.down))


@dataclass(frozen=True)
class _Clear:
    """One of the ways in which pieces and page are enough."""

    page: float  # probability of the whole page; blank paper has 0.25 of each direction, no page more than 0.93
    least: int  # pieces that stand
    share: float  # of all pieces
    ratio: float  # how many times as many as say anything else
    most: int  # pieces that there may be

    def of(self, page: float, lines: Votes, aside: Votes) -> bool:
        stands = lines.up >= max(self.least, self.share * lines.pieces) and lines.agree(aside, self.ratio, self.ratio)
        return page >= self.page and lines.pieces <= self.most and stands


_CLEAR = (
    _Clear(page=0.8, least=3, share=0.5, ratio=1.5, most=48),
    _Clear(page=0.8, least=2, share=0.0, ratio=4.0, most=20),  # a table, or a page with little text
    _Clear(page=0.6, least=3, share=0.5, ratio=4.0, most=20),  # the same: the page is in some doubt, its lines are not
    _Clear(page=0.9, least=1, share=0.0, ratio=1.5, most=8),  # hardly any line could be cut out
    _Clear(page=0.5, least=8, share=0.7, ratio=6.0, most=48),  # a page full of text, in more doubt
)


def sure(page: float, lines: Votes, aside: Votes, strips: Callable[[], Votes]) -> bool:
    """Whether what is taken for upright is that.

    page : probability of the whole page that it is. lines : of the page so turned; aside : of that turned by another
    quarter; strips : asks those of ``lines``'s direction, where that is needed.
    """
    if any(way.of(page, lines, aside) for way in _CLEAR):
        return True
    # Pieces know digits for letters more surely than which way up they are. Strips know that better, but say the same
    # of Chinese from top to bottom on its side, which pieces do not.
    short = lines.pieces <= 16 and aside.pieces <= 10 and lines.up >= lines.down  # cells too short for a piece
    letters = lines.are_letters(0.15) and lines.agree(aside, 0.5, 2.0)
    if page < 0.6 or not (short or letters):
        return False
    said = strips()
    return said.up >= max(6, 6 * said.down)
