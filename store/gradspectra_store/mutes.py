"""Muted rules: alerts of a rule that somebody does not want to hear of from one run are kept, and told to nobody."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from gradspectra_core.catalogue import RULES

from gradspectra_store.alerts import list_standing, rate_run
from gradspectra_store.checks import clean_text
from gradspectra_store.errors import BadRequest
from gradspectra_store.runs import lock_run
from gradspectra_store.schema import alerts, deliveries, mutes


def mute_rule(conn: sa.Connection, run: str, rule: str, now: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Mute a rule for a run; returns the mute, and the alerts that stand muted now. Muted already, nothing changes.

    What is due of the rule's alerts is not sent any more. now: seconds since 1970. Raises UnknownRun, and BadRequest
    for a rule there is not.
    """
    _check(run, rule)
    lock_run(conn, run)
    key = mutes.c.run == run, mutes.c.rule == rule
    old = conn.execute(sa.select(mutes).where(*key)).one_or_none()
    if old is not None:
        return dict(old._mapping), []
    row = {"run": run, "rule": rule, "created_at": now}
    conn.execute(sa.insert(mutes).values(row))
    own = sa.select(alerts.c.id).where(alerts.c.run == run, alerts.c.rule == rule)
    due = deliveries.c.state == "due", deliveries.c.alert.in_(own)
    conn.execute(sa.update(deliveries).where(*due).values(state="failed", error="the rule was muted for this run"))
    rate_run(conn, run)
    return row, list_standing(conn, run, rule)


def unmute_rule(conn: sa.Connection, run: str, rule: str) -> list[dict[str, Any]]:
    """Hear of a rule again; returns the alerts that stand and are muted no more. What opened meanwhile is not sent.

    A rule that is not muted is no error. Raises as `mute_rule`.
    """
    _check(run, rule)
    lock_run(conn, run)
    gone = conn.execute(sa.delete(mutes).where(mutes.c.run == run, mutes.c.rule == rule))
    if gone.rowcount == 0:
        return []
    rate_run(conn, run)
    return list_standing(conn, run, rule)


def list_mutes(conn: sa.Connection, run: str | None = None) -> list[dict[str, Any]]:
    """Return what is muted, oldest first: run, rule and created_at. run: of that one only."""
    query = sa.select(mutes).order_by(mutes.c.created_at, mutes.c.run, mutes.c.rule)
    if run is not None:
        query = query.where(mutes.c.run == run)
    return [dict(row._mapping) for row in conn.execute(query)]


def _check(run: str, rule: str) -> None:
    clean_text("run", run)
    if rule not in RULES:
        raise BadRequest("rule", f"must be one of {', '.join(RULES)}, got {rule!r:.80}")
