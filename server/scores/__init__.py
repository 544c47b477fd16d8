"""Compares two readings of a document: letters, words, tables, reading order; and scores benchmarks.

Used by ``ocr-onnx compare`` and ``ocr-onnx eval``. Needs the extra ``eval``.
"""

INSTALL = "pip install 'ocr-onnx[eval]'"
NEEDS = (
    "apted",
    "pylatexenc",
    "rapidfuzz",
    "scipy",
    "lxml",
    "table_recognition_metric",
    "latex2mathml",
    "mdit_py_plugins",
    "nh3",
)
