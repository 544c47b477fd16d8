"""Trains the network on pieces of drawn pages."""

from __future__ import annotations

import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from runtime.documents.upright.lines import HEIGHT, WIDTH
from runtime.documents.upright.piece import DOWN, UP
from tools.train_tiny.train import working_dtype

from .draw import drawn

_BATCH = 256
_LEARNING_RATE = 4e-3


def train(output: Path, page_count: int, epochs: int, seed: int, folder: Path | None) -> None:
    """Draw, train, and write the network. folder : see ``drawn``."""
    started = time.process_time()
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    cut, kinds = drawn(page_count, seed, folder)
    print(f"{len(cut)} pieces {Counter(kinds.tolist())}, {time.process_time() - started:.0f} s", flush=True)
    inputs, classes = torch.from_numpy(cut), torch.from_numpy(kinds)
    network = Network()
    halved = working_dtype(torch.device("cpu")) == torch.bfloat16
    steps = epochs * (len(cut) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)
    for epoch in range(epochs):
        order = torch.randperm(len(cut))
        losses, right = 0.0, 0
        for start in range(0, len(cut) - _BATCH + 1, _BATCH):
            chosen = order[start : start + _BATCH]
            values, wanted = _turned(inputs[chosen].float() / 255, classes[chosen])
            with torch.autocast("cpu", torch.bfloat16, enabled=halved):
                scores = network(values)
                loss = nn.functional.cross_entropy(scores, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += float(loss.detach())
            right += int((scores.argmax(1) == wanted).sum())
        share = right / (len(cut) // _BATCH * _BATCH)
        seconds = time.process_time() - started
        print(
            f"epoch {epoch + 1}: loss {losses / (steps // epochs):.3f}, {share:.4f} right, {seconds:.0f} s", flush=True
        )
        save(network, output)


class Network(nn.Module):
    """Convolutions, the mean over a piece's length, as a shape's place in it does not matter, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 32, 5, 2, 2), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 80, 3, 2, 1), nn.BatchNorm2d(80)
        self.conv3, self.norm3 = nn.Conv2d(80, 144, 3, 2, 1), nn.BatchNorm2d(144)
        self.hidden, self.out = nn.Linear(144 * 3, 96), nn.Linear(96, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values[:, None]
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            values = torch.relu(norm(conv(values)))
        scores: torch.Tensor = self.out(torch.relu(self.hidden(values.mean(3).flatten(1))))
        return scores


def save(network: Network, output: Path) -> None:
    """Write the network as the graph that ``runtime.documents.upright.piece`` runs; the norms are folded in."""
    graph = nn.Sequential(deepcopy(network), nn.Softmax(1)).eval()
    any_number = ({0: torch.export.Dim("pieces")},)
    some = torch.zeros(2, HEIGHT, WIDTH)
    program = torch.onnx.export(
        graph, (some,), input_names=["pieces"], output_names=["probabilities"], dynamic_shapes=any_number, verbose=False
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # where the code lay that was exported
    onnx_ir.save(program.model, output)


def _turned(values: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the pieces turned by half: those that stood are on their heads then."""
    half = torch.rand(len(values)) < 0.5
    turned = torch.where(half[:, None, None], values.flip((1, 2)), values)
    return turned, torch.where(half & (classes == UP), DOWN, classes)
