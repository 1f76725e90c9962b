"""A statistic over depth in a real browser: a line for each kind of layer, a slider, and all steps played."""

from __future__ import annotations

import re

from frontend.canned import CannedServer
from frontend.seen import RUN, expect_live, figure
from playwright.sync_api import Page, expect


def shown_step(page: Page) -> int:
    return int(figure(page, "profile").locator(".plot").evaluate("plot => plot.layout.meta.step"))


def open_profile(page: Page, view: str = "") -> None:
    page.goto(f"{RUN}/layers{view}")
    figure(page, "profile").scroll_into_view_if_needed()
    expect(figure(page, "profile")).to_have_attribute("data-state", "drawn")


def test_the_slider_chooses_the_step_and_the_address_holds_it(page: Page, server: CannedServer) -> None:
    open_profile(page)
    expect(figure(page, "profile").locator("[data-note]")).to_have_text("step 1,200")
    expect(figure(page, "profile").locator(".legend")).to_contain_text("MAD")
    page.locator('[data-control="step"]').fill("0")
    expect(page).to_have_url(re.compile(r"\?step=\d+$"))
    expect(figure(page, "profile").locator("[data-note]")).not_to_have_text("step 1,200")
    first = shown_step(page)
    assert first < 10
    page.reload()
    figure(page, "profile").scroll_into_view_if_needed()
    expect(figure(page, "profile")).to_have_attribute("data-state", "drawn")
    assert shown_step(page) == first
    expect_live(page)
    server.advance(8)
    expect(figure(page, "profile")).to_have_attribute("data-last-step", "1208")
    assert shown_step(page) == first, "new steps do not move the slider"


def test_all_steps_are_played_from_the_beginning_to_the_newest(page: Page, server: CannedServer) -> None:
    server.begin(last=24)
    open_profile(page)
    page.get_by_role("button", name="Play the steps").click()
    expect(page.get_by_role("button", name="Stop playing")).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?step="))
    expect(page.get_by_role("button", name="Play the steps")).to_be_visible()  # it has come to the end
    expect(page).to_have_url(re.compile(r"/layers$"))
    expect(figure(page, "profile").locator("[data-note]")).to_have_text("step 24")
    assert int(figure(page, "profile").get_attribute("data-drawn") or 0) > 5


def test_playing_can_be_stopped(page: Page) -> None:
    open_profile(page)
    page.get_by_role("button", name="Play the steps").click()
    expect(page).to_have_url(re.compile(r"\?step=\d+$"))
    page.get_by_role("button", name="Stop playing").click()
    expect(page.get_by_role("button", name="Play the steps")).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?step=\d+$"))
