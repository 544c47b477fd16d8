"""How near one reading of a document is to another: letters, words, tables, the order of reading; and benchmarks.

Used by ``ocr-onnx compare`` and ``ocr-onnx eval``. The packages that it counts with are in the extra ``eval``.
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
