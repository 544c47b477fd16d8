"""Random checkpoints in the published Unlimited-OCR layout: DeepSeek-OCR's tensors and another config.json::

python -m tools.unlimited_checkpoints FOLDER --full --tokenizer path/to/tokenizer.json
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checkpoints import FULL_SIZE as FIRST
from .checkpoints import Layout, Sizes, main, published_config, tensor_shapes


@dataclass(frozen=True)
class UnlimitedSizes(Sizes):
    """Sizes of an Unlimited-OCR checkpoint; the defaults make a small one."""

    window: int = 128


FULL_SIZE = UnlimitedSizes(**{**vars(FIRST), "max_positions": 32768})


def config(s: UnlimitedSizes) -> dict[str, object]:
    """config.json as published."""
    first: dict[str, Any] = published_config(s)
    more = {"v_head_dim": s.hidden // s.heads, "sliding_window_size": s.window}
    return {
        **first,
        **more,
        "_name_or_path": "Unlimited-OCR",
        "architectures": ["UnlimitedOCRForCausalLM"],
        "language_config": {**first["language_config"], **more, "architectures": ["DeepseekOCRForCausalLM"]},
        "model_type": "unlimited-ocr",
        "sliding_window": s.window,
    }


UNLIMITED_OCR = Layout(tensor_shapes, config)


if __name__ == "__main__":
    main(FULL_SIZE, UNLIMITED_OCR, __doc__)
