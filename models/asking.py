"""The question to a model about its images: a task's prompt, a person's words, or the default in their place.

Called by the server, the command line and the Python API. Some models know only the prompts that they were trained on,
and read worse with any other prompt than with the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .families import FAMILIES
from .family import IMAGE_SLOT, QUOTED_SLOT, TEXT_SLOT, task_prompt
from .layout.place import has_detector, without_detector
from .layout.task import DOCUMENT, DOCUMENT_PROMPT
from .model_errors import InvalidInput
from .registration import ModelEntry
from .registry import default_task, element_tasks, reads_jointly


@dataclass(frozen=True)
class Question:
    """prompt : with a slot for each image. ignored : the prompt lacks the user's words. note : advice for the user."""

    prompt: str
    ignored: bool = False
    note: str | None = None


def question(entry: ModelEntry, task: str | None, words: str, images: int) -> Question:
    """The model's question: the task, else the words that the model knows, else its default task.

    Raises
    ------
    InvalidInput
        see ``models.family.task_prompt``; for several images and a task that takes one.
    """
    words = words.strip()
    if task is None and words:
        if knows(entry, words):
            return Question(with_slots(words, images))
        return Question(_by_default(entry, images), True, _misses_detector(entry, images))
    if task is None:
        return Question(_by_default(entry, images), note=_misses_detector(entry, images))
    if task == DOCUMENT:
        check_document(entry, images)
    return Question(task_prompt(tasks_for(entry), task, words, images))


def _by_default(entry: ModelEntry, images: int) -> str:
    return task_prompt(tasks_for(entry), default_task(entry, images), images=images)


def _misses_detector(entry: ModelEntry, images: int) -> str | None:
    """The note for a page that is read whole because the model's detector is missing."""
    if images > 1 or has_detector(entry) or entry.layout is None or entry.task not in (None, DOCUMENT):
        return None
    return f"the page was read whole, without its layout: {without_detector(entry)}"


def tasks_for(entry: ModelEntry) -> Mapping[str, str]:
    """The tasks that a model was trained on, with their prompts, and ``document`` where there is a detector for it."""
    tasks = element_tasks(entry)
    return {DOCUMENT: DOCUMENT_PROMPT, **tasks} if has_detector(entry) else tasks


def check_document(entry: ModelEntry, images: int = 1) -> None:
    """Check that a model can read a page by its parts.

    Raises
    ------
    InvalidInput
        naming the remedy: there is no detector, or more than one page.
    """
    if not has_detector(entry):
        raise InvalidInput(without_detector(entry))
    if images > 1:
        raise InvalidInput(f"task document reads a page at a time, and there are {images} images; send them one by one")


def joint_tasks(entry: ModelEntry) -> list[str]:
    """The model's tasks that read all pages of a document in one answer."""
    return [task for task, prompt in tasks_for(entry).items() if reads_jointly(entry.family, prompt)]


def takes_any_prompt(entry: ModelEntry) -> bool:
    """Whether the model follows a person's own words."""
    family = FAMILIES.get(entry.family)
    return entry.tasks is None and (family is None or family.known_prompts is None)


def knows(entry: ModelEntry, words: str) -> bool:
    """Whether the model was trained on this prompt, or follows any."""
    if takes_any_prompt(entry):
        return True
    others = FAMILIES[entry.family].known_prompts
    return any(is_asked(prompt, words) for prompt in (*element_tasks(entry).values(), *(others or ())))


def is_asked(prompt: str, words: str) -> bool:
    """Whether words are a task's prompt, with any text in the prompt's text slot."""
    return bool(re.fullmatch(".+".join(map(re.escape, _bare(prompt).split(TEXT_SLOT))), _bare(words), re.DOTALL))


def with_slots(text: str, images: int) -> str:
    """The prompt of a text: a slot for each image in front, unless the text has exactly as many slots."""
    if text.count(IMAGE_SLOT) == images:
        return text
    return "\n".join([*[IMAGE_SLOT] * images, text.replace(IMAGE_SLOT, QUOTED_SLOT)])


def _bare(prompt: str) -> str:
    """A prompt without image slots and surrounding blanks."""
    return prompt.replace(IMAGE_SLOT, "").strip()
