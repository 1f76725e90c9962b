"""Takes the docs' screenshots from a running server: python docs/screenshots/take.py URL RUN [LAYER] [RUN,RUN…]."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
TALLEST = 1700


def take(browser: Browser, address: str, name: str, *, width: int = 1280, dark: bool = False) -> None:
    """Save one page as docs/screenshots/<name>.png, as tall as it is but not above TALLEST."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.goto(address)
    page.wait_for_timeout(3000)
    tall = int(page.evaluate("document.documentElement.scrollHeight"))
    page.set_viewport_size({"width": width, "height": min(max(tall, 700), TALLEST)})
    page.wait_for_timeout(1500)
    page.screenshot(path=HERE / f"{name}.png")
    context.close()


def main(url: str, run: str, layer: str = "", compared: str = "") -> None:
    """Take all of them; that of a comparison where it is said of which runs."""
    program = os.environ.get("GRADSPECTRA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        here = f"{url.rstrip('/')}/runs/{run}"
        chosen = f"?layer={layer}" if layer else ""
        take(browser, url, "runs")
        take(browser, f"{here}/overview", "overview")
        take(browser, f"{here}/overview", "overview-dark", dark=True)
        take(browser, f"{here}/overview", "overview-narrow", width=390)
        take(browser, f"{here}/layers{chosen}", "layers")
        take(browser, f"{here}/spectra{chosen}", "spectra", dark=True)
        take(browser, f"{here}/learning-rate", "learning-rate")
        take(browser, f"{here}/alerts", "alerts")
        take(browser, f"{here}/details", "details")
        take(browser, f"{url}/settings", "settings")
        if compared:
            take(browser, f"{url}/compare?runs={compared}", "compare")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
