"""The page for those who do not see it, do not point at it, or have long names: names, headings, focus, widths."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from frontend.canned import CannedServer
from frontend.seen import PAGES, RUN, expect_drawn, figure
from playwright.sync_api import Page, expect

HEADINGS = "all => all.map(one => [Number(one.tagName[1]), one.textContent.trim()])"
NAMELESS = """() => [...document.querySelectorAll("a, button, summary, input, select, textarea, th")].filter(one =>
  !one.textContent.trim() && !one.ariaLabel && !one.labels?.length).map(one => one.outerHTML)"""
HIDDEN_NAME = """() => [...document.querySelectorAll("a, button")].filter(one => one.checkVisibility() &&
  !one.innerText.trim() && !one.ariaLabel).map(one => one.outerHTML)"""


@pytest.mark.parametrize(("path", "there"), PAGES.items())
def test_headings_skip_no_level_and_everything_has_a_name(page: Page, path: str, there: str) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(path)
    expect(page.locator(there).first).to_be_visible()
    headings = page.locator("h1, h2, h3, h4").evaluate_all(HEADINGS)
    levels = [level for level, _ in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), headings
    assert all(text for _, text in headings), headings
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(HIDDEN_NAME) == []


def test_links_within_a_sentence_are_underlined(page: Page) -> None:
    page.goto("/compare")
    link = page.get_by_role("link", name="list of runs")
    assert link.evaluate("one => getComputedStyle(one).textDecorationLine") == "underline"


def test_the_focus_comes_back_to_where_it_was(page: Page) -> None:
    page.goto(f"{RUN}/details")
    delete = page.get_by_role("button", name="Delete this run")
    delete.click()
    expect(page.get_by_role("button", name="No")).to_be_focused()
    page.keyboard.press("Enter")
    expect(delete).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="No")).to_be_focused()
    page.keyboard.press("Escape")
    expect(delete).to_be_focused()
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    menu = figure(page, "loss").locator("summary")
    expect(menu).to_have_accessible_name("What can be done with this figure: Loss")
    menu.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(menu).to_be_focused()


def test_a_page_that_is_opened_has_the_focus_where_that_of_the_last_one_went_with_it(page: Page) -> None:
    page.goto("/")
    page.locator("tr.row a").first.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"{RUN}/overview"))
    expect(page.locator("main")).to_be_focused()


def test_keys_move_nothing_behind_the_help_and_work_with_the_focus_on_a_box(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("2")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page).to_have_url(re.compile(f"{RUN}/overview"))
    page.goto("/")
    for at in (0, 1):
        page.locator("tr.row .pick input").nth(at).click()
    page.keyboard.press("c")
    expect(page).to_have_url(re.compile("/compare"))


def test_the_chosen_run_is_not_under_the_header(page: Page, server: CannedServer) -> None:
    server.runs.extend(server.runs[0] | {"id": f"more{i:08d}", "name": f"more {i}"} for i in range(30))
    page.set_viewport_size({"width": 1280, "height": 500})
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(35)
    for key, times in (("j", 35), ("k", 20)):
        for _ in range(times):
            page.keyboard.press(key)
    row, header = page.locator("tr.row.chosen").bounding_box(), page.locator("header.top").bounding_box()
    assert row is not None
    assert header is not None
    assert page.evaluate("scrollY") > 0
    assert row["y"] >= header["y"] + header["height"]


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_and_tags_do_not_widen_the_list(page: Page, server: CannedServer, width: int) -> None:
    server.runs[0] |= {"name": "n" * 200, "tags": ["t" * 100, "שלום"], "project": "p" * 200}
    page.set_viewport_size({"width": width, "height": 900})
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    project = page.get_by_label("Filter by project").bounding_box()
    assert project is not None
    assert project["width"] <= 240


def test_what_was_logged_by_a_name_of_its_own_has_a_curve(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    other = page.get_by_label("another curve")
    other.scroll_into_view_if_needed()
    other.select_option("examples")
    drawn = page.locator('figure[data-series="examples"]')
    expect(drawn).to_have_attribute("data-state", "drawn")
    expect(drawn.locator("h3")).to_have_text("examples")
    expect(page).to_have_url(re.compile("series=examples"))
    assert "learning_rate" not in other.locator("option").evaluate_all("all => all.map(one => one.value)")


def test_a_run_that_has_ended_is_not_told_to_wait(page: Page, server: CannedServer) -> None:
    server.runs[0] |= {"state": "finished"}
    path = "**/figures/noise_scale?*"
    page.route(path, lambda route: route.fulfill(json={"data": [], "layout": {"meta": {}, "xaxis": {}, "yaxis": {}}}))
    page.goto(f"{RUN}/overview")
    noise = figure(page, "noise_scale")
    noise.scroll_into_view_if_needed()
    expect(noise.locator(".overlay")).to_have_text("The run ended without any of this.")


def test_what_may_scroll_on_a_narrow_page_is_reached_by_keys(page: Page) -> None:
    page.goto(f"{RUN}/details")
    expect(page.locator(".scroll").first).to_be_visible()
    reached = page.locator(".scroll").evaluate_all(
        "all => all.map(one => one.tabIndex >= 0 || one.querySelector('a, button, input, select') !== null)"
    )
    assert len(reached) > 1
    assert all(reached)
