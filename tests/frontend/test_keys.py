"""The keyboard in a real browser: it goes everywhere, and a key pressed early is not lost."""

from __future__ import annotations

import re

import pytest
from frontend.seen import RUN, expect_drawn, expect_live
from playwright.sync_api import Page, Route, expect


def test_the_keyboard_goes_everywhere(page: Page) -> None:
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(rf"{RUN}/overview"))
    for key, tab in zip("23456", ("layers", "spectra", "learning-rate", "alerts", "details"), strict=True):
        page.keyboard.press(key)
        expect(page.locator(f'[data-tab="{tab}"]')).to_have_attribute("aria-current", "page")
    page.keyboard.press("j")
    expect(page).to_have_url(re.compile(r"/runs/demo00000002/details"))
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("previous and next alert")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_keys_are_switched_off_for_who_has_no_use_for_them(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    page.keyboard.press("?")
    page.get_by_label("Obey these keys").uncheck()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.reload()
    expect_drawn(page, "loss")
    page.keyboard.press("6")
    page.get_by_role("button", name="Keyboard help").click()
    expect(page.locator('[data-tab="overview"]')).to_have_attribute("aria-current", "page")
    page.get_by_label("Obey these keys").check()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("6")
    expect(page.locator('[data-tab="details"]')).to_have_attribute("aria-current", "page")


def test_keys_work_from_the_moment_that_a_list_is_shown(own_page: Page) -> None:
    own_page.add_init_script(
        """new MutationObserver((_, watcher) => {
             if (document.querySelectorAll("tr.row").length < 5) return;
             watcher.disconnect();
             dispatchEvent(new KeyboardEvent("keydown", { key: "j" }));
           }).observe(document, { childList: true, subtree: true })"""
    )
    own_page.goto("/")
    expect(own_page.locator("tr.row.chosen")).to_have_attribute("data-run", "demo00000001")


def test_the_other_runs_are_asked_for_by_the_key_that_goes_to_one(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda call: asked.append(call.url))
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    assert not [url for url in asked if "/runs?" in url]
    page.keyboard.press("j")
    expect(page).to_have_url(re.compile("/runs/demo00000002/overview"))


@pytest.mark.parametrize(
    ("asked", "keys", "address", "shown"),
    [
        ("/runs?limit=100", "jjjk", "/runs/demo00000003/overview", "<b>bold</b>"),
        ("/runs?limit=100", "jjjjjjj", "/runs/demo00000005/overview", "gpt-small-warmup-500-cosine"),
        ("/alerts?limit=500", "]]][", f"{RUN}/alerts", "24.1 times its recent median"),
        ("/alerts?limit=500", "[", f"{RUN}/alerts", "is exactly zero"),
    ],
)
def test_keys_pressed_while_a_list_is_asked_for_are_obeyed_when_it_comes(
    page: Page, asked: str, keys: str, address: str, shown: str
) -> None:
    held: list[Route] = []
    pressing = True
    page.route(f"**{asked}", lambda route: held.append(route) if pressing else route.continue_())
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    for key in keys:
        page.keyboard.press(key)
    assert page.url.endswith(f"{RUN}/overview")
    pressing = False
    for route in held:
        route.continue_()
    expect(page).to_have_url(re.compile(address))
    expect(page.locator("h1, [data-alert-detail]").filter(has_text=shown)).to_be_visible()
