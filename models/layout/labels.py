"""Labels of the parts of a page, by the ids of PP-DocLayoutV2 and V3.

The names are from the vendor's ``inference.yml``. The published ``config.json`` merges some of them (5 and 15, 8 and 9,
12 and 13, 22 and 23), and is never used for names.
"""

from __future__ import annotations

LABELS = (
    "abstract", "algorithm", "aside_text", "chart", "content", "display_formula", "doc_title", "figure_title", "footer",
    "footer_image", "footnote", "formula_number", "header", "header_image", "image", "inline_formula", "number",
    "paragraph_title", "reference", "reference_content", "seal", "table", "text", "vertical_text", "vision_footnote",
)  # fmt: skip
