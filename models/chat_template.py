"""Prompts by the checkpoint's own chat template, for families whose checkpoints have one.

Templates differ between revisions of a model, so no template is copied here. A template is a program that came with the
weights: it runs in Jinja's sandbox, with access to the conversation only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict

from .family import IMAGE_SLOT, Encode
from .model_errors import InvalidInput, ManifestError


class PromptRules(BaseModel):
    """The checkpoint's template and the names that the template may use, as kept in the manifest."""

    model_config = ConfigDict(frozen=True)

    chat_template: str
    placeholder: str  # text of the token that stands for one image feature
    special_tokens: Mapping[str, str] = {}  # cls_token, eos_token, ...: names that templates use
    control_tokens: tuple[str, ...] = ()  # texts that the tokenizer would read as control tokens


def chat_prompt(
    prompt: str, image_tokens: Sequence[int], rules: PromptRules, image_token: int, encode: Encode, *,
    exact: bool = False,
) -> list[int]:  # fmt: skip
    """Token ids of one user message with its images; in a prompt without a slot, images come first.

    exact : keep the blanks around the text.

    Raises
    ------
    InvalidInput
        when slots and images differ in number, or the text holds a placeholder or a control token.
    ManifestError
        when the template fails, or has no place for the images.
    """
    texts = prompt.split(IMAGE_SLOT)
    slots = len(texts) - 1
    if slots not in (0, len(image_tokens)):
        raise InvalidInput(
            f"the prompt has {slots} {IMAGE_SLOT} slots for {len(image_tokens)} images; "
            f"write {IMAGE_SLOT} once for each image, or not at all"
        )
    text = "\n".join(part if exact else part.strip() for part in texts if part.strip())
    if rules.placeholder in text:
        raise InvalidInput(f"the prompt holds {rules.placeholder}, which stands for images; leave it out")
    for token in rules.control_tokens:
        if token in text:
            raise InvalidInput(f"the prompt holds {token}, which is a control token of the model; leave it out")
    # Encoded as a whole, as transformers' processor does: ids beside a special token may depend on that token.
    ids = encode(_expanded(rendered(text, len(image_tokens), rules), image_tokens, rules.placeholder))
    if ids.count(image_token) != sum(image_tokens):
        raise ManifestError(f"the tokenizer does not read {rules.placeholder} as one token; export the model again")
    return ids


def rendered(text: str, images: int, rules: PromptRules) -> str:
    """The template's text of one user message with ``images`` images in front.

    Raises
    ------
    ManifestError
        when the template fails.
    """
    content: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    message = {"role": "user", "content": content}
    try:
        return compiled(rules.chat_template).render(
            **rules.special_tokens, messages=[message], add_generation_prompt=True
        )
    except Exception as error:  # a template can raise whatever Python can
        raise ManifestError(f"the chat template of the checkpoint fails: {error}; use the model's own one") from error


def _expanded(rendered: str, image_tokens: Sequence[int], placeholder: str) -> str:
    """Repeat each placeholder as often as its image has features."""
    first, *others = rendered.split(placeholder)
    if len(others) != len(image_tokens):
        raise ManifestError(
            f"the checkpoint's chat template writes {len(others)} placeholders for {len(image_tokens)} images; "
            "use the model's own one"
        )
    return first + "".join(placeholder * count + part for count, part in zip(image_tokens, others, strict=True))


@lru_cache(maxsize=4)
def compiled(chat_template: str) -> Template:
    """The template, ready to render.

    Raises
    ------
    ManifestError
        when the text is no valid template.
    """
    # transformers' options, for which templates are written.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        return environment.from_string(chat_template)
    except TemplateError as error:
        raise ManifestError(f"the chat template of the checkpoint is none: {error}; use the model's own one") from error
