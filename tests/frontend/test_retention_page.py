"""What the page says of retention, and pinning a run, in a real browser."""

from __future__ import annotations

from frontend.canned import MARKUP, CannedServer
from playwright.sync_api import Page, expect


def test_a_run_says_until_when_it_is_kept_and_is_pinned_and_unpinned(page: Page, server: CannedServer) -> None:
    page.goto("/runs/demo00000004/details")
    panel = page.locator('[data-panel="retention"]')
    expect(panel).to_contain_text("Every number is kept until ")
    panel.get_by_role("button", name="Pin this run").click()
    expect(panel).to_contain_text("The run is pinned: every number is kept.")
    assert server.runs[3]["pinned"] is True
    panel.get_by_role("button", name="Unpin this run").click()
    expect(panel).to_contain_text("Every number is kept until ")
    assert server.runs[3]["pinned"] is False


def test_what_was_retired_is_said(page: Page) -> None:
    page.goto("/runs/demo00000005/details")
    panel = page.locator('[data-panel="retention"]')
    expect(panel).to_contain_text("only coarse layer values and some of the spectra are left")
    page.goto("/runs/demo00000001/details")
    expect(panel).to_contain_text("Every number is kept while the run goes on, and long after.")


def test_the_list_marks_pinned_runs_and_the_settings_say_what_goes_when(page: Page) -> None:
    page.goto("/")
    expect(page.locator('tr[data-run="demo00000002"] td.name')).to_contain_text("pinned")
    expect(page.locator('tr[data-run="demo00000001"] td.name')).not_to_contain_text("pinned")
    page.goto("/settings")
    panel = page.locator('[data-panel="retention"]')
    expect(panel).to_contain_text("180 days after a run ended")
    expect(panel.locator("tbody tr")).to_have_count(2)
    row = panel.locator("tbody tr").first
    expect(row.locator("a")).to_have_text(MARKUP)
    expect(row).to_contain_text("3 MiB")
    expect(row).to_contain_text("1.17 MiB")
    expect(row.locator("a")).to_have_attribute("href", "/runs/demo00000003/details")
