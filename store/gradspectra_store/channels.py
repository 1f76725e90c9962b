"""Channels: where alerts are delivered."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from gradspectra_core.alerts import SEVERITIES

from gradspectra_store.checks import clean_text
from gradspectra_store.errors import BadRequest
from gradspectra_store.identities import new_identity
from gradspectra_store.schema import channels

KINDS = ("webhook",)


def add_channel(
    conn: sa.Connection,
    *,
    url: str,
    now: float,
    kind: str = "webhook",
    name: str = "",
    secret: str = "",
    min_severity: str = "warning",
) -> dict[str, Any]:
    """Add a channel for alerts of at least `min_severity`; returns it as `list_channels` does.

    secret: what its messages are signed with; never given back. Raises BadRequest naming the field.
    """
    clean_text("url", url, limit=2000)
    clean_text("name", name, least=0)
    clean_text("secret", secret, least=0)
    if kind not in KINDS:
        raise BadRequest("kind", f"must be one of {', '.join(KINDS)}, got {kind!r}")
    if min_severity not in SEVERITIES:
        raise BadRequest("min_severity", f"must be one of {', '.join(SEVERITIES)}, got {min_severity!r}")
    _check_url(url)
    row = {
        "id": new_identity(),
        "kind": kind,
        "name": name,
        "url": url,
        "secret": secret,
        "min_severity": min_severity,
        "created_at": now,
    }
    conn.execute(sa.insert(channels).values(row))
    return _shown(row)


def list_channels(conn: sa.Connection) -> list[dict[str, Any]]:
    """Return all channels, oldest first, without their secrets; `signed` says whether there is one."""
    rows = conn.execute(sa.select(channels).order_by(channels.c.created_at, channels.c.id)).mappings()
    return [_shown(dict(row)) for row in rows]


def channel_target(conn: sa.Connection, channel: str) -> dict[str, Any] | None:
    """Return what sending to a channel takes: id, kind, url and secret; None where there is no such channel."""
    query = sa.select(channels.c.id, channels.c.kind, channels.c.url, channels.c.secret)
    row = conn.execute(query.where(channels.c.id == channel)).one_or_none()
    return None if row is None else dict(row._mapping)


def delete_channel(conn: sa.Connection, channel: str) -> bool:
    """Delete a channel with its deliveries; says whether there was one."""
    return conn.execute(sa.delete(channels).where(channels.c.id == channel)).rowcount > 0


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    secret = row.pop("secret")
    return row | {"signed": bool(secret)}


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        raise BadRequest("url", f"must be an http or https address, got {url!r:.80}")
