"""A family that is not written to its end is named before anything is written, and no checkpoint is blamed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from export import pipeline
from export.deepseek_ocr import DeepseekOcrExport
from models.deepseek_ocr.family import DeepseekOcr
from models.deepseek_ocr.images import ImageRules
from models.families import FAMILIES
from models.page_family import PageFamily
from models.patches import PatchRules
from models.registration import FamilyClass
from tests.export.jobs import refused


class HalfOcr(PageFamily[PatchRules]):
    """Says what commands read, and not how a page is resized."""

    tasks = DeepseekOcr.tasks
    default_task = DeepseekOcr.default_task
    settings = DeepseekOcr.settings

    def seen_pixels(self, settings: object, prompt: str = "") -> int:
        return 1


class WithoutPromptRules:
    """An exporter that says everything else."""

    unused = parts = vision_outliers = sizes = image_rules = tokens = None


class WithoutHeadDim(DeepseekOcrExport):
    @property
    def image_rules(self) -> ImageRules:
        return PatchRules(patch_size=14, merge_size=2)  # type: ignore[call-arg, return-value]  # what is tested


class WithAWrongPatch(DeepseekOcrExport):
    @property
    def image_rules(self) -> ImageRules:
        return PatchRules(patch_size="14 px", merge_size=2, head_dim=64)  # type: ignore[arg-type, return-value]


def family_of(monkeypatch: pytest.MonkeyPatch, rules: FamilyClass, exporter: type) -> None:
    made = replace(FAMILIES["deepseek-ocr"], rules=rules, exporter=f"{__name__}:{exporter.__name__}")
    monkeypatch.setattr(pipeline, "FAMILIES", MappingProxyType({"deepseek-ocr": made}))


def test_rules_without_a_member_that_only_reading_needs_are_refused(
    checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family_of(monkeypatch, HalfOcr, DeepseekOcrExport)
    said = refused(checkpoint, target)
    assert f"{__name__}.HalfOcr has no rules_class, resized; write them, see models.family.Family" in said


def test_an_exporter_without_a_member_is_refused(
    checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family_of(monkeypatch, DeepseekOcr, WithoutPromptRules)
    said = refused(checkpoint, target)
    assert "WithoutPromptRules has no prompt_rules; write them, see export.family.FamilyExport" in said


def test_image_rules_that_lack_a_field_are_the_exporters_fault_and_wrong_values_the_checkpoints(
    checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family_of(monkeypatch, DeepseekOcr, WithoutHeadDim)
    said = refused(checkpoint, target)
    assert f"{__name__}.WithoutHeadDim.image_rules gives PatchRules no head_dim; mend the exporter" in said
    family_of(monkeypatch, DeepseekOcr, WithAWrongPatch)
    assert "the configuration in" in refused(checkpoint, target)
