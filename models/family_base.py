"""Defaults of a family: the exporter's tokens, positions counted token by token, unchanged answers.

``models.family`` is the interface; a family derives from here, or from ``models.page_family`` where its tower takes a
whole page in one pass, and overrides only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from .blocks import Block, blocks_of
from .family import OutputFilter, Positions, PreparedImage, Verbatim, counted
from .grounding import Box
from .manifest import Manifest


class FamilyBase:
    """Base of a family, see ``models.family.Family``."""

    defaults: Mapping[str, Any] = MappingProxyType({})
    defaults_for_several: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    joint_tasks: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, manifest: Manifest) -> None:
        self.tokens = manifest.tokens

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Positions counted token by token; image features count like words."""
        return counted(len(prompt_ids))

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """None: attention is full."""
        return None

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """No filter: the model's own text."""
        return Verbatim()

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """None: answers name no boxes, or only in ``blocks``."""
        return []

    @classmethod
    def blocks(cls, text: str, width: int, height: int) -> tuple[Block, ...]:
        """Blocks of ``boxes``."""
        return blocks_of(cls.boxes(text, width, height))
