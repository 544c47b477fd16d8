"""Pages are turned upright by what is on them, and only where that is sure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.model_errors import InvalidInput
from models.turned import back, quarters_and_rest, turned
from runtime.documents import DrawnPages, open_document
from runtime.documents.upright import degrees_to_upright, page, piece, strip
from runtime.documents.upright.askew import degrees_to_straight, levelled
from runtime.documents.upright.lines import CORE, HEIGHT, WIDTH, ink_of, pieces, strips, without_rules
from runtime.documents.upright.page import turned_by, turned_by_of_all_four, views
from runtime.documents.upright.piece import UP, probabilities
from runtime.documents.upright.strip import upright_probabilities
from runtime.documents.upright.verdict import Votes, sure
from tests.pdfs import rotated, scanned_pdf
from tests.turning import text_page
from tools.train_upright import pages

PAGE = text_page()
TURNS = pytest.mark.parametrize("degrees", [0, 90, 180, 270])


@TURNS
@pytest.mark.parametrize("kind", ["text", "columns", "table"])
def test_text_in_fonts_that_training_never_had_is_turned_upright(kind: str, degrees: int) -> None:
    rng = random.Random(f"{kind}")
    drawn = [pages.page(rng, kind, "Latin", "degraded", held_out=True) for _ in range(3)]  # up to 2 degrees askew
    found = [quarters_and_rest(degrees_to_upright(turned(page, back(degrees))))[0] for page in drawn]
    assert found == [degrees] * 3


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
def test_grey_text_beside_a_black_picture_is_seen(degrees: int) -> None:
    page = Image.eval(PAGE.convert("L"), lambda value: 180 + value * 75 // 255)
    page.paste(0, (80, page.height * 2 // 3, page.width - 80, page.height - 60))
    assert degrees_to_upright(turned(page, back(degrees))) == degrees


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


NOTHING = Votes()


@pytest.mark.parametrize(
    ("lies", "lines", "aside", "strips", "turned"),
    [
        (0.9, Votes(48, 40, 1), Votes(48, 1, 1), NOTHING, True),
        (0.9, Votes(48, 1, 1), Votes(48, 1, 40), NOTHING, False),  # the lines say otherwise than the page
        (0.6, Votes(48, 40, 1), Votes(48, 1, 1), NOTHING, True),  # the page is in some doubt, its lines are not
        (0.6, Votes(48, 20, 1), Votes(48, 1, 1), NOTHING, False),  # both are
        (0.4, Votes(48, 40, 1), Votes(48, 1, 1), NOTHING, False),  # the page is in doubt
        (0.9, Votes(48, 40, 1), Votes(48, 30, 1), NOTHING, False),  # lines in both directions
        (0.9, Votes(48, 20, 20), NOTHING, NOTHING, False),  # letters or digits, of which pieces do not know what is up
        (0.6, Votes(9, 6, 1), NOTHING, NOTHING, True),  # the page is in some doubt, the few lines of its table are not
        (0.7, Votes(9, 4, 1), NOTHING, NOTHING, False),  # half of them are no lines
        (0.7, Votes(9, 6, 2), NOTHING, NOTHING, False),
        (0.9, Votes(20, 4, 0), Votes(48, 0, 1), NOTHING, True),  # a table: few lines, and nothing speaks against those
        (0.9, Votes(20, 4, 2), NOTHING, NOTHING, False),
        (0.9, Votes(48, 20, 0), NOTHING, NOTHING, False),  # most are no lines
        (0.9, Votes(1, 1, 0), NOTHING, NOTHING, True),  # the page is sure, and the one piece fits
        (0.9, Votes(2, 1, 1), NOTHING, NOTHING, False),
        (0.85, Votes(1, 1, 0), NOTHING, NOTHING, False),  # too few
        (0.9, NOTHING, NOTHING, NOTHING, False),
        (0.7, Votes(1, 0, 0), Votes(2, 0, 0), Votes(30, 24, 1), True),  # a table of short cells, which strips know
        (0.5, Votes(1, 0, 0), Votes(2, 0, 0), Votes(30, 24, 1), False),  # the page is in doubt
        (0.9, Votes(1, 0, 0), Votes(2, 0, 0), Votes(30, 5, 0), False),  # too few strips
        (0.9, Votes(1, 0, 0), Votes(2, 0, 0), Votes(30, 20, 4), False),  # strips that say the opposite
        (0.9, Votes(1, 0, 1), Votes(2, 0, 0), Votes(30, 24, 1), False),  # so does the piece
        (0.9, Votes(1, 0, 0), Votes(30, 0, 0), Votes(30, 24, 1), False),  # lines of another script the other way
        (0.9, Votes(40, 1, 0), Votes(2, 0, 0), Votes(46, 42, 0), False),  # the same, on their side
        (0.7, Votes(40, 8, 1), Votes(30, 0, 1), Votes(46, 20, 2), True),  # some letters, and strips
        (0.7, Votes(40, 5, 8), Votes(30, 0, 1), Votes(46, 20, 2), True),  # which way up strips know better
        (0.7, Votes(40, 3, 8), Votes(30, 0, 1), Votes(46, 20, 2), False),
        (0.7, Votes(40, 2, 2), Votes(30, 0, 1), Votes(46, 20, 2), False),  # most are no letters
        (0.7, Votes(40, 5, 3), Votes(30, 3, 0), Votes(46, 20, 2), False),  # lines in both directions
    ],
)
def test_a_page_is_turned_only_where_its_lines_and_the_whole_of_it_agree(
    lies: float, lines: Votes, aside: Votes, strips: Votes, turned: bool
) -> None:
    assert sure(lies, lines, aside, lambda: strips) == turned


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


@pytest.mark.parametrize("network", [page.NETWORK, strip.NETWORK], ids=["page", "strip"])
def test_the_networks_of_others_are_the_published_files(network: Path) -> None:
    notice = network.with_suffix(".NOTICE").read_text(encoding="utf-8")
    assert f"sha256 {hashlib.sha256(network.read_bytes()).hexdigest()}" in notice


@TURNS
def test_the_network_of_whole_pages_tells_the_four_directions(degrees: int) -> None:
    squares = views(turned(PAGE, degrees))
    first = turned_by(squares)
    assert int(first.argmax()) == int(turned_by_of_all_four(squares, first).argmax()) == degrees // 90


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


def test_strips_of_a_page_tell_which_way_up_it_is() -> None:
    for degrees, least, most in ((0, 0.9, 1.0), (180, 0.0, 0.1)):
        found = strips(ink_of(turned(PAGE, degrees)), 48)
        assert len(found) > 10
        assert least <= float(np.median(upright_probabilities(found))) <= most


def test_rules_of_a_table_go_and_its_text_stays() -> None:
    ruled, plain = PAGE.convert("L"), ink_of(PAGE)
    draw = ImageDraw.Draw(ruled)
    between = [int(row) for row in np.flatnonzero(plain.max(1) < 0.1)[::9]]
    for row in between:
        draw.line((5, row, ruled.width - 5, row), 0, 2)
    draw.line((20, 5, 20, ruled.height - 5), 0, 2)
    with_rules = ink_of(ruled)
    left = without_rules(with_rules)
    assert with_rules[between].mean() > 0.5
    assert left[between].mean() < 0.02
    assert np.abs(left - plain).mean() < 0.01
    assert (without_rules(plain) == plain).mean() > 0.999


@pytest.mark.parametrize("axis", [0, 1])
def test_rules_are_told_by_their_length_on_pages_of_any_size(axis: int) -> None:
    for side in range(1, 90):
        ink = np.zeros((side, 60) if axis == 0 else (60, side), np.float32)
        np.moveaxis(ink, axis, 0)[:, 30] = 1
        assert without_rules(ink).any() == (side < 36)


@pytest.mark.parametrize("slack", [-60, 60])
def test_more_lines_are_known_once_both_halves_of_a_page_seen_from_aside_are_straight(slack: int) -> None:
    width, height = PAGE.size
    corners = (0, slack, 0, height - slack, width, height + slack, width, -slack)
    aside = PAGE.convert("L").transform(
        PAGE.size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR, fillcolor=255
    )
    ink = ink_of(aside)
    known, levelled_known = (
        (probabilities(pieces(page, 48)).argmax(1) == UP).sum()
        for page in (ink, levelled(ink, degrees_to_straight(ink)))
    )
    assert levelled_known >= known + 5


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # of torch itself, when it exports
def test_a_trained_network_is_written_as_torch_computes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from tools.train_upright.train import Network, save

    torch.manual_seed(0)
    network = Network().eval()
    network.out.weight.data *= 50  # for pieces to differ by more than rounding
    for layer in (network.norm1, network.norm2, network.norm3):
        layer.running_mean.uniform_(-0.1, 0.1)
        layer.running_var.uniform_(0.5, 2)
    found = pieces(ink_of(PAGE), 6)
    expected = torch.softmax(network(torch.from_numpy(found)), 1).detach().numpy()
    monkeypatch.setattr(piece, "NETWORK", tmp_path / "piece.onnx")
    save(network, piece.NETWORK)
    assert np.ptp(expected[:, UP]) > 1e-3
    assert np.allclose(probabilities(found), expected, atol=1e-5)


def test_the_network_of_pieces_is_small_and_says_nothing_of_the_code_that_made_it() -> None:
    written = piece.NETWORK.read_bytes()
    assert len(written) < 1 << 20
    assert b".py" not in written


def test_a_setting_that_is_none_is_refused() -> None:
    from models.settings import InferenceSettings

    with pytest.raises(InvalidInput, match="orient is 'left'; it must be off or auto"):
        InferenceSettings(orient="left")  # type: ignore[arg-type]
