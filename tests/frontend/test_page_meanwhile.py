"""What comes at a bad moment, in a real browser: under a pressed button, between two frames, from a busy server."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from frontend.canned import CannedServer
from frontend.conftest import a_page
from frontend.seen import RUN, expect_drawn, expect_live, figure
from gradspectra_frontend import assets
from playwright.sync_api import Browser, Page, Route, expect

from frontend import canned

IN_ONE_LOT = """
const Observer = IntersectionObserver;
window.lots = [];
window.IntersectionObserver = class {
  constructor(told, how) {
    const lot = { told, entries: [], name: "" };
    window.lots.push(lot);
    this.lot = lot;
    this.own = new Observer((entries) => {
      lot.entries.push(...entries);
      if (window.handOver) lot.told(lot.entries.splice(0));
    }, how);
  }
  observe(place) {
    this.lot.name = place.dataset.figure;
    this.own.observe(place);
  }
  disconnect() {
    this.own.disconnect();
  }
};
window.came = async (name, many) => {
  const lot = () => window.lots.find((one) => one.name === name);
  while (!(lot()?.entries.length >= many)) await new Promise(requestAnimationFrame);
};
window.give = () => {
  window.handOver = true;
  window.lots.forEach((lot) => lot.entries.length && lot.told(lot.entries.splice(0)));
};
"""
"""What a browser has seen comes and goes in several frames, and the page hears of it at once, as on a busy machine."""


def test_a_step_whose_answer_comes_under_a_pressed_button_is_drawn_when_it_is_released(
    page: Page, server: CannedServer
) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    waiting: list[Route] = []
    page.route("**/figures/loss?*", lambda route: waiting.append(route))
    with page.expect_request("**/figures/loss?*"):
        last = server.advance(7)
    figure(page, "loss").locator(".plot").hover()
    page.mouse.down()
    with page.expect_response("**/figures/loss?*") as answer:
        waiting.pop().continue_()
    assert answer.value.finished() is None
    page.unroute("**/figures/loss?*")
    page.wait_for_timeout(200)  # for a drawing that should not be
    expect(figure(page, "loss")).to_have_attribute("data-last-step", "1200")
    page.mouse.up()
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))


def test_a_button_that_opens_a_menu_holds_no_drawing_up(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    figure(page, "loss").locator(".plot").hover()
    page.mouse.down(button="right")
    last = server.advance(7)
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))
    page.mouse.up(button="right")


def test_a_figure_that_was_away_and_is_seen_now_is_drawn(own_page: Page) -> None:
    own_page.add_init_script(IN_ONE_LOT)
    own_page.set_viewport_size({"width": 400, "height": 200})
    own_page.goto(f"{RUN}/overview")
    own_page.evaluate("window.came('step_time', 1)")
    figure(own_page, "step_time").scroll_into_view_if_needed()
    own_page.evaluate("window.came('step_time', 2)")
    own_page.evaluate("window.give()")
    expect_drawn(own_page, "step_time")


def test_what_a_busy_server_did_not_answer_is_asked_for_again(own_page: Page) -> None:
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if route.request.url in refused:
            return route.continue_()
        refused.append(route.request.url)
        return route.fulfill(status=503, json={"title": "Not available now", "status": 503})

    own_page.add_init_script(
        "const later = setTimeout; window.setTimeout = (f, ms, ...given) => later(f, ms / 20, ...given);"
    )
    for call in ("figures/loss?*", "figures/grad_norm?*", "alerts?limit=500"):
        own_page.route(f"**{RUN}/{call}", refuse_once)
    own_page.goto(f"{RUN}/overview")
    expect_drawn(own_page, "loss")
    expect_drawn(own_page, "grad_norm")
    expect(own_page.locator("[data-verdict]")).to_contain_text("since step")
    assert len(refused) == 3


def test_the_last_values_come_although_each_of_them_is_old_when_it_comes(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    tiles = page.get_by_label("Last values")
    expect(tiles).to_contain_text("every 4th")
    seen = tiles.inner_text()
    waiting: list[Route] = []
    page.route(f"**{RUN}/series?*", lambda route: waiting.append(route))
    for _ in range(2):
        last = server.advance(60)
        expect(page.locator(".run-progress")).to_contain_text(f"{last:,}")
    assert waiting
    waiting[0].continue_()
    expect(tiles).not_to_have_text(seen, use_inner_text=True)


def test_a_server_that_comes_back_with_another_page_asks_to_load_it(
    page: Page, server: CannedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.goto(f"{RUN}/overview")
    expect_live(page)
    notice = page.locator("[data-updated]")
    with page.expect_response(lambda answer: answer.url == f"{server.url}/"):
        server.drop_streams()
    expect_live(page)
    expect(notice).to_have_count(0)
    monkeypatch.setattr(assets, "static_url", lambda: "/static/0123456789abcdef")
    server.drop_streams()
    expect(notice).to_contain_text("The server was updated.")
    notice.get_by_role("button").click()
    expect(page.locator('script[src*="0123456789abcdef/js/main.js"]')).to_have_count(1)
    expect_drawn(page, "loss")
    expect(notice).to_have_count(0)


def test_a_script_that_cannot_be_loaded_is_said_with_what_to_do(chromium: Browser, server: CannedServer) -> None:
    with a_page(chromium, server.url) as page:
        page.route("**/vendor/plotly-cartesian*", lambda route: route.fulfill(status=404, body="gone"))
        page.goto(f"{RUN}/overview")
        expect(figure(page, "loss").locator(".overlay")).to_contain_text(
            "if the server was updated, load the page again"
        )
        page.unroute("**/vendor/plotly-cartesian*")
        expect_drawn(page, "loss")


def test_an_answer_that_breaks_off_is_asked_for_again(own_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole = canned.reply

    def broken_off(handler: BaseHTTPRequestHandler, status: int, body: Any, *more: Any) -> None:
        if handler.path.startswith(f"/api/v1{RUN}/figures/loss"):
            asked.append(handler.path)
        if len(asked) != 1 or handler.path != asked[0]:
            whole(handler, status, body, *more)
            return
        handler.send_response(status)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"data": [')
        handler.close_connection = True

    monkeypatch.setattr(canned, "reply", broken_off)
    own_page.goto(f"{RUN}/overview")
    expect_drawn(own_page, "loss")
    assert len(asked) == 2


def test_an_answer_that_never_comes_is_given_up_and_asked_for_again(own_page: Page) -> None:
    asked: list[str] = []

    def never_the_first_time(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()

    own_page.clock.install()
    own_page.route("**/figures/loss**", never_the_first_time)
    with own_page.expect_request("**/figures/loss**"):
        own_page.goto(f"{RUN}/overview")
    own_page.clock.fast_forward(130_000)
    expect_drawn(own_page, "loss")
    assert len(asked) > 1
