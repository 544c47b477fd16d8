"""Model families (settings, rules of images and prompts) and the manifest of an exported folder.

Plain Python, NumPy and Pillow: nothing here imports torch, ONNX Runtime or HTTP code, so both the exporter and the
serving side can use it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ocr-onnx")
except PackageNotFoundError:  # a checkout on PYTHONPATH
    __version__ = "(not installed)"
