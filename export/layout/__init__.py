"""The export of a layout detector: transformers' own module, traced by ``torch.onnx.export``.

It is no graph that the project is fast at, so the library keeps it right. Needs the extra ``layout`` (torch,
transformers, optimum); ``pipeline`` alone can be imported without.
"""
