"""Pages whose text lies on its side or head, found by what is on them, and turned.

Pieces of text lines are cut out in the two directions in which lines may run (``lines``); a small network says of each
whether it stands, is on its head, or is no line (``network``). Where most pieces of one direction agree, and the other
direction has next to none, the page is turned so that they stand. Whatever is in doubt is left as it is: a page turned
wrongly is lost, one that is left lying is read as well as the model can.

Only a worker process calls this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from models.turned import turned

from ..drawn import Drawn
from .lines import ink_of, pieces
from .network import DOWN, UP, probabilities

_MOST_PIECES = 48  # of one direction, from all over the page
_SURE = 0.6  # probability from which a piece has a say
_LEAST_SAYING = 10  # pieces that agree, before a page is turned
_LEAST_SHARE = 0.92  # of those that have a say in a direction
_LEAST_WRITTEN = 0.6  # of all pieces of a direction
_LEAST_RATIO = 3.0  # so many times as many lines as in the other direction


@dataclass(frozen=True)
class Votes:
    """What the pieces of one direction say."""

    pieces: int = 0
    up: int = 0
    down: int = 0

    @property
    def clear(self) -> bool:
        """Whether enough of them say one thing."""
        most, said = max(self.up, self.down), self.up + self.down
        return most >= max(_LEAST_SAYING, _LEAST_SHARE * said, _LEAST_WRITTEN * self.pieces)


def upright(drawn: Drawn) -> Drawn:
    """The page turned, where that is sure."""
    degrees = degrees_to_upright(drawn.image)
    return replace(drawn, image=turned(drawn.image, degrees), rotated=degrees) if degrees else drawn


def degrees_to_upright(page: Image.Image) -> int:
    """By how many degrees clockwise a page must be turned to stand: 0, 90, 180 or 270; 0 where that is in doubt."""
    ink = ink_of(page)
    across = _votes(ink)
    if across.clear and across.up > across.down:
        return 0  # nearly every page, in half the time
    along = _votes(np.ascontiguousarray(np.rot90(ink)))  # counterclockwise: as the page is when turned by 270 degrees
    return decided(across, along)


def decided(across: Votes, along: Votes) -> int:
    """The turn in degrees. across : of the page as it is; along : of the page turned by 270 degrees."""
    said, other = sorted((across, along), key=lambda votes: votes.up + votes.down, reverse=True)
    if not said.clear or said.up + said.down < _LEAST_RATIO * (other.up + other.down):
        return 0
    if said is across:
        return 0 if said.up > said.down else 180
    return 270 if said.up > said.down else 90


def _votes(ink: np.ndarray) -> Votes:
    found = pieces(ink, _MOST_PIECES)
    sure = probabilities(found) >= _SURE
    return Votes(len(found), int(sure[:, UP].sum()), int(sure[:, DOWN].sum()))
