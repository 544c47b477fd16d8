"""How a command ends when it cannot do what it was asked."""


class UsageError(Exception):
    """The command line asks for something impossible: exit code 2."""


class CommandFailed(Exception):
    """The command cannot go on; the message names the remedy: exit code 1."""


class PageFailed(Exception):
    """One page could not be read; others can. ``transient``: not the page's fault, so a later try may succeed."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class Interrupted(Exception):
    """The user interrupted the command: exit code 130."""


def printable(text: str, keep: str = "") -> str:
    """A message that is safe on a terminal: names of files can hold control sequences.

    keep : control characters to keep, such as ends of lines.
    """
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )
