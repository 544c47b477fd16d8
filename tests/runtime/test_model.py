"""The Python API on a real export with random weights: what a row says depends on its request alone."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from models.blocks import Block
from models.errors import InvalidInput, ManifestError
from models.family import PreparedImage, Verbatim
from models.layout.regions import Region
from models.layout.rules import DetectionRules
from models.layout.task import DOCUMENT_PROMPT
from models.manifest import Manifest
from models.settings import InferenceSettings
from runtime import Model, kv_cache
from runtime.decoder import Decoder
from runtime.errors import EngineClosed, GenerationFailed, QueueFull
from runtime.requests import Finished, Request, TextDelta
from runtime.vision import VisionTower

PROMPT = "<image>\nFree OCR."
LONG = {"no_repeat_ngram_size": 0, "stop_on_loop": False, "max_new_tokens": 1000}
SMALL_VIEW = {"crop_mode": False, "image_size": 64}  # one image token and its newline and separator
VIEW_TOKENS = 3
PATIENCE = 60.0


@pytest.fixture(scope="module")
def model(random_model_folder: Path) -> Iterator[Model]:
    with Model.open(random_model_folder, device="cpu", slots=8) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(picture: Callable[..., Image.Image]) -> Image.Image:
    return picture(300, 200)


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
    from runtime.model import _open_image

    whole = encoded(page.resize((40, 30)), form)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for at in random.integers(0, len(damaged), random.integers(0, 4)):
            damaged[at] = random.integers(0, 256)
        try:
            _open_image(bytes(damaged))
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


def test_two_open_models_do_not_disturb_each_other(
    random_model_folder, model, page, export_checkpoint, tmp_path
) -> None:
    from tools.checkpoints import Sizes, write_random_checkpoint

    other_folder = export_checkpoint(write_random_checkpoint(tmp_path / "other", Sizes(layers=2), seed=9))
    expected = model.read(page, max_new_tokens=12, **SMALL_VIEW).tokens
    with Model.open(other_folder, device="cpu") as other:
        answers: dict[str, list] = {"one": [], "other": []}
        ask = lambda name, asked: answers[name].extend(
            asked.read(page, max_new_tokens=12, **SMALL_VIEW).tokens for _ in range(3)
        )
        threads = [threading.Thread(target=ask, args=pair) for pair in (("one", model), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert answers["one"] == [expected] * 3
    assert answers["other"][0] == answers["other"][1] == answers["other"][2] != expected


def test_a_closed_model_refuses_requests_and_may_be_closed_again(random_model_folder, page) -> None:
    model = Model.open(random_model_folder, device="cpu")
    assert model.read(page, max_new_tokens=1, **SMALL_VIEW).tokens
    model.close()
    model.close()
    with pytest.raises(EngineClosed):
        model.read(page)
    assert model.drain(0)


def test_more_requests_than_slots_and_queue_are_refused(random_model_folder, page) -> None:
    with Model.open(random_model_folder, device="cpu", slots=1, max_queue=0) as model:
        stream = model.stream(page, "<image>", do_sample=True, temperature=5.0, seed=1, **SMALL_VIEW, **LONG)
        next(stream)
        if model.active:  # it may have met its end token by now
            with pytest.raises(QueueFull):
                model.read(page, **SMALL_VIEW)
        stream.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_reach_the_sessions_and_change_no_text(random_model_folder, model, page, threads, monkeypatch) -> None:
    import onnxruntime

    seen = []
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(
        "runtime.providers.ort.InferenceSession",
        lambda path, options, **rest: seen.append(options.intra_op_num_threads) or create(path, options, **rest),
    )
    with Model.open(random_model_folder, device="cpu", threads=threads) as other:
        assert other.device.threads == threads
        assert (
            other.read(page, max_new_tokens=12, **SMALL_VIEW).tokens
            == model.read(page, max_new_tokens=12, **SMALL_VIEW).tokens
        )
    assert seen == [threads] * 3


@pytest.mark.parametrize("file", ["decoder.onnx", "vision.onnx", "tokenizer.json"])
def test_a_file_damaged_without_a_change_of_size_is_an_error_that_names_it(random_model_folder, tmp_path, file) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(random_model_folder, folder)
    (folder / file).write_bytes(b"\xff" * (folder / file).stat().st_size)
    with pytest.raises(ManifestError, match=file):
        Model.open(folder, device="cpu")


def test_a_model_is_opened_by_its_id_and_exported_when_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("OCR_ONNX_CACHE", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    with Model.open("tiny-ocr", device="cpu") as opened:
        assert (opened.manifest.id, opened.manifest.dtype) == ("tiny-ocr", "f32")
    assert "has not been exported yet; exporting it to" in caplog.text
    caplog.clear()
    with Model.open("tiny-ocr-q8", device="cpu") as opened:
        assert opened.manifest.dtype == "q8"
    with Model.open("tiny-ocr", dtype="q8", device="cpu") as opened:
        assert opened.manifest.dtype == "q8"
    assert caplog.text.count("exporting it to") == 1
    with pytest.raises(ManifestError, match=r"model 'tiny-orc' is not known; .*did you mean 'tiny-ocr'\?"):
        Model.open("tiny-orc", device="cpu")
    file = tmp_path / "XDG_CONFIG_HOME" / "deepseek-ocr" / "config.toml"
    file.write_text(f"[models.entries.gone]\nsource = '{tmp_path}/nowhere'\n")
    with pytest.raises(ManifestError, match=r"gone could not be exported: .*nowhere is no directory"):
        Model.open("gone", device="cpu")


def test_a_folder_without_an_export_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(ManifestError, match="ocr-onnx export"):
        Model.open(tmp_path)


def test_a_failure_of_the_engine_is_raised_by_read_and_by_stream(random_model_folder, picture, monkeypatch) -> None:
    with Model.open(random_model_folder, device="cpu", slots=1) as model:
        monkeypatch.setattr(model._engine._decoder, "prefill_chunk", lambda *_: 1 / 0)
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
    monkeypatch.setattr(model._family, "output", lambda prompt, settings, scale: Shout())
    assert model.read(page, PROMPT, **settings).text == plain.upper() + "!"
    assert "".join(model.stream(page, PROMPT, **settings)) == plain.upper() + "!"
    assert model.read(page, PROMPT, raw=True, **settings).text == plain


def test_places_that_a_model_tells_in_the_picture_it_saw_are_those_of_the_page(model, page, monkeypatch) -> None:
    """A family may write the page's size into the prompt, too."""
    real, told = model._family.prepare_image, {}

    def prepared(*args: Any) -> PreparedImage:
        return replace(real(*args), seen=(50, 200), prompt=f"{PROMPT} of {page.width} pixels")

    def output(prompt: str, settings: Mapping[str, Any], scale: tuple[float, float]) -> Verbatim:
        told.update(prompt=prompt, settings=settings, scale=scale)
        return Verbatim()

    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        told["seen"] = (width, height)
        return (Block("text", "all", (0, 0, width, height)), Block("text", "none"))

    asked = model.read(page, PROMPT, max_new_tokens=2, **SMALL_VIEW).finished.usage.prompt_tokens
    monkeypatch.setattr(model._family, "prepare_image", prepared)
    monkeypatch.setattr(model._family, "output", output)
    monkeypatch.setattr(model._family, "blocks", blocks)
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


def test_a_model_that_nobody_holds_any_more_gives_back_its_threads_and_its_memory(random_model_folder, page) -> None:
    model = Model.open(random_model_folder, device="cpu", slots=1)
    generation = model.submit(Request("<image>", [page], InferenceSettings().override({**LONG, **SMALL_VIEW})))
    decoder, threads = weakref.ref(model._engine._decoder), model._engine._threads
    del model
    gc.collect()
    while not isinstance(event := generation.next_event(PATIENCE), Finished):
        assert event is not None
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    del threads, thread
    gc.collect()
    assert decoder() is None, "the finished request, which is still held, keeps the weights"


class SlowDetector:
    """Finds two lines of text, when it may."""

    def __init__(self) -> None:
        self.may_go = threading.Event()

    def detect(self, image: Image.Image, rules: DetectionRules | None = None) -> list[Region]:
        assert self.may_go.wait(PATIENCE)
        return [Region("text", (0, top, 60, top + 40), 0.9, top) for top in (0, 80)]


def test_a_page_that_is_read_by_its_parts_keeps_its_model_to_its_end_and_no_longer(random_model_folder, page) -> None:
    detector = SlowDetector()
    model = Model.open(random_model_folder, device="cpu", slots=1, layout=detector)
    settings = InferenceSettings().override({"max_new_tokens": 3, **SMALL_VIEW})
    generation = model.submit(Request(DOCUMENT_PROMPT, [page], settings))
    decoder = weakref.ref(model._engine._decoder)
    del model
    gc.collect()
    detector.may_go.set()
    while not isinstance(event := generation.next_event(PATIENCE), Finished):
        assert event is not None
    assert (event.detail, event.error, [block.error for block in event.blocks]) == ("eos", None, ["", ""])
    assert event.usage.completion_tokens > 0
    gc.collect()
    until = time.monotonic() + PATIENCE
    while decoder() is not None and time.monotonic() < until:
        time.sleep(0.01)  # its threads end
    assert decoder() is None, "the finished page, which is still held, keeps the weights"


@pytest.mark.parametrize("how", ["read", "stream"])
def test_ctrl_c_ends_the_request(random_model_folder, page, monkeypatch, how) -> None:
    with Model.open(random_model_folder, device="cpu", slots=1) as model:
        started = []
        submit = model.submit
        monkeypatch.setattr(model, "submit", lambda request: started.append(submit(request)) or started[-1])

        def interrupt(self: object, timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        settings = {"do_sample": True, "temperature": 5.0, "seed": 1, **SMALL_VIEW, **LONG}
        ask = {"read": model.read, "stream": lambda *asked, **more: list(model.stream(*asked, **more))}[how]
        with monkeypatch.context() as patch:
            patch.setattr("runtime.sequence.Sequence.next_event", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ask(page, "<image>", **settings)
        assert started[0].finished
        assert model.active == 0


def test_a_program_that_closes_nothing_ends_while_a_page_is_being_encoded(random_model_folder, tmp_path) -> None:
    """At the interpreter's exit a thread inside a session would take the process down with it, or keep it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from PIL import Image\n"
        "from models.settings import InferenceSettings\n"
        "from runtime import Model\n"
        "from runtime.requests import Request\n"
        "model = Model.open(sys.argv[1], device='cpu')\n"
        "image = Image.new('RGB', (3000, 3000), 'red')\n"
        "settings = InferenceSettings().override({'base_size': 1024, 'image_size': 640})\n"
        "model.submit(Request('<image>', [image], settings))\n"
        "while not model._engine._encoding: time.sleep(0.001)\n"
        "print('leaving', flush=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(program), str(random_model_folder)], capture_output=True, text=True, timeout=PATIENCE,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "leaving\n", "")


def test_a_ceiling_of_the_context_holds_for_prompts_answers_and_the_cache(random_model_folder, page) -> None:
    with Model.open(random_model_folder, device="cpu", slots=1, max_context=96) as model:
        assert model.manifest.max_length == 96
        with pytest.raises(InvalidInput, match=r"104 tokens .*takes 96 with its answer"):
            model.read(page, "<image>" + "x" * 100, **SMALL_VIEW)
        for seed in range(20):  # until a random answer does not meet the end token
            result = model.read(
                page, "<image>" + "x" * 60, **SMALL_VIEW, **LONG, do_sample=True, temperature=1.0, seed=seed
            )
            if result.finished.detail == "context":
                break
        assert result.finished.usage.prompt_tokens + result.finished.usage.completion_tokens == 97
        assert model._engine._decoder.capacity == 96
    with Model.open(random_model_folder, device="cpu", slots=1, max_context=10**9) as model:
        assert model.manifest.max_length == Manifest.load(random_model_folder).max_length
    with pytest.raises(ValueError, match=r"max_context is 3; .* at least 64"):
        Model.open(random_model_folder, device="cpu", max_context=3)


def test_slots_are_planned_from_what_is_free_beside_the_weights(random_model_folder, monkeypatch) -> None:
    sizes = Manifest.load(random_model_folder).sizes
    row = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 4 * min(2048, sizes.max_length)
    loaded: list[object] = []
    monkeypatch.setattr("runtime.planning.available_memory", lambda: 4 * row * (5 if len(loaded) == 2 else 1))

    def noting(kind: type) -> Callable[..., object]:
        return lambda *arguments: loaded.append(made := kind(*arguments)) or made

    monkeypatch.setattr("runtime.model.Decoder", noting(Decoder))
    monkeypatch.setattr("runtime.model.VisionTower", noting(VisionTower))
    for context, slots in ((None, 5), (sizes.max_length // 8, 8)):
        loaded.clear()
        with Model.open(random_model_folder, device="cpu", max_context=context) as model:
            assert model.slots == slots


def test_a_row_that_the_memory_cannot_hold_fails_alone_with_both_numbers(
    random_model_folder, page, monkeypatch
) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 64)
    with Model.open(random_model_folder, device="cpu", slots=2) as model:
        monkeypatch.setattr(kv_cache, "available_memory", lambda: 1000)
        short = model.submit(
            Request("<image>", [page], InferenceSettings().override({"max_new_tokens": 30, **SMALL_VIEW}))
        )
        with pytest.raises(GenerationFailed, match=r"needs .* MB more for 101 tokens .* and 0 MB are free"):
            model.read([], "x" * 99)
        while not isinstance(event := short.next_event(PATIENCE), Finished):
            assert event is not None
        assert event.error is None
        assert model.alive


def test_a_pass_that_was_ended_half_way_leaves_the_model_as_it_was(random_model_folder, picture) -> None:
    large = picture(1500, 1500)
    settings = InferenceSettings().override({"base_size": 1024, "image_size": 640, "max_new_tokens": 20})
    with Model.open(random_model_folder, device="cpu", slots=2, vision_cache_mb=0) as model:
        expected = model.read(large, "<image>", max_new_tokens=20, base_size=1024, image_size=640).tokens
        for _ in range(3):
            ended = model.submit(Request("<image>", [large], settings))
            with model._engine._changed:
                model._engine._changed.wait_for(lambda: model._engine._encoding, PATIENCE)
            ended.cancel()
            event = ended.next_event(PATIENCE)
            assert isinstance(event, Finished)
            assert (event.detail, event.error) == ("cancelled", None)
        assert model.drain(PATIENCE)
        assert model.read(large, "<image>", max_new_tokens=20, base_size=1024, image_size=640).tokens == expected


def test_prompts_fed_in_chunks_beside_each_other_say_what_they_say_alone(random_model_folder, picture) -> None:
    """The half-fed rows are stepped with those that decode, grow with them and move with them."""
    asked = [(picture(200 + 150 * i, 700), f"<image>{'word ' * (10 * i)}", 10 + 9 * i) for i in range(5)]
    found = []
    for chunk in (1 << 20, 24):
        with Model.open(random_model_folder, device="cpu", slots=4) as model, ThreadPoolExecutor(5) as pool:
            model._engine._state.chunk = chunk
            ask = partial(tokens_of, model, base_size=256, image_size=320)
            found += [[ask(*one) for one in asked], list(pool.map(ask, *zip(*asked, strict=True)))]
    assert found == [found[0]] * 4


def tokens_of(model: Model, image: Image.Image, prompt: str, budget: int, **settings: Any) -> list[int]:
    return model.read(image, prompt, max_new_tokens=budget, **settings).tokens
