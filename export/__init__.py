"""Turns a published checkpoint into a self-describing folder of ONNX graphs. Needs the ``export`` extra.

Nothing else imports this package: the server starts it as a program, ``python -m export MODEL_ID``.
"""
