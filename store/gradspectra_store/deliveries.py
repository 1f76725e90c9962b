"""The outbox of alerts: rows written with the alert, sent later, tried again, kept as a log."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from gradspectra_core.alerts import SEVERITIES
from sqlalchemy.dialects import postgresql, sqlite

from gradspectra_store.channels import add_channel, delete_channel, list_channels
from gradspectra_store.paging import PAGE, page
from gradspectra_store.schema import alerts, channels, deliveries, runs

__all__ = [
    "add_channel",
    "delete_channel",
    "due_deliveries",
    "enqueue",
    "list_channels",
    "list_deliveries",
    "record_delivery",
    "undelivered",
]

TRIES = 6
FIRST_WAIT = 10.0
CHANNEL_REST = 30.0
"""So long a channel is left alone after a failed try, but for the next try of that delivery."""

CLAIM_SECONDS = 60.0
"""So long a delivery belongs to whoever took it; taken by a process that died, it is due again after."""
LONGEST_WAIT = 3600.0
"""Seconds that a delivery waits at most. What is due a minute later still was written before a clock was set back."""
_MAX_ERROR = 500


def enqueue(conn: sa.Connection, alert: str, severity: str, now: float) -> None:
    """Put an alert up for delivery to every channel that wants its severity, once per severity."""
    wanted = SEVERITIES[: SEVERITIES.index(severity) + 1]
    ids = conn.execute(sa.select(channels.c.id).where(channels.c.min_severity.in_(wanted))).scalars().all()
    rows = [
        {
            "alert": alert,
            "channel": channel,
            "severity": severity,
            "state": "due",
            "tries": 0,
            "next_at": 0.0,
            "error": "",
            "created_at": now,
        }
        for channel in ids
    ]
    if rows:
        insert = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
        conn.execute(insert(deliveries).on_conflict_do_nothing(), rows)


def due_deliveries(
    conn: sa.Connection, now: float, limit: int = 20, *, without: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Take deliveries that are due, for 60 s: to be sent after this transaction, then recorded.

    Each has id, key (the same for every try: receivers tell repetitions by it), severity, tries, alert (the object
    served), run (id, project, name) and channel (id, kind, url, secret). without: channels whose deliveries are left.
    """
    by_now = sa.or_(deliveries.c.next_at <= now, deliveries.c.next_at > now + LONGEST_WAIT + 60.0)
    due = deliveries.c.state == "due", by_now, deliveries.c.channel.not_in(without)
    query = sa.select(deliveries).where(*due).order_by(deliveries.c.next_at, deliveries.c.id).limit(limit)
    rows = conn.execute(query.with_for_update(skip_locked=True)).all()
    taken = [row.id for row in rows]
    conn.execute(sa.update(deliveries).where(deliveries.c.id.in_(taken)).values(next_at=now + CLAIM_SECONDS))
    return [_full(conn, row) for row in rows]


def record_delivery(
    conn: sa.Connection, delivery: int, ok: bool, status: int | None, error: str, now: float, wait: float = 0.0
) -> bool:
    """Note how a try went; a failed one is due again after 10 s · 4^n, with jitter, and given up after six.

    status: of the HTTP answer, None where there was none. wait: seconds that the receiver asked for, an hour at most.
    The channel's other deliveries wait that long too, 30 s at least. Says whether it is given up now. A delivery that
    is gone is no error, and one that is not due any more (sent by somebody else, or muted) stays as it is where a late
    try fails.
    """
    query = sa.select(deliveries).where(deliveries.c.id == delivery).with_for_update()
    old = conn.execute(query).one_or_none()
    if old is None or (old.state != "due" and not ok):
        return False
    tries = old.tries + 1
    values: dict[str, Any] = {"tries": tries, "status": status, "error": error.replace("\x00", "")[:_MAX_ERROR]}
    if ok:
        values |= {"state": "sent", "sent_at": now}
    elif tries >= TRIES:
        values["state"] = "failed"
    else:
        values["next_at"] = now + max(FIRST_WAIT * 4**old.tries * random.uniform(1.0, 1.25), wait)
    conn.execute(sa.update(deliveries).where(deliveries.c.id == delivery).values(values))
    if not ok:
        _rest(conn, old.channel, delivery, now + max(CHANNEL_REST, wait))
    return not ok and tries >= TRIES


def list_deliveries(
    conn: sa.Connection, *, alert: str | None = None, limit: int = PAGE, cursor: str | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page of the log, newest first, and the cursor of the next page. alert: only of that one."""
    query = sa.select(deliveries)
    if alert is not None:
        query = query.where(deliveries.c.alert == alert)
    rows, following = page(conn, query, (deliveries.c.id,), descending=True, cursor=cursor, limit=limit)
    return [dict(row._mapping) for row in rows], following


def undelivered(conn: sa.Connection) -> tuple[int, int]:
    """Return how many deliveries are due, now or later, and how many were given up after their last try."""
    given_up = sa.and_(deliveries.c.state == "failed", deliveries.c.tries >= TRIES)
    due = sa.func.count().filter(deliveries.c.state == "due").label("due")
    failed = sa.func.count().filter(given_up).label("failed")
    row = conn.execute(sa.select(due, failed).where(deliveries.c.state.in_(("due", "failed")))).one()
    return int(row.due), int(row.failed)


def _rest(conn: sa.Connection, channel: str, tried: int, until: float) -> None:
    """Let the deliveries of a channel wait, but for the one tried; a row that somebody else changes is passed over."""
    due = deliveries.c.channel == channel, deliveries.c.state == "due", deliveries.c.next_at < until
    query = sa.select(deliveries.c.id).where(*due, deliveries.c.id != tried).with_for_update(skip_locked=True)
    conn.execute(sa.update(deliveries).where(deliveries.c.id.in_(query)).values(next_at=until))


def _full(conn: sa.Connection, row: sa.Row[Any]) -> dict[str, Any]:
    alert = conn.execute(sa.select(alerts).where(alerts.c.id == row.alert)).one()
    run = conn.execute(sa.select(runs.c.id, runs.c.project, runs.c.name).where(runs.c.id == alert.run)).one()
    channel = conn.execute(sa.select(channels).where(channels.c.id == row.channel)).one()
    return {
        "id": row.id,
        "key": f"{row.alert}-{row.channel}-{row.severity}",
        "severity": row.severity,
        "tries": row.tries,
        "alert": dict(alert._mapping) | {"muted": False},
        "run": dict(run._mapping),
        "channel": {name: getattr(channel, name) for name in ("id", "kind", "url", "secret")},
    }
