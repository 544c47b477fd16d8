"""A browser, and servers whose page it opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import ServerProcess
from tests.web.pages import WAIT

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)

_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra dev)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open the page of a server in a tab of its own; what the browser complains about fails the test."""
    contexts, complaints = [], []

    def visit(server: ServerProcess, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(WAIT)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None)
        tab.goto(server.url)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(["--slots", "2"], tmp_path_factory.mktemp("web"), "tests.web.web_server")
    yield server
    server.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    servers = []

    def start(*arguments: str) -> ServerProcess:
        servers.append(ServerProcess(list(arguments), tmp_path, "tests.web.web_server"))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
