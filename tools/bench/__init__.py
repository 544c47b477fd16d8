"""The benchmark: ours beside transformers on PyTorch and llama.cpp, in turns, on the same weights.

``python -m tools.bench --help`` says how to run it. It needs the ``export`` and ``bench`` extras; peers are optional.
"""
