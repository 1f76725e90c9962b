"""What the page puts on the clipboard, in a real browser: also without the browser's own interface for it."""

from __future__ import annotations

import re

import pytest
from frontend.canned import CannedServer
from frontend.seen import RUN, expect_drawn, figure
from playwright.sync_api import Page, expect

OVER_PLAIN_HTTP = "Object.defineProperty(Navigator.prototype, 'clipboard', { value: undefined });"
REFUSED = "if (window.Clipboard) Clipboard.prototype.writeText = () => Promise.reject(new Error('not allowed'));"


def pasted(page: Page) -> str:
    """What the clipboard holds."""
    page.goto("/")
    field = page.locator("[data-search]")
    field.focus()
    page.keyboard.press("Control+V")
    expect(field).not_to_have_value("")
    return field.input_value()


@pytest.mark.parametrize("script", ["", OVER_PLAIN_HTTP])
def test_lines_are_copied_whatever_way_the_page_came(own_page: Page, server: CannedServer, script: str) -> None:
    server.runs.clear()
    own_page.add_init_script(script)
    own_page.goto("/")
    button = own_page.get_by_role("button", name="Copy").last
    button.click()
    expect(own_page.get_by_role("button", name="Copied")).to_have_count(1)
    assert pasted(own_page) == "gradspectra demo --port 0"


def test_what_was_not_copied_is_not_called_copied(own_page: Page, server: CannedServer) -> None:
    server.runs.clear()
    own_page.add_init_script(REFUSED)
    own_page.goto("/")
    own_page.get_by_role("button", name="Copy").last.click()
    expect(own_page.get_by_role("button", name="Not copied")).to_have_count(1)


def test_the_call_for_a_figures_data_names_all_that_is_drawn_and_the_token_where_one_is_asked_for(
    own_page: Page, server: CannedServer
) -> None:
    me = {"scopes": ["read"], "how": "cookie", "tokens_required": True}
    own_page.route("**/api/v1/me", lambda route: route.fulfill(json=me))
    own_page.goto(f"{RUN}/overview")
    expect_drawn(own_page, "step_time")
    menu = figure(own_page, "step_time")
    menu.locator("summary").click()
    menu.get_by_role("button", name="Copy the call").click()
    expect(menu.locator(".said")).to_have_text("copied")
    names = "names=step_seconds%2Cdata_seconds%2Cagent_seconds"
    call = rf"curl -H \"Authorization: Bearer \$GRADSPECTRA_TOKEN\" '{server.url}/api/v1{RUN}/series\?.*{names}.*'"
    assert re.fullmatch(call, pasted(own_page))
