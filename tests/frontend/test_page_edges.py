"""The page at its edges, in a real browser: what is left empty, left by the keyboard, very short or very long."""

from __future__ import annotations

import re

import numpy as np
import pytest
from frontend.canned import CannedServer
from frontend.seen import RUN, SCALARS, expect_drawn, figure
from gradspectra_core.views import LayerSeries, Series
from playwright.sync_api import Page, expect

from frontend import synthetic


def test_steps_without_an_end_are_shown_to_the_last_one(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    expect(page.get_by_label("last step shown")).to_have_attribute("placeholder", "1,200")
    page.get_by_label("first step shown").fill("900")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page).to_have_url(re.compile(r"start=900&stop=1201$"))
    expect(figure(page, "loss")).to_have_attribute("data-last-step", "1200")


def test_the_menu_of_a_figure_is_opened_and_left_by_the_keyboard(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    opened = figure(page, "loss").locator("summary")
    opened.focus()
    page.keyboard.press("Enter")
    expect(figure(page, "loss").get_by_role("button", name="Save as PNG")).to_be_visible()
    page.keyboard.press("Tab")
    expect(figure(page, "loss").get_by_role("button", name="Show all")).to_be_focused()
    page.keyboard.press("Escape")
    expect(figure(page, "loss").get_by_role("button", name="Save as PNG")).to_be_hidden()
    expect(opened).to_be_focused()


def test_very_long_names_of_layers_leave_room_for_the_cells(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "_of_the_encoder" * 20
    names = [(name.replace("_proj", long), role, depth) for name, role, depth in synthetic.layer_names()]
    monkeypatch.setattr(synthetic, "layer_names", lambda _=8: names)
    page.goto(f"{RUN}/layers")
    expect(figure(page, "layers")).to_have_attribute("data-state", "drawn")
    cells = figure(page, "layers").locator(".heatmaplayer image").first.bounding_box()
    assert cells is not None
    assert cells["width"] > 700
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_run_of_one_step_is_drawn(page: Page, server: CannedServer) -> None:
    server.begin(last=1)
    page.goto(f"{RUN}/overview")
    for name in SCALARS:
        expect(figure(page, name)).to_have_attribute("data-last-step", "1")
    low, high = figure(page, "learning_rate").locator(".plot").evaluate("plot => plot.layout.yaxis.range")
    assert (low, 0 < high < 1e-4) == (0, True), "the only rate, 3e-5, is no zero"


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_the_last_values_fill_their_rows(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{RUN}/overview")
    expect(page.locator(".tiles")).to_contain_text("every 200th")
    panel, last = page.locator(".tiles").bounding_box(), page.locator(".tile").last.bounding_box()
    assert panel is not None
    assert last is not None
    assert panel["x"] + panel["width"] - (last["x"] + last["width"]) < 2


def test_cells_of_a_heatmap_reach_its_right_edge_though_the_last_one_is_marked(
    page: Page, server: CannedServer
) -> None:
    last = synthetic.NAN_STEP + 6  # the second one measured with a NaN
    server.begin(last=last)
    page.goto(f"{RUN}/layers")
    expect(figure(page, "layers")).to_have_attribute("data-state", "drawn")
    expect(figure(page, "layers").locator(".legend")).to_contain_text("NaN or inf")
    right = figure(page, "layers").locator(".plot").evaluate("plot => plot._fullLayout.xaxis.range[1]")
    assert right - last < 4


@pytest.mark.parametrize("rows", [1, 3, 26])
def test_the_colours_below_a_narrow_heatmap_leave_its_axis_free(
    page: Page, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    names = [(f"h.{i}.weight", "linear", i) for i in range(rows)]
    values = np.tile(np.arange(1.0, 10.0), (rows, 1))
    view = LayerSeries(
        "grad_norm", "step", np.arange(1, 10), *zip(*names, strict=True), *[values] * 3, values * 0, values > 0
    )
    monkeypatch.setattr(synthetic, "layers", lambda *_, **__: view)
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(f"{RUN}/layers")
    expect(figure(page, "layers")).to_have_attribute("data-state", "drawn")
    title = figure(page, "layers").locator(".xtitle").bounding_box()
    colours = figure(page, "layers").locator(".cbfills").bounding_box()
    assert title is not None
    assert colours is not None
    assert 0 <= colours["y"] - (title["y"] + title["height"]) < 12


def test_markup_in_a_name_is_a_title_as_it_stands(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"a<b>&c": synthetic.buckets(np.arange(1.0, 9.0))}
    monkeypatch.setattr(synthetic, "series", lambda *_, **__: Series("step", np.arange(1, 9), odd))
    page.goto(f"{RUN}/overview?series=a%3Cb%3E%26c")
    expect(figure(page, "curves")).to_have_attribute("data-state", "drawn")
    expect(figure(page, "curves").locator("h3")).to_have_text("a<b>&c")


@pytest.mark.parametrize("path", [f"{RUN}/alerts", "/alerts?state=all"])
def test_a_long_list_of_alerts_scrolls_and_its_lines_stay_apart(page: Page, server: CannedServer, path: str) -> None:
    server.alerts = [server.alerts[i % 3] | {"id": f"alert{i:03}"} for i in range(200)]
    page.goto(path)
    lines = page.locator("[data-alert]")
    expect(lines).to_have_count(200)
    first, message, second = (
        one.bounding_box() for one in (lines.nth(1), lines.nth(1).locator(":scope > *").last, lines.nth(2))
    )
    assert first is not None
    assert message is not None
    assert second is not None
    assert first["y"] < message["y"] + message["height"] <= first["y"] + first["height"] <= second["y"]
