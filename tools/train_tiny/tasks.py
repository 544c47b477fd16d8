"""What the model is asked about a page, and what it is to answer: the family's prompts and its grounding tags.

The prompts are the published ones, written here a second time like the rules in `views`.
"""

import random

from .render import Box, Page, Region

FREE = "<image>\nFree OCR."
PROMPTS = {
    "free": FREE,
    "markdown": "<image>\n<|grounding|>Convert the document to markdown.",
    "ocr": "<image>\n<|grounding|>OCR this image.",
    "locate": "<image>\nLocate <|ref|>{}<|/ref|> in the image.",
}
SCALE = 999  # coordinates are 0 .. SCALE of the page


def question(rng: random.Random, page: Page, task: str) -> tuple[str, str]:
    """Return a prompt of `task` about the page, and its answer; of a page without text, an empty one."""
    if task == "free":
        return FREE, page.text
    if task == "locate":
        if not page.lines:
            return FREE, page.text
        line = rng.choice(page.lines)
        return PROMPTS[task].format(line.label), tagged(line, page)
    if task == "ocr":
        return PROMPTS[task], "\n".join(tagged(line, page) for line in page.lines)
    bodies = (f"{tagged(block, page)}\n{block.markdown}".rstrip() for block in page.blocks)
    return PROMPTS[task], "\n\n".join(bodies)


def tagged(region: Region, page: Page) -> str:
    """Return the reference and the place of a region."""
    corners = ", ".join(map(str, scaled(region.box, *page.image.size)))
    return f"<|ref|>{region.label}<|/ref|><|det|>[[{corners}]]<|/det|>"


def scaled(box: Box, width: int, height: int) -> list[int]:
    """Return the edges in SCALE ths of the page, cut at its edges."""
    return [
        max(0, min(SCALE, round(edge / side * SCALE)))
        for edge, side in zip(box, (width, height, width, height), strict=True)
    ]
