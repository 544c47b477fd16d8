"""The export of a layout detector: transformers' own module, traced by ``torch.onnx.export``.

Detectors take little of a page's time, so the library's module is used as it is. Needs the extra ``layout`` (torch,
transformers, optimum); only ``pipeline`` can be imported without.
"""
