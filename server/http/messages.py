"""From a conversation to one prompt: the pictures in front, then the words of the latest user message.

Models are trained on a picture followed by its prompt, so the order of parts is ignored, and so are clients' additions
(system messages, history, wrappers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from models.model_errors import InvalidInput

from .schema import Content, ContentPart, FilePart, ImagePart, ImageUrl, Message, ResponseItem, TextPart
from .wrappers import unwrapped

# For the person at the screen, in plain words.
NO_IMAGE = "There is no picture in this conversation yet. Attach a picture or a PDF, and I will read what is on it."

MAX_TEXT = 1_000_000  # characters: far more than any model takes, and tokenized within a second

# A data: URL of a PDF, by its type or first bytes, which some clients send as an image.
_PDF = re.compile(r"\s*data:(?:application/(?:x-)?pdf\b|[^,]{0,100};base64,\s*JVBERi0)", re.IGNORECASE)
_BASE64 = re.compile(r"\s*[A-Za-z0-9+/_-]{64}[A-Za-z0-9+/_\s-]*={0,2}\s*")  # no path or name has 64 characters

_SYSTEM_ROLES = frozenset({"system", "developer"})

Turn = tuple[str, Content]  # role and content


@dataclass
class Prompt:
    """Images and words of one request."""

    texts: list[str] = field(default_factory=list)  # texts of the latest user message
    system: list[str] = field(default_factory=list)  # text of system and developer messages
    image_urls: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # data: URLs of documents

    @property
    def images(self) -> int:
        """Number of images and documents, each of which takes one slot."""
        return len(self.image_urls) + len(self.files)

    def words(self, tags: Iterable[str] = (), *, system: bool = False) -> str:
        """The client's own text without wrappers; empty when there are images only.

        tags : names of further blocks to drop. system : put system messages in front.
        """
        texts = [unwrapped(text, tags) for text in self.texts]
        return "\n".join(text for text in [*(self.system if system else ()), *texts] if text.strip())

    def let_go(self) -> None:
        """Forget images and documents: their base64 can be large, and is of no use once decoded."""
        self.image_urls.clear()
        self.files.clear()


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
    turns: list[Turn] = [("system", instructions)] if instructions else []
    if isinstance(items, str):
        turns.append(("user", items))
    else:
        turns += map(_turn, items)
    return _collapse(turns, "input")


def _turn(item: ResponseItem) -> Turn:
    """The turn of an item: a tool's output is an item of its own; calls and reasoning are the model's."""
    if item.role and item.type in (None, "message"):
        return item.role, item.content
    if item.type is not None and item.type.endswith("_call_output"):
        return "tool", None if isinstance(item.output, dict) else item.output
    return "assistant", None


def _collapse(turns: Sequence[Turn], name: str) -> Prompt:
    """The latest user messages in a row as one, with their pictures, else with the newest ones before them."""
    asked = [turn for turn in turns if turn[0] not in _SYSTEM_ROLES]
    runs = [[content for _, content in run] for role, run in groupby(asked, itemgetter(0)) if role == "user"]
    if not runs:
        raise InvalidInput(f"{name} has no message with the role user; the latest one is what is read")
    prompt = Prompt()
    for part in _parts(runs[-1]):
        _check(part)
        if isinstance(part, TextPart):
            prompt.texts.append(part.text)
    system = [content for role, content in turns if role in _SYSTEM_ROLES]
    prompt.system = [part.text for part in _parts(system) if isinstance(part, TextPart)]
    rounds = [[content for _, content in run] for _, run in groupby(asked, lambda turn: turn[0] == "assistant")]
    for contents in [*reversed(rounds), system]:
        _add_pictures(prompt, _parts(contents))
        if prompt.images:
            break
    if (length := sum(map(len, (*prompt.texts, *prompt.system)))) > MAX_TEXT:
        raise InvalidInput(f"the text has {length:,} characters; {MAX_TEXT:,} are the most that is read")
    return prompt


def _parts(contents: Iterable[Content]) -> list[ContentPart]:
    return [
        part
        for content in contents
        for part in ([TextPart(type="text", text=content)] if isinstance(content, str) else content or [])
    ]


def _add_pictures(prompt: Prompt, parts: Iterable[ContentPart]) -> None:
    for part in parts:
        if isinstance(part, ImagePart):
            url = _data_url(part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url)
            (prompt.files if _PDF.match(url) else prompt.image_urls).append(url)
        elif isinstance(part, FilePart) and part.data is not None:
            prompt.files.append(_data_url(part.data))


def _data_url(given: str) -> str:
    """Bare base64, which some clients send, as a data: URL."""
    return f"data:application/octet-stream;base64,{given.strip()}" if _BASE64.fullmatch(given) else given


def _check(part: ContentPart) -> None:
    """Raises InvalidInput for a part that cannot be read."""
    if isinstance(part, (TextPart, ImagePart)) or (isinstance(part, FilePart) and part.data is not None):
        return
    if part.type in ("text", "input_text", "image_url", "input_image", "file", "input_file"):
        raise InvalidInput(
            f"a content part of type {part.type} is incomplete: text parts need 'text', image parts 'image_url' "
            "with the URL as a string or as {\"url\": ...}, files 'file_data' with a data: URL (file_id and "
            "file_url are not supported)"
        )
    raise InvalidInput(f"content parts of type {part.type[:60]!r} are not supported; send text, image_url and file")
