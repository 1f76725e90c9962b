"""What is to be seen on the page once it stands still."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

RUN = "/runs/demo00000001"
DRAWN = re.compile(r"^M[\d.,-]+[LHVC]")
SCALARS = ("loss", "grad_norm", "noise_scale", "learning_rate", "step_time")
PAGES = {
    "/": "tr.row",
    f"{RUN}/overview": 'figure[data-figure="loss"][data-state="drawn"]',
    f"{RUN}/layers": 'figure[data-figure="layers"][data-state="drawn"]',
    f"{RUN}/spectra": 'figure[data-figure="spectrum"][data-state="drawn"]',
    f"{RUN}/learning-rate": 'figure[data-figure="suggestions"][data-state="drawn"]',
    f"{RUN}/alerts": "[data-alert-detail]",
    f"{RUN}/details": "table.pairs",
    "/compare?runs=demo00000001,demo00000002": 'figure[data-series="loss"][data-state="drawn"]',
    "/settings": '[data-panel="retention"] tbody tr',
}
"""Addresses, and what is there when the page has got what it asked for."""


def figure(page: Page, name: str) -> Locator:
    return page.locator(f'figure[data-figure="{name}"]')


def expect_drawn(page: Page, name: str) -> None:
    expect(figure(page, name)).to_have_attribute("data-state", "drawn")
    expect(figure(page, name).locator(".scatterlayer path.js-line").first).to_have_attribute("d", DRAWN)


def drag(page: Page, name: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag over a figure's plot; places in shares of its width and height."""
    box = figure(page, name).locator(".nsewdrag").first.bounding_box()
    assert box is not None
    first, last = ((box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (begin, end))
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=5)
    page.mouse.up()


def span(page: Page, name: str) -> list[float]:
    """The steps that a figure shows."""
    return [round(x) for x in figure(page, name).locator(".plot").evaluate("plot => plot.layout.xaxis.range")]


def expect_live(page: Page) -> None:
    """The stream is open: what the server announces from now on is heard."""
    expect(page.locator("body")).to_have_attribute("data-connection", "live")
