"""The trainer of the built-in model: its data and its checkpoint folder; a micro model stands in for it."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("transformers", reason="training needs the export extra")

from hypothesis import assume, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors import safe_open  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from tests.tools.micro import MICRO, same  # noqa: E402
from tools.train_tiny import fonts, text, tokens  # noqa: E402
from tools.train_tiny.batches import Pages, collate, draw_page  # noqa: E402
from tools.train_tiny.checkpoint import load_checkpoint, mean_checkpoint, read_spec, save_checkpoint  # noqa: E402
from tools.train_tiny.curriculum import STAGES, Canvas  # noqa: E402
from tools.train_tiny.evaluate import character_error_rate, edit_distance, read_views  # noqa: E402
from tools.train_tiny.held_out import CATEGORIES, MORE_CATEGORIES, held_out_pages  # noqa: E402
from tools.train_tiny.model import TinySpec, build_model, use_training_kernels  # noqa: E402
from tools.train_tiny.render import Page, PageStyle, render_page, set_line  # noqa: E402
from tools.train_tiny.views import (  # noqa: E402
    CHARACTERS,
    IGNORE,
    PROBE_COLUMNS,
    choose_grid,
    make_views,
    normalise,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"


def test_a_step_has_the_same_batch_every_time_and_another_seed_another() -> None:
    pages = Pages(STAGES, TinySpec(), seed=3)
    assert same(pages[5], Pages(STAGES, TinySpec(), seed=3)[5])
    assert not same(pages[5], pages[6])
    assert not same(pages[5], Pages(STAGES, TinySpec(), seed=4)[5])


def test_held_out_pages_are_the_same_every_time() -> None:
    for category in (*CATEGORIES, *MORE_CATEGORIES):
        first, second = held_out_pages(category, 2), held_out_pages(category, 2)
        assert [page.text for page in first] == [page.text for page in second]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


def test_held_out_fonts_and_texts_never_occur_in_training() -> None:
    assert not set(fonts.TRAIN_FAMILIES) & set(fonts.HELD_OUT_FAMILIES)
    training = {face.path for faces in fonts.faces_of(fonts.TRAIN_FAMILIES).values() for face in faces}
    held_out = {face.path for faces in fonts.faces_of(fonts.HELD_OUT_FAMILIES).values() for face in faces}
    assert training
    assert held_out
    assert not training & held_out
    assert not set(text.word_pool(False)) & set(text.word_pool(True))
    assert not set(text.prose_pool(False)) & set(text.prose_pool(True))


def test_training_pages_are_drawn_with_training_fonts_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def spy(rng: random.Random, style: PageStyle, face: fonts.FontFace, held_out: bool = False) -> Page:
        drawn.append((face.family, held_out))
        return render_page(rng, style, face, held_out)

    monkeypatch.setattr("tools.train_tiny.batches.render_page", spy)
    for seed in range(60):
        draw_page(random.Random(seed), Canvas(96, 1, (20, 30), 2), STAGES[0], TinySpec())
    assert {family for family, _ in drawn} <= set(fonts.TRAIN_FAMILIES)
    assert not any(held_out for _, held_out in drawn)
    assert len(drawn) > 50


@pytest.mark.parametrize("kind", sorted(text.KINDS))
def test_text_is_printable_without_double_blanks_only_receipts_end_lines_and_only_latin_leaves_ascii(kind: str) -> None:
    words = list(islice(text.KINDS[kind](random.Random(7), False), 300))
    assert any(word.endswith(text.LINE_END) for word in words) == (kind == "receipt")
    assert any(not word.isascii() for word in words) == (kind == "latin")
    for word in words:
        assert re.fullmatch(rf"[!-~{text.TYPOGRAPHIC}]+( [!-~{text.TYPOGRAPHIC}]+)*", word.removesuffix("\n")), word


def test_latin_text_has_every_typographic_character_and_every_face_can_draw_it() -> None:
    words = islice(text.KINDS["latin"](random.Random(3), False), 20_000)
    assert set(text.TYPOGRAPHIC) <= set("".join(words))
    for family, faces in (fonts.faces_of(fonts.TRAIN_FAMILIES) | fonts.faces_of(fonts.HELD_OUT_FAMILIES)).items():
        for face in faces:
            missing = bytes(fonts.load_face(face, 20).getmask("\U0010fffe"))
            drawn = "".join(map(chr, range(33, 127))) + ("" if face.ascii_only else text.TYPOGRAPHIC)
            for character in drawn:
                assert bytes(fonts.load_face(face, 20).getmask(character)) != missing, (family, character)


def test_bold_faces_are_bolder_than_regular_ones() -> None:
    for family, faces in (fonts.faces_of(fonts.TRAIN_FAMILIES) | fonts.faces_of(fonts.HELD_OUT_FAMILIES)).items():
        ink = {(face.italic, face.bold): sum(fonts.load_face(face, 40).getmask("Hamburg")) for face in faces}
        for italic in (False, True):
            if (italic, True) in ink:
                assert ink[italic, True] > 1.1 * ink[italic, False], family


def test_a_family_whose_package_is_not_installed_is_named_with_the_remedy() -> None:
    with pytest.raises(fonts.FontsMissing, match=r"No Such Family is carried by fontpkg-no-such-family.*pip install"):
        fonts.family_faces("No Such Family")


def test_a_word_that_ends_its_line_does() -> None:
    font = fonts.load_face(fonts.faces_of(fonts.TRAIN_FAMILIES)["DejaVu Sans"][0], 20)
    words = iter(["Total:", "14.25\n", "Thank", "you", "very", "much\n"])
    assert [set_line(words, font, 300, 12) for _ in range(2)] == ["Total: 14.25", "Thank you very much"]


def test_every_character_centre_lies_on_ink() -> None:
    face = fonts.faces_of(fonts.TRAIN_FAMILIES)["DejaVu Sans"][0]
    for wear in (0.0, 1.0):
        style = PageStyle(320, 120, 28, 3, "letters", 4, wear=wear, colours=False)
        for seed in range(5):
            page = render_page(random.Random(seed), style, face)
            dark = np.asarray(page.image.convert("L")) < 140
            near = [dark[int(y) - 12 : int(y) + 12, max(0, int(x) - 8) : int(x) + 8].any() for x, y in page.centres]
            assert len(near) == len(page.characters)
            assert np.mean(near) > 0.95


def test_tile_grids_follow_the_published_rule() -> None:
    assert choose_grid(192, 192, 192, 9) == (1, 1)
    assert choose_grid(193, 100, 192, 9) == (2, 1)
    assert choose_grid(500, 500, 192, 9) == (3, 3)
    assert choose_grid(250, 250, 192, 9) == (2, 2)
    assert choose_grid(2000, 200, 192, 9) == (9, 1)
    assert choose_grid(600, 900, 192, 6) == (2, 3)


def test_views_have_the_published_token_counts_and_tile_order() -> None:
    face = fonts.faces_of(fonts.TRAIN_FAMILIES)["DejaVu Sans"][0]
    page = render_page(random.Random(0), PageStyle(384, 192, 30, 3, "letters", 4, colours=False), face)
    views = make_views(page, 256, 192, 9, 32)
    assert views.grid == (2, 1)
    assert views.tiles.shape == (2, 3, 192, 192)
    assert len(views.probe) == (6 * 2 + 1) * 6 + (8 + 1) * 8 + 1
    np.testing.assert_array_equal(views.tiles[1], np.asarray(page.image).transpose(2, 0, 1)[:, :, 192:])
    pixels = (np.asarray(page.image, dtype=np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    seen = normalise(torch.from_numpy(views.tiles), torch.device("cpu"), torch.float32)
    np.testing.assert_allclose(seen[1], pixels[:, :, 192:], atol=1e-6)
    alone = make_views(page, 256, 192, 9, 32, crop=False)
    assert len(alone.probe) == 73
    assert len(alone.tiles) == 0


def test_the_probe_names_each_character_where_it_stands() -> None:
    face = fonts.faces_of(fonts.TRAIN_FAMILIES)["DejaVu Sans"][0]
    page = render_page(random.Random(1), PageStyle(192, 96, 30, 1, "words", 2, colours=False), face)
    views = make_views(page, 192, 192, 9, 32, crop=False)
    grid = views.probe[:-1].reshape(6, 7, 2, PROBE_COLUMNS)
    assert (grid[:, 6] == IGNORE).all()
    rows = grid[:, :6].transpose(0, 2, 1, 3).reshape(12, 6 * PROBE_COLUMNS)
    found = ["".join(CHARACTERS[value - 1] for value in row if value > 0) for row in rows]
    assert "".join(found) == page.characters


def test_the_loss_falls_on_the_answer_and_its_end_only() -> None:
    tokenizer = tokens.build_tokenizer()
    page = Page(Image.new("RGB", (64, 64)), "ab\nc", "", np.zeros((0, 2)))
    views = make_views(page, 64, 64, 9, 32)
    batch = collate([views], [("<image>\nOCR", page.text)], tokenizer)
    learned = batch.labels[0][batch.labels[0] != IGNORE].tolist()
    assert learned == [*tokenizer.encode("ab\nc", add_special_tokens=False).ids, tokens.EOS_ID]
    first = int((batch.labels[0] != IGNORE).nonzero()[0])
    assert batch.input_ids[0, : first + 1].tolist() == tokens.prompt_ids(tokenizer, 7, "<image>\nOCR")
    assert batch.input_ids[0, first + 1 :].tolist() == learned[:-1]


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_character_error_rate_of_known_cases() -> None:
    assert character_error_rate("kitten", "sitting") == pytest.approx(3 / 7)
    assert character_error_rate("", "four") == 1.0
    assert character_error_rate("", "") == 0.0
    assert character_error_rate("ghost", "") == 1.0


@given(st.text(max_size=40))
def test_the_tokenizer_gives_back_what_it_was_given(value: str) -> None:
    tokenizer = tokens.build_tokenizer()
    assume(not any(special in value for special in (tokens.BOS, tokens.EOS, tokens.PAD, *tokens.TRAILING_SPECIALS)))
    ids = tokenizer.encode(value, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == value
    assert ids == [] or (min(ids) > tokens.PAD_ID and max(ids) < tokens.IMAGE_ID)


def test_the_tokenizer_has_the_family_s_special_tokens() -> None:
    tokenizer = tokens.build_tokenizer()
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    assert tokenizer.encode("<image>\nFree OCR.").ids[:3] == [tokens.BOS_ID, tokens.IMAGE_ID, *newline]
    for special in ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>", "</td>", "<tr>", "</tr>"):
        assert len(tokenizer.encode(special, add_special_tokens=False).ids) == 1
    published = SHARED / "checkpoints/deepseek-ocr/special_tokens_map.json"
    if published.exists():
        names = json.loads(published.read_text(encoding="utf-8"))
        ours = [tokens.BOS, tokens.EOS, tokens.PAD]
        assert [names[key]["content"] for key in ("bos_token", "eos_token", "pad_token")] == ours


@pytest.fixture(scope="module")
def micro_inputs() -> dict[str, object]:
    """One page with two tiles for the micro model: 5 x 2 local tokens, 3 x 2 global ones and the separator."""
    generator = torch.Generator().manual_seed(0)
    count = (2 * 2 + 1) * 2 + 3 * 2 + 1
    ids = [*tokens.prompt_ids(tokens.build_tokenizer(), count), 40, 41, 42]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.randn(1, 3, 64, 64, generator=generator),
        "pixel_values_local": torch.randn(2, 3, 64, 64, generator=generator),
        "num_local_patches": [2],
        "patches_grid": [[2, 1]],
    }


def shaken_model(seed: int = 0) -> torch.nn.Module:
    """Return a micro model without a parameter at zero, so that every one matters."""
    model = build_model(MICRO, seed).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    return model


def test_a_saved_folder_computes_the_same_logits(tmp_path: Path, micro_inputs: dict[str, object]) -> None:
    model = shaken_model()
    with torch.inference_mode():
        for value in model.parameters():
            value.copy_(value.half())
        before = model(**micro_inputs).logits
        save_checkpoint(model, MICRO, tmp_path / "folder")
        after = load_checkpoint(tmp_path / "folder")(**micro_inputs).logits
    assert read_spec(tmp_path / "folder") == MICRO
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert Tokenizer.from_file(str(tmp_path / "folder/tokenizer.json")).token_to_id("<image>") == tokens.IMAGE_ID


def test_the_mean_of_folders_is_that_of_every_weight(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        save_checkpoint(shaken_model(seed), MICRO, folder)
    mean_checkpoint([folders[0], folders[1], folders[1]], tmp_path / "mean")
    first, second, mean = (dict(load_checkpoint(tmp_path / name).named_parameters()) for name in ("a", "b", "mean"))
    for name, value in mean.items():
        assert not torch.equal(first[name], second[name])
        torch.testing.assert_close(value, (first[name] + 2 * second[name]) / 3, rtol=1e-3, atol=1e-6)
    deeper = replace(MICRO, layers=MICRO.layers + 1)
    save_checkpoint(build_model(deeper), deeper, tmp_path / "c")
    with pytest.raises(ValueError, match="different sizes"):
        mean_checkpoint([folders[0], tmp_path / "c"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_saved_folder_has_the_published_names_ranks_and_config_keys(tmp_path: Path) -> None:
    reference = SHARED / "checkpoints/deepseek-ocr"
    if not reference.exists():
        pytest.skip("needs shared/checkpoints beside the repository")
    save_checkpoint(build_model(MICRO), MICRO, tmp_path / "folder")

    def pattern(name: str) -> str:
        return re.sub(r"(blocks|layers|experts)\.\d+", r"\1.N", name)

    published = json.loads((reference / "tensor_shapes.json").read_text(encoding="utf-8"))
    ranks = {pattern(name): len(shape) for name, shape in published.items()}
    with safe_open(tmp_path / "folder/model.safetensors", "pt") as tensors:
        ours = {pattern(name): len(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    assert ours == ranks

    def keys(value: object, path: str = "") -> set[str]:
        nested = value.items() if isinstance(value, dict) else ()
        return {path}.union(*(keys(item, f"{path}/{key}") for key, item in nested))

    for file, extra in (("config.json", set()), ("processor_config.json", {"/base_size", "/image_size"})):
        wanted = keys(json.loads((reference / file).read_text(encoding="utf-8")))
        wanted = {key for key in wanted if "auto_map" not in key}  # names code files, which are not shipped
        assert keys(json.loads((tmp_path / "folder" / file).read_text(encoding="utf-8"))) == wanted | extra


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_the_training_kernels_compute_what_the_library_s_do(micro_inputs: dict[str, object], attention: str) -> None:
    model = shaken_model()
    with torch.inference_mode():
        reference = model(**micro_inputs).logits
        use_training_kernels(model, attention)
        torch.testing.assert_close(model(**micro_inputs).logits, reference, rtol=1e-4, atol=1e-5)


def test_cached_greedy_reading_agrees_with_reading_from_scratch() -> None:
    tokenizer = tokens.build_tokenizer()
    model = shaken_model()
    with torch.no_grad():
        model.lm_head.weight[tokens.IMAGE_ID] = 0  # an image slot in the answer has no feature to take
    views = make_views(held_out_pages("one_line", 1)[0], 64, 64, 9, 32)
    with torch.inference_mode():
        ids = tokens.prompt_ids(tokenizer, len(views.probe))
        start = len(ids)
        pixels = {
            "pixel_values": normalise(torch.from_numpy(views.global_view)[None], model.device, model.dtype),
            "pixel_values_local": normalise(torch.from_numpy(views.tiles), model.device, model.dtype),
            "num_local_patches": [len(views.tiles)],
            "patches_grid": [list(views.grid)],
        }
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids]), **pixels).logits[0, -1].argmax()))
            if ids[-1] == tokens.EOS_ID:
                break
    assert read_views(model, tokenizer, [views], limit=6) == [tokenizer.decode(ids[start:]).strip()]
