"""What a file is that is no document here, by its first bytes, so that a refusal names the kind and a remedy."""

from __future__ import annotations

import re

_OTHER = ", which is not read here; save it as PDF, PNG or JPEG"
_DAMAGED = " that is cut off or damaged; get it again"
_ARCHIVE = ", which is not read here; unpack it"
_HEIC = ", for which a package is missing: pip install 'ocr-onnx[heic]'"

# Beginnings of files, what they are, and what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\x89PNG", "a PNG", _DAMAGED),
    (rb"\xff\xd8\xff", "a JPEG", _DAMAGED),
    (rb"RIFF.{4}WEBP", "a WebP picture", _DAMAGED),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF, or a camera's raw picture,", _DAMAGED),
    (rb"GIF8[79]a", "a GIF", _DAMAGED),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000", _DAMAGED),
    (rb".{4}ftypavi[fs]", "an AVIF picture", _DAMAGED),
    (rb".{4}ftyp(?:hei[cxsm]|hev[cx]|mif1|msf1)", "a HEIC picture", _HEIC),
    (rb".{4}ftyp", "a video", _OTHER),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", _OTHER),
    (rb"8BPS", "a Photoshop picture", _DAMAGED),
    (rb"AT&TFORM", "a DjVu document", _OTHER),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document", _OTHER),
    (rb"PK\x03\x04.{26,300}?(?:word/|xl/|ppt/|\[Content_Types\]|mimetype)", "an office document or a book", _OTHER),
    (rb"PK\x03\x04|7z\xbc\xaf|Rar!|\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "an archive", _ARCHIVE),
    (rb"\xd0\xcf\x11\xe0", "an older office document", _OTHER),
    (rb"\{\\rtf", "a text in RTF", _OTHER),
    (
        rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg",
        "a drawing in SVG", _OTHER,
    ),
    (rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)", "a web page", _OTHER),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "a drawing in WMF or EMF", _OTHER),
    (rb"\x76\x2f\x31\x01", "a picture in OpenEXR", _OTHER),
    (rb"SIMPLE  =", "a picture in FITS", _OTHER),
)  # fmt: skip
_COMPILED = [(re.compile(start, re.DOTALL | re.IGNORECASE), name, remedy) for start, name, remedy in _KINDS]


def named(start: bytes, *, decoded: bool = False) -> str | None:
    """What a file with these first bytes is, and what to do; None for an unknown kind.

    decoded : a decoder of HEIC is there, so that such a file is damaged.
    """
    for pattern, name, remedy in _COMPILED:
        if pattern.match(start):
            return f"it is {name}{_DAMAGED if decoded and remedy is _HEIC else remedy}"
    return None
