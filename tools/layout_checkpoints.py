"""Random checkpoints of the layout detectors in their published spelling: real tensor names, any sizes.

For the tests (scaled down) and for figures at full size::

    python -m tools.layout_checkpoints FOLDER --detector v3 --full

transformers' own initialisation makes activations vanish (its normalisations begin at 0.01), so that tests would
compare zeros: convolutions are drawn anew (He), normalisations are near 1 and follow a drawn page. Heads of boxes are
small, and offsets of sampling nearly constant, since a decoder with large random ones is chaotic.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from export.layout.checking import drawn_page
from models.layout.detectors import detector_of
from models.layout.labels import LABELS
from models.layout.resize import pixel_values

CLASS_ORDER = [4, 2, 14, 1, 5, 7, 8, 6, 11, 11, 9, 13, 10, 10, 1, 2, 3, 0, 2, 2, 12, 1, 2, 15, 6]
CLASS_THRESHOLDS = [{5: 0.4, 6: 0.4, 15: 0.4, 17: 0.4, 20: 0.45, 22: 0.4, 23: 0.4}.get(id_, 0.5) for id_ in range(25)]
_PREFIX = {"pp_doclayout_v2": "PPDocLayoutV2", "pp_doclayout_v3": "PPDocLayoutV3"}

# The module's spelling -> the published one.
_PUBLISHED = (
    (re.compile(r"\bo_proj\b"), "out_proj"),
    (re.compile(r"layers\.(\d+)\.mlp\.fc"), r"layers.\1.fc"),
    (re.compile(r"encoder\.aifi\."), "encoder.encoder."),
)
_STEADY = 0.02  # of the weights of sampling offsets: with larger random weights every layer is chaotic
_SMALL = 0.3  # of the heads of boxes
_TIED = ("model.decoder.class_embed.", "model.decoder.bbox_embed.")

_TINY_BACKBONE = {
    "model_type": "hgnet_v2", "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 32, 64],
    "stage_mid_channels": [8, 8, 8, 16], "stage_out_channels": [16, 32, 64, 128], "stage_num_blocks": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True], "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5], "stage_numb_of_layers": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 1, 1],
}  # fmt: skip
_TINY = {
    "encoder_in_channels": [32, 64, 128], "encoder_hidden_dim": 32, "encoder_ffn_dim": 64,
    "encoder_attention_heads": 2, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 64,
    "decoder_attention_heads": 2, "decoder_layers": 2, "num_queries": 30, "global_pointer_head_size": 16, "d_model": 32,
}  # fmt: skip
_TINY_OF: Mapping[str, Mapping[str, Any]] = {
    "pp_doclayout_v2": {
        "reading_order_config": {
            "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1,
            "coordinate_size": 8, "shape_size": 8, "global_pointer_head_size": 16,
        }
    },
    "pp_doclayout_v3": {"x4_feat_dim": 16, "mask_feature_channels": [16, 16], "num_prototypes": 8},
}  # fmt: skip


def random_module(kind: str, *, full: bool = False, side: int = 800, seed: int = 0) -> Any:
    """transformers' module of ``model_type`` kind, with random weights. side : pixels of the page that it follows."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{_PREFIX[kind]}Config")
    sizes: dict[str, Any] = {"num_labels": len(LABELS)}
    if not full:
        stages = range(1 if kind == "pp_doclayout_v3" else 2, 5)
        backbone = {**_TINY_BACKBONE, "out_features": [f"stage{stage}" for stage in stages]}
        sizes |= {**_TINY, **_TINY_OF[kind], "backbone_config": backbone}
    if kind == "pp_doclayout_v2":
        sizes |= {"class_thresholds": CLASS_THRESHOLDS, "class_order": CLASS_ORDER}
    model = getattr(transformers, f"{_PREFIX[kind]}ForObjectDetection")(config(**sizes)).eval()
    with torch.no_grad():
        for module in model.modules():
            _draw(module)
        for name, parameter in model.named_parameters():
            if name.endswith("sampling_offsets.weight"):
                parameter.mul_(_STEADY)
            if re.search(r"bbox_(embed|head)\..*weight$", name):
                parameter.mul_(_SMALL)
            if re.search(r"(enc_score_head|class_embed(\.\d+)?)\.bias$", name):
                parameter.normal_(-1.5, 1)
        _follow(model, side)
    return model


def write_layout_checkpoint(folder: Path, detector: str, *, full: bool = False, side: int = 128, seed: int = 0) -> Path:
    """Write config.json, preprocessor_config.json and model.safetensors of a detector by its name, v2 or v3.

    side : of the graph's input, in pixels.
    """
    kind = detector_of(detector).kind
    return write_module(folder, random_module(kind, full=full, side=side, seed=seed), side)


def write_module(folder: Path, model: Any, side: int) -> Path:
    """Write a module as its vendor publishes it: without V3's tied heads and without counters."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = _TIED if model.config.model_type == "pp_doclayout_v3" else ()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked") or name.startswith(tied):
            continue
        for module, published in _PUBLISHED:
            name = module.sub(published, name)
        tensors[name] = tensor.clone().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": [type(model).__name__], "label2id": {}}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    preprocessor = {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
        "resample": 3, "rescale_factor": 1 / 255, "size": {"height": side, "width": side},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
    return folder


def _draw(module: Any) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.02)
    elif _is_norm(module):
        module.weight.uniform_(0.7, 1.3)
        module.bias.normal_(0, 0.1)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.02)
    elif isinstance(module, nn.LayerNorm):
        module.weight.uniform_(0.8, 1.2)
        module.bias.normal_(0, 0.05)


def _follow(model: Any, side: int) -> None:
    """Give every normalisation the mean and the spread of what a drawn page brings it."""

    def measure(module: Any, given: tuple[torch.Tensor]) -> None:
        module.running_mean.copy_(given[0].mean((0, 2, 3)))
        module.running_var.fill_(float(given[0].var((0, 2, 3)).mean()) + 1e-4)

    hooks = [module.register_forward_pre_hook(measure) for module in model.modules() if _is_norm(module)]
    model(torch.from_numpy(pixel_values(drawn_page(), side, side).astype(np.float32)))
    for hook in hooks:
        hook.remove()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) or type(module).__name__.endswith("FrozenBatchNorm2d")


def main() -> int:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--detector", default="v3", help="v2 or v3")
    parser.add_argument("--full", action="store_true", help="the published sizes, 800 pixels")
    args = parser.parse_args()
    write_layout_checkpoint(args.folder, args.detector, full=args.full, side=800 if args.full else 128)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
