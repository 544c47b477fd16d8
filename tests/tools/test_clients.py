"""The table of real clients: what counts as read, and that a client which cannot be tried says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.clients.__main__ import MARK, PAGES, PROBES, Outcome, judge, render, try_client, write_table
from tools.clients.catalogue import CASES, CLIENTS, Client
from tools.clients.environments import Environment


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"case": "picture", "text": PAGES[0]}, "ok"),
        ({"case": "picture", "text": PAGES[0].replace("\n", "  \n\n")}, "ok"),
        ({"case": "pdf", "text": "\n\n".join(PAGES)}, "ok"),
        ({"case": "pdf", "text": PAGES[0]}, "of the characters wrong"),
        ({"case": "picture", "text": ""}, "100% of the characters wrong"),
        ({"case": "picture", "skipped": "it has none"}, "(it has none)"),
        ({"case": "picture", "error": "TypeError: x"}, "error: TypeError"),
    ],
)
def test_what_a_client_shows_is_compared_with_the_page(entry: dict[str, str], said: str) -> None:
    assert judge(entry) == said if said == "ok" else said in judge(entry)


def test_every_client_has_a_probe_that_can_be_read() -> None:
    for client in CLIENTS:
        probe = PROBES / client.probe
        assert probe.is_file()
        if probe.suffix == ".py":
            compile(probe.read_text(encoding="utf-8"), str(probe), "exec")
    assert {probe.name for probe in PROBES.iterdir() if probe.is_file()} == {
        "probe.py", "probe.mjs", *(client.probe for client in CLIENTS),
    }  # fmt: skip


def test_the_table_has_a_row_for_each_client_and_a_cell_for_each_case() -> None:
    outcome = Outcome(CLIENTS[0], "1.2", dict.fromkeys(CASES, "a | b"))
    row = render([outcome]).splitlines()[-1]
    assert row == "| openai | 1.2 | a \\| b | a \\| b | a \\| b | a \\| b |"


def test_the_table_takes_the_place_of_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "clients.md"
    write_table(page, "alone\n")
    assert page.read_text() == "alone\n"
    page.write_text(f"By a person.\n\n{MARK}\n\nold\n")
    write_table(page, "new\n")
    assert page.read_text() == f"By a person.\n\n{MARK}\n\nnew\n"


def test_a_client_that_cannot_be_installed_is_no_failure_and_says_so(tmp_path: Path) -> None:
    client = Client("none", (str(tmp_path / "no-such-package.whl"),), "openai_chat.py")
    outcome = try_client(client, tmp_path, {})
    assert not outcome.failed
    assert all(cell.startswith("not installed: ") for cell in outcome.cells.values())


def test_a_probe_that_dies_fails_every_case_that_it_did_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Environment, "install", lambda self: None)
    monkeypatch.setattr(Environment, "version", lambda self: "1")
    monkeypatch.setattr("tools.clients.__main__.PROBES", tmp_path)
    monkeypatch.setattr(Environment, "command", lambda self, script: [sys.executable, str(script)])
    line = json.dumps({"case": "picture", "text": PAGES[0]})
    (tmp_path / "dies.py").write_text(f"print({line!r})\nraise SystemExit('out of memory')\n")
    outcome = try_client(Client("x", ("x",), "dies.py"), tmp_path, {})
    assert outcome.failed
    assert outcome.cells == {"picture": "ok", **dict.fromkeys(CASES[1:], "no answer: out of memory")}


def test_the_script_says_which_clients_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.clients", "nonsense"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "there is no client nonsense" in done.stderr
