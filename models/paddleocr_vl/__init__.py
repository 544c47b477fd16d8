"""The PaddleOCR-VL family: pages in their own proportions, three-dimensional positions, a chat template."""
