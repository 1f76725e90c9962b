"""The list of runs in a real browser: sorted by its headings, in pages, while runs go on and new ones come."""

from __future__ import annotations

import re

import pytest
from frontend.canned import CannedServer
from frontend.seen import expect_live
from playwright.sync_api import Page, Route, expect


def shown(page: Page) -> list[str]:
    """The runs of the list from above."""
    return [row.get_attribute("data-run") or "" for row in page.locator("tr.row").all()]


def test_a_line_says_learning_rate_and_step_time_where_they_are_known(page: Page) -> None:
    page.goto("/")
    row = page.locator('tr[data-run="demo00000002"]')
    expect(row.locator('[data-label="Learning rate"]')).to_have_text("0.0015")
    expect(row.locator('[data-label="Step time"]')).to_have_text("104 ms")
    expect(page.locator('tr[data-run="demo00000004"] [data-label="Learning rate"]')).to_have_text("–")


@pytest.mark.parametrize(
    ("heading", "first", "then"),
    [
        ("Health", ("-open_alerts", "descending", "24"), ("open_alerts", "ascending", "35")),
        ("Run", ("name", "ascending", "32"), ("-name", "descending", "45")),
        ("Progress", ("-last_step", "descending", "54"), ("last_step", "ascending", "12")),
        ("Age", ("created_at", "ascending", "54"), (None, "descending", "12")),
    ],
)
def test_a_heading_sorts_the_list_and_turns_it_around(
    page: Page, server: CannedServer, heading: str, first: tuple[str, str, str], then: tuple[str | None, str, str]
) -> None:
    for at, run in enumerate(server.runs):
        run["last_step"] = 100 * at
    page.goto("/")
    expect(page.locator("tr.row")).to_have_count(5)
    button = page.get_by_role("columnheader", name=heading).get_by_role("button")
    for order, said, begins in (first, then):
        button.focus()
        page.keyboard.press("Enter")
        if order is not None:
            expect(page).to_have_url(re.compile(rf"order={order}$"))
        expect(page.locator("tr.row").first).to_have_attribute("data-run", f"demo0000000{begins[0]}")
        assert shown(page)[1] == f"demo0000000{begins[1]}"
        expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", said)
        expect(page.locator("th[aria-sort]")).to_contain_text(heading)
        expect(button).to_be_focused()
        assert page.get_by_label("Order").evaluate("select => select.value") == (order or "-created_at")


def test_the_old_list_stands_until_the_new_one_is_there_and_its_end_leads_nowhere_meanwhile(
    page: Page, server: CannedServer
) -> None:
    server.begin(runs=120)
    waiting: list[Route] = []
    page.goto("/")
    more = page.get_by_role("button", name="Show more runs")
    more.click()
    expect(page.locator("tr.row")).to_have_count(120)
    page.route("**/api/v1/runs?*order=name*", lambda route: waiting.append(route))
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page).to_have_url(re.compile("order=name$"))
    expect(more).to_have_count(0)
    expect(page.locator("tr.row")).to_have_count(100)
    expect(page.locator("tr.row").first).to_have_attribute("data-run", "demo00000001")
    page.wait_for_timeout(100)
    for route in waiting:
        route.continue_()
    expect(more).to_be_visible()
    expect(page.locator("tr.row").first).to_have_attribute("data-run", "demo00000003")


def test_five_hundred_runs_are_each_there_once_in_pages_also_while_new_ones_come(
    page: Page, server: CannedServer
) -> None:
    server.begin(runs=500)
    page.goto("/")
    expect_live(page)
    more = page.get_by_role("button", name="Show more runs")
    for pages in range(1, 5):
        expect(page.locator("tr.row")).to_have_count(100 * pages)
        more.click()
    expect(page.locator("tr.row")).to_have_count(500)
    expect(more).to_have_count(0)
    ids = [run["id"] for run in server.runs]
    assert shown(page) == ids
    newer = [server.runs[0] | {"id": f"newer{at}", "created_at": server.runs[0]["created_at"] + at} for at in (2, 1)]
    server.runs[:0] = newer
    server.advance()
    expect(page.locator("tr.row").first).to_have_attribute("data-run", "newer2")
    more.click()
    expect(page.locator("tr.row")).to_have_count(502)
    assert shown(page) == ["newer2", "newer1", *ids]


def test_the_keys_go_on_into_the_next_page(page: Page, server: CannedServer) -> None:
    server.begin(runs=102)
    page.goto("/")
    page.get_by_role("button", name="Show more runs").click()
    expect(page.locator("tr.row")).to_have_count(102)
    for _ in range(101):
        page.keyboard.press("j")
    expect(page.locator("tr.row.chosen")).to_have_attribute("data-run", "demo00000101")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/runs/demo00000101/"))


def test_a_filter_is_never_taken_for_an_empty_server(page: Page) -> None:
    page.goto("/?search=nothing%20like%20it")
    expect(page.locator(".note")).to_contain_text("No run fits these filters")
    waiting: list[Route] = []
    page.route("**/api/v1/runs?*", lambda route: waiting.append(route))
    page.get_by_role("button", name="Show all runs").click()
    expect(page.locator(".note")).to_have_text("Loading …")
    for route in waiting:
        route.continue_()
    expect(page.locator("tr.row")).to_have_count(5)
    page.unroute_all()


def test_the_settings_list_the_rules_with_their_thresholds(page: Page) -> None:
    page.goto("/settings")
    panel = page.locator('[data-panel="rules"]')
    expect(panel.locator("tbody tr")).to_have_count(6)
    row = panel.locator('[data-rule="gradient_spike"]')
    expect(row).to_contain_text("gradient spike")
    expect(row).to_contain_text("in the job")
    expect(row).to_contain_text("grad_norm, grad_sq (loss, skipped)")
    expect(row.locator(".thresholds span")).to_have_text(
        ["z 6", "ratio 2", "critical_ratio 5", "joint_ratio 3", "loss_z 3"]
    )
    expect(panel.locator('[data-rule="dead_layer"]')).not_to_contain_text("in the job")
