"""The page under a reader's hands, in a real browser: nothing moves away, is lost, or says what is not so."""

from __future__ import annotations

import re

import pytest
from frontend.canned import CannedServer
from frontend.seen import RUN, drag, expect_drawn, expect_live, figure, span
from playwright.sync_api import Page, expect

from frontend import synthetic

NEWER = {"id": "newer", "rule": "divergence", "severity": "critical", "message": "the loss rises", "opened_step": 1199}


def test_enter_presses_what_has_the_focus(page: Page) -> None:
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    page.get_by_role("link", name="Settings").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/settings$"))


def test_a_chosen_run_stays_chosen_while_others_begin(page: Page, server: CannedServer) -> None:
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    expect_live(page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("tr.row.chosen")).to_have_attribute("data-run", "demo00000002")
    server.runs.insert(1, server.runs[0] | {"id": "another00001", "name": "just begun"})
    server.advance()
    expect(page.locator("tr.row")).to_have_count(6)
    expect(page.locator("tr.row.chosen")).to_have_attribute("data-run", "demo00000002")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/runs/demo00000002/overview"))


@pytest.mark.parametrize("path", [f"{RUN}/alerts", "/alerts?state=all"])
def test_an_alert_that_opens_does_not_take_the_place_of_the_one_that_is_read(
    page: Page, server: CannedServer, path: str
) -> None:
    page.goto(path)
    detail = page.locator("[data-alert-detail]")
    expect(detail.locator("h2")).to_have_text("nonfinite")
    expect_live(page)
    detail.locator("textarea").fill("being written")
    server.alerts.insert(0, server.alerts[0] | NEWER)
    server.advance()
    expect(page.locator("[data-alert]")).to_have_count(4)
    expect(detail.locator("h2")).to_have_text("nonfinite")
    expect(detail.locator("textarea")).to_have_value("being written")
    page.reload()
    expect(detail.locator("h2")).to_have_text("nonfinite")


def test_a_run_is_not_called_healthy_while_its_alerts_cannot_be_read(page: Page) -> None:
    page.route("**/alerts?limit=500", lambda route: route.fulfill(status=500, json={"title": "Broken"}))
    page.goto(f"{RUN}/details")
    expect(page.locator("[data-verdict]")).to_have_text(re.compile("Critical at step 1,200: 1 open alert.$"))


def test_steps_without_anything_say_so_and_a_filter_that_fits_nothing_too(page: Page) -> None:
    page.goto(f"{RUN}/overview?start=5000&stop=6000")
    expect(figure(page, "loss").locator(".overlay")).to_have_text("Nothing of this was recorded in these steps.")
    expect(figure(page, "curves").locator(".xtick text")).to_have_count(6)  # a thousand of them took minutes
    page.goto(f"{RUN}/layers?filter=nonsense")
    expect(figure(page, "layers").locator(".overlay")).to_have_text("No layer's name or role fits the filter.")


@pytest.mark.parametrize(
    ("start", "stop", "said"), [("900", "900", "more than 900"), ("7000", "", "no step after 6,999 yet")]
)
def test_steps_that_end_before_they_begin_are_refused_in_words(page: Page, start: str, stop: str, said: str) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    last = page.get_by_label("last step shown")
    page.get_by_label("first step shown").fill(start)
    last.fill(stop)
    page.get_by_role("button", name="Show", exact=True).click()
    assert said in last.evaluate("field => field.validationMessage")
    assert page.url.endswith("/overview")
    page.get_by_label("first step shown").fill("800")
    last.fill("1000")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("start=800&stop=1000"))


def test_only_what_was_typed_is_saved(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/details")
    expect_live(page)
    expect(page.get_by_label("Notes")).to_have_value("")
    page.get_by_label("Name", exact=True).fill("renamed here")
    server.runs[0]["notes"] = "written elsewhere"
    server.runs[0]["tags"] = ["with, a comma"]
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    expect(page.get_by_label("Notes")).to_have_value("written elsewhere")
    expect(page.locator("h1")).to_have_text("renamed here")
    assert [server.runs[0][name] for name in ("name", "notes", "tags")] == [
        "renamed here",
        "written elsewhere",
        ["with, a comma"],
    ]


def test_a_run_that_is_deleted_elsewhere_says_so(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    gone = server.runs.pop(0)
    server.announce({"run": gone["id"], "state": "deleted"})
    expect(page.get_by_text("This run was deleted")).to_be_visible()
    expect(page.locator("figure")).to_have_count(0)


def test_no_is_at_hand_when_a_button_asks_once_more(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/details")
    page.get_by_role("button", name="Delete this run").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="No")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Delete this run")).to_be_visible()
    assert len(server.runs) == 5


def test_a_click_on_the_row_of_a_layer_with_markup_in_its_name_opens_its_curves(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = synthetic.layer_names()
    names = [("<i>a</i> & b, c.weight", *first[1:]), *others]
    monkeypatch.setattr(synthetic, "layer_names", lambda _=8: names)
    page.goto(f"{RUN}/layers")
    expect(figure(page, "layers")).to_have_attribute("data-state", "drawn")
    box = figure(page, "layers").locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"] / 59)
    expect(page.locator('[data-control="layer"]')).to_have_value("<i>a</i> & b, c.weight")


def test_dragging_goes_on_panning_while_steps_come(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview?start=700&stop=900")
    expect_drawn(page, "loss")
    expect_live(page)
    loss = figure(page, "loss")
    loss.locator("summary").click()
    loss.get_by_role("button", name="Drag to pan").click()
    expect(loss).to_have_attribute("data-drawn", "2")
    server.advance(5)
    expect(loss).to_have_attribute("data-drawn", "3")
    drag(page, "loss", (0.5, 0.5), (0.25, 0.5))
    expect(page).to_have_url(re.compile(r"start=7[45]\d&stop=9[45]\d"))
    for name in ("loss", "grad_norm"):
        expect(figure(page, name)).to_have_attribute("data-last-step", re.compile(r"9[45]\d"))
    assert span(page, "loss") == span(page, "grad_norm")


def test_a_stream_that_a_sleeping_machine_left_is_opened_anew(page: Page, server: CannedServer) -> None:
    page.clock.install()
    page.goto(f"{RUN}/overview")
    expect_live(page)
    expect(figure(page, "loss")).to_have_attribute("data-last-step", "1200")
    assert server.streams == 1
    server.listeners.clear()  # the stream stays open and silent
    last = server.advance(40)
    page.clock.fast_forward("01:00:00")
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))
    assert server.streams == 2


def test_a_session_that_has_ended_leads_to_the_sign_in(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/details")
    expect_live(page)
    for answered in ("No step was lost.", "Critical: NaN", "first step"):
        expect(page.get_by_text(answered).first).to_be_visible()
    page.route("**/api/v1/**", lambda route: route.fulfill(status=401, json={"title": "No valid token"}))
    server.drop_streams()
    expect(page).to_have_url(re.compile(r"/login\?next=%2Fruns%2Fdemo00000001%2Fdetails$"))


def test_a_box_drawn_on_a_log_axis_shows_its_values_though_they_lie_close_enough_for_a_linear_one(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "grad_norm")
    shown = "plot => [plot._fullLayout.yaxis.type, ...plot._fullLayout.yaxis.range]"
    plot = figure(page, "grad_norm").locator(".plot")
    assert plot.evaluate(shown)[0] == "log"
    drag(page, "grad_norm", (0.2, 0.5), (0.5, 0.9))
    expect(page).to_have_url(re.compile("start="))
    page.wait_for_function(
        "() => document.querySelector('[data-figure=grad_norm] .plot')._fullLayout.yaxis.type === 'linear'"
    )
    _, low, high = plot.evaluate(shown)
    values = plot.evaluate("plot => plot.data.find(one => one.name === 'gradient norm').y.filter(Number.isFinite)")
    assert low < min(values) < max(values) < high


def test_a_zoom_between_two_steps_shows_both(page: Page) -> None:
    page.goto(f"{RUN}/overview?start=700&stop=702")
    expect_drawn(page, "grad_norm")
    for turn in range(2):  # the second one leaves the address as it is
        drag(page, "grad_norm", (0.2, 0.5), (0.4 - 0.1 * turn, 0.5))
        expect(page).to_have_url(re.compile("start=700&stop=701$"))
        page.wait_for_function(
            "() => document.querySelector('[data-figure=grad_norm] .plot').layout.xaxis.range.join() === '700,701'"
        )
