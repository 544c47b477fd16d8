"""The Python API on a real export with random weights: what a row says depends on its request alone."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from models.blocks import Block
from models.family import PreparedImage, Verbatim
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from models.turned import turned
from runtime import Model
from runtime.requests import Finished, Request, TextDelta
from runtime.runtime_errors import GenerationFailed
from tests.runtime.reading import LONG, PATIENCE, PROMPT, SMALL_VIEW, VIEW_TOKENS
from tests.turning import text_page


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_a_row_says_the_same_alone_and_beside_seven_others(model, picture) -> None:
    """Prompts of different lengths, tiled and plain images, budgets that end at different steps."""
    asked = [
        (picture(200 + 90 * i, 900 - 100 * i, i), f"<image>\n{'word ' * (3 * i)}{i}.", {"max_new_tokens": 12 + 7 * i})
        for i in range(8)
    ]
    ask = lambda i: model.read(asked[i][0], asked[i][1], base_size=256, image_size=320, **asked[i][2])
    alone = [ask(i) for i in range(8)]
    together: list = [None] * 8
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for one, other in zip(alone, together, strict=True):
        assert other.tokens == one.tokens
        assert other.text == one.text
        assert other.finished.usage == one.finished.usage


def test_sampled_rows_with_a_seed_say_the_same_alone_and_beside_others(model, page) -> None:
    ask = lambda seed: (
        model.read(
            page, PROMPT, do_sample=True, temperature=1.0, top_k=40, seed=seed, max_new_tokens=20, **SMALL_VIEW
        ).tokens
    )
    alone = [ask(seed) for seed in range(4)]
    assert len({tuple(tokens) for tokens in alone}) == 4
    together: list = [None] * 4
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert together == alone


def test_path_bytes_and_image_of_one_picture_give_one_answer(model, page, tmp_path, monkeypatch) -> None:
    page.save(tmp_path / "page.png")
    expected = model.read(page, max_new_tokens=6, **SMALL_VIEW).text
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "page.png", str(tmp_path / "page.png"), "page.png", encoded(page), [page], (page,)):
        assert model.read(source, max_new_tokens=6, **SMALL_VIEW).text == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode_are_read(model, page, mode) -> None:
    changed = Image.new("I;16", page.size, 40_000) if mode == "I;16" else page.convert(mode)
    assert model.read(changed, max_new_tokens=2, **SMALL_VIEW).tokens


def test_pictures_that_lie_are_read_as_if_they_stood_where_that_is_asked_for(model) -> None:
    upright = text_page()
    lying = turned(upright, 90)
    read = lambda page, **more: model.read(page, PROMPT, max_new_tokens=12, **more)
    asked, plain = read(lying, orient="auto"), read(lying)
    assert (asked.rotated, plain.rotated) == ((270,), (0,))
    assert asked.tokens == read(upright).tokens != plain.tokens
    assert "".join(model.stream(lying, PROMPT, max_new_tokens=12, orient="auto")) == asked.text


def test_a_prompt_without_images_is_answered(model) -> None:
    result = model.read([], "Hello", max_new_tokens=3)
    assert result.finished.usage.prompt_tokens == 1 + len("Hello")
    assert result.finished.usage.image_tokens == 0


def test_what_is_no_image_is_refused_by_name(model, tmp_path) -> None:
    (tmp_path / "page.png").write_text("no picture")
    for source, name in (
        (tmp_path / "page.png", "page.png"), (tmp_path / "missing.png", "missing.png"), (tmp_path, tmp_path.name),
        (b"", "the image bytes"), (b"no picture", "the image bytes"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=name):
            model.read(source)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it then reads
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_damaged_picture_is_refused_or_read_and_nothing_else(model, page, form) -> None:
    """Cut off and flipped bytes: whatever Pillow raises, the caller sees InvalidInput."""
    from runtime.given_images import open_image

    whole = encoded(page.resize((40, 30)), form)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for at in random.integers(0, len(damaged), random.integers(0, 4)):
            damaged[at] = random.integers(0, 256)
        try:
            open_image(bytes(damaged))
        except InvalidInput:
            continue


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 9000)])
def test_a_picture_of_extreme_shape_is_read_or_refused(model, size) -> None:
    try:
        result = model.read(Image.new("RGB", size, "white"), max_new_tokens=2, base_size=256, image_size=64)
    except InvalidInput:
        return
    assert result.finished.error is None


def test_settings_that_are_unknown_or_out_of_range_are_refused(model, page) -> None:
    with pytest.raises(InvalidInput, match="unknown setting 'max_tokens'"):
        model.read(page, max_tokens=5)
    with pytest.raises(InvalidInput, match="temperature is -1"):
        model.read(page, temperature=-1)
    with pytest.raises(InvalidInput, match="image_size is 100; this model takes multiples of 16"):
        model.read(page, image_size=100)


def test_a_quoted_slot_is_text_and_no_image(model, page) -> None:
    from models.family import QUOTED_SLOT

    quoted = model.read(page, f"<image>\nan {QUOTED_SLOT} tag", max_new_tokens=1).finished.usage
    plain = model.read(page, "<image>\nan tag", max_new_tokens=1).finished.usage
    assert quoted.image_tokens == plain.image_tokens
    assert quoted.prompt_tokens > plain.prompt_tokens


def test_slots_and_images_that_differ_are_refused(model, page) -> None:
    with pytest.raises(InvalidInput, match="2 <image> slots for 1 images"):
        model.read(page, "<image><image>")


def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers(model, page) -> None:
    limit = model.manifest.max_length
    longest = limit - 1 - 1 - VIEW_TOKENS  # BOS, and a place for the first step
    with pytest.raises(InvalidInput, match=rf"{limit} tokens \({VIEW_TOKENS} of them for images\).*takes {limit} "):
        model.read(page, "<image>" + "x" * (longest + 1), **SMALL_VIEW)
    result = model.read(page, "<image>" + "x" * longest, **SMALL_VIEW, **LONG)
    assert result.finished.detail in ("context", "eos")
    assert result.finished.usage.prompt_tokens == limit - 1


def test_an_answer_ends_where_the_context_does(model, page) -> None:
    """The cache holds max_length tokens, and the last token chosen needs no place in it."""
    limit = model.manifest.max_length
    for seed in range(20):  # until a random answer does not meet the end token
        result = model.read(
            page, "<image>" + "x" * (limit - 40), **SMALL_VIEW, **LONG, do_sample=True, temperature=1.0, seed=seed
        )
        if result.finished.detail == "context":
            break
    usage = result.finished.usage
    assert result.finished.reason == "length"
    assert usage.prompt_tokens + usage.completion_tokens == limit + 1


def test_usage_counts_bos_image_and_text(model, page, picture) -> None:
    plain = model.read(page, "<image>\nFree OCR.", max_new_tokens=4, **SMALL_VIEW)
    text = len("\nFree OCR.")  # the small tokenizer has a token for each byte
    assert plain.finished.usage.image_tokens == VIEW_TOKENS
    assert plain.finished.usage.prompt_tokens == 1 + VIEW_TOKENS + text
    assert plain.finished.usage.completion_tokens == len(plain.tokens)
    # facts: 2 wide x 3 high tiles of 640 and a global view of 1024
    tiled = model.read(picture(900, 1350), "<image>\nFree OCR.", max_new_tokens=2, base_size=1024, image_size=640)
    assert tiled.finished.usage.image_tokens == 21 * 30 + 273
    assert tiled.finished.usage.prompt_tokens == 1 + 903 + text


def test_timings_are_there_for_every_stage_and_fit_into_the_whole(model, page) -> None:
    timings = model.read(page, max_new_tokens=8, base_size=256, image_size=640).finished.timings
    assert min(timings.prepare, timings.vision, timings.prefill, timings.first_token) > 0
    assert timings.queued >= 0
    assert timings.decode >= 0
    assert timings.first_token >= timings.vision + timings.prefill


def test_the_text_is_the_decoded_tokens_and_the_streamed_pieces(model, page, random_model_folder) -> None:
    tokenizer = Tokenizer.from_file(str(random_model_folder / "tokenizer.json"))
    result = model.read(page, max_new_tokens=60, **SMALL_VIEW)
    assert result.text == tokenizer.decode(result.tokens, skip_special_tokens=False).strip()
    assert "".join(model.stream(page, max_new_tokens=60, **SMALL_VIEW)) == result.text


def test_tokens_without_a_meaning_are_never_produced(model, page, random_model_folder) -> None:
    """The export has more vocabulary rows than its tokenizer has tokens, all with random weights."""
    known = Tokenizer.from_file(str(random_model_folder / "tokenizer.json")).get_vocab_size()
    assert model.manifest.sizes.vocabulary > known
    for seed in range(3):
        result = model.read(
            page, do_sample=True, temperature=50.0, seed=seed, **SMALL_VIEW, **{**LONG, "max_new_tokens": 200}
        )
        assert max(result.tokens) < known


def test_a_stream_closed_early_cancels_its_request(model, page, monkeypatch) -> None:
    started = []
    submit = model.submit
    monkeypatch.setattr(model, "submit", lambda request: started.append(submit(request)) or started[-1])
    for seed in range(20):
        stream = model.stream(page, "<image>", do_sample=True, temperature=5.0, seed=seed, **SMALL_VIEW, **LONG)
        if next(stream, None) is not None:
            stream.close()
            break
    assert model.drain(PATIENCE)
    events = []
    while not isinstance(event := started[-1].next_event(PATIENCE), Finished):
        events.append(event)
    assert event.reason == "cancelled"
    assert event.usage.completion_tokens < LONG["max_new_tokens"]


def test_submit_gives_events_that_end_in_one_finished(model, page) -> None:
    generation = model.submit(Request("<image>", [page], InferenceSettings(max_new_tokens=5, family=SMALL_VIEW)))
    events = []
    while not isinstance(event := generation.next_event(PATIENCE), Finished):
        assert isinstance(event, TextDelta)
        events.append(event)
    assert sum(delta.token_count for delta in events) <= event.usage.completion_tokens
    assert generation.next_event(0) is None


def test_a_failure_of_the_engine_is_raised_by_read_and_by_stream(random_model_folder, picture, monkeypatch) -> None:
    with Model.open(random_model_folder, device="cpu", slots=1) as model:
        monkeypatch.setattr(model.engine.decoder, "prefill_chunk", lambda *_: 1 / 0)
        with pytest.raises(GenerationFailed, match="division by zero"):
            model.read(picture(64, 64))
        with pytest.raises(GenerationFailed, match="division by zero"):
            list(model.stream(picture(64, 64)))
        monkeypatch.undo()
        assert model.read(picture(64, 64), max_new_tokens=2).finished.error is None


def test_a_task_stands_for_its_prompt_and_no_prompt_for_the_default_task(model, page) -> None:
    ask = lambda *prompt, **more: model.read(page, *prompt, max_new_tokens=8, **SMALL_VIEW, **more).tokens
    assert ask(task="free") == ask(PROMPT)
    assert ask() == ask(model.tasks[model.default_task])
    assert ask("total", task="locate") == ask("<image>\nLocate <|ref|>total<|/ref|> in the image.")
    assert "".join(model.stream(page, task="free", max_new_tokens=8, **SMALL_VIEW)) == (
        model.read(page, PROMPT, max_new_tokens=8, **SMALL_VIEW).text
    )
    with pytest.raises(InvalidInput, match="its tasks are markdown"):
        model.read(page, task="table")
    with pytest.raises(InvalidInput, match="takes no text"):
        model.read(page, PROMPT, task="free")


def test_the_familys_output_is_what_is_read_and_streamed_unless_raw_text_is_asked_for(model, page, monkeypatch) -> None:
    class Shout:
        """Holds one character back, as real filters do."""

        held = ""

        def push(self, text: str) -> str:
            text = self.held + text
            self.held = text[-1:]
            return text[:-1].upper()

        def finish(self) -> str:
            return self.held.upper() + "!"

    settings = {"max_new_tokens": 30, **SMALL_VIEW}
    plain = model.read(page, PROMPT, **settings).text
    monkeypatch.setattr(model.family, "output", lambda prompt, settings, scale: Shout())
    assert model.read(page, PROMPT, **settings).text == plain.upper() + "!"
    assert "".join(model.stream(page, PROMPT, **settings)) == plain.upper() + "!"
    assert model.read(page, PROMPT, raw=True, **settings).text == plain


def test_places_that_a_model_tells_in_the_picture_it_saw_are_those_of_the_page(model, page, monkeypatch) -> None:
    """A family may write the page's size into the prompt, too."""
    real, told = model.family.prepare_image, {}

    def prepared(*args: Any) -> PreparedImage:
        return replace(real(*args), seen=(50, 200), prompt=f"{PROMPT} of {page.width} pixels")

    def output(prompt: str, settings: Mapping[str, Any], scale: tuple[float, float]) -> Verbatim:
        told.update(prompt=prompt, settings=settings, scale=scale)
        return Verbatim()

    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        told["seen"] = (width, height)
        return (Block("text", "all", (0, 0, width, height)), Block("text", "none"))

    asked = model.read(page, PROMPT, max_new_tokens=2, **SMALL_VIEW).finished.usage.prompt_tokens
    monkeypatch.setattr(model.family, "prepare_image", prepared)
    monkeypatch.setattr(model.family, "output", output)
    monkeypatch.setattr(model.family, "blocks", blocks)
    finished = model.read(page, PROMPT, max_new_tokens=2, **SMALL_VIEW).finished
    assert told == {
        "prompt": PROMPT, "settings": {**told["settings"], **SMALL_VIEW}, "seen": (50, 200),
        "scale": (50 / page.width, 200 / page.height),
    }  # fmt: skip
    assert [block.box for block in finished.blocks] == [(0, 0, page.width, page.height), None]
    assert finished.usage.prompt_tokens > asked


def test_settings_of_other_families_are_named_once(random_model_folder, page, caplog) -> None:
    with Model.open(random_model_folder, device="cpu", slots=1) as model, caplog.at_level("INFO", "runtime.model"):
        for _ in range(3):
            model.read(page, max_new_tokens=1, max_pixels=200_000, **SMALL_VIEW)
        model.read(page, max_new_tokens=1, min_pixels=1000, max_pixels=200_000)
        model.read(page, max_new_tokens=1, min_pixels=1000, temperature=0.5)
    named = [record.getMessage() for record in caplog.records if record.name == "runtime.model"]
    assert len(named) == 2
    assert "max_pixels;" in named[0]
    assert "min_pixels;" in named[1]
