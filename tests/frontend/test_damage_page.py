"""Steps that could not be read back: each figure says which are left out, in any width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from frontend.canned import CannedServer
from frontend.seen import RUN, expect_drawn, figure
from gradspectra_core.views import Series
from gradspectra_frontend.figures import build
from playwright.sync_api import Page, expect

from frontend import synthetic

NOTE = "steps 1 to 1,120 are damaged and left out: gradspectra doctor names them"


@pytest.mark.parametrize(
    ("damaged", "note"),
    [
        ([(1, 1120)], NOTE),
        ([(7, 7)], "step 7 is damaged and left out: gradspectra doctor names it"),
        ([(1, 2), (9, 9)], "steps 1 to 2 and 9 are damaged and left out: gradspectra doctor names them"),
        (
            [(i, i + 1) for i in range(1, 50, 10)],
            "steps 1 to 2, 11 to 12, 21 to 22 and 2 more ranges are damaged and left out: "
            "gradspectra doctor names them",
        ),
    ],
)
def test_a_figure_names_what_is_left_out(damaged: Any, note: str) -> None:
    for made in (
        build("loss", data=replace(synthetic.series(), damaged=tuple(damaged))),
        build("layers", data=replace(synthetic.layers(), damaged=tuple(damaged))),
        build("spectrum", data=synthetic.spectra(), damaged=damaged),
    ):
        assert made["layout"]["meta"]["damaged"] == note
        assert made["layout"]["title"]["text"].endswith(f"<br><sub>{note}</sub>")


def test_a_figure_of_a_sound_run_says_nothing() -> None:
    assert "damaged" not in build("loss", data=synthetic.series())["layout"]["meta"]


@pytest.mark.parametrize("width", [390, 1280])
def test_each_figure_on_the_page_says_which_steps_are_damaged(page: Page, server: CannedServer, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect(page.locator("[data-damaged]")).to_have_count(0)
    server.damaged = ((1, 1120),)
    for tab, name in (("overview", "loss"), ("layers", "layers"), ("spectra", "ranks")):
        page.goto(f"{RUN}/{tab}")
        said = figure(page, name).locator("[data-damaged]")
        expect(said).to_have_text(f"▲ {NOTE}")
        expect(said).to_be_visible()
        assert said.evaluate("one => one.scrollWidth <= one.clientWidth")


def test_a_figure_of_which_nothing_is_left_does_not_say_that_nothing_came_yet(page: Page, server: CannedServer) -> None:
    server.damaged = ((1, 1120),)
    nothing = build("loss", data=Series("step", np.empty(0, np.int64), {}), damaged=server.damaged)
    page.route("**/figures/loss?*", lambda route: route.fulfill(json=nothing))
    page.goto(f"{RUN}/overview")
    expect(figure(page, "loss").locator(".overlay")).to_have_text("Nothing else of this was recorded in these steps.")
    expect(figure(page, "loss").locator("[data-damaged]")).to_have_text(f"▲ {NOTE}")
