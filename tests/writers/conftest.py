"""Documents are read with the scripted reader of the command's tests."""

from tests.command.conftest import ocr

__all__ = ["ocr"]
