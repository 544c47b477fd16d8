"""What a model family IS: its settings, its image and prompt rules, the manifest of an exported folder.

Plain Python, NumPy and Pillow: nothing here imports torch, ONNX Runtime or HTTP code, so both the exporter and the
serving side can use it.
"""
