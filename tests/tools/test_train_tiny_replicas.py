"""Runs that train side by side and meet at their mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("transformers", reason="training needs the export extra")

from tests.tools.micro import MICRO, MICRO_STAGES  # noqa: E402
from tools.train_tiny.__main__ import command_line  # noqa: E402
from tools.train_tiny.train import Trainer, TrainOptions  # noqa: E402


def trained(folder: Path, seed: int, steps: int) -> Trainer:
    options = TrainOptions(folder, seed, steps, warmup=1, log_every=1, threads=torch.get_num_threads())
    trainer = Trainer(options, MICRO_STAGES[1:], MICRO)
    trainer.run(workers=0)
    return trainer


def test_joined_runs_go_on_from_the_mean_of_weights_and_moments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (trained(tmp_path / name, seed, 2) for seed, name in enumerate(("one", "other")))
    arguments = command_line().parse_args(["join", str(tmp_path / "one"), str(tmp_path / "other")])
    arguments.action(arguments)
    assert capsys.readouterr().out == "2 runs go on from their mean at step 2\n"
    joined, again = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("one", "other"))
    for name, value in joined["masters"].items():
        torch.testing.assert_close(again["masters"][name], value, rtol=0, atol=0)
        torch.testing.assert_close(value, (one.masters[name] + other.masters[name]) / 2)
        torch.testing.assert_close(joined["average"][name], (one.average[name] + other.average[name]) / 2)
    adam = [trainer.state()["optimisers"][1]["state"][0]["exp_avg_sq"] for trainer in (one, other)]
    torch.testing.assert_close(joined["optimisers"][1]["state"][0]["exp_avg_sq"], (adam[0] + adam[1]) / 2)
    assert joined["images"] == one.images
    further = Trainer(replace(one.options, steps=3), MICRO_STAGES[1:], MICRO)
    further.load(joined)
    further.run(workers=0)
    assert further.step == 3


def test_runs_at_different_steps_are_named_and_left_alone(tmp_path: Path) -> None:
    trained(tmp_path / "one", 0, 1)
    trained(tmp_path / "other", 1, 2)
    before = [(tmp_path / name / "state.pt").read_bytes() for name in ("one", "other")]
    arguments = command_line().parse_args(["join", str(tmp_path / "one"), str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"one at step 1, .*other at step 2; let all of them train to one step"):
        arguments.action(arguments)
    assert [(tmp_path / name / "state.pt").read_bytes() for name in ("one", "other")] == before
