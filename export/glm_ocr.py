"""GLM-OCR checkpoints as graphs: what the folder's JSON files say, as specs and modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any

from models.chat_template import PromptRules, rendered
from models.glm_ocr.images import ImageRules
from models.manifest import DecoderInfo, RotaryInfo, TokenIds

from .checkpoint import Checkpoint
from .config_values import check_decoder, check_values, optional_json, required, rope_values, size
from .decoder import Decoder, DecoderSpec, Embedding, decoder_graph, embedding_graph
from .errors import ExportError
from .family import Part, Parts
from .glm_vision import NAMES, merger_spec, tower, tower_spec
from .image_files import ImageFile
from .layers import Precision
from .outliers import OutlierSite
from .prompt_files import has_chat_template, prompt_rules
from .rms_vision import tower_graph, tower_outliers

DECODER = "model.language_model"

# What the graphs implement; another value would change the arithmetic. The first one stands where the config is silent.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}

_FRAMES = 2  # that the published code counts a still picture as

# Tokens that prompts are made of, and the key of config.json that has the id of each.
_MARKERS: Mapping[str, str] = {
    "<|begin_of_image|>": "image_start_token_id",
    "<|end_of_image|>": "image_end_token_id",
    "<|image|>": "image_token_id",
}
_BEGIN, _USER, _ASSISTANT = "[gMASK]", "<|user|>", "<|assistant|>"

# The published form of a prompt, for folders without a template, and to compare one with: templates decide a prompt's
# ids, and an unexpected one would be found in a page's text only.
PUBLISHED_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|user|>\n' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{{ '<|assistant|>\n' }}"
)


class GlmOcrExport:
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        folder, config = checkpoint.folder, checkpoint.config
        text = required(config, "text_config")
        tied = bool(first_tied(config, text)) and not checkpoint.has("lm_head.weight")
        self._decoder = decoder_spec(text, tied_head=tied)
        self._tower = tower_spec(config)
        self._merger = merger_spec(config, self._decoder.hidden)
        self._images = ImageFile.of(folder, processor)
        self._generation = optional_json(folder / "generation_config.json")
        self._folder, self._text, self._config = folder, text, config
        self._drafts = draft_layers(checkpoint, text)

    @property
    def unused(self) -> tuple[str, ...]:
        """Layers that draft further tokens (multi-token prediction), which the library's module ignores too."""
        return tuple(f"{DECODER}.layers.{i}." for i in self._drafts)

    def parts(self, vision: Precision, decoder: Precision) -> Parts:
        seeing = tower(self._tower, self._merger, vision)
        embedding = Embedding(f"{DECODER}.embed_tokens.weight", self._decoder, decoder)
        layers = Decoder(DECODER, "lm_head", self._decoder, decoder)
        return {
            "vision": Part(seeing, partial(tower_graph, seeing)),
            "embed": Part(embedding, partial(embedding_graph, embedding)),
            "decoder": Part(layers, partial(decoder_graph, layers)),
        }

    @property
    def vision_outliers(self) -> list[OutlierSite]:
        return list(tower_outliers(NAMES, self._tower))

    @property
    def sizes(self) -> DecoderInfo:
        spec = self._decoder
        assert spec.rotary_sections is not None
        return DecoderInfo(
            layers=spec.layers, hidden_size=spec.hidden, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
            vocabulary=spec.vocabulary, max_length=spec.max_length,
            rotary=RotaryInfo(theta=spec.rope_theta, sections=spec.rotary_sections),
        )  # fmt: skip

    @property
    def image_rules(self) -> ImageRules:
        """The checkpoint's image settings; the limits of its file are of all frames."""
        rules = self._images.patch_rules(patch=self._tower.patch, merge=self._merger.merge, frames=_FRAMES)
        limits = self._images.limits("GLM-OCR", frames=_FRAMES)
        return ImageRules(head_dim=self._tower.head_dim, **rules, **limits)

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of the tokens with a meaning, by the configs; ``token_id`` is the tokenizer's vocabulary.

        An answer ends at whatever any of the configs says, and where the user's turn would begin.
        """
        for token, key in _MARKERS.items():
            if token_id.get(token) != (expected := required(self._config, key)):
                raise ExportError(
                    f"the tokenizer gives {token} the id {token_id.get(token)}, and config.json says {expected} "
                    f"({key}); use the model's own tokenizer"
                )
        missing = [token for token in (_BEGIN, _USER, _ASSISTANT) if token not in token_id]
        if missing:
            raise ExportError(f"the tokenizer has no token {', '.join(missing)}; use the model's own one")
        ends = {token_id[_USER]}
        for config in (self._generation, self._text, self._config):
            found = config.get("eos_token_id")
            ends |= set(found if isinstance(found, list) else [] if found is None else [found])
        return TokenIds(bos=token_id[_BEGIN], eos=tuple(sorted(ends)), image=token_id["<|image|>"])

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> PromptRules:
        """The chat template with what it may name, and what a prompt may not.

        Raises
        ------
        ExportError
            when the folder's template writes another prompt than the published one.
        """
        image = required(self._config, "image_token_id")
        published = prompt_rules(self._folder, image, token_id, special, template=PUBLISHED_TEMPLATE)
        if not has_chat_template(self._folder):
            return published
        rules = prompt_rules(self._folder, image, token_id, special)
        wanted, found = (rendered("Text Recognition:", 1, one) for one in (published, rules))
        if found != wanted:
            raise ExportError(
                f"the chat template in {self._folder} writes {found!r:.300}, and GLM-OCR was trained with {wanted!r}; "
                "take the model's own template, or the file away to have the published form"
            )
        return rules


def first_tied(config: Mapping[str, Any], text: Mapping[str, Any]) -> Any:
    """Whether head and embedding are tied, where the decoder's config or the whole one says so."""
    return text.get("tie_word_embeddings", config.get("tie_word_embeddings"))


def draft_layers(checkpoint: Checkpoint, text: Mapping[str, Any]) -> list[int]:
    """Numbers of the layers for multi-token prediction: those that the config tells of, and those that are there."""
    layers = size(text, "num_hidden_layers")
    told = text.get("num_nextn_predict_layers") or 0
    if type(told) is not int or told < 0:
        raise ExportError(f"config.json: num_nextn_predict_layers is {told!r}; expected a whole number of at least 0")
    there = takewhile(lambda i: checkpoint.has(f"{DECODER}.layers.{i}.eh_proj.weight"), count(layers))
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
    hidden, heads, layers = (size(text, key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = text.get("head_dim") or hidden // heads
    rope = rope_values(text)
    sections = tuple(rope.get("mrope_section") or ())
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        raise ExportError(
            f"config.json: text_config: mrope_section is {list(sections)}; expected three that sum to {head_dim // 2}"
        )
    return DecoderSpec(
        hidden=hidden, layers=layers, heads=heads, kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=head_dim, mlp_width=size(text, "intermediate_size"), dense_layers=layers, moe=None,
        vocabulary=size(text, "vocab_size"), max_length=size(text, "max_position_embeddings"),
        rope_theta=float(rope.get("rope_theta") or text.get("rope_theta", 10_000.0)),
        rms_epsilon=float(text.get("rms_norm_eps", 1e-5)), rotary_sections=sections, post_norms=True,
        rotary_pairs=True, fused_gate_up=True, tied_head=tied_head,
    )  # fmt: skip
