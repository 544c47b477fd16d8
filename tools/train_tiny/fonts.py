"""The fonts that pages are set in: Latin text families of Debian packages, some for training, some held out.

`fc-list` finds them; a font counts only if it has every printable ASCII character.
"""

import subprocess
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageFont

TRAIN_FAMILIES = (
    "C059", "Cantarell", "Carlito", "DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "FreeMono", "FreeSans",
    "FreeSerif", "Lato", "Liberation Sans", "Liberation Sans Narrow", "Liberation Serif", "Linux Libertine O",
    "Nimbus Mono PS", "Nimbus Roman", "Nimbus Sans", "Nimbus Sans Narrow", "Noto Sans", "Noto Sans Display",
    "Noto Serif", "Noto Serif Display", "Roboto", "Roboto Condensed", "URW Bookman", "URW Gothic",
)  # fmt: skip
HELD_OUT_FAMILIES = ("Caladea", "Liberation Mono", "Linux Biolinum O", "Open Sans", "P052")
DEBIAN_PACKAGES = (
    "fonts-dejavu", "fonts-dejavu-extra", "fonts-liberation", "fonts-liberation2", "fonts-freefont-ttf",
    "fonts-noto-core", "fonts-roboto-unhinted", "fonts-open-sans", "fonts-lato", "fonts-cantarell",
    "fonts-crosextra-carlito",
    "fonts-crosextra-caladea", "fonts-linuxlibertine", "fonts-urw-base35",
)  # fmt: skip


class FontsMissing(RuntimeError):
    """Too few of the families above are installed."""


@dataclass(frozen=True)
class FontFace:
    """One face on disk."""

    family: str
    style: str
    path: str


@lru_cache(maxsize=1)
def installed_faces() -> tuple[FontFace, ...]:
    """Return the faces of the known families, sorted, one file per family and style."""
    wanted = {*TRAIN_FAMILIES, *HELD_OUT_FAMILIES}
    listing = subprocess.run(
        ["fc-list", "--format", "%{family[0]}|%{style[0]}|%{file}\n", ":charset=20-7e"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    faces: dict[tuple[str, str], FontFace] = {}
    for line in sorted(listing.splitlines()):
        family, style, path = line.split("|")
        if family in wanted and path.endswith((".ttf", ".otf")):
            faces.setdefault((family, style), FontFace(family, style, path))
    return tuple(faces.values())


def faces_of(families: tuple[str, ...]) -> dict[str, list[FontFace]]:
    """Return the installed faces by family.

    Raises FontsMissing where half of the families or more have none.
    """
    by_family: dict[str, list[FontFace]] = {}
    for face in installed_faces():
        if face.family in families:
            by_family.setdefault(face.family, []).append(face)
    if len(by_family) * 2 <= len(families):
        raise FontsMissing(
            f"only {sorted(by_family)} of {len(families)} font families found; install {' '.join(DEBIAN_PACKAGES)}"
        )
    return by_family


@lru_cache(maxsize=1024)
def load_face(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the face at `size` pixels; basic layout, so that no ligature hides a character."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
