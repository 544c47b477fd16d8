"""Settings that tests of the Python API read with."""

from __future__ import annotations

from typing import Any

from PIL import Image

from runtime import Model

PROMPT = "<image>\nFree OCR."


LONG = {"no_repeat_ngram_size": 0, "stop_on_loop": False, "max_new_tokens": 1000}


SMALL_VIEW = {"crop_mode": False, "image_size": 64}  # one image token and its newline and separator


VIEW_TOKENS = 3


PATIENCE = 60.0


def tokens_of(model: Model, image: Image.Image, prompt: str, budget: int, **settings: Any) -> list[int]:
    return model.read(image, prompt, max_new_tokens=budget, **settings).tokens
