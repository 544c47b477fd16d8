"""Pages whose text lies on its side, on its head or askew, found by what is on them, and turned.

Two networks are asked. One sees the whole page, small (``page``): where it says that the page stands, which nearly
every page does, that is all. Where it says otherwise, pieces of text lines are cut out in the two directions in which
lines may run (``lines``), and a small network says of each whether it stands, is on its head, or is no line
(``network``): the page is turned where both say the same. Whatever is in doubt is left as it is: a page turned wrongly
is lost, one that is left lying is read as well as the model can. The lines of a page that stands may still lean by a
few degrees (``askew``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from models.turned import moved, turned

from ..drawn import Drawn
from .askew import degrees_to_straight
from .lines import ink_of, pieces
from .network import DOWN, UP, probabilities
from .page import turned_by, turned_by_of_all_four, views

_MOST_PIECES = 48  # of one direction, from all over the page
_SURE = 0.5  # probability from which a piece has a say
_ENOUGH = (
    (0.8, 3, 0.5, 1.5, _MOST_PIECES),
    (0.8, 2, 0.0, 4.0, 20),  # a table, or a page with little text
    (0.9, 1, 0.0, 1.5, 8),  # hardly any line could be cut out
    (0.5, 8, 0.7, 6.0, _MOST_PIECES),
)
"""What is enough to turn a page, any of these: the whole page's probability (blank paper has 0.25 of each direction, no
page more than 0.93); pieces that say the same; their share of all pieces of their direction; how many times as many
they are as those that say anything else; how many pieces there may be."""
_KNOWN = (0.9, 5, 0.5, 0.5, 2.0)
"""What is enough, too: the whole page's probability; pieces that are letters, upright or on their heads; their share of
all pieces of their direction; how many times as many say the same as say the opposite, and as say anything of the other
direction. Pieces know digits for letters more surely than what of them is up, which the page knows."""
_LEAST_OF_PAGE = min(probability for probability, *_ in _ENOUGH)
_STANDS = 0.8  # probability from which a page may be straightened
_LEAST_ASKEW = 1.0  # degrees; less is read as well as it is
_MOST_LOST = 5e-4  # of the ink, which may leave the page at its corners when that is straightened: specks


@dataclass(frozen=True)
class Votes:
    """What the pieces of one direction say."""

    pieces: int = 0
    up: int = 0
    down: int = 0


def upright(drawn: Drawn) -> Drawn:
    """The page turned, where that is sure."""
    degrees = degrees_to_upright(drawn.image)
    return replace(drawn, image=turned(drawn.image, degrees), rotated=degrees) if degrees else drawn


def degrees_to_upright(page: Image.Image) -> float:
    """By how many degrees clockwise a page must be turned to stand, with its lines straight; see ``models.turned``.

    0 where that is in doubt.
    """
    squares = views(page)
    lies = turned_by(squares)
    if lies.max() < (_LEAST_OF_PAGE if lies.argmax() else _STANDS):
        return 0
    ink, degrees = ink_of(page), 0
    if lies.argmax() != 0:
        along = np.ascontiguousarray(np.rot90(ink))  # counterclockwise: as the page is when turned by 270 degrees
        degrees = decided(turned_by_of_all_four(squares), _votes(ink), _votes(along))
        if not degrees:
            return 0
        ink = np.ascontiguousarray(np.rot90(ink, -degrees // 90))
    askew = degrees_to_straight(ink)
    return degrees + askew if abs(askew) >= _LEAST_ASKEW and _stays(ink, askew) else degrees


def decided(lies: np.ndarray, across: Votes, along: Votes) -> int:
    """The turn in degrees, 0 where there is a doubt.

    lies : probabilities that the page has been turned by 0, 90, 180 and 270 degrees clockwise. across : of the page as
    it is; along : of the page turned by 270 degrees.
    """
    turn = int(lies.argmax())
    said = [across.up, along.up, across.down, along.down]
    agree, opposite, askance = said[turn], said[(turn + 2) % 4], max(said[turn - 1], said[turn - 3])
    others = max(opposite, askance)
    there = (across, along)[turn % 2].pieces
    clear = any(
        lies[turn] >= probability and there <= most and agree >= max(least, share * there, ratio * others)
        for probability, least, share, ratio, most in _ENOUGH
    )
    probability, least, share, of_opposite, of_askance = _KNOWN
    known = agree + opposite >= max(least, share * there)
    fits = agree >= max(of_opposite * opposite, of_askance * askance)
    clear = clear or (lies[turn] >= probability and known and fits)
    return -90 * turn % 360 if clear else 0


def _votes(ink: np.ndarray) -> Votes:
    found = pieces(ink, _MOST_PIECES)
    sure = probabilities(found) >= _SURE
    return Votes(len(found), int(sure[:, UP].sum()), int(sure[:, DOWN].sum()))


def _stays(ink: np.ndarray, degrees: float) -> bool:
    """Whether what is on a page is still on it when that is turned about its middle, see ``models.turned``."""
    height, width = ink.shape
    down, across = np.nonzero(ink > 0.5)
    x, y = moved(across - width / 2, down - height / 2, degrees)
    lost = (np.abs(x) > width / 2) | (np.abs(y) > height / 2)
    return len(x) > 0 and float(lost.mean()) <= _MOST_LOST
