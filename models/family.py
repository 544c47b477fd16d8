"""What every model family provides, so that runtime and server never ask which family they have.

A family turns images into vision passes and features, and prompts into token ids. It holds no weights and runs no
graph: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from .settings import InferenceSettings

Feeds = Mapping[str, np.ndarray]
Encode = Callable[[str], list[int]]  # text -> token ids, without special tokens around it

IMAGE_SLOT = "<image>"


@dataclass(frozen=True)
class PreparedImage:
    """One image, cut and scaled, ready for the vision graph.

    passes : make what each run of the vision graph is fed, in order; called when its turn comes.
    assemble : the outputs of those runs, in the same order -> features [token_count, hidden], as the decoder sees them.
    """

    passes: Sequence[Callable[[], Feeds]]
    token_count: int
    assemble: Callable[[Sequence[Feeds]], np.ndarray]


class Family(Protocol):
    """The rules of one model family, bound to one exported model's image settings and tokens."""

    def prepare_image(self, image: Image.Image, settings: InferenceSettings) -> PreparedImage:
        """Orient, cut and scale one image.

        Raises
        ------
        InvalidInput
            when the image or an image setting cannot be taken.
        """

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """Token ids of the whole prompt, each image slot expanded to as many placeholders as the image has features.

        Raises
        ------
        InvalidInput
            when slots and images do not match in number.
        """
