"""Image settings from a checkpoint's files, for families whose tower takes pages as patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config_values import check_values
from .export_errors import ExportError
from .json_files import read_json

# Values that the preparation implements; others would change the pixels.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "resample": (3,),  # Pillow's number of bicubic
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), (True,)),
}


@dataclass(frozen=True)
class ImageFile:
    """An image processor's settings, and the name of their file."""

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, folder: Path, processor: Mapping[str, Any]) -> ImageFile:
        """``processor``: processor_config.json.

        Raises
        ------
        ExportError
            when neither file has image settings.
        """
        file = folder / "preprocessor_config.json"
        if file.is_file():
            return cls(read_json(file), file.name)
        nested = processor.get("image_processor")  # the place of the settings in transformers 5
        if not isinstance(nested, Mapping):
            raise ExportError(
                f"{folder} has no image settings; they stand in preprocessor_config.json, or under image_processor in "
                "processor_config.json"
            )
        return cls(nested, "processor_config.json: image_processor")

    def patch_rules(self, *, patch: int, merge: int, frames: int = 1) -> dict[str, Any]:
        """Fields of ``models.patches.PatchRules`` from the file, checked against the tower's patches.

        frames : that a still picture counts as.

        Raises
        ------
        ExportError
            when the file asks for another preparation.
        """
        values = self.values
        check_values(values, {**_REQUIRED, "temporal_patch_size": (frames,)}, self.where)
        for key, ours in (("patch_size", patch), ("merge_size", merge)):
            found = values.get(key, ours)
            side = {found.get("height"), found.get("width")} if isinstance(found, Mapping) else {found}
            if side != {ours}:
                raise ExportError(f"{self.where}: {key} is {found!r}, and the model's is {ours}")
        given = {"rescale_factor": "rescale_factor", "mean": "image_mean", "std": "image_std"}
        rules = {name: values[key] for name, key in given.items() if values.get(key) is not None}
        return {"patch_size": patch, "merge_size": merge, **rules}

    def limits(self, family: str, *, frames: int = 1) -> dict[str, Any]:
        """The limits of a resized image's pixels, in the published form or in transformers'.

        Raises
        ------
        ExportError
            when there are none, or they contradict each other.
        """
        size = self.values.get("size") or {}
        low = self.values.get("min_pixels") or size.get("shortest_edge")
        high = self.values.get("max_pixels") or size.get("longest_edge")
        if low is None or high is None:
            raise ExportError(f"{self.where} has no min_pixels and max_pixels; is this a {family} one?")
        if type(low) is not int or type(high) is not int or not 0 < low <= high:
            raise ExportError(
                f"{self.where}: images have {low!r} to {high!r} pixels; expected two whole numbers in order"
            )
        return {"min_pixels": low // frames, "max_pixels": high // frames}
