"""Alerts: made and followed from the detectors' findings, listed, acknowledged, closed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from gradspectra_core.alerts import SEVERITIES, Finding
from gradspectra_core.catalogue import RuleText, identity

from gradspectra_store.checks import MAX_NOTES, clean_text, unstorable
from gradspectra_store.deliveries import enqueue
from gradspectra_store.errors import BadRequest, UnknownAlert
from gradspectra_store.paging import page
from gradspectra_store.runs import lock_run
from gradspectra_store.schema import alerts, cursors, mutes, runs

STATES = ("open", "acknowledged", "closed")
_RANK = {severity: rank for rank, severity in enumerate(SEVERITIES)}
_HEALTH = {"info": "ok", "warning": "warning", "critical": "critical"}
_muted = sa.exists().where(mutes.c.run == alerts.c.run, mutes.c.rule == alerts.c.rule)
_derived = sa.select(cursors.c.derived_step).where(cursors.c.run == alerts.c.run).scalar_subquery()
_last_step = sa.case(
    (sa.and_(alerts.c.closed_step.is_(None), alerts.c.last_step < _derived), _derived), else_=alerts.c.last_step
)
"""An episode that no detector has closed goes on at the last step they have seen; the column has the last finding."""
_all: sa.Select[Any] = sa.select(
    *(column for column in alerts.c if column.name != "last_step"),
    _last_step.label("last_step"),
    _muted.label("muted"),
)


def apply_findings(
    conn: sa.Connection,
    run: str,
    attempt: int,
    findings: Sequence[tuple[Finding, float]],
    catalogue: Mapping[str, RuleText],
) -> list[dict[str, Any]]:
    """Bring the alerts of a run up to date with what its detectors found; returns those that changed.

    findings: in order of steps, each with the time of its step by the job's clock. An alert that opens or becomes
    more severe is put up for delivery in the same transaction, unless its rule is muted for the run. The same findings
    again change nothing more.
    """
    if not findings:
        return []
    lock_run(conn, run)  # always before its alerts, as everywhere: nobody waits in a circle
    muted = set(conn.execute(sa.select(mutes.c.rule).where(mutes.c.run == run)).scalars())
    changed: dict[str, None] = {}
    for finding, at in findings:
        alert = identity(run, attempt, finding)
        old = conn.execute(sa.select(alerts).where(alerts.c.id == alert)).one_or_none()
        if old is not None:
            _follow(conn, old, finding)
        elif finding.change != "close":
            _open(conn, run, attempt, alert, finding, at, catalogue[finding.rule])
        else:
            continue
        worse = old is None or _RANK[finding.severity] > _RANK[old.severity]
        if worse and finding.rule not in muted:
            enqueue(conn, alert, finding.severity, at)
        changed[alert] = None
    return _after_change(conn, run, list(changed))


def supersede_alerts(
    conn: sa.Connection, run: str, attempt: int, from_step: int, followed: Container[tuple[str, int]] | None = None
) -> list[dict[str, Any]]:
    """Close what older attempts than `attempt` have open and no detector follows any more; returns what changed.

    What opened from `from_step` on is hidden by the attempt. followed: rule and opening step of the episodes that the
    attempt goes on with; what opened before `from_step` and is not among them closes too. None: all of it stays. One
    of them that closed from `from_step` on is open again: its closing is hidden.
    """
    lock_run(conn, run)
    older = alerts.c.run == run, alerts.c.attempt < attempt
    hidden_close = alerts.c.opened_step < from_step, alerts.c.closed_step >= from_step
    closed = conn.execute(sa.select(alerts).where(*older, *hidden_close)).all()
    again = [row for row in closed if followed is not None and (row.rule, row.opened_step) in followed]
    for row in again:
        conn.execute(sa.update(alerts).where(alerts.c.id == row.id).values(_opened_again(row)))
    left = [
        row.id
        for row in conn.execute(
            sa.select(alerts.c.id, alerts.c.rule, alerts.c.opened_step).where(*older, alerts.c.closed_step.is_(None))
        )
        if row.opened_step >= from_step or (followed is not None and (row.rule, row.opened_step) not in followed)
    ]
    hidden = alerts.c.opened_step >= from_step
    shown_until = sa.case((_derived < from_step, _derived), else_=from_step - 1)
    went_on = sa.and_(~hidden, alerts.c.last_step < shown_until)  # until the attempt took its place
    closed_step = sa.case((hidden, _last_step), (went_on, shown_until), else_=alerts.c.last_step)
    values = {"state": "closed", "superseded": hidden, "closed_step": closed_step, "last_step": closed_step}
    conn.execute(sa.update(alerts).where(alerts.c.id.in_(left)).values(values))
    return _after_change(conn, run, sorted([*left, *(row.id for row in again)]))


def closed_before(
    conn: sa.Connection, run: str, step: int, episodes: Iterable[tuple[int, str, int]]
) -> list[tuple[int, str, int]]:
    """Return those of the episodes (attempt, rule and opening step) that a detector had seen closed before a step."""
    place = alerts.c.attempt, alerts.c.rule, alerts.c.opened_step
    over = conn.execute(sa.select(*place).where(alerts.c.run == run, alerts.c.closed_step < step))
    return sorted(set(episodes) & {(attempt, rule, opened) for attempt, rule, opened in over})


def list_alerts(
    conn: sa.Connection,
    run: str | None = None,
    state: str | None = None,
    since: float | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page of alerts, the newest first, and the cursor of the next page.

    since: only alerts opened at or after it, in seconds since 1970. Raises BadRequest.
    """
    if state is not None and state not in STATES:
        raise BadRequest("state", f"must be one of {', '.join(STATES)}, got {state!r}")
    query = _all
    if run is not None:
        query = query.where(alerts.c.run == run)
    if state is not None:
        query = query.where(alerts.c.state == state)
    if since is not None:
        query = query.where(alerts.c.opened_at >= since)
    keys = (alerts.c.opened_at, alerts.c.id)
    rows, following = page(conn, query, keys, descending=True, cursor=cursor, limit=limit)
    return [shown(row) for row in rows], following


def get_alert(conn: sa.Connection, alert: str) -> dict[str, Any]:
    """Return one alert; raises UnknownAlert."""
    row = None
    if unstorable(alert) is None:
        row = conn.execute(_all.where(alerts.c.id == alert)).one_or_none()
    if row is None:
        raise UnknownAlert(alert)
    return shown(row)


def list_incidents(
    conn: sa.Connection, run: str, limit: int = 100, cursor: str | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the alerts of a page of a run's incidents, and the cursor of the next page.

    The newest incidents come first, by the alert that opened each, whose id it bears; all its alerts are there, in
    order of steps. Raises BadRequest.
    """
    first = _all.where(alerts.c.run == run, alerts.c.id == alerts.c.incident)
    keys = (alerts.c.opened_at, alerts.c.id)
    rows, following = page(conn, first, keys, descending=True, cursor=cursor, limit=limit)
    order = {row.id: place for place, row in enumerate(rows)}
    own = _all.where(alerts.c.run == run, alerts.c.incident.in_(order))
    members = conn.execute(own.order_by(alerts.c.opened_step, alerts.c.opened_at, alerts.c.id)).all()
    return [shown(row) for row in sorted(members, key=lambda row: order[row.incident])], following


def patch_alert(
    conn: sa.Connection, alert: str, state: str | None = None, note: str | None = None, now: float = 0.0
) -> dict[str, Any]:
    """Acknowledge or close an alert, or write a note to it; returns it as it then is.

    state: a later one of open, acknowledged, closed; the same again is no error. now: seconds since 1970. Raises
    UnknownAlert and BadRequest.
    """
    lock_run(conn, get_alert(conn, alert)["run"])
    old = get_alert(conn, alert)
    values: dict[str, Any] = {}
    if note is not None:
        values["note"] = clean_text("note", note, limit=MAX_NOTES, least=0)
    if state is not None and state != old["state"]:
        if state not in STATES or STATES.index(state) < STATES.index(old["state"]):
            raise BadRequest("state", f"an alert that is {old['state']} cannot become {state!r}")
        values["state"] = state
        if old["acknowledged_at"] is None:
            values["acknowledged_at"] = now
    if not values:
        return old
    conn.execute(sa.update(alerts).where(alerts.c.id == alert).values(values))
    return _after_change(conn, old["run"], [alert])[0]


def list_standing(conn: sa.Connection, run: str, rule: str) -> list[dict[str, Any]]:
    """Return the alerts of a rule in a run that are not closed, in order of opening."""
    standing = alerts.c.run == run, alerts.c.rule == rule, alerts.c.state != "closed"
    return [shown(row) for row in conn.execute(_all.where(*standing).order_by(alerts.c.opened_at, alerts.c.id))]


def shown(row: sa.Row[Any]) -> dict[str, Any]:
    """Return an alert's row, and whether its rule is muted for the run, as the object that is served."""
    return dict(row._mapping)


def _open(conn: sa.Connection, run: str, attempt: int, alert: str, finding: Finding, at: float, text: RuleText) -> None:
    ongoing = alerts.c.run == run, alerts.c.attempt == attempt, alerts.c.closed_step.is_(None)
    order = alerts.c.opened_step, alerts.c.opened_at, alerts.c.id
    first = conn.execute(sa.select(alerts.c.incident).where(*ongoing).order_by(*order).limit(1)).scalar_one_or_none()
    conn.execute(
        sa.insert(alerts).values(
            id=alert,
            run=run,
            attempt=attempt,
            incident=first or alert,
            rule=finding.rule,
            severity=finding.severity,
            state="open",
            layers=list(finding.layers),
            first_layer=finding.layers[0] if finding.layers else None,
            opened_step=finding.opened_step,
            last_step=finding.step,
            opened_at=at,
            value=finding.value,
            threshold=finding.threshold,
            message=finding.message,
            meaning=text.meaning,
            remedy=text.remedy,
            evidence=finding.evidence,
            note="",
            superseded=False,
        )
    )


def _follow(conn: sa.Connection, old: sa.Row[Any], finding: Finding) -> None:
    """Take in an update or a close. What a person closed stays closed; severity never falls.

    The detectors of a resumed run may remember an alert as open that has closed before the run was resumed: it stays
    closed as it was, and opens again where it becomes worse.
    """
    if old.closed_step is not None and (finding.change == "close" or finding.step <= old.closed_step):
        return
    values: dict[str, Any] = {"last_step": max(old.last_step, finding.step), **_opened_again(old)}
    if finding.change == "close":
        values |= {"state": "closed", "closed_step": finding.step}
    else:
        values |= {"value": finding.value, "threshold": finding.threshold}
        if _RANK[finding.severity] > _RANK[old.severity]:
            values["severity"] = finding.severity
        if finding.layers:
            values |= {"layers": list(finding.layers), "first_layer": finding.layers[0]}
        if finding.message:
            values["message"] = finding.message
        if finding.evidence:
            values["evidence"] = finding.evidence
    conn.execute(sa.update(alerts).where(alerts.c.id == old.id).values(values))


def _opened_again(old: sa.Row[Any]) -> dict[str, Any]:
    """What an alert that a detector had closed is when it goes on; one that a person has seen is not put up again."""
    if old.closed_step is None:
        return {}
    return {"closed_step": None, "state": "open" if old.acknowledged_at is None else old.state}


def _after_change(conn: sa.Connection, run: str, changed: list[str]) -> list[dict[str, Any]]:
    """Rate the run; returns the changed alerts as they now are."""
    if not changed:
        return []
    rate_run(conn, run)
    rows = {row.id: shown(row) for row in conn.execute(_all.where(alerts.c.id.in_(changed)))}
    return [rows[alert] for alert in changed]


def rate_run(conn: sa.Connection, run: str) -> None:
    """Bring the run's health in line with its alerts; those of rules that are muted for it do not count."""
    alive = alerts.c.run == run, alerts.c.state != "closed", ~_muted
    left = conn.execute(sa.select(alerts.c.severity, alerts.c.state).where(*alive)).all()
    worst = max((row.severity for row in left), key=_RANK.__getitem__, default="info")
    count = sum(row.state == "open" for row in left)
    conn.execute(sa.update(runs).where(runs.c.id == run).values(health=_HEALTH[worst], open_alerts=count))
