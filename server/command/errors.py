"""How a command ends when it cannot do what it was asked."""


class UsageError(Exception):
    """The command line asks for something that cannot be done as it stands: exit code 2."""


class CommandFailed(Exception):
    """The command cannot go on; the message says what to do: exit code 1."""


class PageFailed(Exception):
    """One page could not be read; the others can."""


class Interrupted(Exception):
    """The user asked for an end: exit code 130."""
