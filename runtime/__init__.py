"""Runs an exported folder: images and a prompt in, text out. ONNX Runtime, tokenizers and NumPy; never torch."""
