"""How a run's page opens in a real browser: what is asked for first, and how often it is drawn."""

from __future__ import annotations

import pytest
from frontend.canned import CannedServer
from gradspectra_frontend import assets
from playwright.sync_api import Locator, Page, Route, expect

RUN = "/runs/demo00000001"


def figure(page: Page, name: str) -> Locator:
    return page.locator(f'figure[data-figure="{name}"]')


@pytest.mark.parametrize(("tab", "name"), [("overview", "loss"), ("layers", "layers")])
def test_figures_are_drawn_before_the_run_has_answered(page: Page, tab: str, name: str) -> None:
    waiting: list[Route] = []
    page.route(f"**/api/v1{RUN}", lambda route: waiting.append(route))
    page.goto(f"{RUN}/{tab}")
    expect(figure(page, name)).to_have_attribute("data-last-step", "1200")
    expect(page.locator("h1")).to_have_count(0)
    assert waiting
    for route in waiting:
        route.continue_()
    expect(page.locator("h1")).to_have_text("gpt-small-lr3e-3")
    expect(figure(page, name)).to_have_attribute("data-drawn", "1")


@pytest.mark.parametrize(
    ("tab", "name"), [("overview", "loss"), ("layers?statistic=weight_norm&start=100&stop=700", "layers")]
)
def test_the_first_figure_is_asked_for_once_before_the_page_has_its_modules(page: Page, tab: str, name: str) -> None:
    waiting: list[Route] = []
    asked: list[str] = []
    page.on("request", lambda call: asked.append(call.url))
    page.route("**/js/main.js", lambda route: waiting.append(route))
    with page.expect_response(f"**{RUN}/figures/{name}?*"), page.expect_response(f"**{assets.plotly_url()}"):
        page.goto(f"{RUN}/{tab}", wait_until="commit")
    assert waiting
    waiting.pop().continue_()
    expect(figure(page, name)).to_have_attribute("data-state", "drawn")
    assert len([url for url in asked if f"/figures/{name}?" in url]) == 1


def test_a_step_after_the_first_answer_and_before_the_page_has_its_modules_is_drawn(
    page: Page, server: CannedServer
) -> None:
    waiting: list[Route] = []
    page.route("**/js/main.js", lambda route: waiting.append(route))
    with page.expect_response(f"**{RUN}/figures/loss?*") as answer:
        page.goto(f"{RUN}/overview", wait_until="commit")
    assert answer.value.finished() is None
    last = server.advance(7)
    waiting.pop().continue_()
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))


WITHOUT_FRAMES = """
const frame = requestAnimationFrame.bind(window), later = setTimeout.bind(window), Stream = EventSource, tell = {};
const frames = new Promise((go) => { window.letFramesCome = go; });
window.requestAnimationFrame = (f) => (void frames.then(() => frame(f)), 0);
window.setTimeout = (f, ms, ...given) => later(() => frames.then(() => f(...given)), ms);
window.told = {};
for (const kind of ["opened", "run"]) {
  window.told[kind] = new Promise((resolve) => { tell[kind] = () => resolve(true); });
}
window.EventSource = class extends Stream {
  constructor(url) {
    super(url);
    for (const kind in tell) this.addEventListener(kind, tell[kind]);
  }
};
"""
"""No figure listens before a frame has come."""


@pytest.mark.parametrize("heard", ["opened", "run"])
def test_a_step_that_is_heard_of_before_any_figure_listens_is_drawn(
    own_page: Page, server: CannedServer, heard: str
) -> None:
    waiting: list[Route] = []
    own_page.add_init_script(WITHOUT_FRAMES)
    own_page.route("**/js/main.js", lambda route: waiting.append(route))
    with own_page.expect_response(f"**{RUN}/figures/loss?*") as answer:
        own_page.goto(f"{RUN}/overview", wait_until="commit")
    assert answer.value.finished() is None
    if heard == "opened":
        server.advance(7)
    waiting.pop().continue_()
    assert own_page.evaluate("window.told.opened")
    if heard == "run":
        server.advance(7)
        assert own_page.evaluate("window.told.run")
    own_page.evaluate("window.letFramesCome()")
    expect(figure(own_page, "loss")).to_have_attribute("data-last-step", "1207")


def test_what_was_asked_for_ahead_is_not_shown_when_it_is_old(page: Page, server: CannedServer) -> None:
    page.set_viewport_size({"width": 400, "height": 200})  # the loss is below what is seen
    with page.expect_response(f"**{RUN}/figures/loss?*"):
        page.goto(f"{RUN}/overview")
    expect(page.locator("body")).to_have_attribute("data-connection", "live")
    last = server.advance(7)
    expect(page.locator(".run-progress")).to_contain_text("1,207")
    expect(figure(page, "loss")).to_have_attribute("data-state", "loading")
    figure(page, "loss").scroll_into_view_if_needed()
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))


def test_a_step_between_the_first_answers_and_the_open_stream_is_drawn(page: Page, server: CannedServer) -> None:
    waiting: list[Route] = []
    page.route("**/api/v1/live", lambda route: waiting.append(route))
    page.goto(f"{RUN}/overview")
    for name in ("loss", "grad_norm"):
        expect(figure(page, name)).to_have_attribute("data-last-step", "1200")
    expect(page.locator(".run-progress")).to_contain_text("1,200")
    last = server.advance(7)
    waiting.pop().continue_()
    for name in ("loss", "grad_norm"):
        expect(figure(page, name)).to_have_attribute("data-last-step", str(last))
    expect(page.locator(".run-progress")).to_contain_text("1,207")


@pytest.mark.parametrize("width", [1280, 420])
def test_a_heatmap_is_painted_once_a_drawing(own_page: Page, width: int) -> None:
    own_page.set_viewport_size({"width": width, "height": 900})
    own_page.add_init_script(
        "window.painted = 0; const own = HTMLCanvasElement.prototype.toDataURL;"
        "HTMLCanvasElement.prototype.toDataURL = function (...how) {"
        " window.painted += 1; return own.apply(this, how); };"
    )
    own_page.goto(f"{RUN}/layers")
    expect(figure(own_page, "layers")).to_have_attribute("data-state", "drawn")
    own_page.wait_for_timeout(500)
    kinds = figure(own_page, "layers").locator(".heatmaplayer image").count()
    drawn = int(figure(own_page, "layers").get_attribute("data-drawn") or 0)
    assert own_page.evaluate("window.painted") == kinds * drawn >= 1


def test_a_run_that_is_not_there_says_so_in_place_of_figures(page: Page) -> None:
    page.goto("/runs/nothing00000/overview")
    expect(page.locator(".problem")).to_have_count(1)
    expect(page.locator(".problem")).to_contain_text("This server knows of no run “nothing00000”.")
    expect(page).to_have_title("No such run · gradspectra")
    expect(page.locator("figure")).to_have_count(0)
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("tr.row")).to_have_count(5)


def test_each_figure_is_seen_before_the_next_one_is_drawn(own_page: Page) -> None:
    held: list[Route] = []
    own_page.route(f"**{assets.plotly_url()}", lambda route: held.append(route))
    own_page.add_init_script(
        "window.frame = 0; (function next() { window.frame += 1; requestAnimationFrame(next); })();"
        "window.drawnIn = {}; new MutationObserver((changes) => changes.forEach(({ target }) => {"
        " window.drawnIn[target.dataset.figure] ??= window.frame; })).observe(document,"
        " { subtree: true, attributes: true, attributeFilter: ['data-last-step'] });"
    )
    figures = [f"{RUN}/figures/{name}?" for name in ("loss", "grad_norm", "noise_scale")]
    answered: list[str] = []
    own_page.on("requestfinished", lambda call: answered.extend(one for one in figures if one in call.url))
    own_page.goto(f"{RUN}/overview", wait_until="commit")
    while len(set(answered)) < len(figures) or not held:
        own_page.wait_for_timeout(50)
    for route in held:
        route.continue_()
    for name in ("loss", "grad_norm", "noise_scale"):
        expect(figure(own_page, name)).to_have_attribute("data-drawn", "1")
    frames = own_page.evaluate("['loss', 'grad_norm', 'noise_scale'].map((name) => window.drawnIn[name])")
    assert len(set(frames)) == len(frames)


def test_names_of_layers_are_asked_for_when_the_heatmap_stands_or_has_failed(page: Page) -> None:
    waiting: list[Route] = []
    asked: list[str] = []
    page.on("request", lambda call: asked.append(call.url))
    page.route(f"**/api/v1{RUN}/figures/layers?*", lambda route: waiting.append(route))
    page.goto(f"{RUN}/layers")
    expect(page.locator("h1")).to_have_text("gpt-small-lr3e-3")
    page.wait_for_timeout(300)
    assert not [url for url in asked if url.endswith(f"{RUN}/layers") and "/api/" in url]
    waiting.pop().fulfill(status=400, json={"title": "No", "detail": "not today", "status": 400})
    expect(page.locator('select[data-control="layer"] option')).not_to_have_count(1)
    assert [url for url in asked if url.endswith(f"{RUN}/layers") and "/api/" in url]
