"""Other spellings of tensor names, by programs that train and save models.

PEFT, torch.compile, DataParallel and FSDP put a wrapper's name in front of every tensor; transformers 5 moves the parts
of a model that publishers put side by side below one ``model.``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from .export_errors import ExportError
from .headers import TensorInfo

_WRAPPERS = ("base_model.model.", "_orig_mod.", "_fsdp_wrapped_module.", "module.")

# Published beginning of a name -> transformers 5's.
_MOVED: tuple[tuple[str, str], ...] = (
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("model.", "model.language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("lm_head.", "model.lm_head."),
    ("lm_head.", "model.language_model.lm_head."),
    ("mlp_AR.", "model.projector."),
    ("", "model."),
)

# Buffers that some versions of the libraries save beside the weights; every program computes them from the config.
_BUFFERS = ("inv_freq", "cos_cached", "sin_cached", "position_ids", "masked_bias", "num_batches_tracked")


def unwrapped(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors without wrappers' prefixes, where every name has them.

    Raises
    ------
    ExportError
        for a model that was saved with an adapter that is not merged.
    """
    found = dict(tensors)
    while wrapper := next((one for one in _WRAPPERS if found and all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(wrapper): info for name, info in found.items()}
    apart = next((name for name in found if ".lora_A." in name or ".base_layer." in name), None)
    if apart is not None:
        raise ExportError(
            f"{found[apart].file} holds a model with an adapter (LoRA) that is not merged ({apart}); merge it first "
            "(PEFT: merge_and_unload), or name the model with --source and the adapter's folder with --adapter"
        )
    return found


def spellings(name: str) -> Iterator[str]:
    """Other names that the same tensor, or a prefix of names, may have."""
    for published, moved in _MOVED:
        if name.startswith(published):
            yield moved + name.removeprefix(published)


def finder(tensors: Iterable[str]) -> Callable[[str], str | None]:
    """A function from any known spelling to the name among ``tensors``; None for a tensor that is missing."""
    known = set(tensors)
    others = {spelling: name for name in known for spelling in spellings(name)}

    def find(name: str) -> str | None:
        return name if name in known else others.get(name, next((one for one in spellings(name) if one in known), None))

    return find


def is_buffer(name: str) -> bool:
    """Whether the tensor is one that programs compute for themselves."""
    return name.rpartition(".")[2].removeprefix("original_") in _BUFFERS
