"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import time
from typing import Any

import falcon

from models.asking import joint_tasks, takes_any_prompt, tasks_for
from models.model_errors import ConfigError
from models.registry import default_task
from runtime.library.source import ModelKey, ModelSource

from .logs import MAX_NAME
from .pool import ModelPool


class _ModelResource:
    def __init__(self, source: ModelSource, pool: ModelPool[ModelKey]) -> None:
        self._source, self._pool = source, pool
        self._created = int(time.time())

    def _describe(self, model_id: str) -> dict[str, Any]:
        entry = self._source.entry(model_id)
        try:
            key = self._source.key(entry)
            exported, loaded = self._source.is_exported(key), key in self._pool.loaded_keys()
        except ConfigError:  # a file is missing, which a request for the model will report
            exported = loaded = False
        return {
            "id": model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "ocr-onnx",
            "family": entry.family,
            "exported": exported,
            "loaded": loaded,
            "tasks": list(tasks_for(entry)),
            "joint_tasks": joint_tasks(entry),
            "default_task": default_task(entry),
            "any_prompt": takes_any_prompt(entry),
        }


class ModelList(_ModelResource):
    """Lists the models that can be asked for."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"object": "list", "data": [self._describe(model_id) for model_id in self._source.model_ids()]}


class ModelById(_ModelResource):
    """Describes one model."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        req.context["model"] = model_id[:MAX_NAME]  # for the log
        resp.media = self._describe(model_id)
