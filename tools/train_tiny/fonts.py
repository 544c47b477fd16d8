"""The fonts that pages are set in: Latin text families from packages on PyPI, some for training, some held out.

The packages (extra `dev`) are fontpkg's, one a family, and matplotlib, which carries DejaVu and STIX; Pillow has one
face of its own. Every face has printable ASCII, all but Pillow's have `text.TYPOGRAPHIC` too.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import fontpkg
from PIL import ImageFont

PILLOW = "Aileron"
"""The face of `ImageFont.load_default`, in which demonstrations and tests write; plain ASCII only."""
TRAIN_FAMILIES = (
    PILLOW, "Archivo Narrow", "Arimo", "Bitter", "DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "EB Garamond",
    "Inconsolata", "Inter", "Karla", "Libre Baskerville", "Lora", "Montserrat", "Noto Sans", "Noto Serif",
    "Nunito Sans", "Public Sans", "Roboto", "Roboto Mono", "Roboto Slab", "Source Code Pro", "Space Mono",
    "STIXGeneral", "Work Sans",
)  # fmt: skip
HELD_OUT_FAMILIES = ("Crimson Text", "IBM Plex Mono", "Open Sans", "PT Serif", "Source Sans 3")
WEIGHTS = (400, 700)
_MATPLOTLIB = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIXGeneral": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}  # fmt: skip
"""Family -> names of its files: regular, bold, then both in italics."""


class FontsMissing(RuntimeError):
    """A family above is not installed."""


@dataclass(frozen=True)
class FontFace:
    """One face: a file, or one weight of a variable file."""

    family: str
    italic: bool
    weight: int  # one of WEIGHTS
    path: str  # empty for Pillow's own
    variable: bool = False

    @property
    def bold(self) -> bool:
        """Say whether readers see the face as bold."""
        return self.weight == WEIGHTS[-1]

    @property
    def ascii_only(self) -> bool:
        """Say whether the face lacks everything beyond printable ASCII."""
        return not self.path


def family_faces(family: str) -> list[FontFace]:
    """Return the faces of a family: regular and bold, upright and italic, as far as it has them.

    Raises FontsMissing where its package is not installed.
    """
    if family == PILLOW:
        return [FontFace(family, False, WEIGHTS[0], "")]
    if family in _MATPLOTLIB:
        found = find_spec("matplotlib")
        if found is None or found.origin is None:
            raise FontsMissing(f"{family} is carried by matplotlib, which is not installed; pip install '.[dev]'")
        folder = Path(found.origin).parent / "mpl-data/fonts/ttf"
        return [
            FontFace(family, number >= 2, WEIGHTS[number % 2], str(folder / f"{name}.ttf"))
            for number, name in enumerate(_MATPLOTLIB[family])
        ]
    try:
        files = fontpkg.family(family).files
    except fontpkg.FamilyNotInstalled as error:
        package = f"fontpkg-{fontpkg.slugify(family)}"
        raise FontsMissing(f"{family} is carried by {package}, which is not installed; pip install '.[dev]'") from error
    return [
        FontFace(family, file.style == "italic", weight, str(file.path), file.variable)
        for file in files
        for weight in WEIGHTS
        if file.covers(weight)
    ]


@lru_cache(maxsize=4)
def faces_of(families: tuple[str, ...]) -> dict[str, list[FontFace]]:
    """Return the faces by family; raises FontsMissing where one is not installed."""
    return {family: family_faces(family) for family in families}


@lru_cache(maxsize=1024)
def load_face(face: FontFace, size: int) -> ImageFont.FreeTypeFont:
    """Return the face at `size` pixels; basic layout, so that no ligature hides a character."""
    if not face.path:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's own font in a size needs FreeType
        return font
    font = ImageFont.truetype(face.path, size, layout_engine=ImageFont.Layout.BASIC)
    if face.variable:
        axes = font.get_variation_axes()
        font.set_variation_by_axes(
            [face.weight if axis["name"] == b"Weight" else axis["default"] or 0 for axis in axes]
        )
    return font
