"""What was derived beside a run is brought in and swapped for what the run had: readers see the one or the other.

Blocks come and go bit by bit under rank 1, which nobody reads; the swap itself exchanges two numbers in their rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from gradspectra_store.alerts_again import replace_alerts
from gradspectra_store.block_schema import blocks, extents
from gradspectra_store.compaction import compact_anew, delete_rows
from gradspectra_store.damaged import damaged
from gradspectra_store.database import Store
from gradspectra_store.derived import Cursor, claim
from gradspectra_store.engines import insert_into
from gradspectra_store.errors import UnknownRun
from gradspectra_store.kept_states import Key, put_beside, state_keys, state_texts
from gradspectra_store.lying_beside import BESIDE, next_portion
from gradspectra_store.rederivations import DONE, CannotDeriveAgain, end_again, still_mine
from gradspectra_store.retention_schema import retired
from gradspectra_store.runs import lock_run
from gradspectra_store.schema import (
    JsonText,
    alerts,
    cursors,
    derived_segments,
    names,
    runs,
    suggestions,
)

STAGE_BYTES = 4 << 20
_AT_ONCE = 200
_STATES_AT_ONCE = 20
_PLACE = ("kind", "attempt", "name", "level", "first", "id")

Rested = Callable[[float], None]
"""Called after each transaction with the seconds it took."""


@dataclass(slots=True)
class Swap:
    """Brings what was derived in another store, of a run of the same id there, into the run's own.

    owner: as `begin_again` gave it. rested: lets others work between transactions.
    """

    store: Store
    beside: Store
    run: str
    owner: str
    rested: Rested
    _staged: dict[int, int] = field(default_factory=dict)
    _states: set[Key] = field(default_factory=set)

    def clean(self) -> None:
        """Delete what lies beside the run: left by a process that died, or the run's own before the swap."""
        while True:
            begin = time.monotonic()
            with self.store.write() as conn:
                portion = next_portion(conn, self.run)
                if portion is None:
                    return
                still_mine(conn, self.run, self.owner, time.time())
                portion.delete(conn)
            self.rested(time.monotonic() - begin)

    def stage(self) -> None:
        """Bring in the blocks and states that are not there yet, and take away again what has been replaced since."""
        with self.beside.read() as conn:
            order = [blocks.c[name] for name in _PLACE]
            ids = list(conn.execute(sa.select(blocks.c.id).where(*_derived(self.run)).order_by(*order)).scalars())
        there = set(ids)
        gone = [own for its, own in self._staged.items() if its not in there]
        self._staged = {its: own for its, own in self._staged.items() if its in there}
        if gone:
            with self.store.write() as conn:
                still_mine(conn, self.run, self.owner, time.time())
                delete_rows(conn, blocks, gone)
        for rows in self._portions([its for its in ids if its not in self._staged]):
            begin = time.monotonic()
            with self.store.write() as conn:
                still_mine(conn, self.run, self.owner, time.time())
                own = {row["id"]: _inserted(conn, row) for row in rows}
            self._staged |= own
            self.rested(time.monotonic() - begin)
        self._stage_states()

    def make(self, at: Cursor) -> dict[str, int] | None:
        """Swap, in one transaction; returns how many alerts are new, kept and gone.

        at: how far what is beside was derived. None, with nothing changed, where the run has gone on since or waits for
        something to be derived. Raises CannotDeriveAgain where it was retired meanwhile.
        """
        with self.store.write() as conn:
            cursor = claim(conn, self.run)
            if cursor is None or (cursor.batch, cursor.attempt, cursor.derived_step) != _place(at):
                return None
            if lock_run(conn, self.run).last_batch != cursor.batch:
                return None
            still_mine(conn, self.run, self.owner, time.time())
            refuse_retired(conn, self.run)
            compact_anew(conn, self.run)  # a round of compaction that has begun gives up
            with self.beside.read() as own:
                done = _swapped(conn, own, self.run, cursor)
            end_again(conn, self.run, self.owner, DONE, time.time())
        return done

    def _stage_states(self) -> None:
        """Bring in the states; the newest of them each time, since a batch without steps may change it."""
        with self.beside.read() as conn:
            keys = state_keys(conn, self.run)
        fresh = [key for key in keys if key not in self._states]
        for at in range(0, len(fresh), _STATES_AT_ONCE):
            begin = time.monotonic()
            with self.beside.read() as conn:
                states = state_texts(conn, self.run, fresh[at : at + _STATES_AT_ONCE])
            with self.store.write() as conn:
                still_mine(conn, self.run, self.owner, time.time())
                put_beside(conn, self.run, states)
            self.rested(time.monotonic() - begin)
        self._states = set(keys[:-1])

    def _portions(self, ids: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """The rows, about STAGE_BYTES at a time."""
        rows: list[dict[str, Any]] = []
        size = 0
        for begin in range(0, len(ids), _AT_ONCE):
            with self.beside.read() as conn:
                query = sa.select(blocks).where(blocks.c.id.in_(ids[begin : begin + _AT_ONCE]))
                found = {row["id"]: dict(row) for row in conn.execute(query).mappings()}
            for identity in ids[begin : begin + _AT_ONCE]:
                rows.append(found[identity])
                size += len(found[identity]["payload"])
                if size >= STAGE_BYTES:
                    yield rows
                    rows, size = [], 0
        if rows:
            yield rows


def refuse_retired(conn: sa.Connection, run: str) -> None:
    """Raise CannotDeriveAgain where a part of what a run would be derived from is gone, naming the steps."""
    place = [retired.c[name] for name in ("attempt", "kind", "width")]
    reach = sa.func.min(retired.c.first).label("first"), sa.func.max(retired.c.stop).label("stop")
    query = sa.select(*place, *reach).where(retired.c.run == run).group_by(*place).order_by(*place)
    rows = conn.execute(query).all()
    if not rows:
        return
    what = {"layers": "layer values in buckets of {} steps", "spectra": "one spectrum of each layer in {} steps"}
    parts = [
        f"of steps {row.first} to {row.stop - 1} of attempt {row.attempt} only {what[row.kind].format(row.width)}"
        for row in dict.fromkeys(rows)
    ]
    raise CannotDeriveAgain(
        f"run {run} cannot be derived again: retention has left {' and '.join(parts)}, and what is derived needs each "
        "step; a backup from before has them. Pinned runs are left alone (docs/operating.md)"
    )


def derived_to(conn: sa.Connection, run: str) -> Cursor:
    """Return how far a run is derived, without its state, on a connection that only reads. Raises UnknownRun."""
    row = conn.execute(sa.select(cursors).where(cursors.c.run == run)).one_or_none()
    if row is None:
        raise UnknownRun(run)
    return Cursor(row.batch, row.attempt, row.derived_step, None)


def _derived(run: str) -> tuple[sa.ColumnElement[bool], ...]:
    return blocks.c.run == run, blocks.c.derived


def _place(cursor: Cursor) -> tuple[int, int, int]:
    return cursor.batch, cursor.attempt, cursor.derived_step


def _inserted(conn: sa.Connection, row: dict[str, Any]) -> int:
    values = {name: value for name, value in row.items() if name != "id"} | {"rank": BESIDE}
    (identity,) = conn.execute(sa.insert(blocks).values(**values)).inserted_primary_key or (0,)
    return int(identity)


def _swapped(conn: sa.Connection, own: sa.Connection, run: str, cursor: Cursor) -> dict[str, int]:
    """Exchange all that is derived; own: the other store.

    A batch of nothing is counted: who keeps answers makes them anew, and who was away learns that something came.
    """
    conn.execute(sa.update(blocks).where(*_derived(run)).values(rank=BESIDE - blocks.c.rank))
    conn.execute(sa.delete(damaged).where(damaged.c.run == run, damaged.c.derived))
    conn.execute(sa.delete(derived_segments).where(derived_segments.c.run == run))
    for table in (extents, names, suggestions):
        where = [table.c.run == run, *([table.c.derived] if "derived" in table.c else [])]
        conn.execute(sa.delete(table).where(*where))
        _copied(conn, own, table, *where)
    its = own.execute(sa.select(cursors).where(cursors.c.run == run)).one()
    conn.execute(sa.update(runs).where(runs.c.id == run).values(last_batch=cursor.batch + 1))
    values = {"batch": cursor.batch + 1, "state": its.state, "suggestions_step": its.suggestions_step}
    values["states_turned"] = sa.not_(cursors.c.states_turned)
    conn.execute(sa.update(cursors).where(cursors.c.run == run).values(values))
    found = [dict(row) for row in own.execute(sa.select(alerts).where(alerts.c.run == run)).mappings()]
    return replace_alerts(conn, run, found)


def _copied(conn: sa.Connection, own: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> None:
    """Copy rows as they are: JSON as the text that it is."""
    text = [name for name, column in table.c.items() if isinstance(column.type, JsonText)]
    columns = [
        sa.type_coerce(column, sa.Text).label(column.name) if column.name in text else column for column in table.c
    ]
    insert = insert_into(conn, table).values({name: sa.bindparam(name, type_=sa.Text) for name in text})
    for rows in own.execute(sa.select(*columns).where(*where)).mappings().partitions(_AT_ONCE):
        conn.execute(insert.on_conflict_do_nothing(), [dict(row) for row in rows])
