"""Tokens of jobs and people, and browsers that signed in with one. Only digests are kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from gradspectra_store.checks import clean_text
from gradspectra_store.errors import BadRequest
from gradspectra_store.identities import new_identity
from gradspectra_store.schema import browser_sessions, tokens

SCOPES = ("ingest", "read", "admin")


def create_token(conn: sa.Connection, name: str, scopes: Iterable[str], now: float) -> tuple[str, str]:
    """Make a token; returns its identity and its plain text, which is nowhere kept. Raises BadRequest."""
    wanted = sorted(set(scopes))
    if not wanted or not set(wanted) <= set(SCOPES):
        raise BadRequest("scopes", f"must be some of {', '.join(SCOPES)}, got {', '.join(wanted) or 'none'}")
    identity, plain = new_identity(), f"gs_{secrets.token_urlsafe(32)}"
    row = {"id": identity, "name": clean_text("name", name), "digest": _digest(plain), "scopes": wanted}
    conn.execute(sa.insert(tokens).values(created_at=now, **row))
    return identity, plain


def check_token(conn: sa.Connection, plain: str) -> frozenset[str] | None:
    """Return the scopes of a token, None where it is unknown or revoked."""
    row = _valid(conn, plain)
    return None if row is None else frozenset(row.scopes)


def list_tokens(conn: sa.Connection) -> list[dict[str, Any]]:
    """Return all tokens, oldest first, revoked ones too: id, name, scopes, created_at, revoked_at."""
    columns = [tokens.c[name] for name in ("id", "name", "scopes", "created_at", "revoked_at")]
    rows = conn.execute(sa.select(*columns).order_by(tokens.c.created_at, tokens.c.id))
    return [dict(row._mapping) for row in rows]


def revoke_token(conn: sa.Connection, token: str, now: float) -> bool:
    """Revoke a token and end the browsers that signed in with it; says whether it was valid until now."""
    valid = tokens.c.id == token, tokens.c.revoked_at.is_(None)
    revoked = conn.execute(sa.update(tokens).where(*valid).values(revoked_at=now)).rowcount > 0
    if revoked:
        conn.execute(sa.delete(browser_sessions).where(browser_sessions.c.token == token))
    return revoked


def open_browser_session(conn: sa.Connection, plain: str, now: float, expires_at: float) -> str:
    """Sign a browser in by a token, with its scopes; returns the plain cookie. Sessions that ended are cleared.

    Raises BadRequest for a token that is unknown or revoked.
    """
    row = _valid(conn, plain)
    if row is None:
        raise BadRequest("token", "is unknown or revoked")
    conn.execute(sa.delete(browser_sessions).where(browser_sessions.c.expires_at <= now))
    cookie = secrets.token_urlsafe(32)
    values = {"digest": _digest(cookie), "token": row.id, "scopes": row.scopes}
    conn.execute(sa.insert(browser_sessions).values(created_at=now, expires_at=expires_at, **values))
    return cookie


def check_browser_session(conn: sa.Connection, cookie: str, now: float) -> frozenset[str] | None:
    """Return the scopes of a signed-in browser, None where the session is unknown or over."""
    live = browser_sessions.c.digest == _digest(cookie), browser_sessions.c.expires_at > now
    scopes = conn.execute(sa.select(browser_sessions.c.scopes).where(*live)).scalar_one_or_none()
    return None if scopes is None else frozenset(scopes)


def close_browser_session(conn: sa.Connection, cookie: str) -> None:
    """Sign a browser out."""
    conn.execute(sa.delete(browser_sessions).where(browser_sessions.c.digest == _digest(cookie)))


def _valid(conn: sa.Connection, plain: str) -> sa.Row[Any] | None:
    query = sa.select(tokens).where(tokens.c.digest == _digest(plain), tokens.c.revoked_at.is_(None))
    return conn.execute(query).one_or_none()


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
