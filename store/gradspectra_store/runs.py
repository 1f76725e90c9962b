"""Runs as they live: started or resumed, kept alive, finished, lost, changed and deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from gradspectra_store import sparkline
from gradspectra_store.checks import MAX_NOTES, clean_count, clean_flag, clean_json, clean_tags, clean_text
from gradspectra_store.errors import BadRequest, UnknownRun, UnknownSession
from gradspectra_store.identities import new_identity
from gradspectra_store.schema import attempts, cursors, run_tags, runs, sessions
from gradspectra_store.unmeasured import Unmeasured, note_unmeasured

SILENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a training job says when it starts.

    resume: None makes a new run; a run's id, the key of one of its sessions (all that a job has to name it by until it
    was answered), or "auto" for the newest run of the same project and name, makes a new attempt of it. start_step:
    steps already taken; the first step to come is the next one. session_key: the same key again gives the same session
    back, so that a request whose answer was lost can be repeated. rank: of the process; one above 0 joins the present
    attempt of the run it resumes.
    """

    project: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    notes: str = ""
    total_steps: int | None = None
    resume: str | None = None
    start_step: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)
    now: float = field(default_factory=time.time)
    session_key: str | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Where the records of a session go. next_sequence: number of the batch to send first."""

    run: str
    attempt: int
    session: str
    next_sequence: int


def start_run(conn: sa.Connection, request: RunRequest) -> RunStarted:
    """Make a run, or a new attempt of one, with a session for the process that asked.

    Raises BadRequest naming the field, and UnknownRun for a `resume` that is no run.
    """
    request = _checked(request)
    same = _session_of_key(conn, request.session_key)
    if same is not None:
        return RunStarted(same.run, same.attempt, same.id, same.last_sequence + 1)
    old = _resumed(conn, request)
    if old is None:
        run, attempt = _new_run(conn, request), 1
    elif request.rank > 0:
        run, attempt = old.id, old.attempt
    else:
        run, attempt = old.id, old.attempt + 1
        _resume(conn, old, request)
    if old is None or request.rank == 0:
        _new_attempt(conn, run, attempt, request)
    session = new_identity(16)
    conn.execute(
        sa.insert(sessions).values(
            id=session,
            run=run,
            attempt=attempt,
            rank=request.rank,
            session_key=request.session_key,
            last_sequence=0,
            last_step=request.start_step,
            complete_through=request.start_step,
            names_digest="",
            created_at=request.now,
            last_seen=request.now,
        )
    )
    return RunStarted(run, attempt, session, 1)


def finish_run(conn: sa.Connection, run: str, session: str, state: str, now: float) -> None:
    """End a session. The run takes `state` (finished or failed) from rank 0 of its present attempt."""
    if state not in ("finished", "failed"):
        raise BadRequest("state", f"must be finished or failed, got {state!r}")
    row = lock_run(conn, run)
    ended = conn.execute(
        sa.update(sessions)
        .where(sessions.c.id == session, sessions.c.run == run)
        .values(ended_at=sa.func.coalesce(sessions.c.ended_at, now), last_seen=now)
        .returning(sessions.c.attempt, sessions.c.rank)
    ).one_or_none()
    if ended is None:
        raise UnknownSession(run, session)
    if ended.attempt == row.attempt and ended.rank == 0:
        conn.execute(sa.update(runs).where(runs.c.id == run).values(state=state, updated_at=now))


def heartbeat(
    conn: sa.Connection, run: str, session: str, overhead: float | None, now: float, said: Unmeasured | None = None
) -> int | None:
    """Note that a session lives; a run that was given up as lost runs again.

    overhead: share of step time that the agent has spent. said: what it does not measure, None where nothing is new;
    rank 0 speaks for its attempt. Returns the step at which the session is asked to stop, or None. Raises UnknownRun
    and UnknownSession.
    """
    row = lock_run(conn, run)
    seen = conn.execute(
        sa.update(sessions)
        .where(sessions.c.id == session, sessions.c.run == run)
        .values(last_seen=now)
        .returning(sessions.c.attempt, sessions.c.ended_at, sessions.c.rank)
    ).one_or_none()
    if seen is None:
        raise UnknownSession(run, session)
    if said is not None and seen.rank == 0:
        note_unmeasured(conn, run, seen.attempt, said)
    values: dict[str, Any] = {"updated_at": now}
    if overhead is not None and abs(overhead) < float("inf"):
        values["overhead"] = overhead
    if row.state == "lost" and seen.attempt == row.attempt and seen.ended_at is None:
        values["state"] = "running"
    conn.execute(sa.update(runs).where(runs.c.id == run).values(values))
    stop: int | None = row.stop_at_step if seen.attempt == row.attempt else None
    return stop


def mark_lost(conn: sa.Connection, now: float, silent_s: float = SILENT_SECONDS) -> list[str]:
    """Give up running runs of which no session was heard for `silent_s` seconds; returns their ids."""
    heard = sa.select(sessions.c.id).where(
        sessions.c.run == runs.c.id, sessions.c.ended_at.is_(None), sessions.c.last_seen > now - silent_s
    )
    silent = runs.c.state == "running", runs.c.updated_at <= now - silent_s, ~heard.exists()
    lost = conn.execute(sa.update(runs).where(*silent).values(state="lost").returning(runs.c.id))
    return sorted(lost.scalars())


def update_run(conn: sa.Connection, run: str, **fields: Any) -> None:
    """Change name, project, notes, tags, config, total_steps, stop_at_step or pinned of a run.

    Raises UnknownRun, and BadRequest for a field that cannot be changed or a value that is refused.
    """
    lock_run(conn, run)
    values = {name: _CHANGES[name](value) for name, value in fields.items() if name in _CHANGES}
    other = fields.keys() - _CHANGES.keys() - {"tags"}
    if other:
        raise BadRequest(min(other), f"cannot be changed; {', '.join(sorted([*_CHANGES, 'tags']))} can")
    if values:
        conn.execute(sa.update(runs).where(runs.c.id == run).values(values))
    if "tags" in fields:
        _set_tags(conn, run, clean_tags(fields["tags"]))


def delete_run(conn: sa.Connection, run: str) -> None:
    """Delete a run and all that belongs to it; raises UnknownRun."""
    conn.execute(sa.select(cursors.c.run).where(cursors.c.run == run).with_for_update())  # the order of the worker
    if conn.execute(sa.delete(runs).where(runs.c.id == run)).rowcount == 0:
        raise UnknownRun(run)


def lock_run(conn: sa.Connection, run: str) -> sa.Row[Any]:
    """Read a run's row and keep other writers off it until the transaction ends; raises UnknownRun."""
    row = conn.execute(sa.select(runs).where(runs.c.id == run).with_for_update(key_share=True)).one_or_none()
    if row is None:
        raise UnknownRun(run)
    return row


def _checked(request: RunRequest) -> RunRequest:
    clean_text("project", request.project)
    clean_text("name", request.name)
    clean_text("notes", request.notes, limit=MAX_NOTES, least=0)
    clean_json("config", request.config)
    clean_json("environment", request.environment)
    clean_tags(request.tags)
    clean_count("start_step", request.start_step)
    clean_count("rank", request.rank, most=2**31 - 1)
    if request.total_steps is not None:
        clean_count("total_steps", request.total_steps)
    if request.session_key is not None:
        clean_text("session_key", request.session_key)
    if request.rank > 0 and request.resume is None:
        raise BadRequest("rank", f"rank {request.rank} joins a run that rank 0 has started; give its id as resume")
    return request


def _session_of_key(conn: sa.Connection, key: str | None) -> sa.Row[Any] | None:
    if key is None:
        return None
    if conn.dialect.name == "postgresql":  # the same request twice at once: the second waits for the first
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(key, 0))))
    return conn.execute(sa.select(sessions).where(sessions.c.session_key == key)).one_or_none()


def _resumed(conn: sa.Connection, request: RunRequest) -> sa.Row[Any] | None:
    if request.resume is None:
        return None
    if request.resume != "auto":
        named = clean_text("resume", request.resume)
        session = _session_of_key(conn, named)
        return lock_run(conn, named if session is None else session.run)
    newest = conn.execute(
        sa.select(runs.c.id)
        .where(runs.c.project == request.project, runs.c.name == request.name)
        .order_by(runs.c.created_at.desc(), runs.c.id)
        .limit(1)
    ).scalar_one_or_none()
    if newest is None and request.rank > 0:
        raise BadRequest("resume", f"rank {request.rank} joins a run that rank 0 has started, and there is none yet")
    return None if newest is None else lock_run(conn, newest)


def _new_run(conn: sa.Connection, request: RunRequest) -> str:
    run = new_identity()
    conn.execute(
        sa.insert(runs).values(
            id=run,
            project=request.project,
            name=request.name,
            state="running",
            health="ok",
            attempt=1,
            last_step=request.start_step,
            last_batch=0,
            total_steps=request.total_steps,
            open_alerts=0,
            created_at=request.now,
            updated_at=request.now,
            config=dict(request.config),
            environment=dict(request.environment),
            notes=request.notes,
            sparkline=sparkline.empty(),
        )
    )
    conn.execute(sa.insert(cursors).values(run=run, batch=0, attempt=1, derived_step=0, suggestions_step=0))
    _set_tags(conn, run, clean_tags(request.tags))
    return run


def _resume(conn: sa.Connection, old: sa.Row[Any], request: RunRequest) -> None:
    values: dict[str, Any] = {
        "attempt": old.attempt + 1,
        "state": "running",
        "last_step": request.start_step,
        "updated_at": request.now,
        "environment": dict(request.environment),
        "sparkline": sparkline.cut(old.sparkline, request.start_step + 1),
        "config": dict(request.config) or old.config,
        "notes": request.notes or old.notes,
        "total_steps": old.total_steps if request.total_steps is None else request.total_steps,
        "stop_at_step": None,
    }
    conn.execute(sa.update(runs).where(runs.c.id == old.id).values(values))
    if request.tags:
        _set_tags(conn, old.id, clean_tags(request.tags))


def _new_attempt(conn: sa.Connection, run: str, number: int, request: RunRequest) -> None:
    conn.execute(
        sa.insert(attempts).values(
            run=run,
            number=number,
            first_step=request.start_step + 1,
            created_at=request.now,
            config=dict(request.config),
            environment=dict(request.environment),
        )
    )


def _set_tags(conn: sa.Connection, run: str, tags: list[str]) -> None:
    conn.execute(sa.delete(run_tags).where(run_tags.c.run == run))
    if tags:
        conn.execute(sa.insert(run_tags), [{"run": run, "tag": tag} for tag in tags])


_CHANGES: dict[str, Callable[[Any], Any]] = {
    "name": lambda value: clean_text("name", value),
    "project": lambda value: clean_text("project", value),
    "notes": lambda value: clean_text("notes", value, limit=MAX_NOTES, least=0),
    "config": lambda value: clean_json("config", value),
    "total_steps": lambda value: None if value is None else clean_count("total_steps", value),
    "stop_at_step": lambda value: None if value is None else clean_count("stop_at_step", value),
    "pinned": lambda value: clean_flag("pinned", value),
}
