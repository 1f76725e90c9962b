"""Runs laid over each other, in a real browser: chosen in the list, drawn together, told apart, taken out again."""

from __future__ import annotations

import re

import pytest
from frontend.canned import MARKUP, CannedServer
from frontend.seen import DRAWN, expect_live
from playwright.sync_api import Locator, Page, expect

FIRST, SECOND, THIRD = "demo00000001", "demo00000002", "demo00000003"
CURVES = ("loss", "grad_norm", "noise_scale", "learning_rate", "step_seconds", "data_seconds")


def curve(page: Page, series: str) -> Locator:
    return page.locator(f'figure[data-figure="curves"][data-series="{series}"]')


def expect_lines(page: Page, series: str) -> None:
    expect(curve(page, series)).to_have_attribute("data-state", "drawn")
    expect(curve(page, series).locator(".scatterlayer path.js-line").first).to_have_attribute("d", DRAWN)


def test_runs_are_chosen_in_the_list_and_compared(page: Page) -> None:
    page.goto("/")
    page.get_by_label("Compare gpt-small-lr3e-3").check()
    expect(page.locator('[data-panel="picked"]')).to_contain_text("choose another")
    expect(page.locator('[data-action="compare"]')).to_have_count(0)
    page.get_by_label("Compare gpt-small-lr1e-2").check()
    expect(page).to_have_url(re.compile(rf"\?compare={FIRST}%2C{SECOND}$"))
    page.get_by_role("link", name="Compare", exact=True).click()
    expect(page).to_have_url(re.compile(rf"/compare\?runs={FIRST}%2C{SECOND}$"))
    expect(page.locator("h1")).to_have_text("Compare 2 runs")
    for series in CURVES:
        expect_lines(page, series)
    page.go_back()
    expect(page.get_by_label("Compare gpt-small-lr1e-2")).to_be_checked()
    page.get_by_role("button", name="Choose none").click()
    expect(page.locator('[data-panel="picked"]')).to_have_count(0)


def test_runs_are_chosen_and_compared_by_the_keyboard(page: Page) -> None:
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    for key in "jxcjx":  # one run alone is not compared
        page.keyboard.press(key)
    expect(page.locator('[data-panel="picked"]')).to_contain_text("2 runs are chosen")
    page.keyboard.press("c")
    expect(page).to_have_url(re.compile(rf"/compare\?runs={FIRST}%2C{SECOND}$"))


def test_no_more_than_twenty_runs_can_be_chosen(page: Page, server: CannedServer) -> None:
    server.begin(runs=22)
    page.goto("/?compare=" + ",".join(run["id"] for run in server.runs[:20]))
    expect(page.locator('[data-panel="picked"]')).to_contain_text("20 runs are chosen, as many as can be compared")
    expect(page.locator("td.pick input:checked")).to_have_count(20)
    expect(page.locator("td.pick input:disabled")).to_have_count(2)


def test_each_run_has_its_colour_and_the_least_loss_is_marked(page: Page) -> None:
    page.goto(f"/compare?runs={FIRST},{SECOND},{THIRD}")
    expect_lines(page, "loss")
    strokes = page.locator(".data .swatch line").evaluate_all("all => all.map(one => getComputedStyle(one).stroke)")
    assert len(set(strokes[:3])) == 3
    drawn = (
        curve(page, "loss").locator(".legendlines path.js-line").evaluate_all("all => all.map(one => one.style.stroke)")
    )
    assert drawn == strokes[:3]
    expect(page.locator(f'tr[data-compared="{SECOND}"]')).to_contain_text("NaN")
    expect(page.locator("td.best")).to_have_count(2)  # the made-up runs have the same losses
    expect(page.locator(f'tr[data-compared="{THIRD}"] a')).to_have_text(MARKUP)
    expect(page.locator('img[src="x"]')).to_have_count(0)


def test_a_run_is_taken_out_of_the_comparison(page: Page) -> None:
    page.goto(f"/compare?runs={FIRST},{SECOND},{THIRD}")
    expect_lines(page, "loss")
    page.get_by_role("button", name="Compare without gpt-small-lr1e-2").click()
    expect(page).to_have_url(re.compile(rf"runs={FIRST}%2C{THIRD}$"))
    expect(page.locator("tr[data-compared]")).to_have_count(2)
    expect(curve(page, "loss").locator(".legend .traces")).to_have_count(2)


def test_a_run_that_is_gone_is_said_and_the_others_are_drawn(page: Page) -> None:
    page.goto(f"/compare?runs={FIRST},gone,{SECOND}")
    expect(page.locator('tr[data-compared="gone"]')).to_contain_text("There is no run “gone” here")
    expect_lines(page, "loss")


def test_the_axis_and_the_choices_are_in_the_address(page: Page) -> None:
    page.goto(f"/compare?runs={FIRST},{SECOND}")
    expect_lines(page, "loss")
    page.locator('[data-control="axis"]').select_option("tokens")
    expect(curve(page, "loss").locator(".xtitle")).to_have_text("tokens")
    page.locator('[data-control="series"]').select_option("tokens")
    expect_lines(page, "tokens")
    page.locator('[data-control="statistic"]').select_option("weight_norm")
    page.locator('figure[data-figure="difference"]').scroll_into_view_if_needed()
    expect(page.locator('figure[data-figure="difference"] h3')).to_have_text("Weight norm: relative difference")
    expect(page).to_have_url(re.compile(r"axis=tokens&runs=.*&series=tokens&statistic=weight_norm$"))
    page.reload()
    expect(curve(page, "loss").locator(".xtitle")).to_have_text("tokens")
    expect(page.locator('[data-control="statistic"]')).to_have_value("weight_norm")


def test_two_runs_differ_layer_by_layer_and_can_be_swapped(page: Page) -> None:
    page.goto(f"/compare?runs={FIRST},{SECOND},{THIRD}")
    heatmap = page.locator('figure[data-figure="difference"]')
    heatmap.scroll_into_view_if_needed()
    expect(heatmap).to_have_attribute("data-state", "drawn")
    expect(heatmap.locator(".heatmaplayer image").first).to_be_visible()
    page.locator('[data-action="swap"]').click()
    expect(page.locator('[data-control="first"]')).to_have_value(SECOND)
    expect(page.locator('[data-control="other"]')).to_have_value(FIRST)
    page.locator("[data-search]").fill("no such layer")
    expect(heatmap).to_have_attribute("data-state", "filtered")


def test_settings_that_differ_stand_side_by_side(page: Page, server: CannedServer) -> None:
    server.runs[1]["config"] = {"lr": 1e-2, "optimizer": {"name": "AdamW", "betas": [0.9, 0.95]}, "warmup": 500}
    page.goto(f"/compare?runs={FIRST},{SECOND}")
    rows = page.locator("tr[data-setting]")
    expect(rows).to_have_count(3)
    expect(page.locator('tr[data-setting="lr"] td')).to_have_text(["0.003", "0.01"])
    expect(page.locator('tr[data-setting="warmup"] td')).to_have_text(["–", "500"])
    expect(page.locator('tr[data-setting="note"] td')).to_have_text([MARKUP, "–"])
    page.get_by_label("also those that are alike").check()
    expect(page.locator('tr[data-setting="optimizer.name"] td')).to_have_text(["AdamW", "AdamW"])


def test_a_new_step_is_drawn_in_every_curve(page: Page, server: CannedServer) -> None:
    page.goto(f"/compare?runs={SECOND},{FIRST}")
    expect_lines(page, "loss")
    expect_live(page)
    last = server.advance(9)
    for series in CURVES:
        expect(curve(page, series)).to_have_attribute("data-last-step", str(last))


def test_the_sweep_says_how_sensitive_the_loss_is(page: Page) -> None:
    page.goto(f"/compare?runs={FIRST},{SECOND}")
    sweep = page.locator('figure[data-figure="sweep"]')
    expect(sweep).to_have_attribute("data-state", "drawn")
    expect(sweep.locator("[data-note]")).to_have_text("learning-rate sensitivity 0.5")


def test_without_runs_the_page_says_how_to_choose_them(page: Page) -> None:
    page.goto("/compare")
    expect(page.locator(".note")).to_contain_text("Choose two runs or more in the list of runs")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_comparison_is_no_wider_than_the_window(page: Page, server: CannedServer, width: int) -> None:
    server.runs[0]["name"] = "a-name-of-two-hundred-characters-" * 6
    page.set_viewport_size({"width": width, "height": 4500})
    page.goto(f"/compare?runs={FIRST},{SECOND}")
    expect(page.locator('figure[data-figure="difference"]')).to_have_attribute("data-state", "drawn")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
