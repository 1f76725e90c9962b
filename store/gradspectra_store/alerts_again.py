"""The alerts of a run that was derived again, in the place of those that it had: what people did with them stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from gradspectra_store.alerts import rate_run
from gradspectra_store.schema import alerts, deliveries

NO_MORE = "Derived again, it does not come out any more."
_KEPT = ("id", "run", "acknowledged_at", "note")


def replace_alerts(conn: sa.Connection, run: str, found: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Put alerts, rows of the table, in place of those of a run, and rate it; returns how many are new, kept and gone.

    Those that come out again keep what they are called, when and whether somebody has seen them, notes and deliveries;
    what somebody closed stays closed. New ones are put up for delivery to nobody. Of the others those that somebody has
    seen or written to, or that were sent to somebody, stay, closed, and say so; the rest is deleted.
    """
    old = {row.id: row for row in conn.execute(sa.select(alerts).where(alerts.c.run == run))}
    new = {row["id"]: row for row in found}
    for identity, row in new.items():
        if identity not in old:
            conn.execute(sa.insert(alerts).values(**row))
        else:
            values = {name: value for name, value in row.items() if name not in _KEPT}
            values["state"] = _state(old[identity], row)
            conn.execute(sa.update(alerts).where(alerts.c.id == identity).values(values))
    gone = old.keys() - new.keys()
    stay = _known_to_people(conn, run)
    for identity in gone:
        if identity not in stay:
            conn.execute(sa.delete(alerts).where(alerts.c.id == identity))
        else:
            conn.execute(sa.update(alerts).where(alerts.c.id == identity).values(_closed(old[identity])))
            due = deliveries.c.alert == identity, deliveries.c.state == "due"
            conn.execute(sa.delete(deliveries).where(*due))
    rate_run(conn, run)
    return {"new": len(new.keys() - old.keys()), "kept": len(new.keys() & old.keys()), "gone": len(gone)}


def _state(old: sa.Row[Any], new: dict[str, Any]) -> str:
    """What an alert is that comes out again; one that somebody has seen is not put up another time."""
    if new["closed_step"] is not None:
        return "closed"
    return "open" if old.acknowledged_at is None else str(old.state)


def _known_to_people(conn: sa.Connection, run: str) -> set[str]:
    """The alerts of a run that somebody has seen, written to or was sent."""
    sent = sa.exists().where(deliveries.c.alert == alerts.c.id, deliveries.c.state == "sent")
    seen = sa.or_(alerts.c.acknowledged_at.is_not(None), alerts.c.note != "", sent)
    return set(conn.execute(sa.select(alerts.c.id).where(alerts.c.run == run, seen)).scalars())


def _closed(row: sa.Row[Any]) -> dict[str, Any]:
    """It is an incident by itself: the alert that opened its incident may be gone."""
    values = {"state": "closed", "incident": row.id}
    values["closed_step"] = row.last_step if row.closed_step is None else row.closed_step
    if not row.message.endswith(NO_MORE):
        values["message"] = f"{row.message} {NO_MORE}".lstrip()
    return values
