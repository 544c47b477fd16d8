"""Turning pages and what stands on them: pictures, sizes and boxes go together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.blocks import Block
from models.grounding import Box
from models.turned import back, turned, turned_blocks, turned_box, turned_boxes, turned_size

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


def test_blocks_without_a_place_stay_without_one() -> None:
    blocks = (Block("text", "a", PLACE), Block("text", "b"))
    assert [block.box for block in turned_blocks(blocks, SIZE, 180)] == [(19, 11, 27, 15), None]
    assert turned_boxes([Box("x", "y", PLACE)], SIZE, 180) == (Box("x", "y", (19, 11, 27, 15)),)
