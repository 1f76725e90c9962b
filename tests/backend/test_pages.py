"""The page and its files, the interface's own manual, and the OpenAPI document."""

from __future__ import annotations

import html
import re

import pytest
from backend.callers import API, Caller
from fastapi.testclient import TestClient
from gradspectra_backend import pages
from gradspectra_backend.app import create_app
from gradspectra_backend.problems import KINDS
from gradspectra_backend.settings import Settings
from gradspectra_frontend import assets
from starlette.staticfiles import StaticFiles


@pytest.mark.parametrize("path", ["/", "/runs/abc", "/runs/abc/layers", "/compare", "/alerts", "/settings", "/login"])
def test_every_address_of_the_page_gives_the_page(caller: Caller, path):
    answer = caller.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert assets.plotly_url() in answer.text
    assert caller.client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_plotly_comes_packed_once_and_for_ever(caller: Caller):
    packed = caller.client.get(assets.plotly_url(), headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert int(packed.headers["content-length"]) < 600_000
    original = assets.plotly_script().read_bytes()
    assert packed.content == original
    for accepted in ("identity", "", "gzip;q=0, identity", "notgzip"):
        plain = caller.client.get(assets.plotly_url(), headers={"Accept-Encoding": accepted})
        assert "content-encoding" not in plain.headers, accepted
        assert plain.content == original
    again = caller.client.get(assets.plotly_url(), headers={"If-None-Match": packed.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_are_asked_about_again_by_their_etag(caller: Caller):
    answer = caller.client.get("/static/js/early.js")
    assert answer.status_code == 200
    assert "javascript" in answer.headers["content-type"]
    assert answer.headers["cache-control"] == "no-cache"
    again = caller.client.get("/static/js/early.js", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_files_whose_address_names_their_contents_are_kept_for_ever(caller: Caller):
    kept = caller.client.get(f"{assets.static_url()}/js/early.js")
    assert (kept.status_code, kept.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    assert kept.content == (assets.static_dir() / "js" / "early.js").read_bytes()
    of_another_version = caller.client.get(f"/static/{'0' * 16}/js/early.js")
    assert (of_another_version.content, of_another_version.headers["cache-control"]) == (kept.content, "no-cache")
    assert f'src="{assets.static_url()}/js/main.js"' in caller.client.get("/").text


def test_a_file_whose_address_names_its_contents_is_read_once(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    address = f"{assets.static_url()}/style/base.css"
    first = caller.client.get(address)

    def unread(*_: object) -> None:
        raise AssertionError("looked for on disk again")

    monkeypatch.setattr(StaticFiles, "lookup_path", unread)
    again = caller.client.get(address)
    assert (again.status_code, again.content) == (200, (assets.static_dir() / "style" / "base.css").read_bytes())
    for name in ("content-type", "etag", "last-modified", "cache-control"):
        assert again.headers[name] == first.headers[name]
    head = caller.client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert caller.client.get("/static/style/base.css").status_code == 500, "one that does not is looked for each time"


@pytest.mark.parametrize(
    "path",
    [
        f"/static/{'0' * 16}/../settings.py",
        "/static/../settings.py",
        "/static/%2e%2e/assets.py",
        "/static//etc/passwd",
        "/nothing",
    ],
)
def test_nothing_outside_the_folder_is_served(caller: Caller, path):
    answer = caller.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "title", "detail"),
    [
        ("/no<b>where", "Nothing here", "there is nothing at /no<b>where"),
        ("/profile", "Nothing here", "there is nothing at /profile"),
        ("/static/nothing.js", "Nothing here", "there is nothing at /static/nothing.js"),
        (f"{API}/runs/gone/export?what=series", "No such run", "there is no run 'gone'"),
        ("/problems/nothing", "Nothing here", "there is no problem named 'nothing'"),
    ],
)
def test_a_browser_gets_a_page_with_a_way_back_where_a_program_gets_a_problem(caller: Caller, path, title, detail):
    for accept in ("*/*", "application/json"):
        problem = caller.client.get(path, headers={"Accept": accept})
        assert (problem.status_code, problem.headers["content-type"]) == (404, "application/problem+json")
        assert (problem.json()["title"], problem.json()["detail"]) == (title, detail)
    page = caller.client.get(path, headers=BROWSER)
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert (page.headers["vary"], page.headers["cache-control"]) == ("Accept", "no-store")
    assert f"<h1>{title}</h1><p>{html.escape(detail[0].upper() + detail[1:])}.</p>" in page.text
    assert '<a href="/">All runs</a>' in page.text
    assert '<link rel="icon" href="/static/icon.svg">' in page.text, "else a browser asks for /favicon.ico"
    assert "Sign in" not in page.text


def test_a_browser_that_calls_the_server_by_another_name_is_told_so(caller: Caller):
    page = caller.client.get("/", headers=BROWSER | {"Host": "elsewhere.example"})
    assert (page.status_code, page.headers["content-type"]) == (400, "text/html; charset=utf-8")
    assert "GRADSPECTRA_ALLOWED_HOSTS" in page.text


def test_plotly_is_packed_before_the_first_browser_asks(settings: Settings):
    pages._plotly.cache_clear()
    with TestClient(create_app(settings)):
        assert pages._plotly.cache_info().currsize == 1


def test_the_manual_lists_every_call_and_loads_nothing(caller: Caller):
    text = caller.client.get("/docs").text
    for path in caller.client.get("/openapi.json").json()["paths"]:
        assert path in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=.https?:", text)


def test_every_kind_of_problem_has_its_page(caller: Caller):
    overview = caller.client.get("/problems").text
    for name, kind in KINDS.items():
        assert name in overview
        page = caller.client.get(f"/problems/{name}")
        assert page.status_code == 200
        assert kind.title in page.text
    assert caller.client.get("/problems/nothing").status_code == 404


def test_answers_of_the_interface_are_not_kept(caller: Caller):
    assert caller.client.get(f"{API}/runs").headers["cache-control"] == "no-store"
