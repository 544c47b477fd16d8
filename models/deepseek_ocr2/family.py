"""The rules of DeepSeek-OCR-2, bound to one exported model: DeepSeek-OCR's with other views and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.deepseek_ocr.family import DeepseekFamily
from models.deepseek_ocr.images import Views
from models.family import Feeds, PreparedImage
from models.family_settings import FamilySettings
from models.pixels import noise

from .images import ImageRules, ImageSettings, lay_out, make_views, token_count, view_inputs


class DeepseekOcr2(DeepseekFamily[ImageRules]):
    """See ``models.family.Family``."""

    settings: ClassVar[type[FamilySettings]] = ImageSettings
    rules_class = ImageRules

    def cut(self, image: Image.Image, settings: Mapping[str, Any]) -> Views:
        return make_views(image, ImageSettings.of(settings), self.rules, self.most_tokens)

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Pixels of all tiles, or of the global view."""
        tiles = ImageSettings.of(settings).max_tiles or self.rules.max_tiles
        return max(self.rules.base_size**2, tiles * self.rules.image_size**2)

    def token_count(self, views: Views) -> int:
        return token_count(views.grid, self.rules)

    def assemble(self, views: Views, outputs: Sequence[Feeds]) -> np.ndarray:
        """Tile after tile, then the global view."""
        *tiles, whole = outputs
        return lay_out(whole["features"][0], [tile["features"][0] for tile in tiles], whole["view_separator"])

    def view_inputs(self, side: int) -> Feeds:
        return view_inputs(side, self.rules)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """Without settings one tile alone, whose view is the smaller one; with them an image with tiles."""
        side = self.rules.image_size
        if settings is not None:
            return self.prepare_image(noise(side + 1), settings)
        tile = np.asarray(noise(side))[None]
        count = self.rules.queries(side)[1]
        return PreparedImage([partial(self.feeds, tile)], count, lambda outputs: outputs[0]["features"][0])
