"""What the exporters of families with ``export.rms_vision``'s tower and a dense decoder have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from models.manifest import DecoderInfo, RotaryInfo, TokenIds

from .checkpoint import Checkpoint
from .config_values import first, optional_json
from .decoder import Decoder, DecoderSpec, Embedding, decoder_graph, embedding_graph
from .errors import ExportError
from .family import Part, Parts
from .image_files import ImageFile
from .layers import Precision
from .outliers import OutlierSite
from .rms_vision import Tower, TowerNames, TowerSpec, tower_graph, tower_outliers


class PageExport:
    """Base of an exporter, see ``export.family.FamilyExport``; a subclass reads what is its family's own.

    names : of the tower in the checkpoint. decoder_at : the decoder's path there.
    """

    unused: tuple[str, ...] = ()
    names: ClassVar[TowerNames]
    decoder_at: ClassVar[str] = "model"

    def __init__(
        self, checkpoint: Checkpoint, processor: Mapping[str, Any], decoder: DecoderSpec, tower: TowerSpec
    ) -> None:
        self.folder, self.decoder, self.tower_spec = checkpoint.folder, decoder, tower
        self.images = ImageFile.of(checkpoint.folder, processor)
        self.generation = optional_json(checkpoint.folder / "generation_config.json")

    def tower(self, precision: Precision) -> Tower:
        """The vision tower with its merger."""
        raise NotImplementedError

    def parts(self, vision: Precision, decoder: Precision) -> Parts:
        tower = self.tower(vision)
        embedding = Embedding(f"{self.decoder_at}.embed_tokens.weight", self.decoder, decoder)
        layers = Decoder(self.decoder_at, "lm_head", self.decoder, decoder)
        return {
            "vision": Part(tower, partial(tower_graph, tower)),
            "embed": Part(embedding, partial(embedding_graph, embedding)),
            "decoder": Part(layers, partial(decoder_graph, layers)),
        }

    @property
    def vision_outliers(self) -> Sequence[OutlierSite]:
        return list(tower_outliers(self.names, self.tower_spec))

    @property
    def sizes(self) -> DecoderInfo:
        spec = self.decoder
        sections = spec.rotary_sections
        return DecoderInfo(
            layers=spec.layers, hidden_size=spec.hidden, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
            vocabulary=spec.vocabulary, max_length=spec.max_length,
            rotary=None if sections is None else RotaryInfo(theta=spec.rope_theta, sections=sections),
        )  # fmt: skip

    def token_ids(
        self, token_id: Mapping[str, int], image: int, placeholder: str, ends: Sequence[str], *, config: Any = None
    ) -> TokenIds:
        """Ids with a meaning of their own.

        token_id : the tokenizer's vocabulary. image : the placeholder's id by config.json. ends : texts of tokens that
        end an answer, whatever the files say. config : what says the end where generation_config.json does not.

        Raises
        ------
        ExportError
            when the tokenizer has another token for images, or none of those.
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
        return TokenIds(bos=eos[0], eos=eos, image=image)  # nothing stands before a prompt
