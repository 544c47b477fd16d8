"""Errors of the exporter."""


class ExportError(Exception):
    """A checkpoint that cannot be fetched, read or converted; the message names the value and the remedy."""
