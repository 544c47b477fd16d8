"""The ``ocr-onnx`` command line: documents in, Markdown and JSON out, and the looking after exported models.

Nothing here is imported by the server; a command's module is imported when that command is run.
"""
