"""The page on the real server, in a real browser: signing in and out, and what another one changes meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import httpx2
import pytest
from backend.callers import API, Caller
from backend.servers import command, serving
from frontend.conftest import a_page, without_complaints
from frontend.seen import expect_live
from playwright.sync_api import Browser, Page, expect


class Guarded(NamedTuple):
    """A page of a server that asks for tokens, one of all scopes, and a caller that has it."""

    page: Page
    token: str
    caller: Caller


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a server that asks for tokens, and a token of all scopes."""
    folder = tmp_path_factory.mktemp("guarded")
    made = command("token", "create", "a reader", "--scope", "admin", "--json", "--data", str(folder))
    with serving(folder, auth="tokens") as running:
        yield running.url, json.loads(made.stdout)["token"]


@pytest.fixture
def guarded(chromium: Browser, server: tuple[str, str]) -> Iterator[Guarded]:
    url, token = server
    bearer = {"Authorization": f"Bearer {token}"}
    with (
        httpx2.Client(base_url=url, headers=bearer, trust_env=False, timeout=60) as client,
        a_page(chromium, url) as page,
        without_complaints(page, url),
    ):
        yield Guarded(page, token, Caller(client))


def signed_in(guarded: Guarded, path: str) -> Page:
    page = guarded.page
    page.goto(path)
    expect(page).to_have_url(re.compile("/login"))
    page.get_by_label("Token").fill(guarded.token)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(f"{re.escape(path)}$"))
    expect_live(page)
    return page


def test_signing_out_ends_the_session_for_this_browser(guarded: Guarded) -> None:
    page = signed_in(guarded, "/settings")
    expect(page.get_by_text("Your token may change, delete, make tokens.")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto("/")
    expect(page).to_have_url(re.compile("/login"))
    assert guarded.caller.client.get(f"{API}/runs").status_code == 200, "the token itself is as good as before"


def test_a_server_without_runs_puts_a_token_into_the_lines_to_copy_and_a_job_that_has_it_is_let_in(
    guarded: Guarded,
) -> None:
    page = signed_in(guarded, "/")
    lines = page.locator(".empty pre", has_text="GRADSPECTRA_SERVER")
    expect(lines).to_contain_text("GRADSPECTRA_TOKEN=gs_…")
    page.get_by_role("button", name="Put a new token in").click()
    expect(page.get_by_text("the token is shown only here and only once")).to_be_visible()
    said = dict(line.removeprefix("export ").split("=") for line in lines.inner_text().split("\n"))
    bearer = {"Authorization": f"Bearer {said['GRADSPECTRA_TOKEN']}"}
    with httpx2.Client(base_url=said["GRADSPECTRA_SERVER"], headers=bearer, trust_env=False, timeout=60) as client:
        assert client.get(f"{API}/tokens").status_code == 403, "it may send and read, no more"
        run = Caller(client).start(name="its first run")["id"]
    expect(page.locator("tr.row")).to_contain_text("its first run")
    assert guarded.caller.client.delete(f"{API}/runs/{run}").status_code == 204


def test_a_reader_without_the_right_to_make_tokens_is_told_who_does(guarded: Guarded) -> None:
    made = guarded.caller.client.post(f"{API}/tokens", json={"name": "reads", "scopes": ["read"]}).json()
    page = signed_in(guarded._replace(token=made["token"]), "/")
    expect(page.locator(".empty")).to_contain_text("gradspectra token create training")
    expect(page.get_by_role("button", name="Put a new token in")).to_have_count(0)


def test_a_page_left_open_is_led_to_the_sign_in_when_its_session_has_ended(guarded: Guarded) -> None:
    page = signed_in(guarded, "/settings")
    page.context.clear_cookies()
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("body")).to_have_attribute("data-connection", "hidden")
    page.evaluate("delete document.hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page).to_have_url(re.compile(r"/login\?next=%2Fsettings$"))


def test_each_change_that_another_one_makes_to_a_run_is_seen(guarded: Guarded) -> None:
    run = guarded.caller.start(name="first name")["id"]
    page = signed_in(guarded, f"/runs/{run}/details")
    expect(page.locator("h1")).to_have_text("first name")
    for name in ("second name", "third name"):
        changed = guarded.caller.client.patch(f"{API}/runs/{run}", json={"name": name})
        assert changed.status_code == 200
        expect(page.locator("h1")).to_have_text(name)
    assert guarded.caller.client.delete(f"{API}/runs/{run}").status_code == 204
    expect(page.get_by_text("This run was deleted")).to_be_visible()
    expect(page.get_by_text("“third name” and everything it had recorded is gone.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("There is no such run here")).to_be_visible()
