"""Pages are turned upright by what is on them, and only where that is sure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.model_errors import InvalidInput
from models.turned import back, quarters_and_rest, turned
from runtime.documents import DrawnPages, open_document
from runtime.documents.upright import Votes, decided, degrees_to_upright
from runtime.documents.upright.lines import CORE, HEIGHT, WIDTH, ink_of, pieces
from runtime.documents.upright.network import WEIGHTS, forward, weights
from runtime.documents.upright.page import NETWORK, turned_by, turned_by_of_all_four, views
from tests.pdfs import rotated, scanned_pdf
from tests.turning import text_page
from tools.train_upright import pages

PAGE = text_page()
TURNS = pytest.mark.parametrize("degrees", [0, 90, 180, 270])


@TURNS
@pytest.mark.parametrize(("kind", "least"), [("text", 3), ("columns", 3), ("table", 0)])
def test_text_in_fonts_that_training_never_had_is_turned_upright_or_left(kind: str, least: int, degrees: int) -> None:
    """Tables of numbers may say too little."""
    rng = random.Random(f"{kind}")
    drawn = [pages.page(rng, kind, "Latin", "degraded", held_out=True) for _ in range(3)]  # up to 2 degrees askew
    found = [quarters_and_rest(degrees_to_upright(turned(page, back(degrees))))[0] for page in drawn]
    assert set(found) <= {0, degrees}
    assert found.count(degrees) >= least


@TURNS
@pytest.mark.parametrize(
    "draw",
    [
        lambda: Image.new("RGB", (700, 900), "white"),
        lambda: Image.new("RGB", (1, 1), "black"),
        lambda: pages.blank(random.Random(1)),
        lambda: pages.picture(random.Random(2), 700, 900).convert("RGB"),
        lambda: pages.page(random.Random(3), "sparse", "Latin", "clean", held_out=True),
        lambda: text_page(lines=1),
        lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 500), np.uint8)),
        lambda: ruled(),
    ],
    ids=["empty", "a pixel", "worn paper", "a picture", "a few words", "a line", "noise", "rules"],
)
def test_what_says_nothing_of_up_and_down_is_left_as_it_is(draw: Callable[[], Image.Image], degrees: int) -> None:
    assert degrees_to_upright(turned(draw(), degrees)) == 0


def ruled() -> Image.Image:
    page = Image.new("L", (700, 900), 255)
    draw = ImageDraw.Draw(page)
    for place in range(20, 900, 22):
        draw.line((10, place, 690, place), 0, 6)
        draw.line((place, 10, place, 890), 0, 2)
    return page


@TURNS
def test_light_text_on_dark_is_turned_as_dark_on_light(degrees: int) -> None:
    dark = Image.eval(PAGE, lambda value: 255 - value)
    assert degrees_to_upright(turned(dark, back(degrees))) == degrees


@TURNS
def test_a_document_is_turned_where_it_is_asked_for_and_says_so(degrees: int) -> None:
    with open_document(scanned_pdf([turned(PAGE, back(degrees))], dpi=144), orient="auto") as document:
        drawn = document.draw(0)
        assert (drawn.rotated, drawn.image.size) == (degrees, PAGE.size)
        assert document.size(0) == document.page(0).size == turned(PAGE, back(degrees)).size  # as it came
        listed = DrawnPages(document, [0])
        assert [image.size for image in listed] == listed.sizes == [PAGE.size]
        assert listed.rotated == [degrees]


def test_without_being_asked_nothing_is_turned() -> None:
    with open_document(scanned_pdf([turned(PAGE, 180)], dpi=144)) as document:
        assert document.draw(0).rotated == 0


def test_what_a_file_says_of_its_rotation_comes_first() -> None:
    with open_document(rotated(scanned_pdf([turned(PAGE, 270)], dpi=144), 90), orient="auto") as document:
        drawn = document.draw(0)
        assert (drawn.rotated, drawn.image.size) == (0, PAGE.size)


def lying(turn: int, sure: float = 0.9) -> np.ndarray:
    """What the network says of a whole page that has been turned by so many quarters."""
    return np.roll([sure, *[(1 - sure) / 3] * 3], turn)


@pytest.mark.parametrize(
    ("lies", "across", "along", "degrees"),
    [
        (lying(2), Votes(48, 1, 40), Votes(48, 1, 1), 180),
        (lying(1), Votes(48, 1, 1), Votes(48, 40, 1), 270),
        (lying(3), Votes(48, 1, 1), Votes(48, 1, 40), 90),
        (lying(0), Votes(48, 1, 40), Votes(48, 1, 1), 0),  # the lines say otherwise than the page
        (lying(1), Votes(48, 1, 40), Votes(48, 1, 1), 0),
        (lying(2, 0.6), Votes(48, 1, 40), Votes(48, 1, 1), 180),  # the page is in some doubt, its lines are not
        (lying(2, 0.6), Votes(48, 1, 20), Votes(48, 1, 1), 0),  # both are
        (lying(2, 0.4), Votes(48, 1, 40), Votes(48, 1, 1), 0),  # the page is in doubt
        (lying(2), Votes(48, 1, 40), Votes(48, 1, 30), 0),  # lines in both directions
        (lying(2), Votes(48, 20, 20), Votes(48, 0, 0), 180),  # letters or digits, of which the page knows what is up
        (lying(2), Votes(48, 30, 10), Votes(48, 0, 0), 0),  # their lines say the opposite
        (lying(2), Votes(48, 10, 10), Votes(48, 0, 0), 0),  # most are no letters
        (lying(2), Votes(48, 20, 20), Votes(48, 0, 12), 0),  # lines in both directions
        (lying(2, 0.85), Votes(48, 20, 20), Votes(48, 0, 0), 0),  # the page is in some doubt
        (lying(2), Votes(20, 0, 4), Votes(48, 1, 0), 180),  # a table: few lines, and nothing speaks against those
        (lying(2), Votes(20, 2, 4), Votes(48, 0, 0), 0),
        (lying(2), Votes(48, 0, 20), Votes(48, 0, 0), 0),  # most are no lines
        (lying(2), Votes(1, 0, 1), Votes(0, 0, 0), 180),  # the page is sure, and the one piece fits
        (lying(2), Votes(2, 1, 1), Votes(0, 0, 0), 0),
        (lying(2, 0.85), Votes(1, 0, 1), Votes(0, 0, 0), 0),  # too few
        (lying(2), Votes(0, 0, 0), Votes(0, 0, 0), 0),
    ],
)
def test_a_page_is_turned_only_where_its_lines_and_the_whole_of_it_agree(
    lies: np.ndarray, across: Votes, along: Votes, degrees: int
) -> None:
    assert decided(lies, across, along) == degrees


@pytest.mark.parametrize("askew", [-5.0, -2.4, 1.3, 4.0])
@TURNS
def test_lines_that_lean_are_straightened(degrees: int, askew: float) -> None:
    quarters, rest = quarters_and_rest(degrees_to_upright(turned(PAGE, back(degrees) - askew)))
    assert quarters == degrees
    assert rest == pytest.approx(askew, abs=0.15)


@pytest.mark.parametrize("askew", [0.0, 0.4, -0.7])
def test_what_hardly_leans_is_left(askew: float) -> None:
    assert degrees_to_upright(turned(PAGE, askew)) == 0


def test_a_page_that_would_lose_text_at_its_corners_is_not_straightened() -> None:
    leaning = turned(PAGE, 4)
    assert degrees_to_upright(leaning) == pytest.approx(-4, abs=0.15)
    to_its_edges = leaning.crop((70, 55, leaning.width - 70, leaning.height - 55))
    assert degrees_to_upright(to_its_edges) == 0


def test_a_page_that_leans_says_so_and_keeps_its_size() -> None:
    with open_document(scanned_pdf([turned(PAGE, 3)], dpi=144), orient="auto") as document:
        drawn = document.draw(0)
    assert drawn.rotated == pytest.approx(-3, abs=0.15)
    assert drawn.image.size == PAGE.size


def test_the_network_of_whole_pages_is_the_published_file() -> None:
    notice = NETWORK.with_name("page.NOTICE").read_text(encoding="utf-8")
    assert f"sha256 {hashlib.sha256(NETWORK.read_bytes()).hexdigest()}" in notice


@TURNS
def test_the_network_of_whole_pages_tells_the_four_directions(degrees: int) -> None:
    squares = views(turned(PAGE, degrees))
    assert int(turned_by(squares).argmax()) == int(turned_by_of_all_four(squares).argmax()) == degrees // 90


@pytest.mark.parametrize("size", [(1, 1), (3000, 3), (3, 3000), (640, 480)])
def test_pages_of_any_shape_are_looked_at(size: tuple[int, int]) -> None:
    squares = views(Image.new("RGB", size, "white"))
    assert squares.shape == (3, 224, 224, 3)
    assert turned_by(squares).sum() == pytest.approx(1, abs=1e-5)


def test_pieces_of_a_page_on_its_head_are_those_of_the_page_turned() -> None:
    one, other = pieces(ink_of(PAGE), 500), pieces(ink_of(turned(PAGE, 180)), 500)
    assert one.shape[1:] == other.shape[1:] == (HEIGHT, WIDTH)
    assert abs(len(one) - len(other)) <= 5
    middle = (HEIGHT - CORE) // 2
    for found in (one, other):
        rows = found.mean((0, 2))
        assert rows[middle : middle + CORE].mean() > 2 * rows[[0, 1, -2, -1]].mean()  # the letters are in the middle


def test_the_network_is_computed_as_torch_computes_it() -> None:
    torch = pytest.importorskip("torch")
    found = pieces(ink_of(PAGE), 6)
    given = {name: torch.from_numpy(np.array(value)) for name, value in weights().items()}
    values = torch.from_numpy(found)[:, None]
    for number, padding in ((1, 2), (2, 1), (3, 1)):
        kernel, bias = given[f"conv{number}.weight"], given[f"conv{number}.bias"]
        values = torch.relu(torch.nn.functional.conv2d(values, kernel, bias, 2, padding))
    hidden = torch.relu(values.mean(3).flatten(1) @ given["hidden.weight"].T + given["hidden.bias"])
    expected = hidden @ given["out.weight"].T + given["out.bias"]
    assert np.allclose(forward(weights(), found), expected.numpy(), atol=1e-4)


def test_the_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 1 << 20


def test_a_setting_that_is_none_is_refused() -> None:
    from models.settings import InferenceSettings

    with pytest.raises(InvalidInput, match="orient is 'left'; it must be off or auto"):
        InferenceSettings(orient="left")  # type: ignore[arg-type]
