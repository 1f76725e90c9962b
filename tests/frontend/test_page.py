"""The page in a real browser, on made-up runs: drawn, live, addresses, narrow and dark."""

from __future__ import annotations

import re

import pytest
from frontend.canned import MARKUP, CannedServer
from frontend.seen import DRAWN, PAGES, RUN, SCALARS, drag, expect_drawn, expect_live, figure, span
from playwright.sync_api import Browser, Page, expect


def test_the_list_says_health_state_loss_progress_and_overhead(page: Page) -> None:
    page.goto("/")
    row = page.locator('tr[data-run="demo00000001"]')
    expect(row).to_contain_text("critical")
    expect(row).to_contain_text("gpt-small-lr3e-3")
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("1,200 / 2,000")
    expect(row).to_contain_text("0.84%")
    expect(row.locator("svg.spark path").first).to_have_attribute("d", DRAWN)
    expect(page.locator('tr[data-run="demo00000002"] td.loss')).to_contain_text("NaN")
    expect_live(page)


def test_markup_in_a_name_is_text(page: Page) -> None:
    page.goto("/")
    expect(page.locator('tr[data-run="demo00000003"] a')).to_have_text(MARKUP)
    expect(page.locator('img[src="x"]')).to_have_count(0)
    page.goto("/runs/demo00000003/details")
    expect(page.locator("h1")).to_have_text(MARKUP)
    expect(page.locator("td", has_text="onerror")).to_have_text(MARKUP)


def test_filters_are_in_the_address_and_an_unfit_one_says_so(page: Page) -> None:
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    page.keyboard.press("/")
    page.keyboard.type("VIT")
    expect(page.locator("tr.row")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"/\?search=VIT$"))
    page.goto("/?state=running&health=ok")
    expect(page.locator(".note")).to_contain_text("No run fits these filters")
    page.get_by_role("button", name="Show all runs").click()
    expect(page.locator("tr.row")).to_have_count(5)


def test_an_empty_server_shows_what_to_paste(page: Page, server: CannedServer) -> None:
    server.runs.clear()
    page.goto("/")
    expect(page.locator(".empty pre").first).to_contain_text("gradspectra.watch(model, optimizer")
    expect(page.locator(".empty")).to_contain_text(f"GRADSPECTRA_SERVER={server.url}")
    expect(page.locator(".empty")).to_contain_text("gradspectra demo --port 0")
    expect(page.locator(".empty")).not_to_contain_text("GRADSPECTRA_TOKEN")


def test_the_overview_draws_five_curves_and_one_sentence(page: Page) -> None:
    page.goto(f"{RUN}/overview")
    for name in SCALARS:
        expect_drawn(page, name)
        expect(figure(page, name)).to_have_attribute("data-last-step", "1200")
    expect(page.locator("[data-verdict]")).to_have_text(
        re.compile(
            r"Critical: NaN in the gradient of transformer\.h\.3\.attn\.q_proj\.weight; since step 990\. 1 more alert\."
        )
    )
    expect(page.locator(".tiles")).to_contain_text("layers measuredevery 4th")
    expect(page.locator(".tiles")).to_contain_text("spectraevery 200th")
    expect(figure(page, "loss").locator(".shapelayer path")).to_have_count(3)


def test_a_new_step_is_drawn_without_a_reload(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    last = server.advance(17)
    for name in SCALARS:
        expect(figure(page, name)).to_have_attribute("data-last-step", str(last))
    expect(page.locator(".run-progress")).to_contain_text("1,217")


def test_zooming_one_curve_zooms_all_and_live_steps_leave_it_alone(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    for name in SCALARS:
        expect_drawn(page, name)
    expect_live(page)
    drag(page, "loss", (0.25, 0.5), (0.5, 0.5))
    expect(page).to_have_url(re.compile(r"start=\d+&stop=\d+"))
    start, stop = (int(x) for x in re.findall(r"st\w+=(\d+)", page.url))
    assert 250 < start < 350
    assert 550 < stop < 650
    expect(figure(page, "grad_norm")).to_have_attribute("data-last-step", str(stop - 1))
    server.advance(50)
    page.wait_for_timeout(900)
    assert span(page, "loss") == span(page, "step_time") == [start, stop]
    page.locator('[data-action="whole-run"]').click()
    for name in ("loss", "grad_norm"):
        expect(figure(page, name)).to_have_attribute("data-last-step", "1250")
    assert span(page, "grad_norm")[1] >= 1250


def test_a_link_shows_the_same_zoom_and_typing_is_left_alone(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview?start=700&stop=900")
    expect(figure(page, "loss")).to_have_attribute("data-last-step", "899")
    assert span(page, "loss") == [700, 900]
    expect(page.get_by_label("first step shown")).to_have_value("700")
    expect_live(page)
    page.get_by_label("last step shown").fill("1000")
    server.advance(5)
    expect(page.locator(".run-progress")).to_contain_text("1,205")
    page.keyboard.press("Enter")
    expect(figure(page, "loss")).to_have_attribute("data-last-step", "999")


def test_pause_stops_the_drawing_and_going_on_catches_up(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    page.keyboard.press("p")
    expect(page.locator("body")).to_have_attribute("data-paused", "true")
    expect(page.locator(".connection")).to_have_text("paused")
    last = server.advance(9)
    page.wait_for_timeout(700)
    expect(figure(page, "loss")).to_have_attribute("data-last-step", "1200")
    page.locator('[data-action="pause"]').click()
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))


def test_the_page_comes_back_by_itself_and_catches_up(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/overview")
    expect_drawn(page, "loss")
    expect_live(page)
    assert server.streams == 1
    server.away = True
    server.drop_streams()
    expect(page.locator("body")).to_have_attribute("data-connection", "offline")
    last = server.advance(30)
    server.away = False
    expect_live(page)
    expect(figure(page, "loss")).to_have_attribute("data-last-step", str(last))
    assert server.streams == 2


def test_the_heatmap_changes_its_statistic_order_and_rows(page: Page) -> None:
    page.goto(f"{RUN}/layers")
    image = figure(page, "layers").locator(".heatmaplayer image").first
    expect(image).to_have_attribute("href", re.compile(r"^data:image/png;base64,.{200,}", re.DOTALL))
    page.locator('[data-control="statistic"]').select_option("update_ratio")
    expect(figure(page, "layers").locator("h3")).to_have_text("Update-to-weight ratio")
    page.locator('[data-control="order"]').select_option("role")
    expect(page).to_have_url(re.compile(r"order=role&statistic=update_ratio"))
    page.keyboard.press("/")
    page.keyboard.type("h.5.")
    expect(figure(page, "layers").locator(".yaxislayer-above text")).to_have_count(7)
    page.keyboard.press("Escape")
    page.locator('[data-control="statistic"]').select_option("participation_ratio")
    expect(figure(page, "layers").locator('[role="alert"]')).to_contain_text("Not found")


def test_a_click_on_a_row_opens_that_layers_curves(page: Page) -> None:
    page.goto(f"{RUN}/layers")
    expect(figure(page, "layers")).to_have_attribute("data-state", "drawn")
    box = figure(page, "layers").locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"] / 59)
    expect(page).to_have_url(re.compile(r"layer=transformer\.wte\.weight"))
    lines = figure(page, "layer_curves").locator(".scatterlayer path.js-line")
    for chart in (0, 1):
        expect(figure(page, "layer_curves").nth(chart)).to_have_attribute("data-last-step", "1200")
    expect(lines.first).to_have_attribute("d", DRAWN)


def test_the_spectrum_follows_its_slider_and_the_slider_stays(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/spectra?layer=transformer.h.2.attn.k_proj.weight")
    expect_drawn(page, "spectrum")
    expect_drawn(page, "ranks")
    expect(page.locator(".slider output")).to_contain_text("1,200")
    expect(page.locator(".facts")).to_contain_text("128 × 384")
    page.get_by_label("earlier").click()
    expect(page).to_have_url(re.compile(r"step=1150"))
    expect(page.locator(".slider output")).to_have_text("1,150")
    expect_live(page)
    server.advance(100)
    expect(page.locator(".slider")).to_have_attribute("data-steps", "26")
    expect(page.locator(".slider output")).to_have_text("1,150")
    expect(page.locator('[data-control="layer"]')).to_have_value("transformer.h.2.attn.k_proj.weight")


def test_suggestions_say_value_confidence_and_what_is_not_known(page: Page) -> None:
    page.goto(f"{RUN}/learning-rate")
    rows = page.locator('[data-table="suggestions"] tbody tr')
    expect(rows).to_have_count(59)
    expect(rows.nth(1)).to_contain_text("not enough evidence")
    expect(rows.nth(0).locator("strong")).to_have_text(re.compile(r"^[\d.]+×$"))
    expect(page.locator(".advice")).to_contain_text("batch size")
    expect(figure(page, "suggestions").locator(".barlayer .point path").first).to_be_visible()


def test_an_alert_explains_itself_and_is_acknowledged(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/alerts")
    detail = page.locator("[data-alert-detail]")
    expect(detail).to_contain_text("What it means")
    expect(detail).to_contain_text("What to do")
    page.locator('[data-action="acknowledge"]').click()
    expect(detail.locator(".tag").first).to_have_text("acknowledged")
    assert server.alerts[0]["state"] == "acknowledged"
    detail.locator("textarea").fill("looked at it")
    page.locator('[data-action="note"]').click()
    expect(page.locator('[data-action="note"]')).to_be_disabled()
    assert server.alerts[0]["note"] == "looked at it"
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    expect(detail).to_contain_text("24.1 times its recent median")
    expect(detail.locator(".evidence-curve path").first).to_have_attribute("d", DRAWN)


def test_a_rule_is_muted_for_a_run_and_heard_of_again(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/alerts")
    detail = page.locator("[data-alert-detail]")
    expect(detail.locator("h2")).to_have_text("nonfinite")
    expect(page.locator("[data-verdict]")).to_contain_text("Critical: NaN")
    page.locator('[data-action="mute"]').click()
    expect(detail.locator(".tag")).to_have_text(["open", "muted"])
    assert [alert.get("muted") for alert in server.alerts] == [True, None, None]
    expect(page.locator("[data-alert].chosen")).to_contain_text("open, muted")
    expect(page.locator("[data-verdict]")).to_contain_text("Warning: gradient norm")
    page.reload()
    expect(detail.locator(".tag")).to_have_text(["open", "muted"])
    expect(page.locator('a[href="/alerts"] .count')).to_have_count(0)
    page.get_by_role("button", name="Unmute this rule").click()
    expect(detail.locator(".tag")).to_have_text(["open"])
    assert server.alerts[0]["muted"] is False


def test_the_inbox_shows_alerts_by_state(page: Page) -> None:
    page.goto("/alerts")
    expect(page.locator("[data-alert]")).to_have_count(1)
    page.get_by_role("button", name="all", exact=True).click()
    expect(page.locator("[data-alert]")).to_have_count(3)
    expect(page.get_by_role("group", name="Alerts").get_by_role("button")).to_have_count(3)
    expect(page).to_have_url(re.compile(r"state=all"))


def test_details_are_changed_and_a_run_is_deleted_only_when_sure(page: Page, server: CannedServer) -> None:
    page.goto(f"{RUN}/details")
    expect(page.locator("table.pairs").nth(1)).to_contain_text("optimizer.betas")
    page.get_by_label("Tags, separated by commas").fill("a, b")
    expect_live(page)
    server.advance(5)
    expect(page.locator(".run-progress")).to_contain_text("1,205")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    assert server.runs[0]["tags"] == ["a", "b"]
    page.get_by_role("button", name="Delete this run").click()
    page.get_by_role("button", name="No").click()
    assert len(server.runs) == 5
    page.get_by_role("button", name="Delete this run").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("tr.row")).to_have_count(4)


def test_a_run_whose_job_is_gone_is_ended_only_when_sure(page: Page, server: CannedServer) -> None:
    page.goto("/runs/demo00000004/details")
    expect(page.locator(".run-title .state")).to_have_text("lost")
    page.get_by_role("button", name="It has failed").click()
    page.get_by_role("button", name="No").click()
    assert server.runs[3]["state"] == "lost"
    page.get_by_role("button", name="It has failed").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator(".run-title .state")).to_have_text("failed")
    assert server.runs[3]["state"] == "failed"
    expect(page.get_by_role("button", name="It has finished")).to_have_count(0)
    server.advance(5)
    page.goto(f"{RUN}/details")
    page.get_by_role("button", name="It has finished").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator(".run-title .state")).to_have_text("finished")


def test_every_table_can_be_had_as_a_file_in_every_form(page: Page) -> None:
    page.goto(f"{RUN}/details")
    links = page.locator("td.actions a")
    expect(links).to_have_count(9)
    expect(page.get_by_role("link", name="Layer values as Parquet")).to_have_attribute(
        "href", f"/api/v1{RUN}/export?format=parquet&what=layers"
    )


def test_a_channel_and_a_token_are_made_from_the_settings(page: Page, server: CannedServer) -> None:
    page.goto("/settings")
    page.get_by_label("Name", exact=True).fill("hook")
    page.get_by_label("Address").fill("https://hooks.example/x")
    page.get_by_role("button", name="Add the webhook").click()
    expect(page.locator("td", has_text="hooks.example")).to_be_visible()
    sent = {"kind": "webhook", "name": "hook", "url": "https://hooks.example/x", "min_severity": "warning"}
    assert {name: server.made["channels"][0][name] for name in sent} == sent
    page.get_by_label("What it is for").fill("cluster")
    page.get_by_role("button", name="Make a token").click()
    expect(page.locator(".good pre")).to_have_text("gs_secret")
    assert server.made["tokens"][0]["scopes"] == ["ingest", "read"]


def test_signing_in_goes_on_to_where_one_was(page: Page, server: CannedServer) -> None:
    page.goto("/login?next=%2Fruns%2Fdemo00000001%2Falerts")
    page.get_by_label("Token").fill("gs_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator('[role="alert"]')).to_contain_text("the token is unknown")
    page.get_by_label("Token").fill("gs_ingest")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator('[role="alert"]')).to_contain_text("This token may only send records")
    assert server.streams == 0
    page.get_by_label("Token").fill("gs_right")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(rf"{RUN}/alerts\?alert=\w+$"))
    expect_live(page)
    page.goto("/login?next=//elsewhere.example/x")
    page.get_by_label("Token").fill("gs_right")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("tr.row")).to_have_count(5)


def test_an_unknown_run_is_said_with_what_to_do(page: Page) -> None:
    with page.expect_response("**/api/v1/runs/nonsense"):
        page.goto("/alerts")
        page.evaluate(
            "history.pushState(null, '', '/runs/nonsense/overview'); dispatchEvent(new PopStateEvent('popstate'))"
        )
    expect(page.locator('[role="alert"]')).to_contain_text("This server knows of no run “nonsense”.")
    expect(page.locator('[role="alert"]')).to_contain_text("It was deleted, or the link belongs to another server.")
    page.goto("/runs/%E0%A4%A/overview")
    expect(page.locator('[role="alert"]')).to_contain_text("This server knows of no run")


def test_the_theme_is_the_systems_until_chosen_and_then_kept(chromium: Browser, server: CannedServer) -> None:
    with chromium.new_context(color_scheme="dark", base_url=server.url) as context:
        page = context.new_page()
        page.goto(f"{RUN}/overview")
        expect(page.locator("body")).to_have_css("background-color", "rgb(13, 18, 24)")
        expect(figure(page, "loss").locator(".main-svg").first).to_have_css("background-color", "rgb(21, 28, 37)")
        page.keyboard.press("t")
        expect(figure(page, "loss").locator(".main-svg").first).to_have_css("background-color", "rgb(255, 255, 255)")
        page.reload()
        expect(page.locator("body")).to_have_css("background-color", "rgb(243, 245, 248)")


@pytest.mark.parametrize("width", [390, 768, 3840])
def test_no_page_is_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for path, content in PAGES.items():
        page.goto(path)
        expect(page.locator(content).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path


def test_everything_that_is_pressed_has_a_name(page: Page) -> None:
    for path, content in PAGES.items():
        page.goto(path)
        expect(page.locator(content).first).to_be_visible()
        nameless = page.evaluate(
            """[...document.querySelectorAll('button, a[href], input, select, textarea, summary')]
               .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length || e.title))
               .map(e => e.outerHTML)"""
        )
        assert nameless == [], path
