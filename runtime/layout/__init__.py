"""The layout step: from a page's picture to its regions in reading order. ONNX Runtime, NumPy and Pillow.

from runtime.layout import LayoutModel

with LayoutModel.open("v3") as detector:
    for region in detector.detect(page):
        print(region.order, region.label, region.box)
"""

from __future__ import annotations

from .model import LayoutModel

__all__ = ["LayoutModel"]
