"""A PDF of pictures that grows on the disk page by page, for pikepdf to finish; libraries hold whole files."""

from __future__ import annotations

from pathlib import Path

PICTURE = "Page"  # name of the picture in a page's content


class GrowingPdf:
    """Writes the PDF. Objects 1 and 2, the catalogue and the list of pages, are written last."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._file.write(b"%PDF-1.7\n")
        self._offsets: list[int] = []  # offsets of object 3 and later ones
        self._pages: list[int] = []

    def add_page(
        self, size: tuple[float, float], content: bytes = b"", jpeg: bytes = b"", pixels: tuple[int, int] = (0, 0),
        space: str = "",
    ) -> None:  # fmt: skip
        """Add a page of ``size`` points, blank without a picture. space : the picture's colour space."""
        resources = ""
        if jpeg:
            picture = self._add(
                f"/Type /XObject /Subtype /Image /Width {pixels[0]} /Height {pixels[1]} /ColorSpace /{space} "
                f"/BitsPerComponent 8 /Filter /DCTDecode /Length {len(jpeg)}", jpeg,
            )  # fmt: skip
            resources = f"/XObject << /{PICTURE} {picture} 0 R >>"
        drawn = self._add(f"/Length {len(content)}", content)
        box = f"[0 0 {size[0]:.3f} {size[1]:.3f}]"
        page = f"/Type /Page /Parent 2 0 R /MediaBox {box} /Contents {drawn} 0 R /Resources << {resources} >>"
        self._pages.append(self._add(page))

    def end(self) -> None:
        """Write catalogue, list of pages, and the table of offsets."""
        kids = " ".join(f"{number} 0 R" for number in self._pages)
        first = self._begin(1, "/Type /Catalog /Pages 2 0 R")
        second = self._begin(2, f"/Type /Pages /Count {len(self._pages)} /Kids [{kids}]")
        table = self._file.tell()
        offsets = [first, second, *self._offsets]
        lines = ["0000000000 65535 f \n", *(f"{offset:010d} 00000 n \n" for offset in offsets)]
        self._file.write(f"xref\n0 {len(lines)}\n{''.join(lines)}".encode())
        self._file.write(f"trailer\n<< /Size {len(lines)} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode())
        self._file.close()

    def _add(self, entries: str, stream: bytes | None = None) -> int:
        number = len(self._offsets) + 3
        self._offsets.append(self._begin(number, entries, stream))
        return number

    def _begin(self, number: int, entries: str, stream: bytes | None = None) -> int:
        """Write a whole object; returns its offset."""
        offset = self._file.tell()
        self._file.write(f"{number} 0 obj\n<< {entries} >>\n".encode())
        if stream is not None:
            self._file.write(b"stream\n" + stream + b"\nendstream\n")
        self._file.write(b"endobj\n")
        return offset
