"""What every family has to prove, against transformers' own modules through ``tools.reference_family``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from models.family import PreparedImage
from models.manifest import Manifest
from models.registry import family_of
from models.settings import InferenceSettings
from runtime import Model
from runtime.decoder import Decoder
from runtime.kv_cache import kept
from runtime.providers import find_device
from runtime.requests import Finished, Request, TextDelta
from runtime.vision import VisionTower
from tools.reference_family import Reference, ReferenceFamily, load_family

Job = TypeVar("Job")
GREEDY = {"no_repeat_ngram_size": 0, "stop_on_loop": False, "do_sample": False}


class Proof:
    """One checkpoint, exported and as the reference."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.manifest = Manifest.load(folder)
        self.family: Any = family_of(self.manifest)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.known = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self.reference: ReferenceFamily = load_family(checkpoint)
        self.settings: dict[str, Any] = {}  # of the family

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int]) -> list[int]:
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.family.prompt_ids(prompt, image_tokens, encode)

    def read(self, images: Sequence[Image.Image], prompt: str, steps: int) -> Reference:
        """The reference's features, prompt, logits and greedy tokens."""
        return self.reference.read(
            self.manifest, images, steps, lambda counts: self.prompt_ids(prompt, counts), self.known
        )

    def features(self, images: Sequence[Image.Image], folder: Path | None = None) -> list[np.ndarray]:
        folder = folder or self.folder
        tower = VisionTower(folder, Manifest.load(folder), find_device("cpu"))
        return [one.assemble([tower.encode(make()) for make in one.passes]) for one in self.prepared(images)]

    def prepared(self, images: Sequence[Image.Image]) -> list[PreparedImage]:
        return [self.family.prepare_image(image, {}, "", len(images)) for image in images]

    def logits(
        self, reference: Reference, features: list[np.ndarray], folder: Path | None = None,
        images: Sequence[Image.Image] = (),
    ) -> np.ndarray:  # fmt: skip
        """Ours after the prompt and after each of the reference's tokens but the last.

        images : of the prompt, for a family whose positions follow them.
        """
        folder, ids = folder or self.folder, reference.prompt_ids
        positions = self.family.positions(ids, self.prepared(images))
        decoder = Decoder(folder, Manifest.load(folder), find_device("cpu"), slots=1)
        embeddings = decoder.embed(ids).copy()
        if features:
            embeddings[np.array(ids) == self.manifest.tokens.image] = np.concatenate(features)
        window = self.family.window(self.settings)
        rows = [decoder.prefill(0, embeddings, positions.axes, window=window)]
        for i, token in enumerate(reference.tokens[:-1]):
            rows.append(decoder.step([token], [len(ids) + kept(i, window)], [positions.next + i])[0].copy())
        return np.stack(rows)

    def text_of(self, reference: Reference) -> str:
        """The reference's greedy answer, up to the token that ends it."""
        tokens = reference.tokens[:-1]
        ends = [i for i, token in enumerate(tokens) if token in self.manifest.tokens.eos]
        return self.tokenizer.decode(tokens[: ends[0] if ends else None], skip_special_tokens=False).strip()

    def check(self, images: Sequence[Image.Image], prompt: str, steps: int = 32) -> Reference:
        """Features and logits within 1e-4 of the reference's, and the text that the Python API gives identical."""
        reference = self.read(images, prompt, steps)
        features = self.features(images)
        for i, (mine, theirs) in enumerate(zip(features, reference.features, strict=True)):
            assert mine.shape == theirs.shape
            assert (error := relative_error(mine, theirs)) < 1e-4, (
                f"the tower: features of image {i} are off by {error:.1e}"
            )
        logits = self.logits(reference, features, images=images)
        for step, (mine, theirs) in enumerate(zip(logits, reference.logits, strict=True)):
            error = relative_error(mine, theirs)
            assert error < 1e-4, f"the decoder, as the features are right: logits of step {step} are off by {error:.1e}"
        with Model.open(self.folder, device="cpu", slots=1) as model:
            assert model.read(
                images, prompt, max_new_tokens=steps, raw=True, **GREEDY, **self.settings
            ).text == self.text_of(reference)
        return reference


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def cosines(ours: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Of each feature, [tokens]."""
    return np.asarray((ours * exact).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1))


def check_8_bit_tower(proof: Proof, image: Image.Image, folder: Path) -> np.ndarray:
    """An 8-bit tower keeps the direction of each feature, and the export's report says so. Returns our features.

    folder : an export of the proof's checkpoint with the report.
    """
    (ours,), (exact,) = proof.features([image], folder), proof.features([image])
    assert cosines(ours, exact).min() > 0.99
    report = Manifest.load(folder).report["vision_features"]
    assert report["cosine"] > 0.99
    assert report["cosine_with_outliers"] > 0.98
    return ours


def check_together_as_alone(folder: Path, read: Callable[[Model, Job], list[int]], jobs: Sequence[Job]) -> None:
    """Jobs that are read beside each other, in one batch, get the answers that each of them gets alone."""
    with Model.open(folder, device="cpu", slots=1) as model:
        alone = [read(model, job) for job in jobs]
    with Model.open(folder, device="cpu", slots=4) as model, ThreadPoolExecutor(len(jobs)) as threads:
        together = list(threads.map(lambda job: read(model, job), jobs))
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert together == alone


def check_streams_beside_each_other(folder: Path, images: Sequence[Image.Image], prompt: str) -> None:
    """The pieces of requests that run beside each other make the texts that each of them has alone."""
    settings = InferenceSettings(max_new_tokens=24, **GREEDY)
    with Model.open(folder, device="cpu", slots=4) as model:
        alone = [model.read(image, prompt, max_new_tokens=24, **GREEDY).text for image in images]
        running = [model.submit(Request(prompt, [image], settings)) for image in images]
        for one, expected in zip(running, alone, strict=True):
            pieces = []
            while not isinstance(event := one.next_event(), Finished):
                pieces.append(event.text if isinstance(event, TextDelta) else "")
            assert "".join(pieces) == expected
        assert "".join(model.stream(images[0], prompt, max_new_tokens=24, **GREEDY)) == alone[0]


def types_of_cuda_graphs(folder: Path) -> dict[str, dict[str, str]]:
    """Graph -> the types of its inputs and outputs, by name. They load here as CUDA's graphs, but cannot all run."""
    import onnxruntime as ort

    manifest, found = Manifest.load(folder), {}
    for name in ("vision", "embed", "decoder"):
        graph = getattr(manifest, name)
        assert set(graph.files) == {"cpu", "cuda"}
        session = ort.InferenceSession(folder / graph.files["cuda"], providers=["CPUExecutionProvider"])
        found[name] = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    return found
