"""``ocr-onnx models``, ``doctor`` and ``prune``: what they say, and what prune never touches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from models.manifest import lock_file
from server.command import doctor, prune
from tests.command.conftest import Program
from tests.detectors import write_detector


@pytest.fixture
def cache(ocr: Program, tmp_path: Path, random_model_folder: Path) -> Callable[..., Path]:
    """Put copies of an export into the program's cache: ``cache(model_id, dtype, onnx)``."""

    def put(model_id: str, dtype: str = "f32", onnx: str = "onnx") -> Path:
        folder = tmp_path / "cache/deepseek-ocr/models" / model_id / onnx / dtype
        shutil.copytree(random_model_folder, folder)
        return folder

    return put


def listed(ocr: Program) -> dict[str, Any]:
    assert ocr("models", "--json") == 0
    return {model["id"]: model for model in json.loads(ocr.out)["models"]}


def test_models_are_listed_with_their_exports(ocr: Program, cache: Callable[..., Path]) -> None:
    folder = cache("deepseek-ocr", "q8")
    broken = cache("tiny-ocr")
    (broken / "tokenizer.json").unlink()
    models = listed(ocr)
    assert models["deepseek-ocr"]["supported"] is True
    assert models["hunyuan-ocr"]["supported"] is False
    (export,) = models["deepseek-ocr"]["exports"]
    assert (export["dtype"], export["folder"], export["problem"]) == ("q8", str(folder), None)
    assert export["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert "tokenizer.json is missing" in models["tiny-ocr"]["exports"][0]["problem"]
    assert ocr("models") == 0
    assert "tasks: markdown (default), ocr, free" in ocr.out
    assert f"exported: q8, {export['bytes'] / 1e6:.1f} MB" in ocr.out
    assert "unusable: " in ocr.out
    assert "hunyuan-ocr  (this version cannot use it yet)" in ocr.out


@pytest.fixture
def detector(ocr: Program, tmp_path: Path) -> Path:
    """The export of a layout detector in the program's cache."""
    folder = tmp_path / "cache/deepseek-ocr/models/pp-doclayout-v3/onnx/f32"
    return write_detector(folder, [("text", (0.1, 0.1, 0.9, 0.9), 0.9)])


def test_layout_detectors_are_listed_with_their_exports(ocr: Program, detector: Path) -> None:
    assert ocr("models", "--json") == 0
    told = json.loads(ocr.out)
    v2, v3 = told["layout_detectors"]
    assert (v2["id"], v2["name"], v2["exports"]) == ("pp-doclayout-v2", "v2", [])
    (export,) = v3["exports"]
    assert (export["folder"], export["problem"], export["devices"]) == (str(detector), None, ["cpu"])
    assert told["others"] == []
    layouts = {model["id"]: model["layout"] for model in told["models"]}
    assert (layouts["paddleocr-vl"], layouts["paddleocr-vl-1.6"]) == ("pp-doclayout-v2", "pp-doclayout-v3")
    assert layouts["deepseek-ocr"] is None
    assert ocr("models") == 0
    assert "pp-doclayout-v3  (layout detector)" in ocr.out
    assert "not exported; by hand: ocr-onnx export pp-doclayout-v2" in ocr.out


def test_layout_detectors_are_looked_after_as_models_are(ocr: Program, detector: Path) -> None:
    assert ocr("prune", "--yes") == 0
    assert "nothing to remove" in ocr.out
    (detector / "layout.onnx").write_bytes(b"cut off")
    assert ocr("doctor", "--quick") == 1
    assert "layout.onnx is 7 bytes" in ocr.out
    assert "ocr-onnx export pp-doclayout-v3 --force, or ocr-onnx prune" in ocr.out
    assert ocr("prune", "--yes") == 0
    assert not detector.exists()


def test_a_layout_detector_is_pruned_when_it_is_named(ocr: Program, detector: Path) -> None:
    assert ocr("prune", "pp-doclayout-v3", "--yes") == 0
    assert not detector.exists()


def test_models_of_config_toml_are_listed_and_forgotten_ones_too(
    ocr: Program, cache: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("[models.entries.invoices]\nsource = 'x/y'\n")
    cache("gone")
    assert listed(ocr)["invoices"]["source"] == "x/y"
    assert [one["dtype"] for one in json.loads(ocr.out)["others"]] == ["f32"]
    assert ocr("models") == 0
    assert "gone  (config.toml does not name it any more)" in ocr.out


def test_a_config_toml_that_cannot_be_read_is_explained(ocr: Program, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[what]\n")
    for name in ("models", "prune"):
        assert ocr(name) == 1
        assert "config.toml: what: unknown key" in ocr.err
    assert ocr("doctor") == 1  # and nothing is tried
    assert "!!    config.toml" in ocr.out


# Doctor.


def checks(ocr: Program, *more: str) -> dict[str, dict[str, Any]]:
    code = ocr("doctor", "--json", "--quick", *more)
    report = json.loads(ocr.out)
    assert code == (0 if report["ok"] else 1)
    return {check["name"]: check for check in report["checks"]}


def test_the_doctor_names_versions_devices_and_disk(ocr: Program) -> None:
    pytest.importorskip("onnxruntime")
    found = checks(ocr)
    assert "CPUExecutionProvider" in found["onnxruntime"]["found"]
    assert found["--device cpu"]["state"] == "ok"
    assert "pypdfium2" in found["packages"]["found"]
    assert "free for the cache" in found["disk"]["found"]
    assert ocr("doctor", "--quick") == 0
    assert "nothing is broken" in ocr.out


def test_the_doctor_says_how_to_mend_what_is_missing(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_for_export", lambda: ["safetensors"])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=5e8))
    monkeypatch.setattr(doctor, "nvidia_cards", lambda: ["NVIDIA H100, 80 GB, 600.1"])
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "falcon" else "1.0")
    found = checks(ocr)
    assert found["exporter"]["remedy"] == "pip install 'ocr-onnx[export]'"
    assert found["disk"]["state"] == "problem"
    assert "ocr-onnx prune" in found["disk"]["remedy"]
    assert found["packages"]["remedy"] == "pip install falcon"
    # Both builds "are installed" in this made-up machine.
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found["onnxruntime"]["remedy"]


def test_a_gpu_without_its_build_is_a_problem(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    monkeypatch.setattr(doctor, "nvidia_cards", lambda: ["NVIDIA H100, 80 GB, 600.1"])
    found = checks(ocr)
    assert found["gpu"]["state"] == "ok"
    assert found["--device cuda"]["state"] == "problem"
    assert "pip install 'ocr-onnx[cuda]'" in found["--device cuda"]["remedy"]


def test_without_onnx_runtime_the_doctor_still_answers(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "runtime.providers", raising=False)
    assert checks(ocr)["onnxruntime"]["remedy"] == "pip install 'ocr-onnx[cpu]'"


def test_the_doctor_compares_hashes_when_asked(ocr: Program, cache: Callable[..., Path]) -> None:
    folder = cache("deepseek-ocr")
    assert checks(ocr, "--verify")["deepseek-ocr f32"]["state"] == "ok"
    file = folder / "tokenizer.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert checks(ocr)["deepseek-ocr f32"]["state"] == "ok"  # sizes agree
    found = checks(ocr, "--verify")["deepseek-ocr f32"]
    assert found["state"] == "problem"
    assert found["remedy"] == "ocr-onnx export deepseek-ocr --dtype f32 --force, or ocr-onnx prune deepseek-ocr"


def test_the_doctor_names_commands_that_can_work(ocr: Program, cache: Callable[..., Path]) -> None:
    for model_id in ("deepseek-ocr", "forgotten"):
        (cache(model_id) / "tokenizer.json").unlink()
    found = checks(ocr)
    again = "ocr-onnx export deepseek-ocr --dtype f32 --force, or ocr-onnx prune"
    assert found["deepseek-ocr f32"]["remedy"] == again
    assert found["forgotten f32"]["remedy"] == "ocr-onnx prune"  # nobody knows where it came from


def test_the_doctor_reads_a_line_with_the_built_in_model(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    assert ocr("doctor") == 0
    assert "tiny-ocr read 'Hello 2026'" in ocr.out
    assert ocr.out.endswith("nothing is broken\n")
    monkeypatch.setattr(doctor, "SAMPLE", "Farewell")  # drawn, and read; but the model is given another name
    monkeypatch.setattr(doctor, "TRIED", "no-such-model")
    assert ocr("doctor") == 1
    assert "no-such-model did not read a line: model 'no-such-model' is not known" in ocr.out
    assert "nothing is broken" not in ocr.out


# Prune.


def test_prune_takes_what_nobody_needs_and_leaves_the_rest(
    ocr: Program, cache: Callable[..., Path], tmp_path: Path
) -> None:
    kept = [cache("deepseek-ocr"), cache("deepseek-ocr", "q8")]
    forgotten, replaced, broken = cache("gone"), cache("deepseek-ocr", "f32", "onnx-0123abcd"), cache("tiny-ocr")
    (broken / "manifest.json").write_text("{}")
    partial = kept[0].parent / ".f32.partial-abc"
    partial.mkdir()
    (partial / "decoder.onnx.data").write_bytes(b"x" * 1000)
    others = [kept[0].parent / "notes", tmp_path / "cache/deepseek-ocr/models/.hidden/onnx/f32"]
    for other in others:
        other.mkdir(parents=True)
        (other / "manifest.json").write_text("{}")
    assert ocr("prune", "--dry-run") == 0
    assert "nothing was removed" in ocr.out
    assert partial.exists()
    assert ocr("prune", "--yes") == 0
    for folder, words in (
        (forgotten, "does not name this model any more"), (replaced, "made from replaced files"),
        (broken, "cannot be used"), (partial, "did not end"),
    ):  # fmt: skip
        assert f"{folder}\n{'':12}" in ocr.out
        assert words in ocr.out
        assert not folder.exists()
    assert all(folder.is_dir() for folder in [*kept, *others])
    assert ocr("prune", "--yes") == 0
    assert ocr.out == "nothing to remove\n"


def test_prune_takes_models_that_are_named(ocr: Program, cache: Callable[..., Path]) -> None:
    plain, q8, tiny, forgotten = (
        cache("deepseek-ocr"), cache("deepseek-ocr", "q8"), cache("tiny-ocr"), cache("gone"),
    )  # fmt: skip
    assert ocr("prune", "deepseek-ocr-q8", "--yes") == 0
    assert [folder.exists() for folder in (plain, q8, tiny, forgotten)] == [True, False, True, True]
    assert ocr("prune", "deepseek-ocr", "--yes") == 0
    assert [folder.exists() for folder in (plain, tiny)] == [False, True]
    assert ocr("prune", "nope", "--yes") == 2
    assert "model 'nope' has no export" in ocr.err
    assert ocr("prune", "--all", "--yes") == 0
    assert [folder.exists() for folder in (tiny, forgotten)] == [False, False]


def test_prune_of_named_models_leaves_what_killed_exports_of_others_left(
    ocr: Program, cache: Callable[..., Path]
) -> None:
    def killed(folder: Path) -> Path:
        partial = folder.parent / f".{folder.name}.partial-abc"
        partial.mkdir(parents=True)
        return partial

    plain, tiny = cache("deepseek-ocr"), cache("tiny-ocr")
    own, q8, other = killed(plain), killed(plain.parent / "q8"), killed(tiny)
    assert ocr("prune", "deepseek-ocr-q8", "--yes") == 0  # there is nothing but what its export left
    assert [folder.exists() for folder in (plain, own, q8, other)] == [True, True, False, True]
    assert ocr("prune", "deepseek-ocr", "--yes") == 0
    assert [folder.exists() for folder in (plain, own, other)] == [False, False, True]
    assert ocr("prune", "--all", "--yes") == 0
    assert [folder.exists() for folder in (tiny, other)] == [False, False]


def test_prune_takes_models_that_lie_behind_a_link(ocr: Program, cache: Callable[..., Path], tmp_path: Path) -> None:
    folder = cache("gone")
    models = tmp_path / "cache/deepseek-ocr/models"
    models.rename(tmp_path / "large disk")
    models.symlink_to(tmp_path / "large disk", target_is_directory=True)
    assert ocr("prune", "--yes") == 0
    assert not folder.exists(), ocr.out


def test_files_that_are_open_count_where_mapped_ones_are_not_told(
    ocr: Program, cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [SimpleNamespace(path=str(cache("gone") / "decoder.onnx"))]
    process = SimpleNamespace(pid=7, open_files=lambda: opened)  # psutil has no memory_maps on macOS
    monkeypatch.setattr(prune.psutil, "process_iter", lambda: [process])
    assert ocr("prune", "--yes") == 0
    assert "process 7 has it open" in ocr.out


def test_prune_asks_first(ocr: Program, cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache("gone")
    assert ocr("prune") == 2  # nobody to ask
    assert "say --yes" in ocr.err
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for answer, stays in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert ocr("prune") == 0
        assert folder.exists() == stays
    folder = cache("gone")

    def end(prompt: str) -> str:
        raise EOFError  # Ctrl-D

    monkeypatch.setattr("builtins.input", end)
    assert ocr("prune") == 0
    assert "nothing was removed" in ocr.out
    assert folder.exists()


def test_prune_leaves_what_an_exporter_or_a_process_holds(
    ocr: Program, cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, opened = cache("gone"), cache("lost")
    holder = (
        "import mmap, sys, time\nfile = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\nfile.close()\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(opened / "decoder.onnx")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with FileLock(lock_file(locked)):
            assert ocr("prune", "--yes") == 0
        process.kill()
    assert "an export is working on it" in ocr.out
    assert f"process {process.pid} has it open" in ocr.out
    assert locked.exists()
    assert opened.exists()
    assert ocr("prune", "--yes") == 0
    assert not locked.exists()
    assert not opened.exists()


def test_prune_never_follows_a_link_out_of_the_cache(ocr: Program, cache: Callable[..., Path], tmp_path: Path) -> None:
    outside = tmp_path / "outside/onnx/f32"
    shutil.copytree(cache("gone"), outside)
    root = tmp_path / "cache/deepseek-ocr/models"
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "half").mkdir()
    (root / "half/onnx").symlink_to(tmp_path / "outside/onnx")
    assert ocr("prune", "--all", "--yes") == 0
    assert (outside / "manifest.json").is_file()
    assert not (root / "gone/onnx/f32").exists()


def test_the_only_copy_of_an_export_is_put_back_not_removed(ocr: Program, cache: Callable[..., Path]) -> None:
    folder = cache("deepseek-ocr")
    folder.rename(folder.parent / ".f32.retired")  # an exporter was killed between its two renames
    assert ocr("prune", "--yes") == 0
    assert (folder / "manifest.json").is_file()


def test_a_folder_that_cannot_be_removed_is_said(
    ocr: Program, cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache("gone")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prune.Path, "rename", refuse)
    assert ocr("prune", "--yes") == 1
    assert f"cannot remove {folder}" in ocr.err
    assert folder.exists()


# The program itself.


def test_the_commands_are_listed_and_a_wrong_one_is_refused(ocr: Program) -> None:
    assert ocr("nope") == 2
    assert "'nope' is not one of read, layout, serve, compare, eval, models" in ocr.err
    assert ocr("--help") == 0
    for name in ("read", "layout", "serve", "compare", "eval", "models", "doctor", "prune"):
        assert f"  {name} " in ocr.out


def test_serve_is_the_server(ocr: Program) -> None:
    assert ocr("serve", "--help") == 0
    assert "ocr-onnx serve --model tiny-ocr --host 127.0.0.1" in ocr.out
    assert "--cors-origin" in ocr.out
    assert ocr("serve", "--port", "70000") == 2
    assert "expected a port number" in ocr.err


@pytest.fixture(autouse=True)
def _keep_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.logs.configure", lambda form: None)
