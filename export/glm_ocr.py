"""GLM-OCR checkpoints as graphs: specs and modules from the folder's JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

from models.chat_template import PromptRules, rendered
from models.glm_ocr.images import ImageRules
from models.manifest import TokenIds

from .checkpoint import Checkpoint
from .config_values import check_decoder, check_values, first, required, rope_values, size
from .decoder import DecoderSpec
from .decoder_export import checked_sections, sized_decoder
from .export_errors import ExportError
from .glm_vision import NAMES, merger_spec, tower, tower_spec
from .layers import Precision
from .page_export import PageExport
from .prompt_files import has_chat_template, prompt_rules
from .rms_vision import Tower

# Values that the graphs implement, the default first; others would change the arithmetic.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}

_FRAMES = 2  # frames that the published code counts for a still picture

# Tokens of prompts, and the keys of config.json that have their ids.
_MARKERS: Mapping[str, str] = {
    "<|begin_of_image|>": "image_start_token_id",
    "<|end_of_image|>": "image_end_token_id",
    "<|image|>": "image_token_id",
}
_TURNS = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")

# The published form of a prompt, for folders without a template and to check templates: a wrong template would show in
# pages' texts only.
PUBLISHED_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|user|>\n' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{{ '<|assistant|>\n' }}"
)


class GlmOcrExport(PageExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    names = NAMES
    decoder_at = "model.language_model"

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        config = checkpoint.config
        text = required(config, "text_config")
        tied = first(text.get("tie_word_embeddings"), config.get("tie_word_embeddings"))
        spec = decoder_spec(text, tied_head=bool(tied) and not checkpoint.has("lm_head.weight"))
        super().__init__(checkpoint, processor, spec, tower_spec(config))
        self._merger = merger_spec(config, spec.hidden)
        self._text, self._config = text, config
        # Layers for multi-token prediction, which the library's module ignores, too.
        self.unused = tuple(f"{self.decoder_at}.layers.{i}." for i in draft_layers(checkpoint, text, self.decoder_at))

    def tower(self, precision: Precision) -> Tower:
        return tower(self.tower_spec, self._merger, precision)

    @property
    def image_rules(self) -> ImageRules:
        """The checkpoint's image settings; limits in its file count all frames."""
        rules = self.images.patch_rules(patch=self.tower_spec.patch, merge=self._merger.merge, frames=_FRAMES)
        limits = self.images.limits("GLM-OCR", frames=_FRAMES)
        return ImageRules(head_dim=self.tower_spec.head_dim, **rules, **limits)

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of the tokens with a meaning, by the configs; ``token_id`` is the tokenizer's vocabulary.

        The beginning of the user's next turn always ends an answer, too.

        Raises
        ------
        ExportError
            when the tokenizer's ids differ from config.json's, or tokens of prompts are missing.
        """
        for token, key in _MARKERS.items():
            if token_id.get(token) != (expected := required(self._config, key)):
                raise ExportError(
                    f"the tokenizer gives {token} the id {token_id.get(token)}, and config.json says {expected} "
                    f"({key}); use the model's own tokenizer"
                )
        if missing := [token for token in _TURNS if token not in token_id]:
            raise ExportError(f"the tokenizer has no token {', '.join(missing)}; use the model's own one")
        image = token_id["<|image|>"]
        return self.token_ids(token_id, image, "<|image|>", ("<|user|>", "<|endoftext|>"), config=self._text)

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> PromptRules:
        """The chat template, the names that it may use, and the control tokens that prompts must not hold.

        Raises
        ------
        ExportError
            when the folder's template does not write the published prompt.
        """
        image = required(self._config, "image_token_id")
        published = prompt_rules(self.folder, image, token_id, special, template=PUBLISHED_TEMPLATE)
        if not has_chat_template(self.folder):
            return published
        rules = prompt_rules(self.folder, image, token_id, special)
        wanted, found = (rendered("Text Recognition:", 1, one) for one in (published, rules))
        if found != wanted:
            raise ExportError(
                f"the chat template in {self.folder} writes {found!r:.300}, and GLM-OCR was trained with {wanted!r}; "
                "take the model's own template, or the file away to have the published form"
            )
        return rules


def draft_layers(checkpoint: Checkpoint, text: Mapping[str, Any], at: str) -> list[int]:
    """Numbers of the layers for multi-token prediction, by the config and by the tensors that are there.

    at : the decoder's path.
    """
    layers = size(text, "num_hidden_layers")
    told = text.get("num_nextn_predict_layers") or 0
    if type(told) is not int or told < 0:
        raise ExportError(f"config.json: num_nextn_predict_layers is {told!r}; expected a whole number of at least 0")
    there = takewhile(lambda i: checkpoint.has(f"{at}.layers.{i}.eh_proj.weight"), count(layers))
    return sorted({*range(layers, layers + told), *there})


def decoder_spec(text: Mapping[str, Any], *, tied_head: bool = False) -> DecoderSpec:
    """The decoder's sizes and rules from its part of config.json.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graphs do not implement.
    """
    check_values(text, _REQUIRED, "config.json: text_config")
    check_decoder(text, rope_types=("default", "mrope"))
    sized = sized_decoder(text, theta=10_000.0, epsilon=1e-5)
    given = tuple(rope_values(text).get("mrope_section") or ())
    sections = checked_sections(given, sized.head_dim, "config.json: text_config")
    return replace(
        sized, rotary_sections=sections, post_norms=True, rotary_pairs=True, fused_gate_up=True, tied_head=tied_head
    )
