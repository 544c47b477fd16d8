"""All families: this package's, those known by name only, and those of other packages."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

from .deepseek_ocr.registration import DEEPSEEK_OCR
from .deepseek_ocr2.registration import DEEPSEEK_OCR_2
from .dots_ocr.registration import DOTS_OCR
from .glm_ocr.registration import GLM_OCR
from .lighton_ocr.registration import LIGHTON_OCR
from .paddleocr_vl.registration import PADDLEOCR_VL
from .registration import FamilyClass, ModelEntry, Registration, missing_members
from .unlimited_ocr.registration import UNLIMITED_OCR

log = logging.getLogger(__name__)

ENTRY_POINTS = "ocr_onnx.families"

_KNOWN_BY_NAME = (
    Registration(
        "hunyuan-ocr",
        (ModelEntry("hunyuan-ocr", "hunyuan-ocr", "tencent/HunyuanOCR"),),
        ("HunYuanVLForConditionalGeneration",),
    ),
)


def _others() -> list[Registration]:
    """Registrations of other packages. One that cannot be used is named in the log and left out."""
    found = []
    for point in entry_points(group=ENTRY_POINTS):
        where = f"family {point.name!r} of {point.dist.name if point.dist else 'an unknown package'}"
        try:
            loaded = point.load()
        except Exception as error:  # another package's code can raise anything
            log.warning("%s cannot be loaded: %s: %s", where, type(error).__name__, error)
            continue
        if not isinstance(loaded, Registration):
            log.warning("%s is no models.registration.Registration but %s", where, type(loaded).__name__)
        elif loaded.rules is not None and (missing := missing_members(loaded.rules, FamilyClass)):
            log.warning("%s has no %s, see models.family.Family; left out", where, ", ".join(missing))
        else:
            found.append(loaded)
    return found


def whole(own: Iterable[Registration]) -> Iterable[Registration]:
    """The families, checked for the members that every command reads.

    Raises
    ------
    TypeError
        naming the family, its class and the missing members.
    """
    for family in own:
        if family.rules is not None and (missing := missing_members(family.rules, FamilyClass)):
            raise TypeError(
                f"family {family.id!r}: {family.rules} has no {', '.join(missing)}; write them in that class, as "
                "models.family.Family says and models/lighton_ocr/family.py does"
            )
        yield family


def gathered(own: Iterable[Registration], others: Iterable[Registration]) -> Mapping[str, Registration]:
    """All families by id. Another package's family may only replace one that is known by name only."""
    families = {family.id: family for family in own}
    for family in others:
        taken = {model.id: known for known in families.values() for model in known.models if known.id != family.id}
        clashes = [model.id for model in family.models if model.id in taken]
        if family.id in families and families[family.id].supported:
            log.warning("family %r is there already; another package's of that name is left out", family.id)
        elif clashes:
            log.warning("family %r brings models that are there already (%s); left out", family.id, ", ".join(clashes))
        else:
            families[family.id] = family
    return MappingProxyType(families)


_OWN = (DEEPSEEK_OCR, DEEPSEEK_OCR_2, UNLIMITED_OCR, PADDLEOCR_VL, GLM_OCR, DOTS_OCR, LIGHTON_OCR, *_KNOWN_BY_NAME)
FAMILIES: Mapping[str, Registration] = gathered(whole(_OWN), _others())


def by_architecture(name: str) -> Registration | None:
    """The family whose checkpoints name this architecture in config.json."""
    return next((family for family in FAMILIES.values() if name in family.architectures), None)


def unknown_architecture(name: str) -> str:
    """The message about an unknown architecture: all known ones, and the nearest."""
    listed = ", ".join(f"{family.id} ({', '.join(family.architectures)})" for family in FAMILIES.values())
    families = {_stem(architecture): family for family in FAMILIES.values() for architecture in family.architectures}
    (near, *_) = difflib.get_close_matches(_stem(name), families, n=1, cutoff=0)
    return f"architecture {name!r:.100} is of no family here: {listed}; the nearest is {families[near].id}"


def _stem(architecture: str) -> str:
    """An architecture's name without its purpose, such as ForCausalLM."""
    return architecture.lower().removesuffix("forconditionalgeneration").removesuffix("forcausallm")
