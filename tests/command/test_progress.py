"""The progress bar: on a terminal pages, pages per minute and time left; elsewhere silence."""

from __future__ import annotations

import io
import os

import pytest

from server.command.progress import Progress


class Screen(io.StringIO):
    """Standard error on a terminal, or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, quiet: bool = False, total: int = 4) -> str:
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("server.command.progress.PageBar.format_meter", staticmethod(_in_words))
    progress = Progress(total, quiet=quiet)
    for number in range(total):
        progress.page(failed=number == 1)
    progress.close()
    return screen.getvalue()


def _in_words(**values: object) -> str:
    return f"[{values['n']}/{values['total']} {values['per_minute']} {values['postfix']}]\n"


def test_a_terminal_sees_pages_a_minute_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "[4/4 " in text
    assert "1 failed" in text
    rate = text.split("[4/4 ")[-1].split()[0]
    assert float(rate) > 0


def bars(monkeypatch: pytest.MonkeyPatch, total: int) -> tuple[Progress, Screen]:
    screen = Screen(True)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("server.command.progress.has_size", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((150, 24)))
    monkeypatch.setenv("COLUMNS", "150")
    return Progress(total, quiet=False), screen


def last(screen: Screen) -> str:
    return screen.getvalue().replace("\x1b[A", "").replace("\n", "\r").rstrip("\r ").rpartition("\r")[2]


def test_what_is_being_worked_on_is_counted_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, screen = bars(monkeypatch, 5)
    first, second, third = progress.begin(), progress.begin(), progress.begin()
    first.stage, first.tokens, second.stage, second.tokens, third.stage = "reading", 40, "reading", 2, "seeing"
    progress.show()
    assert "0/5 pages, 2 reading, 1 seeing, 42 tokens" in last(screen)
    assert "left" not in screen.getvalue()  # nobody knows yet
    assert "min" not in screen.getvalue()
    progress.end(first)
    progress.page(failed=True)
    progress.show()
    assert "1/5 pages, " in last(screen)
    assert "pages/min, " in last(screen)
    assert "left, 1 failed, 1 reading, 1 seeing, 2 tokens" in last(screen)
    progress.close()


def test_the_page_that_ends_is_the_one_that_is_not_counted_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, screen = bars(monkeypatch, 5)
    first, second = progress.begin(), progress.begin()
    progress.end(second)  # at the same stage as the first
    first.stage = "reading"
    progress.show()
    assert "0/5 pages, 1 reading" in last(screen)
    progress.end(first)
    progress.show()
    assert "reading" not in last(screen)
    progress.close()


def test_a_single_page_goes_on_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, screen = bars(monkeypatch, 1)
    work = progress.begin()
    progress.show()
    assert "0/1 pages, drawing" in last(screen)
    for stage, tokens, words in (("seeing", 0, ", seeing"), ("reading", 17, ", reading, 17 tokens")):
        work.stage, work.tokens = stage, tokens
        progress.show()
        assert last(screen).endswith(words)
    progress.close()


def test_a_terminal_that_does_not_know_its_size_sees_the_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(True)
    monkeypatch.setattr(screen, "fileno", lambda: 2)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    progress = Progress(2, quiet=False)
    for _ in range(2):
        progress.page(failed=False)
    progress.close()
    assert "2/2 pages" in screen.getvalue()


@pytest.mark.parametrize(
    ("terminal", "quiet", "total"),
    [(False, False, 4), (True, True, 4), (True, False, 0)],
    ids=["pipe", "quiet", "none"],
)
def test_nobody_else_sees_anything(monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool, total: int) -> None:
    assert shown(monkeypatch, terminal=terminal, quiet=quiet, total=total) == ""
