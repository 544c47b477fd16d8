"""What a family does that says nothing else: its exporter's tokens, one settled way of counting, plain answers.

``models.family`` says what a family provides; a family derives from here, or from ``models.page_family`` where its
tower takes a whole page in one pass, and writes down only what is its own.
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
        """Token after token: features of images count as words do."""
        return counted(len(prompt_ids))

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """None: attention is full."""
        return None

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """The text as the model writes it."""
        return Verbatim()

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """None: answers say nothing of places, or say them as blocks."""
        return []

    @classmethod
    def blocks(cls, text: str, width: int, height: int) -> tuple[Block, ...]:
        """Those of ``boxes``."""
        return blocks_of(cls.boxes(text, width, height))
