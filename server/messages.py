"""From a conversation to one prompt with image slots: the system messages and the latest user message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from models.errors import InvalidInput
from models.family import IMAGE_SLOT

from .schema import Content, ContentPart, FilePart, ImagePart, ImageUrl, Message, ResponseItem, TextPart

NO_IMAGE = (
    "This server reads images and there is none in the request. Send a user message whose content is a list with an "
    'image part, {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}; name a task beside the '
    'messages, or add a text part with a prompt of your own, for example {"type": "text", "text": "Free OCR."}.'
)

MAX_TEXT = 1_000_000  # characters: far more than any model takes, and read into tokens within a second

_SYSTEM_ROLES = frozenset({"system", "developer"})


@dataclass
class Prompt:
    """What one request asks for, in the order it was written."""

    texts: list[tuple[str, bool]] = field(default_factory=list)  # a piece, and whether it stands for an image part
    image_urls: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # data: URLs of documents

    @property
    def images(self) -> int:
        """Images and documents, each of which takes one slot."""
        return len(self.image_urls) + len(self.files)

    @property
    def words(self) -> str:
        """The client's own text, without the places of the images; empty when there are images only."""
        return "\n".join(text for text, is_image in self.texts if not is_image).strip()

    def let_go(self) -> None:
        """Forget images and documents: once they are decoded, their base64 is of no more use and can be large."""
        self.image_urls.clear()
        self.files.clear()

    def finish(self) -> str:
        """The prompt's text: pieces joined by newlines, one slot for each image.

        Raises
        ------
        InvalidInput
            when the client wrote slots itself and they do not match the images in number.
        """
        explicit = sum(text.count(IMAGE_SLOT) for text, is_image in self.texts if not is_image)
        if explicit and explicit != self.images:
            raise InvalidInput(
                f"the text has {explicit} {IMAGE_SLOT} slots for {self.images} images; write one slot for "
                "each image, or none to have each image where its part stands"
            )
        return "\n".join(text for text, is_image in self.texts if not (explicit and is_image))


def from_chat(messages: Sequence[Message]) -> Prompt:
    """Collapse a chat's messages.

    Raises
    ------
    InvalidInput
        when there is no user message, or one of its parts is of an unknown kind.
    """
    return _collapse([(message.role, message.content) for message in messages], "messages")


def from_responses(items: str | Sequence[ResponseItem], instructions: str | None) -> Prompt:
    """Collapse a Responses request's input; ``instructions`` is a system message before it.

    Raises
    ------
    InvalidInput
        see ``from_chat``.
    """
    turns: list[tuple[str, Content]] = [("system", instructions)] if instructions else []
    if isinstance(items, str):
        turns.append(("user", items))
    else:
        turns += [(item.role, item.content) for item in items if item.role and item.type in (None, "message")]
    return _collapse(turns, "input")


def _collapse(turns: Sequence[tuple[str, Content]], name: str) -> Prompt:
    users = [content for role, content in turns if role == "user"]
    if not users:
        raise InvalidInput(f"{name} has no message with the role user; the latest one is what is read")
    prompt = Prompt()
    for content in [*(content for role, content in turns if role in _SYSTEM_ROLES), users[-1]]:
        _add(prompt, [TextPart(type="text", text=content)] if isinstance(content, str) else content or [])
    if (length := sum(len(text) for text, _ in prompt.texts)) > MAX_TEXT:
        raise InvalidInput(f"the text has {length:,} characters; {MAX_TEXT:,} are the most that is read")
    return prompt


def _add(prompt: Prompt, parts: Iterable[ContentPart]) -> None:
    for part in parts:
        if isinstance(part, TextPart):
            prompt.texts.append((part.text, False))
        elif isinstance(part, ImagePart):
            url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
            prompt.image_urls.append(url)
            prompt.texts.append((IMAGE_SLOT, True))
        elif isinstance(part, FilePart) and (data := part.data) is not None:
            prompt.files.append(data)
            prompt.texts.append((IMAGE_SLOT, True))
        elif part.type in ("text", "input_text", "image_url", "input_image", "file", "input_file"):
            raise InvalidInput(
                f"a content part of type {part.type} is incomplete: text parts need 'text', image parts 'image_url' "
                "with the URL as a string or as {\"url\": ...}, files 'file_data' with a data: URL (file_id and "
                "file_url are not supported)"
            )
        else:
            raise InvalidInput(
                f"content parts of type {part.type[:60]!r} are not supported; send text, image_url and file"
            )
