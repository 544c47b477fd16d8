"""Which families there are, by the name that the manifest gives."""

from __future__ import annotations

from .deepseek_ocr.family import DeepseekOcr
from .errors import ManifestError
from .family import Family
from .manifest import Manifest

_FAMILIES = {"deepseek-ocr": DeepseekOcr}


def family_of(manifest: Manifest) -> Family:
    """The family of an exported model, bound to its settings.

    Raises
    ------
    ManifestError
        when this version knows no such family.
    """
    if manifest.family not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise ManifestError(f"family {manifest.family!r} is unknown to this version, which knows {known}; upgrade it")
    return _FAMILIES[manifest.family](manifest)
