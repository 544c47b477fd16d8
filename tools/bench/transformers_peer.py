"""transformers on PyTorch as a contender: the same checkpoint through the library's own modules."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.reference_family import ReferenceFamily, load_family

from .material import page_image, peak_memory
from .plan import Case, Kind, Plan
from .turns import Memory
from .worker import Subject, WorkerContender, plan_from

_GB = 10**9
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


class TransformersPeer(WorkerContender):
    """One checkpoint in one PyTorch type."""

    module = __name__

    def __init__(self, checkpoint: Path, dtype: str, threads: int, plan: Plan, attention: str = "auto") -> None:
        setup = {"folder": str(checkpoint), "dtype": DTYPES[dtype], "threads": threads, "attention": attention}
        super().__init__(setup, plan)
        self._dtype = dtype
        self._weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        self._weights *= 2 if dtype == "f32" else 1

    def name(self, kind: Kind) -> str:
        """See ``turns.Contender``."""
        return f"transformers {self._dtype}"

    def can(self, case: Case) -> bool:
        """See ``turns.Contender``."""
        return case.part in ("vision", "prefill", "decode", "batch", "page")

    def memory(self, kind: Kind) -> Memory:
        """See ``turns.Contender``: all is loaded, then what the kind does not need is dropped (1/8 is vision)."""
        share = {"vision": 0.13, "decoder": 0.88}.get(kind, 1.0)
        return Memory(self._weights + _GB, int(self._weights * share) + 2 * _GB)


def subject(setup: Mapping[str, Any]) -> Subject:
    """What measures in the worker."""
    return _Transformers(setup)


class _Transformers:
    def __init__(self, setup: Mapping[str, Any]) -> None:
        import gc

        import torch

        self._torch = torch
        torch.set_num_threads(setup["threads"])
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        self._plan = plan_from(setup["plan"])
        self._family: ReferenceFamily = load_family(Path(setup["folder"]), getattr(torch, setup["dtype"]))
        if self._plan.device != "cpu":
            torch.set_default_device(self._plan.device)
        self._model = self._family.model.to(self._plan.device)
        self._choices = ("sdpa", "eager") if setup["attention"] == "auto" else (setup["attention"],)
        self._chosen: dict[tuple[str, int], str] = {}
        if setup["kind"] == "vision":
            self._model.lm_head = self._model.model.language_model = None
        elif setup["kind"] == "decoder":
            setattr(self._model.model, self._family.vision_part, None)
        gc.collect()
        # By rows and context: rounds go through all of them again and again.
        self._caches: dict[tuple[int, int], Any] = {}

    def prepare(self, part: str, value: int) -> None:
        """Warm up, and find the attention implementation that is the faster one for this case."""
        seconds = {}
        if len(self._choices) > 1 and part != "page":  # a page is long enough to be its own warm-up
            self._try(part, value, self._choices[0])
        for choice in self._choices:
            seconds[choice] = self._try(part, value, choice)
        self._chosen[part, value] = min(seconds, key=lambda choice: seconds[choice])

    def _try(self, part: str, value: int, attention: str) -> float:
        """Seconds of a short sample."""
        self._model.set_attn_implementation(attention)
        started = time.perf_counter()
        if part in ("decode", "batch"):
            return self._steps(*self._shape(part, value), 4)
        if part == "page":
            self._page(4)
        else:
            self._run(part, value)
        return time.perf_counter() - started

    def sample(self, part: str, value: int) -> dict[str, float]:
        self._model.set_attn_implementation(self._chosen[part, value])
        return self._run(part, value)

    def _run(self, part: str, value: int) -> dict[str, float]:
        if part == "vision":
            view = self._placed(self._family.view(value))
            started = self._now()
            self._family.features(*view)
            return {"s": self._now() - started}
        if part == "prefill":
            prompt = self._prompt(value)
            started = self._now()
            self._prefill(prompt)
            return {"tokens/s": value / (self._now() - started)}
        if part in ("decode", "batch"):
            rows, context = self._shape(part, value)
            return {"tokens/s": rows * self._plan.steps / self._steps(rows, context, self._plan.steps)}
        return self._page(self._plan.page_tokens)

    def _shape(self, part: str, value: int) -> tuple[int, int]:
        """(rows, tokens in the cache of each)"""
        return (1, value) if part == "decode" else (value, self._plan.batch_context)

    def _now(self) -> float:
        """The time at which all that was asked of the device is done, seconds."""
        if self._plan.device != "cpu":
            self._torch.cuda.synchronize()
        return time.perf_counter()

    def _placed(self, arguments: Any) -> list[Any]:
        """What is made of pictures on the host, where the model is."""
        is_tensor = self._torch.is_tensor
        return [one.to(self._plan.device) if is_tensor(one) else one for one in arguments]

    def _prompt(self, tokens: int, rows: int = 1) -> Any:
        table = self._model.get_input_embeddings()
        return table(self._torch.randint(0, table.num_embeddings, (rows, tokens)))

    def _prefill(self, embeddings: Any) -> Any:
        """embeddings : [1, tokens, hidden]. Returns the model's output with its cache and the last token's logits."""
        places = self._family.places(0, embeddings.shape[1])
        return self._model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1, **places)

    def _step(self, embedding: Any, cache: Any, position: int) -> Any:
        """embedding : [1, 1, hidden], at ``position``."""
        places = self._family.places(position, 1)
        return self._model(inputs_embeds=embedding, past_key_values=cache, use_cache=True, **places)

    def _steps(self, rows: int, context: int, steps: int) -> float:
        """Seconds of so many decode steps; the cache is cut back to its length afterwards."""
        if (rows, context) not in self._caches:
            self._caches[rows, context] = self._prefill(self._prompt(context, rows)).past_key_values
        cache = self._caches[rows, context]
        embeddings = [self._prompt(1, rows) for _ in range(steps)]
        started = self._now()
        for i, embedding in enumerate(embeddings):
            self._step(embedding, cache, context + i)
        seconds = self._now() - started
        cache.crop(-steps)
        return seconds

    def _page(self, tokens: int) -> dict[str, float]:
        image = page_image(self._plan)
        started = time.perf_counter()
        features = self._family.features(*self._placed(self._family.page(image)))
        seen = self._now()
        text = self._model.get_input_embeddings()(self._torch.tensor([0, 10, 11, 12, 13, 14]))
        prompt = self._torch.cat([text[:1], features, text[1:]])[None]
        output = self._prefill(prompt)
        token = output.logits[0, -1].argmax()
        filled = self._now()
        for i in range(tokens - 1):
            embedding = self._model.get_input_embeddings()(token[None, None])
            output = self._step(embedding, output.past_key_values, prompt.shape[1] + i)
            token = output.logits[0, -1].argmax()
        token.item()
        done = time.perf_counter()
        return {
            "s": done - started,
            "s vision": seen - started,
            "s prefill": filled - seen,
            "s decode": done - filled,
            "GB peak": peak_memory(),
        }
