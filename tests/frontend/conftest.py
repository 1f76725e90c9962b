"""A browser, and the page served with made-up runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from frontend.canned import CannedServer
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, ViewportSize, expect, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WINDOW: ViewportSize = {"width": 1280, "height": 1600}
PATIENCE = 60_000
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


@contextmanager
def a_page(chromium: Browser, url: str) -> Iterator[Page]:
    """A page of 1280 × 1600 in a browser that knows nothing."""
    with chromium.new_context(viewport=WINDOW, base_url=url) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        yield page


@contextmanager
def without_complaints(page: Page, url: str) -> Iterator[None]:
    """Fails for an error on the console, and for a request to another host."""
    complaints: list[str] = []

    def on_console(said: ConsoleMessage) -> None:
        complaints.extend([said.text] if is_fault(said) else [])

    def on_error(error: Error) -> None:
        complaints.append(f"page error: {error}")

    def on_request(call: Request) -> None:
        complaints.extend([] if call.url.startswith((url, "data:", "blob:", "about:")) else [call.url])

    heard = {"console": on_console, "pageerror": on_error, "request": on_request}
    for event, listener in heard.items():
        page.on(event, listener)
    yield
    page.unroute_all()
    page.goto("about:blank")
    for event, listener in heard.items():
        page.remove_listener(event, listener)
    assert complaints == []


@pytest.fixture(scope="module")
def standing_page(chromium: Browser, standing_server: CannedServer) -> Iterator[Page]:
    """The page that the tests of a module use one after the other."""
    with a_page(chromium, standing_server.url) as page:
        yield page


@pytest.fixture
def page(standing_page: Page, server: CannedServer) -> Iterator[Page]:
    """An empty page without anything stored; what it has fetched for ever it may still have."""
    standing_page.set_viewport_size(WINDOW)
    devtools = standing_page.context.new_cdp_session(standing_page)
    devtools.send("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "cookies,local_storage"})
    devtools.detach()
    with without_complaints(standing_page, server.url):
        yield standing_page


@pytest.fixture
def own_page(chromium: Browser, server: CannedServer) -> Iterator[Page]:
    """A page of the test's own, which may add scripts to it: they stay as long as the page does."""
    with a_page(chromium, server.url) as page, without_complaints(page, server.url):
        yield page
