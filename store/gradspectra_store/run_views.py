"""Runs as they are shown: one, a page of many, projects, attempts and gaps."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gradspectra_store.checks import unstorable
from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.paging import PAGE, page
from gradspectra_store.retention import IN_FORCE, RETIRED, retention_of, retires_at
from gradspectra_store.retention_schema import retention, retirements
from gradspectra_store.schema import attempts, cursors, gaps, run_tags, runs, sessions
from gradspectra_store.sparkline import NEWEST
from gradspectra_store.unmeasured import unmeasured

ORDERS = ("created_at", "updated_at", "name", "last_step", "open_alerts")

_run_rows = sa.select(
    runs,
    cursors.c.derived_step,
    cursors.c.suggestions_step,
    cursors.c.attempt.label("derived_attempt"),
    attempts.c.first_step.label("attempt_first_step"),
    attempts.c.created_at.label("attempt_created_at"),
    *RETIRED,
    *IN_FORCE,
).select_from(
    runs.join(cursors, cursors.c.run == runs.c.id)
    .join(attempts, sa.and_(attempts.c.run == runs.c.id, attempts.c.number == runs.c.attempt))
    .outerjoin(retirements, retirements.c.run == runs.c.id)
    .outerjoin(retention, sa.true())
)


def get_run(conn: sa.Connection, run: str) -> dict[str, Any] | None:
    """Return one run with all its fields, or None where there is no such run."""
    if unstorable(run):
        return None
    row = conn.execute(_run_rows.where(runs.c.id == run)).one_or_none()
    return None if row is None else _shown(row, _tags(conn, [run]).get(run, []))


def list_runs(
    conn: sa.Connection,
    *,
    project: str | None = None,
    state: str | None = None,
    health: str | None = None,
    tag: str | None = None,
    search: str | None = None,
    order: str = "-created_at",
    cursor: str | None = None,
    limit: int = PAGE,
) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page of runs and the cursor of the next page, None at the end.

    search: text in the name, the project or the notes, capitals ignored. order: one of ORDERS, with a leading
    minus for descending. Raises BadRequest for an unknown order, a broken cursor or a limit out of 1 to 1000.
    """
    if order.removeprefix("-") not in ORDERS:
        raise BadRequest("order", f"must be one of {', '.join(ORDERS)}, with or without a leading '-', got {order!r}")
    for field, text in (("project", project), ("state", state), ("health", health), ("tag", tag), ("search", search)):
        problem = unstorable(text or "")
        if problem:
            raise BadRequest(field, problem)
    query = _run_rows
    for column, wanted in ((runs.c.project, project), (runs.c.state, state), (runs.c.health, health)):
        if wanted is not None:
            query = query.where(column == wanted)
    if tag is not None:
        query = query.where(runs.c.id.in_(sa.select(run_tags.c.run).where(run_tags.c.tag == tag)))
    if search:
        texts = (runs.c.name, runs.c.project, runs.c.notes)
        query = query.where(sa.or_(*(text.icontains(search, autoescape=True) for text in texts)))
    keys = (runs.c[order.removeprefix("-")], runs.c.id)
    rows, following = page(conn, query, keys, descending=order.startswith("-"), cursor=cursor, limit=limit)
    tags = _tags(conn, [row.id for row in rows])
    return [_shown(row, tags.get(row.id, [])) for row in rows], following


def list_projects(conn: sa.Connection) -> list[dict[str, Any]]:
    """Return the projects by name, each with its number of runs, of running ones, and when it was last updated."""
    running = sa.func.sum(sa.case((runs.c.state == "running", 1), else_=0))
    columns = runs.c.project, sa.func.count(), running, sa.func.max(runs.c.updated_at)
    rows = conn.execute(sa.select(*columns).group_by(runs.c.project).order_by(runs.c.project))
    return [{"project": name, "runs": count, "running": int(live), "updated_at": at} for name, count, live, at in rows]


def list_attempts(conn: sa.Connection, run: str) -> list[dict[str, Any]]:
    """Return the attempts of a run, oldest first; raises UnknownRun.

    hidden_from: the first step that a newer attempt hides, None where none is hidden. not_measured and
    norms_that_disagreed: what the job said last, as `Unmeasured` has it.
    """
    last = sa.select(sa.func.max(sessions.c.last_step).label("last_step"), sessions.c.attempt).where(
        sessions.c.run == run
    )
    reached = last.group_by(sessions.c.attempt).subquery()
    query = sa.select(attempts, reached.c.last_step, unmeasured.c.not_measured, unmeasured.c.norms_that_disagreed)
    query = query.join(reached, reached.c.attempt == attempts.c.number).outerjoin(
        unmeasured, sa.and_(unmeasured.c.run == attempts.c.run, unmeasured.c.attempt == attempts.c.number)
    )
    rows = conn.execute(query.where(attempts.c.run == run).order_by(attempts.c.number)).all()
    if not rows:
        raise UnknownRun(run)
    items = [
        {"attempt": row.number, **{name: getattr(row, name) for name in _ATTEMPT_FIELDS}, "hidden_from": None}
        | {"not_measured": row.not_measured or [], "norms_that_disagreed": row.norms_that_disagreed or 0}
        for row in rows
    ]
    for older, newer in zip(reversed(items[:-1]), reversed(items[1:]), strict=True):
        later = newer["hidden_from"]
        older["hidden_from"] = newer["first_step"] if later is None else min(later, newer["first_step"])
    return items


def list_gaps(conn: sa.Connection, run: str) -> list[dict[str, Any]]:
    """Return the ranges of steps that were dropped before sending, in the order they were reported."""
    rows = conn.execute(sa.select(gaps).where(gaps.c.run == run).order_by(gaps.c.id))
    return [{name: getattr(row, name) for name in _GAP_FIELDS} for row in rows]


_ATTEMPT_FIELDS = ("first_step", "last_step", "created_at", "config", "environment")
_GAP_FIELDS = ("attempt", "session", "first", "last", "what", "reason")
_RUN_FIELDS = (
    *("id", "project", "name", "state", "health", "attempt", "last_step", "total_steps", "created_at", "updated_at"),
    *("config", "notes", "overhead", "open_alerts", "environment", "suggestions_step", "last_batch", "stop_at_step"),
    *("pinned", "retired_at", "attempt_first_step", "attempt_created_at"),
)


def _shown(row: sa.Row[Any], tags: list[str]) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in _RUN_FIELDS}
    derived = row.derived_step
    if row.derived_attempt != row.attempt:  # nothing of the present attempt is derived yet
        derived = min(derived, row.attempt_first_step - 1)
    shown["retires_at"] = retires_at(row, retention_of(row))
    losses = row.sparkline["losses"]
    shown.update(derived_step=derived, tags=tags, sparkline=losses, last_loss=losses[-1] if losses else None)
    shown.update({name: row.sparkline.get(name) for name in NEWEST})
    return shown


def _tags(conn: sa.Connection, ids: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run, tag in conn.execute(sa.select(run_tags).where(run_tags.c.run.in_(ids)).order_by(run_tags.c.tag)):
        found.setdefault(run, []).append(tag)
    return found
