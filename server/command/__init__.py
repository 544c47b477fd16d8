"""The ``ocr-onnx`` command line: documents in, Markdown and JSON out; and care of exported models.

The server imports nothing from here; a command's module is imported when the command is run.
"""
