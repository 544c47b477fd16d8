"""Models of the Python API from opening to their end: several at once, their threads, their memory, Ctrl-C."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from models.layout.regions import Region
from models.layout.rules import DetectionRules
from models.layout.task import DOCUMENT_PROMPT
from models.manifest import Manifest
from models.model_errors import InvalidInput, ManifestError
from models.settings import InferenceSettings
from runtime import Model, kv_cache
from runtime.decoder import Decoder
from runtime.requests import Finished, Request
from runtime.runtime_errors import EngineClosed, GenerationFailed, QueueFull
from runtime.vision import VisionTower
from tests.runtime.reading import LONG, PATIENCE, SMALL_VIEW, tokens_of
from tests.waiting import until


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


def test_a_model_that_nobody_holds_any_more_gives_back_its_threads_and_its_memory(random_model_folder, page) -> None:
    others = set(threading.enumerate())
    model = Model.open(random_model_folder, device="cpu", slots=1)
    generation = model.submit(Request("<image>", [page], InferenceSettings().override({**LONG, **SMALL_VIEW})))
    decoder = weakref.ref(model.engine.decoder)
    lanes = ("decode", "encode", "deadlines")
    threads = [one for one in threading.enumerate() if one.name in lanes and one not in others]
    assert len(threads) == len(lanes)
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
    decoder = weakref.ref(model.engine.decoder)
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
        "while not model.engine.encoding: time.sleep(0.001)\n"
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
        assert model.engine.decoder.capacity == 96
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
        return lambda *arguments, **named: loaded.append(made := kind(*arguments, **named)) or made

    monkeypatch.setattr("runtime.loading.Decoder", noting(Decoder))
    monkeypatch.setattr("runtime.loading.VisionTower", noting(VisionTower))
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
            until(lambda: model.engine.encoding)
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
            model.engine.state.chunk = chunk
            ask = partial(tokens_of, model, base_size=256, image_size=320)
            found += [[ask(*one) for one in asked], list(pool.map(ask, *zip(*asked, strict=True)))]
    assert found == [found[0]] * 4
