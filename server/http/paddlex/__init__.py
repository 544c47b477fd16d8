"""PaddleX's serving form of a document's layout, for the clients of PaddleOCR-VL."""
