"""A browser, and the page served with made-up runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from frontend.canned import CannedServer
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE = 20_000
"""Milliseconds; on a busy machine a page takes its time."""

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a module of tests; no longer, since two Playwright loops cannot live in one thread."""
    program = os.environ.get("GRADSPECTRA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


def is_fault(said: ConsoleMessage) -> bool:
    """An error on the console; not one that Chromium writes for an answer of the interface that a test asked for."""
    return said.type == "error" and not re.search("/api/v1/|/login$", said.location["url"])


@pytest.fixture(scope="session")
def standing_server() -> Iterator[CannedServer]:
    server = CannedServer()
    yield server
    server.close()


@pytest.fixture
def server(standing_server: CannedServer) -> CannedServer:
    """A server that stands where it began; at one address for all tests, so that a browser keeps what it may keep."""
    standing_server.begin()
    return standing_server


@pytest.fixture(scope="module")
def tab(chromium: Browser, standing_server: CannedServer) -> Iterator[Page]:
    """A tab of 1280 × 1600 that the tests of a module use one after the other."""
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 1600}, "base_url": standing_server.url}
    with chromium.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        yield page


@pytest.fixture
def page(tab: Page, server: CannedServer) -> Iterator[Page]:
    """An empty tab that knows nothing; fails for an error on the console, and for a request to another host."""
    complaints: list[str] = []

    def on_console(said: ConsoleMessage) -> None:
        complaints.extend([said.text] if is_fault(said) else [])

    def on_error(error: Error) -> None:
        complaints.append(f"page error: {error}")

    def on_request(call: Request) -> None:
        complaints.extend([] if call.url.startswith((server.url, "data:", "blob:", "about:")) else [call.url])

    heard = {"console": on_console, "pageerror": on_error, "request": on_request}
    for event, listener in heard.items():
        tab.on(event, listener)
    yield tab
    tab.unroute_all()
    tab.goto("about:blank")
    for event, listener in heard.items():
        tab.remove_listener(event, listener)
    devtools = tab.context.new_cdp_session(tab)
    devtools.send("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "cookies,local_storage"})
    devtools.detach()
    assert complaints == []
