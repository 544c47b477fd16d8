"""The end-to-end difference of a quantised export from float32, on pages drawn here: for ``--report``.

The published graphs run as when served. The float32 reference is the same model declared again, with the checkpoint's
weights and float32 arithmetic: written beside the export, run, and removed. The reference's weights stay mapped from
the file and are widened one after another; export and reference are never loaded together. DeepSeek-OCR takes 4.2 GB of
memory beside mapped files, and disk for a second copy of the checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer

from models.family import PreparedImage, taken, task_prompt
from models.manifest import Manifest, Provider, RotaryInfo
from models.processor import session_entries
from models.registry import family_of
from models.rotary import rotary_tables

from .activations import Watched
from .check import mapped_session
from .checkpoint import Checkpoint
from .decoder import Decoder, decoder_graph
from .family import FamilyExport, GraphName, Parts
from .graphs import graph_file, stored_weights, write_graphs
from .layers import FLOAT, FLOAT16, Precision
from .outliers import planted
from .weights import Load

_PAGES = (
    "Invoice 2024-117\nPaper, 12 boxes at 8.50\nInk, 3 bottles at 21.75\nTotal 167.25",
    "The north gate opens at\nseven in summer, and at\nhalf past eight from\nOctober to March.",
)
# Tokens of a page's own text that are fed; the next token's distribution is compared before the first and after each.
MOST_TOKENS = 63

# Types of the reference's weights: the checkpoint's own.
_STORAGE = {"BF16": ir.DataType.BFLOAT16, "F16": FLOAT16}


@dataclass(frozen=True)
class MeasuredPage:
    """One page, ready for the graphs.

    prompt_ids : with image slots. answer_ids : the page's own text. positions : of both, [axes, tokens].
    """

    image: PreparedImage
    prompt_ids: list[int]
    answer_ids: list[int]
    positions: np.ndarray


class Divergence:
    """Compares one finished export with float32."""

    def __init__(
        self, folder: Path, manifest: Manifest, family: FamilyExport, checkpoint: Checkpoint, scratch: Path
    ) -> None:
        """scratch : a folder for temporary graphs."""
        self._folder, self._scratch = folder, scratch
        self.family, self.checkpoint = family, checkpoint
        self.manifest = manifest
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()  # as the runtime does
        self._tokenizer.no_padding()
        self.pages = [self._page(text) for text in _PAGES]
        self.largest: dict[str, Mapping[str, float]] = {}  # the reference's largest activations, by part and layer

    def measure(self, *, tower: Precision | None, logits: bool) -> dict[str, dict[str, float]]:
        """The report's entries.

        tower : the vision tower's precision, to measure it with planted outliers, too; None: do not.
        logits : whether to measure the decoder.

        ``vision_features`` has the cosine similarity to float32's features, ``logits`` what ``divergence`` returns,
        over all positions of all pages, each side with image features of its own.
        """
        load = self.checkpoint.load
        ours = self.features_of(served_session(self._folder / graph_file("vision", "cpu")))
        with self.reference("vision", load) as file:
            watched = Watched(file)
            theirs = self.features_of(watched)
        self.largest["vision tower"] = watched.largest
        vision = {"cosine": cosine(ours, theirs)}
        if tower is not None:
            vision["cosine_with_outliers"] = self._cosine_with_outliers(tower)
        report = {"vision_features": vision}
        if logits:
            stepped = self._stepped(ours)
            whole = self.reference_logits(theirs)
            found = divergence(np.concatenate(whole), np.concatenate(stepped))
            report["logits"] = {"pages": len(self.pages), "positions": sum(map(len, stepped)), **found}
        return report

    def reference_logits(self, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32's logits for each page: before its first token and after each, [answer + 1, vocabulary]."""
        load = self.checkpoint.load
        with self.reference("embed", load) as file:
            inputs = self._embeddings(mapped_session(file), features)
        with self.reference("decoder", load) as file:
            session = Watched(file)
            self.largest["decoder"] = session.largest
            return [
                self._run(session, page).feed(rows)[-len(page.answer_ids) - 1 :]
                for page, rows in zip(self.pages, inputs, strict=True)
            ]

    def _page(self, text: str) -> MeasuredPage:
        rules = family_of(self.manifest)
        image = rules.prepare_image(draw_page(text), {})
        prompt = task_prompt(rules.tasks, rules.default_task)
        prompt_ids = rules.prompt_ids(prompt, [image.token_count], self._encode)
        sizes = self.manifest.sizes
        # Only as far as attention is full; tools.parity compares windows with a library's modules.
        most = min(MOST_TOKENS, self.manifest.max_length - len(prompt_ids), sizes.window or MOST_TOKENS)
        answer_ids = self._encode(text)[:most]
        of_prompt = rules.positions(prompt_ids, [image])
        of_answer = np.tile(of_prompt.next + np.arange(len(answer_ids)), (len(of_prompt.axes), 1))
        return MeasuredPage(image, prompt_ids, answer_ids, np.concatenate([of_prompt.axes, of_answer], axis=1))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _run(self, session: ort.InferenceSession | Watched, page: MeasuredPage) -> DecoderRun:
        return DecoderRun(session, page.positions, self.manifest.sizes.rotary)

    def _stepped(self, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The export's logits as in serving: a prefill, then step by step, by the kernels for single rows."""
        inputs = self._embeddings(served_session(self._folder / graph_file("embed", "cpu")), features)
        session = served_session(self._folder / graph_file("decoder", "cpu"))
        found = []
        for page, rows in zip(self.pages, inputs, strict=True):
            run, prompt = self._run(session, page), len(page.prompt_ids)
            steps = [rows[:prompt], *(rows[i : i + 1] for i in range(prompt, len(rows)))]
            found.append(np.concatenate([run.feed(step) for step in steps]))
        return found

    def _cosine_with_outliers(self, tower: Precision) -> float:
        load = planted(self.checkpoint.load, self.family.vision_outliers)
        with self.reference("vision", load) as file:
            theirs = self.features_of(mapped_session(file))
        with self._written("vision", load, tower) as file:
            return cosine(self.features_of(served_session(file)), theirs)

    def features_of(self, session: ort.InferenceSession | Watched) -> list[np.ndarray]:
        """Features of each page's image, [image tokens, hidden]."""
        names = [output.name for output in session.get_outputs()]
        inputs = [given.name for given in session.get_inputs()]
        return [
            page.image.assemble(
                [dict(zip(names, session.run(names, taken(make(), inputs)), strict=True)) for make in page.image.passes]
            )
            for page in self.pages
        ]

    def _embeddings(self, session: ort.InferenceSession, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings of each page's prompt and answer: [tokens, hidden]."""
        inputs = []
        for page, of_page in zip(self.pages, features, strict=True):
            ids = np.array([*page.prompt_ids, *page.answer_ids])
            (rows,) = session.run(["inputs_embeds"], {"input_ids": ids[None]})
            rows[0, np.flatnonzero(ids == self.manifest.tokens.image)[: len(of_page)]] = of_page
            inputs.append(rows[0])
        return inputs

    @contextmanager
    def reference(self, name: GraphName, load: Load) -> Iterator[Path]:
        """One float32 graph, within the block; the decoder's gives the logits of MOST_TOKENS + 1 positions."""
        types = {info.dtype for info in self.checkpoint.tensors.values()}
        storage = _STORAGE.get(types.pop(), FLOAT) if len(types) == 1 else FLOAT
        with self._written(name, load, Precision(storage, FLOAT)) as file:
            yield file

    @contextmanager
    def _written(self, name: GraphName, load: Load, precision: Precision) -> Iterator[Path]:
        part = self.family.parts(precision, precision)[name]
        if isinstance(part.module, Decoder):
            part = replace(part, declare=partial(decoder_graph, part.module, scored=MOST_TOKENS + 1))
        folder = self._scratch / name
        folder.mkdir(parents=True)
        try:
            parts: dict[Provider, Parts] = {"cpu": {name: part}}
            write_graphs(folder, parts, stored_weights(parts), load, what=f"{name} to compare with")
            yield folder / graph_file(name, "cpu")
        finally:
            shutil.rmtree(folder)


class DecoderRun:
    """One sequence on its way through a decoder graph."""

    def __init__(
        self, session: ort.InferenceSession | Watched, positions: np.ndarray, rotary: RotaryInfo | None
    ) -> None:
        """positions : of all tokens that will be fed, [axes, tokens]. rotary : for graphs with angles as inputs."""
        self._session = session
        self._length, capacity = 0, positions.shape[1]
        self._angles: dict[str, np.ndarray] = {}
        if rotary is not None:
            cos, sin = rotary_tables(positions, rotary.sections, rotary.theta)
            self._angles = {"rotary_cos": cos, "rotary_sin": sin}
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._cache = {
            value.name: np.zeros((1, value.shape[1], capacity, value.shape[3]), kinds[value.type])
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._cache)]

    def feed(self, embeddings: np.ndarray) -> np.ndarray:
        """embeddings [tokens, hidden] -> logits of the last positions that the graph scores: [rows, vocabulary]."""
        start, self._length = self._length, self._length + len(embeddings)
        feeds = {
            "inputs_embeds": embeddings[None],
            "seqlens_k": np.array([self._length - 1], np.int32),
            "total_length": np.array(self._length, np.int32),
            **self._cache,
            **self._angles,
        }
        if self._angles:
            feeds["rotary_rows"] = np.arange(start, self._length)[None]
        logits, *presents = self._session.run(self._outputs, feeds)
        self._cache = dict(zip(self._cache, presents, strict=True))
        found: np.ndarray = logits
        return found


def served_session(file: Path) -> ort.InferenceSession:
    """A session with the optimisations and the kernels that the runtime has on a CPU."""
    os.environ.setdefault("ORT_QMOE_CPU_QNBIT_GEMM", "int8")  # as runtime.providers says; read when a session is made
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    for key, value in session_entries().items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def draw_page(text: str) -> Image.Image:
    """Black lines on white, small enough for one view of a large model and few tiles of a small one."""
    page = Image.new("RGB", (420, 200), "white")
    ImageDraw.Draw(page).text((16, 14), text, "black", font=ImageFont.load_default(30), spacing=10)
    return page


def cosine(ours: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Cosine similarity of all values of all pages, as one vector."""
    a, b = (np.concatenate([one.ravel() for one in side]).astype(np.float64) for side in (ours, reference))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def divergence(reference: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Differences of next-token distributions; both arguments are logits [positions, vocabulary].

    ``mean_kl`` and ``max_kl``, Kullback-Leibler divergence from the reference to ours in nats, and ``top_1_agreement``,
    the share of positions at which both would choose the same token.
    """
    by_position = []
    for reference_row, our_row in zip(reference, ours, strict=True):
        log_p, log_q = log_softmax(reference_row), log_softmax(our_row)
        by_position.append(float(np.exp(log_p) @ (log_p - log_q)))
    return {
        "mean_kl": float(np.mean(by_position)),
        "max_kl": max(by_position),
        "top_1_agreement": float((reference.argmax(-1) == ours.argmax(-1)).mean()),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-softmax in double precision, of [vocabulary] in any float type."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result


def lines_of(report: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The report in words, for the log."""
    vision = report["vision_features"]
    line = f"vision features: cosine similarity to float32 {vision['cosine']:.6f}"
    if "cosine_with_outliers" in vision:
        line += f", with planted outlier channels {vision['cosine_with_outliers']:.6f}"
    yield line
    if (logits := report.get("logits")) is not None:
        yield (
            f"logits: KL divergence from float32 {logits['mean_kl']:.2e} nats (at most {logits['max_kl']:.2e}), "
            f"same first choice at {100 * logits['top_1_agreement']:.1f} % of {logits['positions']:.0f} positions"
        )
