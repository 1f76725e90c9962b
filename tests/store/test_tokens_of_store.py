"""Tokens and signed-in browsers: only digests are kept, and what is revoked or over opens nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from gradspectra_store import Store
from gradspectra_store.errors import BadRequest
from gradspectra_store.tokens import (
    check_browser_session,
    check_token,
    close_browser_session,
    create_token,
    list_tokens,
    open_browser_session,
    revoke_token,
)
from store.test_ingest import dump


def test_a_token_has_its_scopes_until_it_is_revoked(store: Store) -> None:
    with store.write() as conn:
        identity, plain = create_token(conn, "laptop", ["read", "ingest", "read"], 5.0)
        assert plain.startswith("gs_")
        assert len(plain) == 46
        assert check_token(conn, plain) == {"read", "ingest"}
        assert list_tokens(conn) == [
            {"id": identity, "name": "laptop", "scopes": ["ingest", "read"], "created_at": 5.0, "revoked_at": None}
        ]
        assert revoke_token(conn, identity, 6.0)
        assert not revoke_token(conn, identity, 7.0)
        assert check_token(conn, plain) is None
        assert list_tokens(conn)[0]["revoked_at"] == 6.0


@pytest.mark.parametrize("plain", ["", "gs_", "x" * 10_000, "\x00", "\ud800"])
def test_a_token_that_was_never_made_opens_nothing(store: Store, plain: str) -> None:
    with store.write() as conn:
        create_token(conn, "laptop", ["admin"], 5.0)
        assert check_token(conn, plain) is None
        assert check_browser_session(conn, plain, 5.0) is None


@pytest.mark.parametrize(
    ("name", "scopes", "field"), [("", ["read"], "name"), ("a", [], "scopes"), ("a", ["root"], "scopes")]
)
def test_a_bad_token_is_refused(store: Store, name: str, scopes: Iterable[str], field: str) -> None:
    with store.write() as conn, pytest.raises(BadRequest) as caught:
        create_token(conn, name, scopes, 1.0)
    assert caught.value.field == field


def test_a_browser_is_signed_in_until_its_session_ends(store: Store) -> None:
    with store.write() as conn:
        _, plain = create_token(conn, "laptop", ["read"], 5.0)
        first = open_browser_session(conn, plain, 10.0, 20.0)
        second = open_browser_session(conn, plain, 10.0, 30.0)
        assert check_browser_session(conn, first, 19.9) == {"read"}
        assert check_browser_session(conn, first, 20.0) is None
        close_browser_session(conn, second)
        assert check_browser_session(conn, second, 11.0) is None


def test_revoking_a_token_signs_its_browsers_out(store: Store) -> None:
    with store.write() as conn:
        identity, plain = create_token(conn, "laptop", ["read"], 5.0)
        cookie = open_browser_session(conn, plain, 10.0, 20.0)
        revoke_token(conn, identity, 11.0)
        assert check_browser_session(conn, cookie, 12.0) is None
        with pytest.raises(BadRequest, match="token: is unknown or revoked"):
            open_browser_session(conn, plain, 12.0, 20.0)


def test_no_plain_token_or_cookie_is_kept(store: Store) -> None:
    with store.write() as conn:
        _, plain = create_token(conn, "laptop", ["read"], 5.0)
        cookie = open_browser_session(conn, plain, 10.0, 20.0)
    kept = str(dump(store))
    assert plain not in kept
    assert cookie not in kept
