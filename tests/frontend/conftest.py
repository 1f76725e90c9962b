"""A browser, and the page served with made-up runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from frontend.canned import CannedServer
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

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


@pytest.fixture
def server() -> Iterator[CannedServer]:
    server = CannedServer()
    yield server
    server.close()


@pytest.fixture
def page(chromium: Browser, server: CannedServer) -> Iterator[Page]:
    """A page of 1280 × 1600; fails for an error on the console, and for a request to another host."""
    complaints: list[str] = []
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 1600}, "base_url": server.url}
    with chromium.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: complaints.append(said.text) if is_fault(said) else None)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on(
            "request",
            lambda call: None if call.url.startswith((server.url, "data:", "blob:")) else complaints.append(call.url),
        )
        yield page
    assert complaints == []
