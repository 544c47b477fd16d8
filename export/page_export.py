"""Shared by exporters of families with ``export.rms_vision``'s tower and a dense decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from models.manifest import TokenIds

from .checkpoint import Checkpoint
from .config_values import first, optional_json
from .decoder import DecoderSpec
from .decoder_export import DecoderExport
from .export_errors import ExportError
from .family import GraphPart
from .image_files import ImageFile
from .layers import Precision
from .outliers import OutlierSite
from .rms_vision import Tower, TowerNames, TowerSpec, tower_graph, tower_outliers


class PageExport(DecoderExport):
    """Base of such exporters; a subclass adds its family's own. names : of the tower in the checkpoint."""

    names: ClassVar[TowerNames]

    def __init__(
        self, checkpoint: Checkpoint, processor: Mapping[str, Any], decoder: DecoderSpec, tower: TowerSpec
    ) -> None:
        super().__init__(decoder)
        self.folder, self.tower_spec = checkpoint.folder, tower
        self.images = ImageFile.of(checkpoint.folder, processor)
        self.generation = optional_json(checkpoint.folder / "generation_config.json")

    @abstractmethod
    def tower(self, precision: Precision) -> Tower:
        """The vision tower with its merger."""

    def vision(self, precision: Precision) -> GraphPart:
        tower = self.tower(precision)
        return GraphPart(tower, partial(tower_graph, tower))

    @property
    def vision_outliers(self) -> Sequence[OutlierSite]:
        return list(tower_outliers(self.names, self.tower_spec))

    def token_ids(
        self, token_id: Mapping[str, int], image: int, placeholder: str, ends: Sequence[str], *, config: Any = None
    ) -> TokenIds:
        """Ids of special tokens.

        token_id : the tokenizer's vocabulary. image : the placeholder's id by config.json. ends : texts of tokens that
        always end an answer. config : has the end's id where generation_config.json has none.

        Raises
        ------
        ExportError
            when the tokenizer has another token for images, or none of ``ends``.
        """
        if token_id.get(placeholder) != image:
            raise ExportError(
                f"config.json: image_token_id is {image!r}, and the tokenizer has {placeholder} as "
                f"{token_id.get(placeholder)}; use the model's own tokenizer"
            )
        if missing := [end for end in ends if end not in token_id]:
            raise ExportError(f"the tokenizer has no token {missing[0]}, which ends an answer; use the model's own one")
        said = first(self.generation.get("eos_token_id"), (config or {}).get("eos_token_id"), [])
        eos = tuple(dict.fromkeys([*(said if isinstance(said, list) else [said]), *(token_id[end] for end in ends)]))
        return TokenIds(bos=eos[0], eos=eos, image=image)  # no token before a prompt
