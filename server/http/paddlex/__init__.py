"""PaddleX's serving API of PaddleOCR-VL, for its clients."""
