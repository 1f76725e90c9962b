"""Looks at the page as a person does, in Chromium: what is drawn, and whether the console complains."""

from __future__ import annotations

import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
HAS_POINTS = re.compile(r"^M[\d.,-]+[LHVC]")
AN_IMAGE = re.compile(r"^data:image/png;base64,.{200,}", re.DOTALL)
PATIENCE = 90_000
"""Milliseconds to wait for something to be drawn on a busy machine."""


@contextmanager
def chromium_page(address: str) -> Iterator[Page]:
    """A page at the address; fails at the end for an error on the console or a request to another host."""
    program = os.environ.get("GRADSPECTRA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    host = urllib.parse.urlsplit(address).netloc
    complaints: list[str] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("request", lambda request: complaints.append(request.url) if foreign(request.url, host) else None)
        page.goto(address)
        yield page
        page.goto("about:blank")
        chromium.close()
    assert complaints == []


def foreign(url: str, host: str) -> bool:
    """Whether a request leaves the server's own host."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != host


def expect_curve(page: Page, figure: str) -> None:
    """The figure has a line with something in it; it is drawn when it comes into view."""
    page.locator(f'figure[data-figure="{figure}"]').first.scroll_into_view_if_needed()
    lines = page.locator(f'figure[data-figure="{figure}"] .scatterlayer path.js-line')
    expect(lines.first).to_have_attribute("d", HAS_POINTS, timeout=PATIENCE)


def expect_heatmap(page: Page, figure: str) -> None:
    """The figure has the image that a heatmap is, with a content and a size."""
    image = page.locator(f'figure[data-figure="{figure}"] .heatmaplayer image').first
    expect(image).to_have_attribute("href", AN_IMAGE, timeout=PATIENCE)
    box = image.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert box["height"] > 50
