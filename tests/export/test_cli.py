"""``ocr-onnx export``: what is asked for on the command line and in config.toml is what is exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from export import cli, pipeline
from export.export_errors import ExportError
from export.source import Source
from models.catalog import CATALOG, DTYPES
from models.families import FAMILIES
from models.manifest import Manifest
from tests.export.jobs import TINY, WEIGHTS, edit_json
from tools.checkpoints import write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "checkpoint", TINY)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text("")
    return file


@pytest.fixture
def jobs(monkeypatch) -> list[pipeline.Job]:
    """Note the jobs instead of doing them."""
    asked: list[pipeline.Job] = []
    monkeypatch.setattr(pipeline, "export_model", lambda job, report: asked.append(job))
    return asked


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_help_names_every_option_with_an_example_and_the_environment(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "MODEL_ID", "--source", "--revision", "--dtype", "--output", "--config", "--force", "--offline", "--tokenizer",
        "--weights", "--model-config", "ocr-onnx export deepseek-ocr", "HF_HOME", "HF_TOKEN", "ModelScope",
        *pipeline.DTYPES,
    ):  # fmt: skip
        assert word in text


def test_help_names_every_model_that_can_be_exported(capsys) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    ids = [entry.id for entry in CATALOG.values() if FAMILIES[entry.family].supported]
    assert {"deepseek-ocr", "deepseek-ocr-2", "unlimited-ocr", "paddleocr-vl-1.6", "tiny-ocr"} <= set(ids)
    told = " ".join(capsys.readouterr().out.split())  # argparse wraps its lines
    assert f"a built-in id ({', '.join(ids)}) or" in told


def test_help_needs_none_of_the_exporters_packages() -> None:
    blocked = "import sys; sys.modules.update(torch=None, onnx_ir=None, safetensors=None)"
    program = f"{blocked}\nfrom export.cli import main; main(['-h'])"
    help_ = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert help_.returncode == 0, help_.stderr


def test_without_the_exporters_packages_the_install_command_is_named(config, checkpoint) -> None:
    program = "import sys; sys.modules['onnx_ir'] = None\nfrom export.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["deepseek-ocr", "--config", str(config), "--source", str(checkpoint)]
    export = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert export.returncode == 1
    assert export.stderr.startswith("error: exporting needs more packages (")
    assert "onnx_ir" in export.stderr
    assert "pip install 'ocr-onnx[export,cpu]'" in export.stderr


def test_a_checkpoint_is_exported_to_the_named_folder(config, checkpoint, tmp_path, capsys) -> None:
    target = tmp_path / "out"
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", target) == 0
    manifest = Manifest.load(target)
    manifest.verify(target)
    assert (manifest.id, manifest.family, manifest.dtype) == ("deepseek-ocr", "deepseek-ocr", "f32")
    assert f"published {target}" in capsys.readouterr().err
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", target) == 0
    assert f"{target} is there already; --force" in capsys.readouterr().err
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", target, "--force") == 0
    assert f"published {target}" in capsys.readouterr().err


def test_the_default_folder_is_in_the_cache_by_model_and_dtype(config, checkpoint, jobs, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "cache"))
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--dtype", "f16") == 0
    assert jobs[0].target == tmp_path / "cache" / "models" / "deepseek-ocr" / "onnx" / "f16"


@pytest.mark.parametrize("dtype", pipeline.DTYPES)
def test_every_dtype_that_the_pipeline_has_can_be_asked_for(config, checkpoint, jobs, tmp_path, dtype) -> None:
    assert (
        run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", tmp_path / "o", "--dtype", dtype)
        == 0
    )
    assert jobs[0].dtype == dtype


def test_a_dtype_that_cannot_be_exported_is_refused_with_those_that_can(config, checkpoint, jobs, capsys) -> None:
    for dtype in sorted({*DTYPES, "f8"} - {*pipeline.DTYPES}):
        with_flag = ["deepseek-ocr", "--config", config, "--source", checkpoint, "--dtype", dtype]
        try:
            code = run(*with_flag)
        except SystemExit as error:  # argparse does not offer it
            code = error.code
        assert code != 0
        assert all(known in capsys.readouterr().err for known in pipeline.DTYPES[:1])
    config.write_text(f"[models.entries.mine]\nsource = '{checkpoint}'\ndtype = 'bf16'\n")
    if "bf16" not in pipeline.DTYPES:
        assert run("mine", "--config", config) == 1
        error = capsys.readouterr().err
        assert "bf16" in error
        assert all(known in error for known in pipeline.DTYPES)
    assert not jobs


def test_an_unknown_model_is_refused_with_the_known_ones(config, jobs, capsys) -> None:
    assert run("deepsek-ocr", "--config", config) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "deepsek-ocr" in error
    assert all(name in error for name in CATALOG)
    assert not jobs


def test_a_model_of_a_family_to_come_is_refused_by_its_family(config, checkpoint, jobs, capsys) -> None:
    config.write_text(f"[models.entries.mine]\nkind = 'hunyuan_ocr'\nsource = '{checkpoint}'\n")
    assert run("mine", "--config", config) == 1
    assert "'hunyuan-ocr', which this version does not support yet" in capsys.readouterr().err
    assert not jobs


def test_an_entry_of_config_toml_says_source_dtype_and_replaced_files(config, checkpoint, jobs, tmp_path) -> None:
    for name in ("tokenizer.json", "other.json"):
        (tmp_path / name).write_text("{}")
    config.write_text(
        f"[models.entries.mine]\nkind = 'deepseek'\nsource = '{checkpoint}'\ndtype = 'f16'\n"
        f"tokenizer = 'tokenizer.json'\nconfig = 'other.json'\nweights = 'checkpoint/{WEIGHTS}'\n"
    )
    assert run("mine", "--config", config, "--output", tmp_path / "out") == 0
    job = jobs[0]
    assert (job.model_id, job.family, job.dtype) == ("mine", "deepseek-ocr", "f16")
    assert job.source.folder == checkpoint
    assert job.tokenizer_file == tmp_path / "tokenizer.json"
    assert job.config_file == tmp_path / "other.json"
    assert job.weights == checkpoint / WEIGHTS


def test_flags_win_over_the_entry(config, checkpoint, jobs, tmp_path) -> None:
    config.write_text("[models.entries.mine]\nsource = 'somebody/model'\nrevision = 'abc'\ndtype = 'f16'\n")
    flags = ("--source", checkpoint, "--dtype", "f32", "--output", tmp_path / "out", "--force")
    assert run("mine", "--config", config, *flags, "--tokenizer", "t", "--weights", "w", "--model-config", "c") == 0
    job = jobs[0]
    assert (job.source.folder, job.dtype, job.force) == (checkpoint, "f32", True)
    assert (job.tokenizer_file, job.weights, job.config_file) == (Path("t"), Path("w"), Path("c"))


def test_replaced_files_really_go_into_the_export(config, checkpoint, tmp_path) -> None:
    other = write_random_checkpoint(tmp_path / "other", TINY, seed=3)
    edit_json(other / "config.json", lambda document: document.update(my_note="mine"))
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save(str(tmp_path / "mine.json"))
    target = tmp_path / "out"
    flags = ("--tokenizer", tmp_path / "mine.json", "--weights", other, "--model-config", other / "config.json")
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", target, *flags) == 0
    assert "my_note" in (target / "config.json").read_text()
    assert "<mine>" in (target / "tokenizer.json").read_text()
    assert run("deepseek-ocr", "--config", config, "--source", other, "--output", tmp_path / "expected") == 0
    data = "decoder.onnx.data"
    assert (target / data).read_bytes() == (tmp_path / "expected" / data).read_bytes()


def test_what_is_wrong_with_the_source_is_one_line_and_no_traceback(config, checkpoint, tmp_path, capsys) -> None:
    (checkpoint / WEIGHTS).unlink()
    target = tmp_path / "out"
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", target) == 1
    assert WEIGHTS in capsys.readouterr().err
    assert run("deepseek-ocr", "--config", config, "--source", tmp_path / "nowhere", "--output", target) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not target.exists()


def test_a_place_that_cannot_be_written_is_one_line_and_no_traceback(config, checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", tmp_path / "file" / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "file") in error


def test_a_damaged_config_toml_is_named(config, checkpoint, capsys) -> None:
    config.write_text("[models\n")
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint) == 1
    assert str(config) in capsys.readouterr().err


def test_an_interruption_says_that_nothing_was_published(config, checkpoint, tmp_path, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "check_graphs", interrupt)
    target = tmp_path / "models" / "out"
    assert run("deepseek-ocr", "--config", config, "--source", checkpoint, "--output", target) == 130
    assert "nothing was published" in capsys.readouterr().err
    assert not target.exists()
    assert not list(target.parent.glob(".*partial*"))


def test_source_revision_and_offline_reach_the_hub(config, checkpoint, jobs, tmp_path, monkeypatch) -> None:
    from export import hub

    asked = []

    def fetch(
        source: str, revision: str | None, *, offline: bool, report: object, cache: object, replaced: object
    ) -> hub.Source:
        asked.append((source, revision, offline))
        return hub.Source(checkpoint, source, "c0ffee", "huggingface")

    monkeypatch.setattr(hub, "fetch", fetch)
    config.write_text("[models.entries.mine]\nsource = 'somebody/model'\nrevision = 'v1'\n")
    out = ("--output", tmp_path / "out")
    run("mine", "--config", config, *out)
    run("mine", "--config", config, *out, "--revision", "v2", "--offline")
    run("mine", "--config", config, *out, "--source", "other/model")  # a pin of one source says nothing of another
    assert asked == [("somebody/model", "v1", False), ("somebody/model", "v2", True), ("other/model", None, False)]
    assert [job.source.revision for job in jobs] == ["c0ffee"] * 3


def test_weights_tokenizer_and_config_together_need_no_hub_and_no_cache(config, checkpoint, tmp_path) -> None:
    """As on a machine without a network: the hub's library is not even imported."""
    blocked = "import sys; sys.modules.update(huggingface_hub=None, httpx2=None)"
    program = f"{blocked}\nfrom export.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = {
        "--weights": checkpoint / WEIGHTS, "--tokenizer": checkpoint / "tokenizer.json",
        "--model-config": checkpoint / "config.json",
    }  # fmt: skip

    def export(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *map(str, arguments), "--config", str(config), "--dtype", "f32"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    by_flags = export("deepseek-ocr", "--output", tmp_path / "a", *(word for pair in flags.items() for word in pair))
    assert by_flags.returncode == 0, by_flags.stderr
    config.write_text(
        "[models.entries.deepseek-ocr]\nkind = 'deepseek'\n"
        f"weights = '{checkpoint / WEIGHTS}'\ntokenizer = '{checkpoint / 'tokenizer.json'}'\n"
        f"config = '{checkpoint / 'config.json'}'\n"
    )
    by_file = export("deepseek-ocr", "--output", tmp_path / "b")
    assert by_file.returncode == 0, by_file.stderr
    one, other = (tmp_path / name / "decoder.onnx.data" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    config.write_text("")
    two_of_three = export(
        "deepseek-ocr", "--weights", checkpoint / WEIGHTS, "--tokenizer", checkpoint / "tokenizer.json"
    )
    assert two_of_three.returncode == 1
    assert "downloading deepseek-ai/DeepSeek-OCR needs more packages" in two_of_three.stderr
    assert "pip install 'ocr-onnx[export]', or name a directory that has the model with --source" in two_of_three.stderr


# Layout detectors.


@pytest.fixture
def detectors(monkeypatch, tmp_path: Path) -> list[tuple[str, str | None, bool]]:
    """Note what detectors are fetched, (source, revision, offline), and export none."""
    from export.layout import pipeline as layout

    asked: list[tuple[str, str | None, bool]] = []

    def fetch(source: str, revision: str | None = None, *, offline: bool, **_) -> Source:
        asked.append((source, revision, offline))
        return Source(tmp_path, source, "0" * 40, "directory" if Path(source).is_dir() else "huggingface")

    monkeypatch.setattr(cli.fetching, "fetch", fetch)
    monkeypatch.setattr(layout, "require_extra", lambda: None)
    monkeypatch.setattr(layout, "export_detector", lambda job, report: made.append(job))
    made: list[layout.DetectorJob] = []
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "cache"))
    return asked


V2, V3 = (f"PaddlePaddle/PP-DocLayoutV{number}_safetensors" for number in (2, 3))


def test_a_model_brings_its_own_detector_along(jobs, detectors, config) -> None:
    for model, detector in (("paddleocr-vl", V2), ("paddleocr-vl-1.5", V3), ("paddleocr-vl-1.6", V3)):
        detectors.clear()
        assert run(model, "--config", config) == 0
        assert detectors == [
            (f"PaddlePaddle/{jobs[-1].source.name.split('/')[1]}", None, False),
            (detector, None, False),
        ]
    detectors.clear()
    assert run("deepseek-ocr", "--config", config) == 0
    assert [name for name, _, _ in detectors] == ["deepseek-ai/DeepSeek-OCR"]


def test_layout_says_which_detector_comes_along_or_that_none_does(jobs, detectors, config, tmp_path: Path) -> None:
    own = tmp_path / "my-detector"
    own.mkdir()
    for said, expected in (("v3", [V3]), ("pp-doclayout-v2", [V2]), (own, [str(own)]), ("none", [])):
        detectors.clear()
        assert run("paddleocr-vl", "--layout", said, "--offline", "--config", config) == 0
        assert detectors[1:] == [(name, None, True) for name in expected]


def test_a_detector_that_cannot_be_had_ends_a_models_export_only_where_it_was_asked_for(
    jobs, detectors, config, monkeypatch, capsys
) -> None:
    from export.layout import pipeline as layout

    def refuse() -> None:
        raise ExportError("needs more packages; install them with: pip install 'ocr-onnx[layout]'")

    monkeypatch.setattr(layout, "require_extra", refuse)
    assert run("paddleocr-vl-1.6", "--config", config) == 0
    told = capsys.readouterr().err
    assert "was not exported; whole pages need it; get it with: ocr-onnx export pp-doclayout-v3" in told
    assert "ocr-onnx[layout]" in told
    assert len(jobs) == 1
    assert run("paddleocr-vl-1.6", "--layout", "v3", "--config", config) == 1
    assert "ocr-onnx[layout]" in capsys.readouterr().err
    assert len(jobs) == 1  # it is looked at before the model, which takes minutes


def test_a_model_from_a_folder_looks_for_no_detector_in_the_network(
    jobs, detectors, config, checkpoint, capsys
) -> None:
    assert run("paddleocr-vl-1.6", "--source", checkpoint, "--config", config) == 0
    assert [name for name, _, _ in detectors] == [str(checkpoint)]
    assert "was not looked for; whole pages need it; get it with: ocr-onnx export pp-docl" in capsys.readouterr().err


def test_a_detector_is_exported_alone_by_its_id(jobs, detectors, config, tmp_path: Path) -> None:
    assert run("pp-doclayout-v3", "--revision", "abc", "--config", config) == 0
    assert run("pp-doclayout-v2", "--source", tmp_path, "--force", "--config", config) == 0
    assert detectors == [(V3, "abc", False), (str(tmp_path), None, False)]
    assert not jobs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["paddleocr-vl", "--layout", "v9"], "layout detector 'v9' is unknown; known are v2 (pp-doclayout-v2)"),
        (["pp-doclayout-v3", "--dtype", "q8"], "--dtype is of models that read; pp-doclayout-v3 is a layout detector"),
        (["pp-doclayout-v3", "--layout", "v2"], "--layout is of models that read"),
        (["pp-doclayout-v4"], "model 'pp-doclayout-v4' is not known"),
    ],
)
def test_wrong_words_about_detectors_are_errors(jobs, detectors, config, capsys, arguments, expected) -> None:
    assert run(*arguments, "--config", config) == 1
    assert expected in capsys.readouterr().err
    assert not jobs
