"""The authors' prompts of dots.ocr and dots.mocr: the wording matters, down to a line end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from models.chat_template import PromptRules, chat_prompt
from models.family import IMAGE_SLOT, TEXT_SLOT, Encode
from models.model_errors import InvalidInput

PLACEHOLDER = "<|imgpad|>"
# As the authors serve the model (vLLM, content as a string): the checkpoint's two templates disagree, and the other one
# leaves the user's tags out. The model knows no system turn: <|system|> is no token.
SERVING_TEMPLATE = (
    "{%- for message in messages %}<|user|>"
    "{%- for part in message.content %}"
    f"{{%- if part.type == 'image' %}}<|img|>{PLACEHOLDER}<|endofimg|>{{% else %}}{{{{- part.text -}}}}{{% endif %}}"
    "{%- endfor %}<|endofuser|>{%- endfor %}<|assistant|>"
)

_LAYOUT = """\
Please output the layout information from the PDF image, including each layout element's bbox, its category, and the \
corresponding text content within the bbox.

1. Bbox format: [x1, y1, x2, y2]

2. Layout Categories: The possible categories are ['Caption', 'Footnote', 'Formula', 'List-item', 'Page-footer', \
'Page-header', 'Picture', 'Section-header', 'Table', 'Text', 'Title'].

3. Text Extraction & Formatting Rules:
    - Picture: For the 'Picture' category, the text field should be omitted.
    - Formula: Format its text as LaTeX.
    - Table: Format its text as HTML.
    - All Others (Text, Title, etc.): Format their text as Markdown.

4. Constraints:
    - The output text must be the original text from the image, with no translation.
    - All layout elements must be sorted according to human reading order.

5. Final Output: The entire output must be a single JSON object.
"""
_LAYOUT_ONLY = (
    "Please output the layout information from this PDF image, including each layout's bbox and its category. The bbox "
    "should be in the format [x1, y1, x2, y2]. The layout categories for the PDF document include ['Caption', "
    "'Footnote', 'Formula', 'List-item', 'Page-footer', 'Page-header', 'Picture', 'Section-header', 'Table', 'Text', "
    "'Title']. Do not output the corresponding text. The layout result should be in JSON format."
)
_REGION = "Extract text from the given bounding box on the image (format: [x1, y1, x2, y2]).\nBounding Box:\n"
_SIZES = ("{width}", "{height}")

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "layout": IMAGE_SLOT + _LAYOUT,
        "text": f"{IMAGE_SLOT}Extract the text content from this image.",
        "layout-only": IMAGE_SLOT + _LAYOUT_ONLY,
        "region": f"{IMAGE_SLOT}{_REGION}{TEXT_SLOT}",
        # tasks of dots.mocr
        "svg": f'{IMAGE_SLOT}Please generate the SVG code based on the image.viewBox="0 0 {{width}} {{height}}"',
        "web": f"{IMAGE_SLOT}Parsing the layout info of this webpage image with format json:\n",
        "scene": f"{IMAGE_SLOT}Detect and recognize the text in the image.",
    }
)
DEFAULT_TASK = "layout"
OF_DOTS_OCR = ("layout", "text", "layout-only", "region")  # tasks that the first model was trained on

_EXACT = {prompt.replace(IMAGE_SLOT, "").strip(): prompt.replace(IMAGE_SLOT, "") for prompt in TASKS.values()}
_FOUR_NUMBERS = re.compile(r"\[?" + r"\s*,\s*".join([r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"] * 4) + r"\]?")


def words(prompt: str) -> str:
    """A prompt without image slots and surrounding blanks."""
    return prompt.replace(IMAGE_SLOT, "").strip()


def sized_prompt(prompt: str, page: tuple[int, int], seen: tuple[int, int]) -> str | None:
    """The prompt with sizes filled in: a region's box, or the size of an SVG drawing.

    page, seen : (width, height) of the page, and of the picture that the model sees. Returns None for a prompt without
    sizes.

    Raises
    ------
    InvalidInput
        for a region that is not a box on the page.
    """
    text = words(prompt)
    if text.startswith(_REGION.strip()):
        return IMAGE_SLOT * (IMAGE_SLOT in prompt) + _REGION + _region(text[len(_REGION.strip()) :], page, seen)
    if text == words(TASKS["svg"]):
        for name, value in zip(_SIZES, page, strict=True):
            prompt = prompt.replace(name, str(value))
        return prompt
    return None


def prompt_ids(
    prompt: str, image_tokens: Sequence[int], rules: PromptRules, image_token: int, encode: Encode
) -> list[int]:
    """Token ids in the authors' serving form; see ``models.chat_template.chat_prompt``."""
    text = words(prompt)
    if text in _EXACT and prompt.count(IMAGE_SLOT) in (0, len(image_tokens)):
        return chat_prompt(_EXACT[text], image_tokens, rules, image_token, encode, exact=True)
    return chat_prompt(prompt, image_tokens, rules, image_token, encode)


def _region(box: str, page: tuple[int, int], seen: tuple[int, int]) -> str:
    """A box of the page in the authors' form, in pixels of the picture that the model sees."""
    found = _FOUR_NUMBERS.fullmatch(box.strip())
    corners = [float(value) for value in found.groups()] if found else []
    if not corners or not (0 <= corners[0] < corners[2] <= page[0] and 0 <= corners[1] < corners[3] <= page[1]):
        raise InvalidInput(
            f"the region is {box.strip()[:80]!r}; it must be [left, top, right, bottom] in pixels of the page, which "
            f"has {page[0]} x {page[1]}"
        )
    return str([int(value / (whole / part)) for value, whole, part in zip(corners, page * 2, seen * 2, strict=True)])
