"""The dots.ocr family: layout and text of whole pages in one answer, as JSON."""
