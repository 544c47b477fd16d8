"""What is measured: the parts, their cases, and the sizes behind them. Both the parent and its workers read this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal[
    "export", "load", "vision", "prefill", "decode", "answer", "batch", "overhead", "page", "layout", "blocks",
    "sharing", "server",
]  # fmt: skip
Kind = Literal["load", "vision", "decoder", "answer", "page", "layout", "blocks", "sharing"]  # what a worker has loaded
PARTS: tuple[Part, ...] = get_args(Part)

KINDS: dict[Part, Kind] = {
    "load": "load",
    "vision": "vision",
    "prefill": "decoder",
    "decode": "decoder",
    "answer": "answer",
    "batch": "decoder",
    "overhead": "page",
    "page": "page",
    "layout": "layout",
    "blocks": "blocks",
    "sharing": "sharing",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of every case, and the device. The defaults are those of the published figures, on a CPU."""

    device: str = "cpu"  # as the runtime names it
    views: tuple[int, ...] = (640, 1024)  # side of a view, pixels
    prefills: tuple[int, ...] = (512, 900)  # prompt tokens
    contexts: tuple[int, ...] = (128, 512, 2048)  # tokens in the cache when decoding starts
    answers: tuple[int, ...] = (500, 1000, 2000, 4000, 8000)  # tokens of one answer, of models with a window
    answer_steps: int = 200  # the last tokens of such an answer, which are timed
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)  # requests decoded together
    batch_context: int = 300  # tokens in the cache of each of these rows
    busy_rows: tuple[int, ...] = (1, 8)  # of the steps whose time outside ONNX Runtime is measured
    steps: int = 32  # decode steps of one sample
    page: tuple[int, int] = (1240, 1754)  # pixels; A4 at 150 dpi, which makes 2 x 3 tiles
    page_tokens: int = 400  # tokens of a page's answer
    blocks: tuple[int, ...] = (4, 16)  # of a page that is read block by block
    block_tokens: int = 60  # of the answer to each
    clients: tuple[int, ...] = (1, 4)  # HTTP clients at once
    pages_per_client: int = 2

    def cases(self, part: Part) -> Iterator[Case]:
        """The cases of one part, in the order in which a round measures them."""
        width, height = self.page
        page = f"{width} x {height}, {self.page_tokens} tokens"
        match part:
            case "export" | "load":
                yield Case(part, 0, "")
            case "vision":
                yield from (Case(part, side, f"{side} x {side}") for side in self.views)
            case "prefill":
                yield from (Case(part, tokens, f"{tokens} tokens") for tokens in self.prefills)
            case "decode":
                yield from (Case(part, context, f"context {context}") for context in self.contexts)
            case "answer":
                yield from (Case(part, tokens, f"token {tokens} of an answer") for tokens in self.answers)
            case "batch":
                yield from (Case(part, rows, f"{rows} row{'s' * (rows > 1)}") for rows in self.rows)
            case "overhead":
                yield from (Case(part, rows, f"{rows} row{'s' * (rows > 1)}") for rows in self.busy_rows)
            case "page":
                yield Case(part, 0, page)
            case "layout":
                yield Case(part, 0, f"{width} x {height}")
            case "blocks":
                yield from (Case(part, n, f"{n} blocks, {self.block_tokens} tokens each") for n in self.blocks)
            case "sharing":
                labels = ("a stream beside ten views", "ends at any moment", "a picture beside 80 passes")
                yield from (Case(part, i, label) for i, label in enumerate(labels))
            case "server":
                yield from (Case(part, n, f"{n} client{'s' * (n > 1)}, {page}") for n in self.clients)


# A GPU has room for more rows and clients, and for a page's answer in every row.
CUDA = Plan(
    device="cuda", prefills=(256, 900), rows=(1, 8, 32, 64), batch_context=512, busy_rows=(1, 64), clients=(1, 16, 64),
    pages_per_client=1,
)  # fmt: skip

QUICK = Plan(
    views=(640,), prefills=(64,), contexts=(16, 64), answers=(20, 90), answer_steps=4, rows=(1, 2), batch_context=32,
    busy_rows=(1, 2), steps=4, page=(700, 500), page_tokens=8, blocks=(2,), block_tokens=4, clients=(1, 2),
    pages_per_client=1,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One thing to measure. ``value`` is its size in the part's own unit (see ``Plan``), 0 where there is only one."""

    part: Part
    value: int
    label: str


# Metrics of which more is better; of all others (seconds, GB) less is.
HIGHER_IS_BETTER = frozenset({"tokens/s", "pages/min"})
# The metric that peers are compared in.
MAIN_METRIC: dict[Part, str] = {
    "export": "s",
    "load": "s",
    "vision": "s",
    "prefill": "tokens/s",
    "decode": "tokens/s",
    "answer": "tokens/s",
    "batch": "tokens/s",
    "overhead": "% outside ONNX Runtime",
    "page": "s",
    "layout": "s",
    "blocks": "s",
    "sharing": "% of its pace lost",
    "server": "pages/min",
}
