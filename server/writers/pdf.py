"""PDF: pages that look like the original, with text to search, select and copy.

A PDF's own pages are kept and get a layer of invisible text; pictures become pages with such a layer. In PDF/A-2b (for
archives) every page is a picture: strangers' pages may refer to things that PDF/A forbids.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pikepdf
from pikepdf import Array, Dictionary, Name
from PIL import Image, ImageChops, ImageCms

from models.model_errors import InvalidInput

from .figures import as_jpeg
from .growing_pdf import PICTURE, GrowingPdf
from .material import Material, Original
from .placing import areas
from .result import PageResult
from .text_layer import FONT, GlyphlessFont, text_operators

log = logging.getLogger(__name__)

_A4 = (595.276, 841.89)  # points
_DPI = 144  # dots per inch of pictures, as of a PDF's drawn pages; larger pictures get a page of A4's height
_JPEG_QUALITY = 85
_HEAD_BYTES = 1024  # bytes within which a PDF's header is
_TOOL = "ocr-onnx"
_STREAM = pikepdf.AccessMode.stream  # a mapped file would count as our memory


class PdfWriter:
    """Writes searchable PDF; see the module's docstring."""

    def __init__(self, file: BinaryIO, material: Material) -> None:
        self._file, self._material = file, material

    def begin(self, head: Mapping[str, Any]) -> None:
        own = _opened(self._material.original(), int(head["page_count"]))
        self._pages = _PicturePages(self._material) if own is None else _OwnPages(own)

    def page(self, result: PageResult) -> None:
        self._pages.add(result)

    def end(self) -> None:
        self._pages.save(self._file)


class PdfAWriter(PdfWriter):
    """Writes PDF/A-2b; see the module's docstring."""

    def begin(self, head: Mapping[str, Any]) -> None:
        own = _opened(self._material.original(), int(head["page_count"]))
        sizes = []
        if own is not None:
            with own:
                sizes = [_size(page) for page in own.pages]
        self._pages = _PicturePages(self._material, sizes, PurePath(head["document"]).name)


def _opened(original: Original, page_count: int) -> pikepdf.Pdf | None:
    """The document, if it is a PDF to which text can be added; None for a picture, and after an error."""
    source: Path | io.BytesIO
    if isinstance(original.content, bytes):
        source, start = io.BytesIO(original.content), original.content[:_HEAD_BYTES]
    else:
        source = original.content
        with source.open("rb") as file:
            start = file.read(_HEAD_BYTES)
    if b"%PDF" not in start:
        return None
    try:
        pdf = pikepdf.open(source, password=original.password, access_mode=_STREAM)
        if len(pdf.pages) == page_count:
            return pdf
        reason = f"{len(pdf.pages)} pages are found in its structure, and {page_count} were drawn"
        pdf.close()
    except (pikepdf.PdfError, OSError, ValueError) as error:
        reason = str(error)
    log.warning("the PDF is damaged, and its pages become pictures in the result: %s", reason)
    return None


class _OwnPages:
    """A PDF's own pages, with text added."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self._font = GlyphlessFont()
        self._wanted: set[int] = set()
        self._written: list[pikepdf.Page] = []

    def add(self, result: PageResult) -> None:
        self._wanted.add(result.page - 1)
        page = self._pdf.pages[result.page - 1]
        came = result.size_as_it_came
        matrix = _undone(result, _matrix(page, *came)) if all(came) else ()
        operators = text_operators(areas(result), result.height, self._font, matrix) if matrix else b""
        if operators:
            # The graphics state that a page leaves must not move the text.
            page.contents_add(b"q\n", prepend=True)
            page.contents_add(b"\nQ\n" + operators)
            self._written.append(page)

    def save(self, file: BinaryIO) -> None:
        with self._pdf as pdf:
            font = self._font.embedded(pdf)
            for page in self._written:
                _add_font(page, font)
            for index in range(len(pdf.pages) - 1, -1, -1):
                if index not in self._wanted:
                    del pdf.pages[index]
            pdf.save(file, object_stream_mode=pikepdf.ObjectStreamMode.generate)


class _PicturePages:
    """Pages of pictures, kept on the disk and written one by one."""

    def __init__(self, material: Material, sizes: Sequence[tuple[float, float]] = (), archive: str = "") -> None:
        """sizes : of the pages in points, where known. archive : title of a PDF/A-2b file; None: plain PDF."""
        self._material, self._sizes, self._archive = material, sizes, archive
        self._font = GlyphlessFont()
        self._folder = tempfile.TemporaryDirectory(prefix="ocr-onnx-")
        self._path = Path(self._folder.name) / "pages.pdf"
        self._objects = GrowingPdf(self._path)

    def add(self, result: PageResult) -> None:
        try:
            picture = self._material.picture(result.page)
        except InvalidInput:
            if result.state == "done":
                raise
            self._objects.add_page(_A4)  # the page failed because it cannot be drawn
            return
        came = result.size_as_it_came  # the picture may be smaller than the page as read
        width, height = self._sizes[result.page - 1] if self._sizes else _points(came if all(came) else picture.size)
        shown = f"q {width:.3f} 0 0 {height:.3f} 0 0 cm /{PICTURE} Do Q\n".encode()
        if all(came):
            matrix = _undone(result, (width / came[0], 0, 0, height / came[1], 0, 0))
            shown += text_operators(areas(result), result.height, self._font, matrix)
        content, grey = _jpeg(picture)
        self._objects.add_page((width, height), shown, content, picture.size, "DeviceGray" if grey else "DeviceRGB")

    def save(self, file: BinaryIO) -> None:
        self._objects.end()
        with self._folder, pikepdf.open(self._path, access_mode=_STREAM) as pdf:
            font = self._font.embedded(pdf)
            for page in pdf.pages:
                _add_font(page, font)
            if self._archive:
                _declare_pdf_a(pdf, self._archive)
            pdf.save(file, min_version="1.7", object_stream_mode=pikepdf.ObjectStreamMode.generate)


def _add_font(page: pikepdf.Page, font: pikepdf.Object) -> None:
    """Add the font to a page's resources, which it may share with other pages."""
    resources = _copied(_inherited(page.obj, "/Resources"))
    resources["/Font"] = Dictionary({**_copied(resources.get("/Font")), str(FONT): font})
    page.obj.Resources = Dictionary(resources)


def _copied(entries: Any) -> dict[str, Any]:
    """A copy of a dictionary; an empty one for other objects."""
    return {key: entries[key] for key in entries.keys()} if isinstance(entries, Dictionary) else {}  # noqa: SIM118


def _inherited(node: pikepdf.Object, key: str) -> Any:
    """A page's entry, its own or inherited; None where there is none."""
    for _ in range(100):  # a damaged tree may be circular
        if key in node:
            return node[key]
        if "/Parent" not in node:
            break
        node = node.Parent
    return None


def _rotation(page: pikepdf.Page) -> int:
    value = _inherited(page.obj, "/Rotate")
    return int(value) % 360 // 90 * 90 if isinstance(value, int | float) else 0


def _shown(page: pikepdf.Page) -> tuple[float, float, float, float]:
    """The part of a page that is shown: x0, y0, x1, y1 in its own coordinates."""
    whole, crop = ([float(value) for value in box.as_list()] for box in (page.mediabox, page.cropbox))
    whole, crop = ([*sorted(box[::2]), *sorted(box[1::2])] for box in (whole, crop))  # x0 x1 y0 y1
    x0, x1 = max(whole[0], crop[0]), min(whole[1], crop[1])
    y0, y1 = max(whole[2], crop[2]), min(whole[3], crop[3])
    if x0 >= x1 or y0 >= y1:  # the crop box lies outside of the sheet
        x0, x1, y0, y1 = whole
    return x0, y0, x1, y1


def _size(page: pikepdf.Page) -> tuple[float, float]:
    """Width and height in points as a page is shown."""
    x0, y0, x1, y1 = _shown(page)
    unit = float(page.obj.get("/UserUnit", 1))
    width, height = (x1 - x0) * unit, (y1 - y0) * unit
    return (height, width) if _rotation(page) in (90, 270) else (width, height)


def _undone(result: PageResult, matrix: tuple[float, ...]) -> tuple[float, ...]:
    """The matrix from pixels of the page as read, where ``matrix`` is from pixels of the unturned page.

    Both are counted from the lower left corner.
    """
    if not result.rotated:
        return matrix
    width, height = result.size_as_it_came
    about_its_middle = (
        pikepdf.Matrix().translated(width / 2, height / 2)
        .rotated(result.rotated)
        .translated(-result.width / 2, -result.height / 2)
    )  # fmt: skip
    return (about_its_middle @ pikepdf.Matrix(*matrix)).shorthand


def _matrix(page: pikepdf.Page, width: int, height: int) -> tuple[float, ...]:
    """From pixels of the page as it is shown, counted from the lower left corner, to the page's own coordinates."""
    x0, y0, x1, y1 = _shown(page)
    across, up = x1 - x0, y1 - y0
    match _rotation(page):
        case 90:
            return 0, up / width, -across / height, 0, x1, y0
        case 180:
            return -across / width, 0, 0, -up / height, x1, y1
        case 270:
            return 0, -up / width, across / height, 0, x0, y1
    return across / width, 0, 0, up / height, x0, y0


def _points(size: tuple[int, int]) -> tuple[float, float]:
    """Size in points of a page for a picture of ``width`` x ``height`` pixels."""
    scale = min(72 / _DPI, max(_A4) / max(size)) if max(size) * 72 / _DPI > max(_A4) * 1.2 else 72 / _DPI
    return size[0] * scale, size[1] * scale


def _jpeg(picture: Image.Image) -> tuple[bytes, bool]:
    """A picture as JPEG, and whether it is grey, as one without colours is."""
    grey = picture.convert("L")
    colourless = picture.mode == "L" or ImageChops.difference(picture, grey.convert(picture.mode)).getbbox() is None
    return as_jpeg(grey if colourless else picture, _JPEG_QUALITY), colourless


def _declare_pdf_a(pdf: pikepdf.Pdf, title: str) -> None:
    """Declare a file as PDF/A-2b, with the profile of its colours."""
    profile = pdf.make_stream(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile.N = 3
    intent = Dictionary(
        Type=Name.OutputIntent, S=Name.GTS_PDFA1, OutputConditionIdentifier=b"sRGB", Info=b"sRGB IEC61966-2.1",
        DestOutputProfile=profile,
    )  # fmt: skip
    pdf.Root.OutputIntents = Array([pdf.make_indirect(intent)])
    with pdf.open_metadata(set_pikepdf_as_editor=False) as metadata:
        metadata["pdfaid:part"], metadata["pdfaid:conformance"] = "2", "B"
        metadata["dc:title"] = "".join(letter for letter in title if letter.isprintable()) or _TOOL
        metadata["pdf:Producer"] = metadata["xmp:CreatorTool"] = _TOOL
