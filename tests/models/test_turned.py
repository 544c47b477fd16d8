"""Turning pages and what stands on them: pictures, sizes and boxes go together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.blocks import Block
from models.grounding import Box
from models.turned import (
    back,
    described_turn,
    quarters_and_rest,
    turn_of,
    turned,
    turned_blocks,
    turned_box,
    turned_boxes,
    turned_size,
)

SIZE = (30, 20)
PLACE = (3, 5, 11, 9)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_box_is_where_the_turned_picture_has_what_was_in_it(degrees: int) -> None:
    page = Image.new("L", SIZE)
    page.paste(255, PLACE)
    shown = turned(page, degrees)
    assert shown.size == turned_size(SIZE, degrees)
    left, top, right, bottom = turned_box(PLACE, SIZE, degrees)
    assert shown.getbbox() == (left, top, right, bottom)


def test_turns_are_clockwise() -> None:
    corner = np.zeros((2, 3), np.uint8)
    corner[0, 0] = 255  # upper left
    quarter = np.asarray(turned(Image.fromarray(corner), 90))
    assert quarter.shape == (3, 2)
    assert quarter[0, 1] == 255  # upper right


@given(st.tuples(*[st.integers(0, 50)] * 4), st.sampled_from([0, 90, 180, 270]))
def test_a_turn_is_undone_by_the_one_back(box: tuple[int, int, int, int], degrees: int) -> None:
    size = (40, 50)
    there = turned_box(box, size, degrees)
    assert turned_box(there, turned_size(size, degrees), back(degrees)) == box


@pytest.mark.parametrize("degrees", [2.5, -3.0, 92.5, 177.0, 268.25])
def test_a_box_moves_with_a_page_that_is_straightened_and_keeps_its_size(degrees: float) -> None:
    size, place = (400, 300), (300, 30, 340, 50)
    page = Image.new("L", size)
    page.paste(255, place)
    shown = np.asarray(turned(page, degrees))
    found = turned_box(place, size, degrees)
    down, across = np.nonzero(shown > 127)
    assert ((found[0] + found[2]) / 2, (found[1] + found[3]) / 2) == pytest.approx((across.mean(), down.mean()), abs=1)
    assert sorted((found[2] - found[0], found[3] - found[1])) == [20, 40]
    assert shown.shape[::-1] == turned_size(size, degrees)
    assert turned_box(found, turned_size(size, degrees), back(degrees)) == pytest.approx(place, abs=1)


def test_what_comes_in_at_the_corners_of_a_straightened_page_is_its_paper() -> None:
    page = Image.new("RGB", (200, 100), (240, 230, 210))
    page.paste((0, 0, 0), (50, 40, 150, 60))
    assert turned(page, 4).getpixel((0, 0)) == (240, 230, 210)
    assert turned(page.convert("L"), 4).getpixel((0, 0)) == page.convert("L").getpixel((0, 0))


@pytest.mark.parametrize(
    ("degrees", "said"),
    [
        (0, {}),
        (90, {"rotated": 90}),
        (2.3, {"straightened": 2.3}),
        (357.7, {"straightened": -2.3}),
        (-2.3, {"straightened": -2.3}),
        (182.3, {"rotated": 180, "straightened": 2.3}),
        (267.7, {"rotated": 270, "straightened": -2.3}),
    ],
)
def test_a_turn_is_told_as_quarters_and_what_is_left(degrees: float, said: dict[str, float]) -> None:
    assert described_turn(degrees) == said
    assert quarters_and_rest(turn_of(said)) == quarters_and_rest(degrees)


def test_blocks_without_a_place_stay_without_one() -> None:
    blocks = (Block("text", "a", PLACE), Block("text", "b"))
    assert [block.box for block in turned_blocks(blocks, SIZE, 180)] == [(19, 11, 27, 15), None]
    assert turned_boxes([Box("x", "y", PLACE)], SIZE, 180) == (Box("x", "y", (19, 11, 27, 15)),)
