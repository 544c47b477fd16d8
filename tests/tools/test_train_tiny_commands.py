"""The trainer's command line, and the script that runs it on a card."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("transformers", reason="training needs the export extra")

from tests.tools.micro import MICRO
from tools.train_tiny import evaluate
from tools.train_tiny.__main__ import command_line
from tools.train_tiny.checkpoint import mean_checkpoint, read_spec, save_checkpoint
from tools.train_tiny.curriculum import STAGES, stage_of
from tools.train_tiny.evaluate import evaluate_folder
from tools.train_tiny.held_out import held_out_pages
from tools.train_tiny.model import build_model
from tools.train_tiny.views import make_views


def test_a_folder_is_measured_on_the_categories_that_are_asked_for(tmp_path: Path) -> None:
    save_checkpoint(build_model(MICRO, 0), MICRO, tmp_path)
    measured = dict(evaluate_folder(tmp_path, 1, categories=("one_line", "blank")))
    truth = held_out_pages("one_line", 1)[0].text
    assert list(measured) == ["one_line", "blank"]
    assert (measured["one_line"].pages, measured["one_line"].characters) == (1, len(truth))
    assert measured["one_line"].errors > 0  # its weights are random
    arguments = command_line().parse_args(["evaluate", str(tmp_path), "--categories", "one_line,poems"])
    with pytest.raises(SystemExit, match="no category poems; there are one_line, clean"):
        arguments.action(arguments)


def test_weights_are_measured_and_written_for_tiles_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(build_model(MICRO, 0), MICRO, tmp_path / "one")
    other = replace(MICRO, image_size=MICRO.image_size + MICRO.token_pixels)
    save_checkpoint(build_model(other, 1), other, tmp_path / "other")
    mean_checkpoint([tmp_path / "one", tmp_path / "other"], tmp_path / "mean")
    assert read_spec(tmp_path / "mean") == MICRO
    seen = []
    monkeypatch.setattr(evaluate, "make_views", lambda *given: seen.append(given[2]) or make_views(*given))
    for more in ([], ["--tile", "96"]):
        words = ["evaluate", str(tmp_path / "one"), "--pages", "1", "--categories", "one_line", *more]
        arguments = command_line().parse_args(words)
        arguments.action(arguments)
    assert seen == [64, 96]
    with pytest.raises(SystemExit):
        command_line().parse_args(["evaluate", str(tmp_path / "one"), "--tile", "200"])
    assert "200 is no multiple of 32" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="a shell script for Linux machines with a card")
def test_the_script_for_a_card_trains_from_the_last_stage_and_takes_its_results_home(tmp_path: Path) -> None:
    """Each of its commands is one that there is; a stand-in for Python writes them down and what they would leave."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/bash\n[ "$1" = -c ] && exec {shlex.quote(sys.executable)} "$@"\n'
        f'printf "%s\\n" "$(printf "%q " "${{@:3}}")" >> {tmp_path}/commands\n'
        "while [ $# -gt 0 ]; do\n"
        "  case $1 in --export) f=model.safetensors;; --run-dir) f=log.jsonl;; *) f=;; esac\n"
        '  [ -z "$f" ] || { mkdir -p "$2"; touch "$2/$f"; }\n  shift\ndone\n'
    )
    stand_in.chmod(0o755)
    script = Path(__file__).parents[2] / "tools/train_tiny/quarter_hour.sh"
    environment = {**os.environ, "PYTHON": str(stand_in), "WORK": str(tmp_path / "work")}
    subprocess.run([script, tmp_path / "out", "10"], cwd=script.parents[2], env=environment, check=True)
    commands = [
        command_line().parse_args(shlex.split(line)) for line in (tmp_path / "commands").read_text().splitlines()
    ]
    tried, trained, *others = commands
    assert stage_of(STAGES, trained.start_step) is STAGES[-1] is not stage_of(STAGES, trained.start_step - 1)
    assert tried.steps == trained.start_step + 10
    assert (trained.minutes, trained.decay_minutes, trained.device, trained.scale) == (10, 4.5, "cuda", 4)
    assert [one.action.__name__ for one in others] == ["mean", "mean", *4 * ["evaluate"]]
    home = {"after.safetensors", "half.safetensors", "two_thirds.safetensors", "log.jsonl", "scores.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == home
