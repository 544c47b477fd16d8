"""Errors that a caller can cause through a model's settings, images, prompts or exported folder.

Every message says what was wrong, with which value, and what to do about it.
"""


class ModelError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidInput(ModelError, ValueError):
    """A prompt, an image or a setting that the model cannot take: the caller's to mend (HTTP 400)."""


class InvalidSetting(InvalidInput):
    """A setting of a request that cannot be taken. ``field``: as the request spelled it."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class ContextExceeded(InvalidInput):
    """A prompt that leaves no place for an answer within the model's length."""


class ConfigError(ModelError, ValueError):
    """A config.toml, a checkpoint's config.json or an entry in it that cannot be used as it stands."""


class ManifestError(ModelError):
    """An exported folder whose manifest.json is missing, damaged or of another version."""
