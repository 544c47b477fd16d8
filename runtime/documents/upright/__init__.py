"""Pages whose text lies on its side, on its head or askew, found by what is on them, and turned.

Three networks are asked. One sees the whole page, small (``page``): where it says that the page stands, which nearly
every page does, that is all. Where it says otherwise, pieces of text lines are cut out in the two directions in which
lines may run (``lines``), and a small network says of each whether it stands, is on its head, or is no line
(``piece``); another one, which is surer about worn letters and digits, says which way up they are (``strip``). The
page is turned where they agree (``verdict``). Whatever is in doubt is left as it is: a page turned wrongly is lost, one
that is left lying is read as well as the model can. The lines of a page that stands may still lean by a few degrees
(``askew``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from models.turned import moved, turned

from ..drawn import Drawn
from .askew import degrees_to_straight, levelled
from .lines import ink_of, pieces, strips, without_rules
from .page import turned_by, turned_by_of_all_four, views
from .piece import DOWN, UP, probabilities
from .strip import upright_probabilities
from .verdict import LEAST_OF_PAGE, Votes, sure

_MOST_PIECES, _SURE = 48, 0.5  # of one direction, from all over the page; probability from which a piece has a say
_MOST_STRIPS, _SURE_OF_STRIP = 48, 0.9  # the same of strips
_SIDE_FOR_ANGLE = 800  # pixels of the longer side, at which an angle is found as well as at twice as many
_LEAST_LYING = 0.4  # probability from which the page is looked at in all four directions
_STANDS = 0.8  # probability from which a page may be straightened
_LEAST_ASKEW = 1.0  # degrees; less is read as well as it is
_MOST_LOST = 5e-4  # of the ink, which may leave the page at its corners when that is straightened: specks


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
    if lies.argmax() == 0:
        return _straightening(ink_of(page, _SIDE_FOR_ANGLE)) if lies.max() >= _STANDS else 0
    if lies.max() < _LEAST_LYING:
        return 0
    lies = turned_by_of_all_four(squares, lies)
    turn = int(lies.argmax())
    if turn == 0 or lies.max() < LEAST_OF_PAGE:
        return 0
    standing = _turned(ink_of(page), turn)
    askew = degrees_to_straight(standing)
    level = without_rules(levelled(standing, askew))
    if not sure(float(lies[turn]), _votes(level), _votes(_turned(level, 1)), lambda: _strip_votes(level)):
        return 0
    return -90 * turn % 360 + _straightening(standing, askew)


def _turned(ink: np.ndarray, quarters: int) -> np.ndarray:
    """The page turned by so many quarters counterclockwise."""
    return np.ascontiguousarray(np.rot90(ink, quarters))


def _votes(ink: np.ndarray) -> Votes:
    found = pieces(ink, _MOST_PIECES)
    said = probabilities(found) >= _SURE
    return Votes(len(found), int(said[:, UP].sum()), int(said[:, DOWN].sum()))


def _strip_votes(ink: np.ndarray) -> Votes:
    stands = upright_probabilities(strips(ink, _MOST_STRIPS))
    return Votes(len(stands), int((stands >= _SURE_OF_STRIP).sum()), int((stands <= 1 - _SURE_OF_STRIP).sum()))


def _straightening(ink: np.ndarray, degrees: float | None = None) -> float:
    """The few degrees by which to turn a page that stands; 0 where it is straight or would lose text.

    degrees : by which its lines lean, where that is known.
    """
    askew = degrees_to_straight(ink) if degrees is None else degrees
    return askew if abs(askew) >= _LEAST_ASKEW and _stays(ink, askew) else 0


def _stays(ink: np.ndarray, degrees: float) -> bool:
    """Whether what is on a page is still on it when that is turned about its middle, see ``models.turned``."""
    height, width = ink.shape
    down, across = np.nonzero(ink > 0.5)
    x, y = moved(across - width / 2, down - height / 2, degrees)
    lost = (np.abs(x) > width / 2) | (np.abs(y) > height / 2)
    return len(x) > 0 and float(lost.mean()) <= _MOST_LOST
