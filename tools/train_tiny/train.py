"""The training loop: working weights in bfloat16 (float32 where that is faster) with float32 masters, Muon on the
matrices and AdamW on the rest, resumable.

Two losses: the next character given the page and the text so far, and a reading probe, a linear layer that names the
characters under each vision token. The probe teaches the vision tower to read before the decoder has learned where to
look, and is thrown away afterwards.
"""

import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import UnlimitedOcrForConditionalGeneration

from export.pipeline import BLOCK_SIZES
from export.quantize import Blocks, dequantize, quantize

from .batches import Batch, Pages, batch_stream
from .checkpoint import load_checkpoint
from .curriculum import Stage, stage_of
from .model import TinySpec, build_model, cast_weights, use_training_kernels
from .muon import FloatMuon
from .packed import Packed
from .views import IGNORE, PROBE_CLASSES, SLOTS

EXPERTS = (".gate_up_proj", ".down_proj")  # rounded in blocks of one size


@dataclass(frozen=True)
class TrainOptions:
    """How to train; what to train on stands in `curriculum`."""

    run_dir: Path
    seed: int = 0
    steps: int = 1_000_000  # in all, counted from the very first
    minutes: float = math.inf  # of this call
    device: str = "cpu"
    dtype: str | None = None  # of the working weights, a name of torch's; None: bfloat16 where products in it are fast
    threads: int = 2
    warmup: int = 100  # steps
    decay: int = 0  # last steps, over which the learning rate falls to zero
    probe_weight: float = 1.0
    probe_rate: float = 3e-3  # learning rate of a probe that is new beside trained weights
    probe_none: float = 0.02  # weight of the class "no character", which is by far the most frequent
    weight_decay: float = 0.02
    clip: float = 1.0
    average: float = 0.99  # decay of the moving average of the weights
    log_every: int = 25
    save_every: int = 50
    polite: bool = False  # compute on one thread while other programs keep a core busy
    scale: int = 1  # pages of a batch, as a multiple of what the curriculum says: a GPU takes more
    packed: Path | None = None  # a folder of batches that were rendered beforehand
    decay_minutes: float = 0.0  # last of `minutes`, over which the learning rate falls to zero
    bits: int = 0  # every second step sees the decoder rounded to these bits, as the exporter rounds it; 0: never


class Neighbours:
    """Tells how many cores other programs have used since the last question (Linux: /proc/stat).

    Threads that wait for each other at every operator lose far more than the core that a neighbour takes: one thread
    then trains faster than two.
    """

    def __init__(self) -> None:
        self.last = self.read()

    def read(self) -> tuple[float, float, float]:
        """Return the wall clock, the seconds that all programs computed, and those that this process computed."""
        fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:]]
        idle = fields[3] + fields[4]
        return time.monotonic(), (sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()

    def cores_used(self) -> float:
        """Return the cores that others have used since the last call."""
        now = self.read()
        wall, everyone, own = (new - old for new, old in zip(now, self.last, strict=True))
        self.last = now
        return max(0.0, everyone - own) / max(wall, 1e-3)


class Trainer:
    """The state of a run: masters, optimisers, moving average, step."""

    def __init__(self, options: TrainOptions, stages: tuple[Stage, ...], spec: TinySpec) -> None:
        self.options, self.stages, self.spec = options, stages, spec
        self.device = torch.device(options.device)
        torch.set_num_threads(options.threads)
        master = build_model(spec, options.seed)
        probe = nn.Linear(spec.hidden, SLOTS * PROBE_CLASSES)
        probe_parameters = {f"probe.{name}": value for name, value in probe.named_parameters()}
        parameters = dict(master.named_parameters()) | probe_parameters
        self.masters = {name: value.detach().to(self.device, copy=True) for name, value in parameters.items()}
        for name, value in self.masters.items():
            if value.ndim == 4:  # a convolution, as the matrix that it is for Muon; a view would not be the same tensor
                self.masters[name] = value.flatten(1)
        self.average = {name: value.clone() for name, value in self.masters.items()}
        self.dtype = getattr(torch, options.dtype) if options.dtype else working_dtype(self.device)
        self.model = cast_weights(nn.Module.to(master, self.device), self.dtype)
        self.probe = probe.to(self.device, self.dtype)
        # A float32 step of the decoder takes two thirds of the time with PyTorch's kernel (AVX2, 2 cores); on a GPU the
        # scores of many long pages would not fit.
        own = self.dtype == torch.float32 or self.device.type == "cuda"
        use_training_kernels(self.model, "sdpa" if own else "plain")
        self.working = dict(self.model.named_parameters()) | {
            f"probe.{name}": value for name, value in self.probe.named_parameters()
        }
        matrices = [value for name, value in self.masters.items() if is_matrix(name, value)]
        others = [
            value for name, value in self.masters.items() if name not in probe_parameters and not is_matrix(name, value)
        ]
        muon = FloatMuon if self.dtype == torch.float32 else torch.optim.Muon
        self.optimisers: list[torch.optim.Optimizer] = [
            muon(matrices, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.AdamW([self.masters[name] for name in probe_parameters], betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.step = 0
        self.first_step = 0  # of the warm-up
        self.images = 0
        self.seconds = 0.0
        self.started = time.monotonic()  # this call

    def learning_rate(self) -> float:
        """Return the rate of this step: the stage's, after the warm-up, before the final decay."""
        warm = min(1.0, (self.step + 1 - self.first_step) / self.options.warmup)
        rate = stage_of(self.stages, self.step).learning_rate * warm
        if self.options.decay:
            rate *= min(1.0, (self.options.steps - self.step) / self.options.decay)
        if self.options.decay_minutes:
            left = self.options.minutes - (time.monotonic() - self.started) / 60
            rate *= min(1.0, max(0.0, left / self.options.decay_minutes))
        return rate

    def is_trained(self, name: str, batch: Batch) -> bool:
        """Say whether a parameter can change in this step: while the decoder trains alone, nothing before it does."""
        return batch.trained != "decoder" or name.startswith(("model.language_model.", "lm_head."))

    def relearning_probe(self) -> bool:
        """Say whether the probe is new beside trained weights: until it has learned, its gradient would spoil them."""
        return 0 < self.first_step <= self.step < self.first_step + self.options.warmup

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the step reports: the losses `text` (absent while the decoder rests) and `probe`, and the shares
        of answer tokens (`text_right`) and of characters under the vision tokens (`probe_right`) that are right."""
        reported = {}
        inputs = batch.model_inputs(self.device, self.dtype)
        for name, value in self.working.items():
            value.requires_grad_(self.is_trained(name, batch))
        if batch.trained == "vision":
            del inputs["input_ids"], inputs["use_cache"]
            image_tokens = self.model.model.get_image_features(**inputs).pooler_output
        else:
            output = self.model.model(**inputs)
            image_tokens = output.image_hidden_states
            if self.relearning_probe():
                image_tokens = [tokens.detach() for tokens in image_tokens]
            labels = batch.labels.to(self.device)
            wanted = labels != IGNORE
            logits = self.model.lm_head(output.last_hidden_state[wanted]).float()
            reported["text"] = functional.cross_entropy(logits, labels[wanted])
            reported["text_right"] = (logits.detach().argmax(-1) == labels[wanted]).float().mean()
        if batch.trained == "decoder":
            return reported
        targets = batch.probe.to(self.device)
        seen = (targets != IGNORE).any(-1)
        guesses = self.probe(torch.cat(list(image_tokens))[seen]).float().reshape(-1, PROBE_CLASSES)
        targets = targets[seen].reshape(-1)
        weights = torch.ones(PROBE_CLASSES, device=self.device)
        weights[0] = self.options.probe_none
        reported["probe"] = functional.cross_entropy(guesses, targets, weights, ignore_index=IGNORE)
        inked = targets > 0
        reported["probe_right"] = (guesses.detach()[inked].argmax(-1) == targets[inked]).float().mean()
        return reported

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Update the weights once; return what the log shows."""
        reported = self.losses(batch)
        none = torch.zeros((), device=self.device)
        (reported.get("text", none) + self.options.probe_weight * reported.get("probe", none)).backward()
        for name, value in self.masters.items():
            grad = self.working[name].grad
            if grad is not None:
                value.grad = grad.float().view_as(value)
            elif self.is_trained(name, batch):  # it had no part in this step, and its momentum goes on
                value.grad = torch.zeros_like(value)
            self.working[name].grad = None
        norm = nn.utils.clip_grad_norm_(self.masters.values(), self.options.clip)
        *_, of_probe = self.optimisers
        for optimiser in self.optimisers:
            relearns = optimiser is of_probe and self.relearning_probe()
            for group in optimiser.param_groups:
                group["lr"] = self.options.probe_rate if relearns else self.learning_rate()
            optimiser.step()
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.masters.items():
                value.grad = None
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        self.set_working()
        self.images += len(batch.input_ids)
        return {name: value.item() for name, value in reported.items()} | {"grad_norm": norm.item()}

    @torch.no_grad()
    def set_working(self) -> None:
        """Copy the masters into the working weights of the step to come, rounded where that step sees them so.

        The gradient at the rounded weights then moves the masters (the straight-through estimator,
        https://arxiv.org/abs/1308.3432).
        """
        rounds = self.options.bits and self.step % 2
        for name, value in self.masters.items():
            blocks = self.blocks(name, value) if rounds else None
            seen = value if blocks is None else rounded(value, blocks)
            self.working[name].copy_(seen.view_as(self.working[name]))

    def blocks(self, name: str, value: Tensor) -> Blocks | None:
        """Return how the exporter's q8 and q4 round this parameter, or None where they keep it."""
        if value.ndim < 2 or "mlp.gate." in name or not name.startswith(("model.language_model.", "lm_head.")):
            return None
        blocks = Blocks(self.options.bits, BLOCK_SIZES[f"q{self.options.bits}"])
        group = name.rpartition(".")[0]
        together = [self.masters[group + part].shape[-1] for part in EXPERTS] if value.ndim == 3 else []
        return blocks.fitting(value.shape[-1], *together)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "step": self.step,
            "tile": self.spec.image_size,
            "first_step": self.first_step,
            "images": self.images,
            "seconds": self.seconds,
            "masters": self.masters,
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises ValueError where that was trained in tiles of another size."""
        tile = state.get("tile", self.spec.image_size)
        if tile != self.spec.image_size:
            raise ValueError(
                f"the run was trained in tiles of {tile} pixels, not {self.spec.image_size}; --tile {tile}"
            )
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        self.first_step = state.get("first_step", 0)
        with torch.no_grad():
            for name, value in self.masters.items():
                value.copy_(state["masters"][name])
                self.average[name].copy_(state["average"][name])
        self.set_working()
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def start_from(self, folder: Path, step: int) -> None:
        """Go on from the weights of a checkpoint folder at `step`; the probe and the optimisers begin anew."""
        weights = dict(load_checkpoint(folder).named_parameters())
        self.step = self.first_step = step
        with torch.no_grad():
            for name, value in self.masters.items():
                if name in weights:
                    value.copy_(weights[name].view_as(value))
                self.average[name].copy_(value)
        self.set_working()

    def save(self) -> None:
        """Write the state to the run folder, whole or not at all."""
        save_state(self.state(), self.options.run_dir)

    def run(self, workers: int = 1) -> None:
        """Train until the steps or the minutes are used up; log to `log.jsonl`, save as it goes."""
        options = self.options
        options.run_dir.mkdir(parents=True, exist_ok=True)
        drawn = Pages(self.stages, self.spec, options.seed, options.scale)
        pages: Dataset[Batch] = Packed(drawn, options.packed) if options.packed else drawn
        self.started = started = time.monotonic()
        recent: defaultdict[str, list[float]] = defaultdict(list)
        before = self.seconds
        neighbours = Neighbours() if options.polite else None
        with (options.run_dir / "log.jsonl").open("a", encoding="utf-8") as log:
            for batch in batch_stream(pages, self.step, options.steps, workers):
                if neighbours and self.step % 2 == 0:
                    torch.set_num_threads(1 if neighbours.cores_used() > 0.45 else options.threads)
                for key, value in self.train_step(batch).items():
                    recent[key].append(value)
                self.seconds = before + time.monotonic() - started
                if self.step % options.log_every == 0:
                    line: dict[str, float] = {"step": self.step, "images": self.images, "seconds": round(self.seconds)}
                    line |= {key: round(mean(values), 4) for key, values in recent.items()}
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    recent.clear()
                if self.step % options.save_every == 0:
                    self.save()
                if time.monotonic() - started > options.minutes * 60:
                    break
        self.save()


def save_state(state: dict[str, Any], run_dir: Path) -> None:
    """Write a run's state into its folder, whole or not at all."""
    path = run_dir / "state.pt"
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def averaged_model(state: dict[str, Any], spec: TinySpec) -> UnlimitedOcrForConditionalGeneration:
    """Return the float32 model of a state's averaged weights, with the library's own attention and experts."""
    average = state["average"]
    model = build_model(spec)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(average[name].view_as(value))
    model.eval()
    return model


def rounded(value: Tensor, blocks: Blocks) -> Tensor:
    """Return `value` [..., channels] as the exporter's graphs see it after rounding, of the same shape."""
    rows = value.detach().cpu().reshape(-1, value.shape[-1]).numpy()
    seen = dequantize(*quantize(rows, blocks), blocks, rows.shape[-1])
    return torch.from_numpy(seen).to(value.device).view(value.shape)


def working_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the processor multiplies it; elsewhere it is emulated and slower than float32."""
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.bfloat16


def is_matrix(name: str, value: Tensor) -> bool:
    """Say whether Muon takes this parameter: the linear layers and convolutions, not tables and heads."""
    tables = ("embed_tokens", "lm_head", "rel_pos", "position_embedding", "probe.", "mlp.gate.weight")
    return value.ndim == 2 and not any(part in name for part in tables)
