"""Questions of requests to models: a named task, or the client's own words where the model understands them."""

from __future__ import annotations

import logging

from models.asking import Question, question, tasks_for
from models.extraction import extraction
from models.layout.place import has_detector, without_detector
from models.layout.task import DOCUMENT
from models.model_errors import InvalidInput
from models.registration import ModelEntry
from server.api_errors import BadRequest
from server.options import ServerOptions

from .messages import Prompt
from .schema import ReadingOptions
from .unsupported import CODE

log = logging.getLogger(__name__)


class Questions:
    """Makes questions by one server's options."""

    def __init__(self, options: ServerOptions) -> None:
        self._tags, self._with_system = options.prompt_wrappers, options.system_messages == "prompt"
        self._has_said = False  # the log has said that system messages are ignored

    def of(self, prompt: Prompt, reading: ReadingOptions, entry: ModelEntry) -> Question:
        """The question of a request; images alone are read as the model's default task.

        Raises
        ------
        BadRequest
            for words that the task does not take, or missing ones.
        """
        if prompt.system and not self._with_system and not self._has_said:
            self._has_said = True
            log.info("system messages are ignored; --system-messages prompt makes them part of the prompt")
        words = prompt.words(self._tags, system=self._with_system and reading.task is None)
        if reading.structure is not None:
            return _structured(entry, reading, words, prompt)
        try:
            return question(entry, reading.task, words, prompt.images)
        except InvalidInput as error:
            raise BadRequest(str(error), param="task") from error


def _structured(entry: ModelEntry, reading: ReadingOptions, words: str, prompt: Prompt) -> Question:
    assert reading.structure is not None
    field = reading.structure.field
    try:
        return extraction(entry, reading.task, words, reading.structure.schema, prompt.images)
    except InvalidInput as error:
        raise BadRequest(f"{field} is not supported here: {error}", param=field, code=CODE) from error


def check_task(reading: ReadingOptions, entry: ModelEntry) -> None:
    """Refuse tasks that the model was not trained on.

    Raises
    ------
    BadRequest
        listing the model's tasks.
    """
    tasks = tasks_for(entry)
    if reading.task == DOCUMENT and not has_detector(entry):
        raise BadRequest(without_detector(entry), param="task", code="unknown_task")
    if reading.task is not None and reading.task not in tasks:
        raise BadRequest(
            f"task {reading.task[:60]!r} is unknown to model {entry.id}; its tasks are {', '.join(tasks)}",
            param="task",
            code="unknown_task",
        )
