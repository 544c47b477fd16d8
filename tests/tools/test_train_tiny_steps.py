"""The training loop of the built-in model; a micro model stands in for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("transformers", reason="training needs the export extra")


from tests.tools.micro import MICRO, MICRO_STAGES, same  # noqa: E402
from tools.train_tiny import __main__ as commands  # noqa: E402
from tools.train_tiny.batches import Pages  # noqa: E402
from tools.train_tiny.checkpoint import read_spec  # noqa: E402
from tools.train_tiny.curriculum import Canvas, Stage, stage_of  # noqa: E402
from tools.train_tiny.muon import FloatMuon  # noqa: E402
from tools.train_tiny.packed import Packed, WrongPages, pack  # noqa: E402
from tools.train_tiny.train import Trainer, TrainOptions, averaged_model  # noqa: E402


def micro_options(folder: Path, **changes: object) -> TrainOptions:
    """Return options for a few steps in this process."""
    options = TrainOptions(
        run_dir=folder, steps=6, warmup=1, log_every=1, save_every=3, threads=torch.get_num_threads()
    )
    return replace(options, **changes)


def test_steps_on_one_batch_reduce_both_losses(tmp_path: Path) -> None:
    stages = MICRO_STAGES[1:]
    trainer = Trainer(micro_options(tmp_path), stages, MICRO)
    batch = Pages(stages, MICRO, 0)[0]
    reports = [trainer.train_step(batch) for _ in range(12)]
    assert reports[-1]["text"] < 0.8 * reports[0]["text"]
    assert reports[-1]["probe"] < 0.9 * reports[0]["probe"]


def test_the_decoder_rests_while_the_vision_tower_trains_alone(tmp_path: Path) -> None:
    trainer = Trainer(micro_options(tmp_path), MICRO_STAGES, MICRO)
    before = trainer.masters["model.language_model.layers.0.self_attn.o_proj.weight"].clone()
    report = trainer.train_step(Pages(MICRO_STAGES, MICRO, 0)[0])
    after = trainer.masters["model.language_model.layers.0.self_attn.o_proj.weight"]
    assert "text" not in report
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)  # weight decay alone


def test_only_the_decoder_changes_while_it_trains_alone(tmp_path: Path) -> None:
    stages = (replace(MICRO_STAGES[1], trained="decoder"),)
    trainer = Trainer(micro_options(tmp_path), stages, MICRO)
    before = {name: value.clone() for name, value in trainer.masters.items()}
    batch = Pages(stages, MICRO, 0)[0]
    reports = [trainer.train_step(batch) for _ in range(12)]
    changed = {name for name, value in trainer.masters.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("model.language_model.", "lm_head."))}
    assert reports[-1]["text"] < 0.8 * reports[0]["text"]
    assert "probe" not in reports[0]


def test_muon_in_float32_is_torch_s_but_for_rounding() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    options = {"lr": 0.02, "weight_decay": 0.02, "adjust_lr_fn": "match_rms_adamw"}
    optimisers = FloatMuon([ours], **options), torch.optim.Muon([theirs], **options)
    for _ in range(4):
        ours.grad = torch.randn(24, 40)
        theirs.grad = ours.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)
    assert (ours - 1).abs().max() > 0.02


def test_a_resumed_run_goes_on_exactly(tmp_path: Path) -> None:
    whole = Trainer(micro_options(tmp_path / "whole"), MICRO_STAGES, MICRO)
    whole.run(workers=0)
    Trainer(micro_options(tmp_path / "parts", steps=3), MICRO_STAGES, MICRO).run(workers=0)
    rest = Trainer(micro_options(tmp_path / "parts"), MICRO_STAGES, MICRO)
    rest.load(torch.load(tmp_path / "parts/state.pt", weights_only=True))
    rest.run(workers=0)
    assert rest.step == whole.step == 6
    for name, value in whole.masters.items():
        assert torch.equal(value, rest.masters[name]), name
    logs = [(tmp_path / part / "log.jsonl").read_text(encoding="utf-8").splitlines() for part in ("whole", "parts")]
    assert len(logs[0]) == len(logs[1]) == 6
    averaged = averaged_model(torch.load(tmp_path / "parts/state.pt", weights_only=True), MICRO)
    assert torch.equal(averaged.lm_head.weight, rest.average["lm_head.weight"])


def test_every_second_step_sees_the_decoder_in_few_bits_and_moves_what_stands_behind_it(tmp_path: Path) -> None:
    stages = MICRO_STAGES[1:]
    trainer = Trainer(micro_options(tmp_path, bits=4, dtype="float32"), stages, MICRO)
    batch = Pages(stages, MICRO, 0)[0]

    def few_valued() -> set[str]:
        """Names of working weights with no more than sixteen values in the 32 channels of a block."""
        matrices = {name: value for name, value in trainer.working.items() if value.ndim > 1 and value.shape[-1] >= 32}
        return {
            name
            for name, value in matrices.items()
            if all(len(row[:32].unique()) <= 16 for row in value.flatten(0, -2))
        }

    trainer.train_step(batch)
    rounded, before = few_valued(), {name: value.clone() for name, value in trainer.masters.items()}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in rounded if "weight" in name} >= {"q_proj", "lm_head"}
    assert any(name.endswith("experts.gate_up_proj") for name in rounded)
    assert not any("mlp.gate." in name or "vision" in name for name in rounded)
    report = trainer.train_step(batch)  # at the rounded weights
    assert not few_valued() & rounded
    assert all(not torch.equal(trainer.masters[name], before[name]) for name in rounded)
    assert all(torch.equal(trainer.working[name].view_as(value), value) for name, value in trainer.masters.items())
    for _ in range(10):
        last = trainer.train_step(batch)
    assert last["text"] < 0.8 * report["text"]


def test_stages_follow_each_other_and_the_last_goes_on() -> None:
    stages = [MICRO_STAGES.index(stage_of(MICRO_STAGES, step)) for step in (0, 1, 2, 101, 10_000)]
    assert stages == [0, 0, 1, 1, 1]


def test_a_run_goes_on_and_is_written_in_the_tiles_that_it_was_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "TinySpec", lambda: MICRO)
    larger = replace(MICRO, image_size=96)
    Trainer(micro_options(tmp_path, steps=1), MICRO_STAGES, larger).run(workers=0)
    words = ["export", "--run-dir", str(tmp_path), "--export", str(tmp_path / "written")]
    arguments = commands.command_line().parse_args(words)
    arguments.action(arguments)
    assert read_spec(tmp_path / "written") == larger
    other = commands.command_line().parse_args(["train", "--run-dir", str(tmp_path), "--steps", "2"])
    with pytest.raises(SystemExit, match="in tiles of 96 pixels, not 64; --tile 96"):
        other.action(other)


def test_packed_batches_are_the_rendered_ones_and_train_the_same(tmp_path: Path) -> None:
    pages = Pages(MICRO_STAGES, MICRO, 0)
    pack(pages, tmp_path / "pages", 0, 6, workers=2)
    read = Packed(pages, tmp_path / "pages")
    for step in range(6):
        rendered, packed = pages[step], read[step]
        assert same(rendered, packed)
        assert torch.equal(rendered.labels, packed.labels)
        assert torch.equal(rendered.probe, packed.probe)
        assert (rendered.trained, rendered.patches_grid) == (packed.trained, packed.patches_grid)
    tiled = Pages((Stage(9, ((1.0, Canvas(64, 2, (20, 30), 1, tiles=(2, 1))),), {"letters": 1.0}),), MICRO, 0)
    pack(tiled, tmp_path / "tiled", 0, 1, workers=0)
    assert torch.equal(Packed(tiled, tmp_path / "tiled")[0].pixel_values_local, tiled[0].pixel_values_local)
    trainers = [Trainer(micro_options(tmp_path / "a"), MICRO_STAGES, MICRO)]
    trainers.append(Trainer(micro_options(tmp_path / "b", packed=tmp_path / "pages"), MICRO_STAGES, MICRO))
    for trainer in trainers:
        trainer.run(workers=0)
    for name, value in trainers[0].masters.items():
        assert torch.equal(value, trainers[1].masters[name]), name


def test_packed_batches_of_another_seed_and_missing_steps_are_refused(tmp_path: Path) -> None:
    pack(Pages(MICRO_STAGES, MICRO, 0), tmp_path, 0, 1, workers=0)
    with pytest.raises(WrongPages, match="another curriculum, model, seed or scale"):
        Packed(Pages(MICRO_STAGES, MICRO, 1), tmp_path)
    with pytest.raises(WrongPages, match="no batch for step 1"):
        Packed(Pages(MICRO_STAGES, MICRO, 0), tmp_path)[1]
    with pytest.raises(WrongPages, match="holds no packed pages"):
        Packed(Pages(MICRO_STAGES, MICRO, 0), tmp_path / "nothing")


def test_the_rate_falls_to_zero_over_the_last_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(micro_options(tmp_path, minutes=10, decay_minutes=4), MICRO_STAGES, MICRO)
    trainer.step = 50
    rates = []
    for minute in (0, 5, 6, 8, 10, 12):
        monkeypatch.setattr("time.monotonic", lambda now=trainer.started + 60 * minute: now)
        rates.append(trainer.learning_rate() / 3e-3)
    assert rates == pytest.approx([1, 1, 1, 0.5, 0, 0], abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of PyTorch")
def test_a_gpu_computes_the_losses_that_the_processor_does(tmp_path: Path) -> None:
    stages = MICRO_STAGES[1:]
    batch = Pages(stages, MICRO, 0)[0]
    reports = []
    for device in ("cpu", "cuda"):
        trainer = Trainer(micro_options(tmp_path / device, device=device, dtype="float32"), stages, MICRO)
        reports.append([trainer.train_step(batch) for _ in range(3)])
    for on_cpu, on_gpu in zip(*reports, strict=True):
        assert on_gpu["text"] == pytest.approx(on_cpu["text"], rel=1e-2)
        assert on_gpu["probe"] == pytest.approx(on_cpu["probe"], rel=1e-2)
    Trainer(micro_options(tmp_path / "half", device="cuda"), stages, MICRO).run(workers=0)
