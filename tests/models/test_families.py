"""A family is one registration: what is said once is read everywhere, and another package can bring one."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import Field

from export.family import FamilyExport
from models import catalog
from models.asking import knows, tasks_for
from models.families import FAMILIES, by_architecture, gathered, unknown_architecture, whole
from models.family import IMAGE_SLOT, Family
from models.family_settings import FamilySettings
from models.model_errors import InvalidInput
from models.page_family import PageFamily
from models.patches import PatchRules
from models.registration import ModelEntry, Registration, missing_members
from models.settings import InferenceSettings

ROOT = Path(__file__).parents[2]

# A package beside the product, installed as pip would leave it: a module and its entry point.
PLUGIN = """
from models.deepseek_ocr.family import DeepseekOcr
from models.family_settings import FamilySettings
from models.registration import ModelEntry, Registration
from pydantic import Field

class Settings(FamilySettings):
    sharpness: int | None = Field(None, ge=1, le=5, description="how sharp views are made", examples=[3])

class Sharp(DeepseekOcr):
    settings = Settings
    tasks = {"read": "<image>Read."}
    default_task = "read"

FAMILY = Registration(
    "sharp-ocr", (ModelEntry("sharp-ocr", "sharp-ocr", "sharp/ocr", revision="abc"),), ("SharpForCausalLM",),
    kinds=("sharp",), rules=Sharp, exporter="export.deepseek_ocr:DeepseekOcrExport",
)
"""
ASK = """
import json, logging, sys
logging.basicConfig(level="WARNING")
from models.catalog import CATALOG, SUPPORTED_FAMILIES, normalise_family
from models.precedence import BY_NAME
from models.registry import tasks_of
from server.http.arguments import build_parser
entry = CATALOG["sharp-ocr"]
print(json.dumps([entry.revision, "sharp-ocr" in SUPPORTED_FAMILIES, normalise_family("Sharp"), tasks_of("sharp-ocr"),
                  BY_NAME["sharpness"].help, vars(build_parser().parse_args(["--sharpness", "2"]))]))
"""


def ask_with(tmp_path: Path, plugin: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sharp_ocr.py").write_text(plugin)
    info = tmp_path / "sharp_ocr-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sharp-ocr\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ocr_onnx.families]\nsharp = sharp_ocr:FAMILY\n")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n{ASK}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_another_package_brings_a_family_with_its_flags_and_entries(tmp_path: Path) -> None:
    run = ask_with(tmp_path, PLUGIN)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [
        "abc", True, "sharp-ocr", {"read": "<image>Read."}, "how sharp views are made", {"sharpness": 2},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("raise OSError('disk')", "OSError: disk"),
        ("FAMILY = 7", "is no models.registration.Registration but int"),
        (PLUGIN.replace("(DeepseekOcr):", ":").replace("    settings = Settings\n", ""), "has no defaults, "),
    ],
)
def test_a_package_that_cannot_be_used_is_named_and_stops_nothing(tmp_path: Path, plugin: str, said: str) -> None:
    run = ask_with(tmp_path, plugin)
    assert "family 'sharp' of sharp-ocr" in run.stderr
    assert said in run.stderr
    assert "KeyError: 'sharp-ocr'" in run.stderr  # only the family itself is missing


def registration(id_: str, *models: str, supported: bool = True) -> Registration:
    rules = FAMILIES["deepseek-ocr"].rules if supported else None
    entries = tuple(ModelEntry(model, id_, "x/y") for model in models)
    return Registration(id_, entries, (f"{id_}ForX",), rules=rules, exporter="a:b" if supported else None)


def test_nobody_replaces_a_family_or_a_model_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    own = [registration("a", "a"), registration("named-only", "named-only", supported=False)]
    found = gathered(own, [registration("a", "z"), registration("b", "a"), registration("named-only", "named-only")])
    assert [family.id for family in found.values()] == ["a", "named-only"]
    assert found["named-only"].supported
    assert [model.id for model in found["a"].models] == ["a"]
    assert "'a' is there already" in caplog.text
    assert "'b' brings models that are there already (a)" in caplog.text


def test_a_family_of_ours_that_is_not_whole_says_which_class_lacks_what_to_write() -> None:
    class HalfOcr(PageFamily[PatchRules]):
        tasks: Mapping[str, str] = MappingProxyType({"read": "<image>"})
        default_task = "read"

    half = Registration("half-ocr", (ModelEntry("half-ocr", "half-ocr", "x/y"),), ("HalfForX",), rules=HalfOcr)
    with pytest.raises(TypeError) as caught:
        list(whole([half]))
    assert "family 'half-ocr': " in str(caught.value)
    assert "HalfOcr'> has no settings, rules_class, resized, seen_pixels; write them in that class" in str(caught.value)

    class WholeOcr(HalfOcr):
        settings = FamilySettings
        rules_class = PatchRules

        def resized(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
            return np.asarray(image)

        def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
            return 1

    assert list(whole([replace(half, rules=WholeOcr)])) == [replace(half, rules=WholeOcr)]


def test_every_registration_is_whole() -> None:
    for family in FAMILIES.values():
        assert family.models[0].family == family.id
        assert family.architectures
        assert all(catalog.CATALOG[model.id] is model for model in family.models)
        if family.supported:
            assert missing_members(family.rules, Family) == []
            members = {name for name in (*vars(Family), *Family.__annotations__) if not name.startswith("_")}
            assert members - set(dir(family.rules)) == set()
            assert family.rules is not None
            assert not getattr(family.rules, "__abstractmethods__", None)
            assert family.rules.default_task in family.rules.tasks
            assert all(prompt.count(IMAGE_SLOT) == 1 for prompt in family.rules.tasks.values())
            exporter = pkgutil.resolve_name(family.exporter or "")
            members = {name for name in vars(FamilyExport) if not name.startswith("_")}
            assert members - set(dir(exporter)) == set()
            assert not getattr(exporter, "__abstractmethods__", None)
            assert hasattr(pkgutil.resolve_name(family.reference or ""), "features")


def test_an_architecture_leads_to_its_family_and_an_unknown_one_to_the_nearest() -> None:
    assert by_architecture("PaddleOCRVLForConditionalGeneration") is FAMILIES["paddleocr-vl"]
    assert by_architecture("DeepseekOCR2ForCausalLM") is FAMILIES["deepseek-ocr-2"]
    assert by_architecture("deepseekocrforcausallm") is None
    told = unknown_architecture("DeepSeekOcr3ForCausalLM")
    assert all(family in told for family in FAMILIES)
    assert "nearest is deepseek-ocr" in told
    assert unknown_architecture("DotsOCRForConditionalGeneration").endswith("the nearest is dots-ocr")


class Own(FamilySettings):
    side: int | None = Field(None, ge=2, le=8, description="side", examples=[4])
    sharp: bool = Field(True, description="sharp")


def test_a_family_takes_its_own_settings_and_leaves_those_of_others() -> None:
    assert Own.of({"side": 3, "max_tiles": 9}) == Own(side=3)
    with pytest.raises(InvalidInput, match="side is 9; it must be between 2 and 8"):
        Own.of({"side": 9})
    with pytest.raises(InvalidInput, match="sharp is yes; it must be true or false"):
        Own.of({"sharp": "yes"})


def test_an_override_keeps_the_settings_of_families_that_were_set_before() -> None:
    settings = InferenceSettings().override({"base_size": 512, "seed": 1}).override({"max_pixels": 200_000})
    assert settings.family == {"base_size": 512, "max_pixels": 200_000}
    assert settings.seed == 1
    assert settings.override({"base_size": None}).family == {"max_pixels": 200_000}


def test_revisions_of_a_model_have_entries_of_their_own_and_the_old_name_keeps_its_meaning() -> None:
    assert catalog.CATALOG["paddleocr-vl"].source == "PaddlePaddle/PaddleOCR-VL"
    assert catalog.CATALOG["paddleocr-vl-1.6"].source == "PaddlePaddle/PaddleOCR-VL-1.6"
    assert list(tasks_for(catalog.CATALOG["paddleocr-vl"])) == ["ocr", "table", "formula", "chart"]
    assert not knows(catalog.CATALOG["paddleocr-vl"], "What is this?")
    for name in ("paddleocr-vl-1.5", "paddleocr-vl-1.6"):
        assert list(tasks_for(catalog.CATALOG[name])) == ["ocr", "table", "formula", "chart", "spotting", "seal"]
        assert knows(catalog.CATALOG[name], "Spotting:")
