"""How a command ends when it cannot do what it was asked."""


class UsageError(Exception):
    """The command line asks for something that cannot be done as it stands: exit code 2."""


class CommandFailed(Exception):
    """The command cannot go on; the message says what to do: exit code 1."""


class PageFailed(Exception):
    """One page could not be read; the others can. ``transient``: not the page's fault, so that it may go well later."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class Interrupted(Exception):
    """The user asked for an end: exit code 130."""


def printable(text: str, keep: str = "") -> str:
    """A message as a terminal may have it: names of files can hold what moves its cursor or sends it keys.

    keep : control characters that the message itself has, such as the ends of its lines.
    """
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )
