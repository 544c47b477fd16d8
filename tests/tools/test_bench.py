"""The benchmark's own logic, and one run of it on a small model. No test here asserts a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from models.manifest import Manifest
from tests.detectors import write_detector
from tests.tools.bench_results import results, series
from tools.bench import llama
from tools.bench.__main__ import main
from tools.bench.material import endless_copy, page_image
from tools.bench.ours import vision_dtype
from tools.bench.plan import PARTS, QUICK, Plan
from tools.bench.report import Results, compare, merge, render, table
from tools.bench.step_watch import StepWatch
from tools.bench.turns import BenchError, Series

# Reports.


def test_bars_stand_beside_their_ratios() -> None:
    text = render(results(
        series("ours q4", samples=(55, 60, 65)), series("llama.cpp Q4_0", samples=(60, 50, 70)),
        series("ours vision q8", "vision", 640, (2,)), series("transformers bf16", "vision", 640, (2.2,)),
        series("ours q4", "batch", 1, (60,)), series("ours q4", "batch", 8, (120,)),
    ))  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["decode", "context 512", "ours q4", "llama.cpp Q4_0", "1.00", "0.93", ">= 1 met", "yes"] in rows
    assert [
        "vision",
        "640 x 640",
        "ours vision q8",
        "transformers bf16",
        "1.10",
        "1.10",
        ">= 1.3 MISSED",
        "yes",
    ] in rows
    assert ["batch", "8 rows", "ours q4", "the same, 1 row", "2.00", "2.00", ">= 1.8 met", "yes"] in rows
    assert ["decode", "context 512", "ours q4", "60", "65", "tokens/s", "3", "17%"] in rows


def test_what_has_a_limit_is_held_to_it() -> None:
    share, resident = "% outside ONNX Runtime", "GB resident"
    text = render(results(
        Series("ours q4", "overhead", "1 row", 1, share, [4.0]),
        Series("ours q8", "overhead", "1 row", 1, share, [6.0]),
        Series("ours q4", "load", "", 0, resident, [3.6]), Series("ours f32", "load", "", 0, resident, [9.0]),
    ))  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [row for row in rows if row[-1].startswith("<=")] == [
        ["load", "", "ours q4", "3.6", "GB resident", "<= 3.5 MISSED"],
        ["overhead", "1 row", "ours q4", "4", share, "<= 5 met"],
        ["overhead", "1 row", "ours q8", "6", share, "<= 5 MISSED"],
    ]


def test_the_share_of_a_step_outside_sessions_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three turns of 10 ms with 8 ms in sessions, and others with fewer rows, which do not count."""
    now = [0.0]

    def tick(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("tools.bench.step_watch.time.perf_counter", lambda: now[0])

    class Session:
        def run_with_iobinding(self, *binding: object) -> None:
            tick(0.004)

    class Decoder:
        sessions: tuple[Any, ...] = (Session(), Session())

        def wrap_sessions(self, wrap: Callable[[Any], Any]) -> None:
            self.sessions = tuple(map(wrap, self.sessions))

        def score(self, token_ids: list[int], lengths: list[int], positions: list[int] | None = None) -> np.ndarray:
            for session in self.sessions:
                session.run_with_iobinding(None)
            return np.zeros(1)

    decoder = Decoder()
    watch = StepWatch(decoder)
    for rows in (1, 2, 2, 2, 2, 1):
        decoder.score([0] * rows, [0] * rows)
        tick(0.002 if rows == 2 else 0.5)
    assert watch.share(2) == pytest.approx({"% outside ONNX Runtime": 20, "ms outside": 2, "ms per step": 10})


def test_results_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    found = results(series("ours q4", samples=(1.5, 2.5)))
    found.notes.append("NOT MEASURED")
    found.save(tmp_path / "a.json")
    assert Results.load(tmp_path / "a.json") == found


def test_runs_shown_together_are_not_taken_for_turns() -> None:
    both = merge([results(series("ours q4", samples=(2,))), results(series("llama.cpp Q4_0", samples=(1,)))])
    assert ">= 1 met | no" in render(both)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "series": [{}]}'])
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BenchError, match=r"a\.json"):
        Results.load(tmp_path / "a.json")


def test_compare_tells_what_changed_by_more_than_the_noise() -> None:
    before = results(series("ours q4", samples=(10, 10.1)), series("ours q8", samples=(10, 20)), series("ours f32"))
    after = results(series("ours q4", samples=(8, 8.1)), series("ours q8", samples=(18, 18)))
    after.machine["cpu"] = "B"
    text = compare(before, after)
    assert "machines differ (A; B)" in text
    lines = [line for line in text.splitlines() if "ours" in line]
    assert len(lines) == 2
    assert "0.80" in lines[0]
    assert "WORSE" in lines[0]
    assert "better" not in lines[1]  # 1.2 times as good, but the samples differ by more
    assert "nothing in common" in compare(before, results())


def test_compare_and_its_errors_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results(series("ours q4")).save(tmp_path / "a.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    assert "| ours q4 |" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "error:" in capsys.readouterr().err


def test_tables_are_markdown_with_aligned_columns() -> None:
    assert table(["a", "long name"], [["x|y", "1"]]).splitlines() == [
        "| a    | long name |",
        "| ---- | --------- |",
        "| x\\|y | 1         |",
    ]


def test_every_part_has_cases_and_quick_ones_are_fewer() -> None:
    for part in PARTS:
        assert 1 <= len(list(QUICK.cases(part))) <= len(list(Plan().cases(part)))
    assert [case.value for case in Plan().cases("batch")] == [1, 2, 4, 8, 16]


# Peers.


def test_speed_is_read_from_llama_bench() -> None:
    assert llama.bench_speed('warning: x\n[\n {"n_prompt": 512, "avg_ts": 174.5}\n]\n') == 174.5


LOG = """\
0.02.098.591 I main: loading model: page-Q8_0.gguf
0.02.149.641 I encoding mtmd batch, n_chunks = 3 (done = 1, total = 6)
0.34.075.838 I mtmd batch encoding done in 12000 ms
0.34.075.838 I mtmd batch encoding done in 4300 ms
0.40.152.292 I llama_perf_context_print: prompt eval time =   20000.00 ms /   908 tokens (  132.77 ms per token)
0.40.152.298 I llama_perf_context_print:        eval time =   10500.00 ms /   399 runs   (  136.83 ms per token)
"""


def test_a_page_of_llama_cpp_is_vision_and_prefill_and_decode() -> None:
    found = llama.page_times(LOG, 42.098, 400)
    assert found == pytest.approx({"s": 40.0, "s vision": 16.3, "s prefill": 13.2, "s decode": 10.5})
    with pytest.raises(BenchError, match="399 tokens instead of 500"):
        llama.page_times(LOG, 42, 500)
    with pytest.raises(BenchError, match="no times"):
        llama.page_times("failed to load", 42, 400)


def test_a_missing_llama_cpp_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="build-llama"):
        llama.find(tmp_path)


@pytest.mark.parametrize(("type_name", "tolerance"), [("F32", 0.0), ("Q8_0", 0.01), ("Q4_0", 0.15)])
def test_a_gguf_file_holds_the_checkpoints_decoder(
    random_checkpoint: Path, tmp_path: Path, type_name: str, tolerance: float
) -> None:
    gguf = pytest.importorskip("gguf")
    from export.checkpoint import Checkpoint
    from tools.bench.gguf_writer import decoder_tensors, write_decoder
    from tools.checkpoints import Sizes

    path = write_decoder(random_checkpoint, tmp_path / "decoder.gguf", type_name)
    assert [file.name for file in tmp_path.iterdir()] == ["decoder.gguf"]
    reader = gguf.GGUFReader(path)
    checkpoint, sizes = Checkpoint(random_checkpoint), Sizes()

    def key(name: str) -> object:
        return reader.fields[name].contents()

    assert key("general.architecture") == "deepseek2-ocr"
    assert key("deepseek2-ocr.block_count") == sizes.layers
    assert key("deepseek2-ocr.expert_used_count") == sizes.top_k
    assert key("deepseek2-ocr.attention.key_length") == sizes.hidden // sizes.heads
    assert key("deepseek2-ocr.vocab_size") == sizes.vocabulary
    assert key("tokenizer.ggml.model") == "no_vocab"

    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = {tensor.name: tensor for tensor in decoder_tensors(checkpoint)}
    assert found.keys() == expected.keys()
    assert {"token_embd.weight", "output.weight", "blk.0.ffn_up.weight", "blk.1.ffn_gate_inp.weight"} <= found.keys()
    assert tuple(found["blk.1.ffn_down_exps.weight"].shape) == (sizes.expert_mlp, sizes.hidden, sizes.experts)
    used = {name for tensor in expected.values() for name in tensor.sources}
    vision = ("model.sam_model", "model.vision_model", "model.projector", "model.image_newline", "model.view_seperator")
    assert used == {name for name in checkpoint.tensors if not name.startswith(vision)}
    for name, tensor in expected.items():
        parts = [checkpoint.load(source).astype(np.float32) for source in tensor.sources]
        original = np.stack(parts) if len(parts) > 1 else parts[0]
        stored = gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(original.shape)
        error = np.linalg.norm(stored - original) / np.linalg.norm(original)
        assert error <= (tolerance if tensor.quantised else 0), name


def test_an_unknown_gguf_type_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tools.bench.gguf_writer import write_decoder

    with pytest.raises(BenchError, match="Q9"):
        write_decoder(random_checkpoint, tmp_path / "x.gguf", "Q9")


# Ours.


def test_an_endless_copy_has_no_end_token_and_leaves_the_export_alone(
    random_model_folder: Path, tmp_path: Path
) -> None:
    copy = endless_copy(random_model_folder, tmp_path / "copy")
    assert Manifest.load(copy).tokens.eos == ()
    assert Manifest.load(random_model_folder).tokens.eos
    Manifest.load(copy).verify(copy)


def test_a_pages_picture_is_another_one_each_time() -> None:
    assert page_image(QUICK).size == QUICK.page
    assert page_image(QUICK).tobytes() != page_image(QUICK).tobytes()
    assert page_image(QUICK, 1).tobytes() == page_image(QUICK, 1).tobytes()


def test_the_small_parts_run_on_a_small_model(
    random_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    parts = "load,vision,prefill,decode,batch,overhead,page"
    arguments = ["run", "--model", str(random_model_folder), "--parts", parts, "--quick", "--rounds", "2"]
    assert main([*arguments, "--json", str(out)]) == 0
    found = Results.load(out)
    assert found.notes == []
    assert {one.part for one in found.series} == set(parts.split(","))
    assert all(len(one.samples) == 2 and min(one.samples) > 0 for one in found.series)
    assert json.loads(out.read_text())["machine"]["cores"]
    assert vision_dtype(random_model_folder, Manifest.load(random_model_folder)) == "f32"
    text = capsys.readouterr().out
    assert "ours vision f32" in text
    assert "the same, 1 row" in text
    assert not list(random_model_folder.parent.glob(".bench-*"))


def test_the_second_family_is_measured_beside_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.paddle_checkpoints import write_paddle_checkpoint

    monkeypatch.setattr("tools.bench.turns.PAUSE", 0)
    checkpoint = write_paddle_checkpoint(tmp_path / "checkpoint")
    parts = "export,load,vision,prefill,decode,page"
    arguments = ["run", "--full", str(checkpoint), "--dtypes", "q8", "--peers", "transformers", "--torch-dtypes", "f32"]
    arguments += ["--threads", "1"]
    out = tmp_path / "run.json"
    assert main([*arguments, "--parts", parts, "--quick", "--rounds", "1", "--json", str(out)]) == 0
    found = Results.load(out)
    assert found.notes == []
    measured = {(one.part, one.contender.partition(" ")[0]) for one in found.series}
    both = {(part, who) for part in ("vision", "prefill", "decode", "page") for who in ("ours", "transformers")}
    assert measured == both | {("export", "ours"), ("load", "ours")}
    assert Manifest.load(tmp_path / "checkpoint-bench" / "exports" / "q8").family == "paddleocr-vl"
    assert "transformers f32" in capsys.readouterr().out


def test_nothing_to_measure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--parts", "load"]) == 1
    assert "--model" in capsys.readouterr().err


def test_a_long_answer_of_a_model_with_a_window_has_rows_and_a_cache_that_stays(
    tmp_path: Path, export_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.bench.answer import Answer
    from tools.checkpoints import write_random_checkpoint
    from tools.unlimited_checkpoints import UNLIMITED_OCR, UnlimitedSizes

    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", UnlimitedSizes(window=16), layout=UNLIMITED_OCR)
    folder = export_checkpoint(checkpoint, model_id="unlimited-ocr", family="unlimited-ocr")
    out = tmp_path / "bench.json"
    arguments = ["run", "--model", str(folder), "--parts", "answer", "--quick", "--rounds", "1", "--json", str(out)]
    assert main(arguments) == 0
    series = [one for one in Results.load(out).series if one.part == "answer"]
    caches = {(one.contender, one.value): one.samples for one in series if one.metric == "MB of cache"}
    assert caches["ours f32", 20] == caches["ours f32", 90]
    assert len(caches) == 4
    assert all(one.samples[0] > 0 for one in series)
    monkeypatch.setattr("runtime.kv_cache.FIRST_CAPACITY", 32)
    grown = {
        (full, tokens): subject.sample("answer", tokens)["MB of cache"]
        for full in (False, True)
        for subject in [Answer(folder, 1, QUICK, full_attention=full)]
        for tokens in (20, 90)
    }
    assert grown[False, 20] == grown[False, 90] < grown[True, 90]
    assert grown[True, 20] < grown[True, 90]


def test_every_token_of_a_long_answer_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime import decoder, providers
    from tools.bench import answer

    fed: list[tuple[int, int]] = []

    class Decoder:
        cache_bytes = 1

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def make_room(self, length: int, rows: int) -> None: ...

        def embed(self, tokens: list[int]) -> list[int]:
            return tokens

        def prefill(self, row: int, prompt: list[int], window: int | None) -> None:
            fed.clear()
            assert (len(prompt), window) == (QUICK.prefills[-1], 16)

        def score(self, tokens: list[int], lengths: list[int], positions: list[int]) -> None:
            fed.append((lengths[0], positions[0]))

    monkeypatch.setattr(decoder, "Decoder", Decoder)
    monkeypatch.setattr(providers, "find_device", lambda *_: None)
    sizes = SimpleNamespace(sizes=SimpleNamespace(window=16, vocabulary=50))
    monkeypatch.setattr(answer.Manifest, "load", lambda folder: sizes)
    subject = answer.Answer(Path(), 1, QUICK, full_attention=False)
    prompt = QUICK.prefills[-1]
    subject.prepare("answer", 20)
    for tokens in (20, 90, 20):
        assert subject.sample("answer", tokens)["tokens/s"] > 0
        assert fed == [(prompt + min(step, 15), prompt + step) for step in range(tokens)]


def test_a_layout_detector_is_measured_beside_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.layout_checkpoints import write_layout_checkpoint

    folder = write_detector(tmp_path / "detector", [("text", (0.1, 0.1, 0.9, 0.9), 0.9)])
    checkpoint = write_layout_checkpoint(tmp_path / "checkpoint", "v3")
    out = tmp_path / "out.json"
    arguments = ["--layout", folder, "--layout-checkpoint", checkpoint, "--parts", "layout", "--rounds", "1", "--quick"]
    arguments += ["--threads", "1"]
    assert main(["run", *map(str, arguments), "--json", str(out)]) == 0
    found = {(one.contender, one.metric) for one in Results.load(out).series}
    assert found == {(name, metric) for name in ("ours, layout", "transformers f32, layout")
                     for metric in ("s", "CPU s", "GB peak")}  # fmt: skip
    assert "700 x 500" in capsys.readouterr().out
