"""The details of a run tell what its job does not measure."""

from __future__ import annotations

from frontend.canned import MARKUP, CannedServer
from frontend.seen import RUN
from playwright.sync_api import Page, expect


def test_details_tell_what_is_not_measured_and_at_how_many_steps_norms_disagreed(page: Page, server: CannedServer):
    page.goto(f"{RUN}/details")
    panel = page.locator('[data-panel="unmeasured"]')
    expect(panel).to_contain_text("The job told of nothing that is left out.")
    server.unmeasured = {"not_measured": [f"no spectrum of {MARKUP}: too large", "noise"], "norms_that_disagreed": 1}
    page.reload()
    expect(panel.locator("li")).to_have_text([f"no spectrum of {MARKUP}: too large", "noise"])
    expect(panel.locator("strong")).to_have_text("At 1 step the layers' norms did not give the total norm.")
    server.unmeasured = {"not_measured": [], "norms_that_disagreed": 1200}
    page.reload()
    expect(panel.locator("strong")).to_contain_text("At 1,200 steps")
    expect(panel.locator("li")).to_have_count(0)
