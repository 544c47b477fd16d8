"""transformers' own modules for each family, as the benchmark and ``tools.parity`` use them.

A family's registration names its class here (``Registration.reference``): it loads the model, shows it an image, tells
it positions and has it decode. Timed code calls ``features`` and ``places``, so they do what the library's own pipeline
does and nothing more.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from models.families import by_architecture, unknown_architecture
from models.manifest import Manifest
from models.registration import Registration

PromptIds = Callable[[Sequence[int]], list[int]]  # tokens of each image -> token ids


@dataclass(frozen=True)
class Reference:
    """What transformers computes.

    features : of each image, [tokens, hidden]; logits : [steps + 1, vocabulary]; tokens : [steps + 1].
    """

    features: list[np.ndarray]
    logits: np.ndarray
    tokens: list[int]
    prompt_ids: list[int]


def registration_of(checkpoint: Path) -> Registration:
    """The family of a checkpoint folder, by the architecture that its config.json names.

    Raises
    ------
    LookupError
        when there is none, or nothing to compare it with.
    """
    published = json.loads((checkpoint / "config.json").read_text())
    (name,) = published.get("architectures") or [""]
    family = by_architecture(name)
    if family is None:
        raise LookupError(f"{checkpoint}: {unknown_architecture(name)}")
    if family.reference is None:
        raise LookupError(f"{checkpoint} is of {family.id}, which has no reference to compare with")
    return family


class ReferenceFamily(Protocol):
    """One family's model in transformers.

    vision_part : name of the vision tower in ``model.model``.
    """

    model: Any
    vision_part: str

    def view(self, side: int) -> tuple[Any, ...]:
        """What ``features`` takes, for one random view of so many pixels."""

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        """What ``features`` takes, for a page as it comes."""

    def features(self, *inputs: Any) -> Any:
        """[image tokens, hidden]"""

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        """Arguments of the decoder that say where so many tokens stand."""

    def read(
        self, manifest: Manifest, images: Sequence[Image.Image], steps: int, prompt_ids: PromptIds, vocabulary: int
    ) -> Reference:
        """Read images greedily. manifest : of any export of the checkpoint, for image rules that no library has.

        vocabulary : tokens that may be chosen; the logits of random weights have padding rows too.
        """


def load_family(checkpoint: Path, dtype: Any = None) -> ReferenceFamily:
    """The checkpoint's model in a PyTorch type; None: float32."""
    import torch

    name = registration_of(checkpoint).reference
    assert name is not None
    family: ReferenceFamily = pkgutil.resolve_name(name)(checkpoint, dtype or torch.float32)
    return family


class DeepseekReference:
    """See ``ReferenceFamily``. The later models of the line override what they cut and load otherwise."""

    vision_part = "vision_tower"

    def __init__(self, checkpoint: Path, dtype: Any) -> None:
        self.model: Any = self.load(checkpoint, dtype)
        self._dtype = dtype

    def load(self, checkpoint: Path, dtype: Any) -> Any:
        from tools.reference import load_reference

        return load_reference(checkpoint, dtype)

    def view(self, side: int) -> tuple[Any, ...]:
        import torch

        return torch.randn(1, 3, side, side).to(self._dtype), None, (1, 1)

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        return self.views(image, self.rules_of_model())

    def rules_of_model(self) -> Any:
        """The family's image rules, for the sizes of the loaded model."""
        from models.deepseek_ocr.images import ImageRules

        config = self.model.config.vision_config
        sam, clip = config.sam_config, config.encoder_config
        return ImageRules(
            patch_size=sam.patch_size, downsample=4, grid=sam.image_size // sam.patch_size,
            clip_grid=clip.image_size // clip.patch_size,
        )  # fmt: skip

    def views(self, image: Image.Image, rules: Any) -> tuple[Any, ...]:
        """What ``features`` takes, by the family's rules."""
        from models.deepseek_ocr.images import ImageSettings, make_views

        return self._inputs_of(make_views(image, ImageSettings.model_validate({}), rules), rules)

    def inputs(self, image: Image.Image, images: int, rules: Any) -> tuple[Any, ...]:
        """What ``features`` takes for one of so many images in a prompt."""
        return self.views(image, rules)

    def rules(self, manifest: Manifest) -> Any:
        from models.deepseek_ocr.images import ImageRules

        return ImageRules.model_validate(manifest.image)

    def features(self, *inputs: Any) -> Any:
        whole, tiles, grid = inputs
        counts = [0 if tiles is None else len(tiles)]
        found = self.model.model.get_image_features(whole, tiles, counts, [list(grid)], return_dict=True)
        return found.pooler_output[0]

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        return {}

    def read(
        self, manifest: Manifest, images: Sequence[Image.Image], steps: int, prompt_ids: PromptIds, vocabulary: int
    ) -> Reference:
        import torch

        with torch.no_grad():
            rules = self.rules(manifest)
            features = [self.features(*self.inputs(image, len(images), rules)).numpy() for image in images]
        return _read_counted(self.model, features, manifest, steps, prompt_ids, vocabulary)

    def _inputs_of(self, views: Any, rules: Any) -> tuple[Any, ...]:
        """Views as tensors: the whole page, its tiles or None, and the tiles' grid."""
        import torch

        from models.deepseek_ocr.images import normalise

        def tensor(pixels: np.ndarray) -> Any:
            return torch.from_numpy(normalise(pixels, rules)).to(self._dtype)

        return tensor(views.whole), None if views.tiles is None else tensor(views.tiles), views.grid


class UnlimitedReference(DeepseekReference):
    """See ``ReferenceFamily``; several images are global views alone."""

    def rules_of_model(self) -> Any:
        return super().rules_of_model().model_copy(update={"max_tiles": 32})

    def inputs(self, image: Image.Image, images: int, rules: Any) -> tuple[Any, ...]:
        from models.deepseek_ocr.images import ImageSettings, global_view

        if images == 1:
            return self.views(image, rules)
        return self._inputs_of(global_view(image, ImageSettings.model_validate({}), rules), rules)


class Deepseek2Reference(DeepseekReference):
    """See ``ReferenceFamily``."""

    def load(self, checkpoint: Path, dtype: Any) -> Any:
        from tools.deepseek2_reference import load_deepseek2

        return load_deepseek2(checkpoint, dtype)

    def rules_of_model(self) -> Any:
        from models.deepseek_ocr2.images import ImageRules

        sam = self.model.config.vision_config.sam_config
        side = sam.image_size
        return ImageRules(
            patch_size=sam.patch_size, downsample=4, grid=side // sam.patch_size, base_size=side,
            image_size=side * 3 // 4,
        )  # fmt: skip

    def views(self, image: Image.Image, rules: Any) -> tuple[Any, ...]:
        from models.deepseek_ocr2.images import ImageSettings, make_views

        return self._inputs_of(make_views(image, ImageSettings.model_validate({}), rules), rules)

    def rules(self, manifest: Manifest) -> Any:
        from models.deepseek_ocr2.images import ImageRules

        return ImageRules.model_validate(manifest.image)

    def features(self, *inputs: Any) -> Any:
        whole, tiles, _ = inputs
        counts = None if tiles is None else [len(tiles)]
        return self.model.model.get_image_features(whole, tiles, counts, return_dict=True).pooler_output[0]


class PatchesReference:
    """See ``ReferenceFamily``. A page is one pass, cut by the library's own processor; tokens are counted.

    A view is a page of its size, which the processor makes a multiple of its patches.
    """

    vision_part = "visual"

    def __init__(self, checkpoint: Path, dtype: Any, model: Any, processor: Any) -> None:
        """model : with all weights, in evaluation mode. processor : of images, on Pillow."""
        self.model, self._processor, self._dtype = model, processor, dtype
        # Random weights choose ids between the published ones, which the small tokenizers of the tests have not.
        vocabulary = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab(with_added_tokens=True)
        self._known = np.sort(np.fromiter(vocabulary.values(), np.int64))

    def view(self, side: int) -> tuple[Any, ...]:
        noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        return self.page(Image.fromarray(noise))

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        prepared = self._processor(image, return_tensors="pt")
        return prepared["pixel_values"].to(self._dtype), prepared["image_grid_thw"]

    def features(self, *inputs: Any) -> Any:
        return self.model.get_image_features(*inputs, return_dict=True).pooler_output[0]

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        return {}

    def read(
        self, manifest: Manifest, images: Sequence[Image.Image], steps: int, prompt_ids: PromptIds, vocabulary: int
    ) -> Reference:
        import torch

        with torch.no_grad():
            features = [self.features(*self.page(image)).numpy() for image in images]
        return _read_counted(self.model, features, manifest, steps, prompt_ids, self._known)


class PaddleReference(PatchesReference):
    """See ``ReferenceFamily``. Positions follow rows and columns."""

    def __init__(self, checkpoint: Path, dtype: Any) -> None:
        super().__init__(checkpoint, dtype, *self.load(checkpoint, dtype))

    def load(self, checkpoint: Path, dtype: Any) -> tuple[Any, Any]:
        """The model and its image processor."""
        from tools.paddle_reference import image_processor, load_paddle

        return load_paddle(checkpoint, dtype=dtype), image_processor(checkpoint)

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        """Counted through an image too: other positions are the same work."""
        import torch

        return {"position_ids": torch.arange(start, start + tokens).expand(3, 1, -1)}

    def read(
        self, manifest: Manifest, images: Sequence[Image.Image], steps: int, prompt_ids: PromptIds, vocabulary: int
    ) -> Reference:
        """The library's own code counts the positions."""
        from tools.paddle_reference import greedy, page_features

        found = [page_features(self.model, self._processor, image) for image in images]
        features, grids = [one for one, _ in found], [grid for _, grid in found]
        ids = prompt_ids([len(one) for one in features])
        logits, tokens = greedy(self.model, ids, features, grids, steps, self._known)
        return Reference(features, logits, tokens, ids)


class GlmReference(PaddleReference):
    """See ``ReferenceFamily``. Images have the limit that the product sets, where the published one is higher."""

    def load(self, checkpoint: Path, dtype: Any) -> tuple[Any, Any]:
        from models.glm_ocr.images import MAX_PIXELS
        from tools.glm_reference import image_processor, load_glm

        size = {"shortest_edge": 12_544, "longest_edge": 2 * MAX_PIXELS}  # of two frames, as the library counts
        return load_glm(checkpoint, dtype), image_processor(checkpoint, size=size)


class DotsReference(PatchesReference):
    """See ``ReferenceFamily``. A page is no larger than the family's own default lets it be."""

    vision_part = "vision_tower"

    def __init__(self, checkpoint: Path, dtype: Any) -> None:
        from models.dots_ocr.images import MAX_PIXELS
        from tools.dots_reference import image_processor, load_dots

        super().__init__(checkpoint, dtype, load_dots(checkpoint, dtype), image_processor(checkpoint, MAX_PIXELS))

    def features(self, *inputs: Any) -> Any:
        pixels, grid = inputs
        return self.model.model.vision_tower(pixels, grid_thw=grid).pooler_output


class LightOnReference(PatchesReference):
    """See ``ReferenceFamily``."""

    vision_part = "vision_encoder"

    def __init__(self, checkpoint: Path, dtype: Any) -> None:
        from tools.lighton_reference import image_processor, load_lighton

        super().__init__(checkpoint, dtype, load_lighton(checkpoint, dtype), image_processor(checkpoint))

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        import torch

        prepared = self._processor(image, return_tensors="pt")
        return prepared["pixel_values"].to(self._dtype), torch.as_tensor(np.asarray(prepared["image_sizes"]))

    def features(self, *inputs: Any) -> Any:
        return self.model.model.get_image_features(*inputs).pooler_output[0]


def _read_counted(
    model: Any, features: list[np.ndarray], manifest: Manifest, steps: int, prompt_ids: PromptIds,
    allowed: int | np.ndarray,
) -> Reference:  # fmt: skip
    """Greedy answer to a prompt whose positions are counted token by token.

    features : of each image, [tokens, hidden]. allowed : tokens that may be chosen, see ``greedy_logits``.
    """
    from tools.reference import embed, greedy_logits

    ids = prompt_ids([len(one) for one in features])
    embeddings = embed(model, ids).copy()
    if features:
        embeddings[np.array(ids) == manifest.tokens.image] = np.concatenate(features)
    logits, tokens = greedy_logits(model, embeddings, steps, allowed)
    return Reference(features, logits, tokens, ids)
