"""A store of its own, beside the run's, in which a run is derived from nothing by the same code as always."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from gradspectra_core.records import Batch

from gradspectra_store.compaction import compact_anew
from gradspectra_store.database import Store
from gradspectra_store.ingest import ingest
from gradspectra_store.schema import attempts, cursors, layer_tables, names, runs, segments, sessions

_BEFORE_ALL = -1
"""Step and time before any that a run has."""


@dataclass(slots=True)
class Beside:
    """The run as it was begun, without its batches, which `put` takes in and `forget` lets go once they are derived."""

    store: Store
    run: str
    _sequences: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, store: Store, run: str) -> Beside:
        """Make the store in a folder, where there is none yet."""
        own = cls(Store.open(f"sqlite:///{folder / 'beside.db'}"), run)
        own.follow(store)
        return own

    def follow(self, store: Store) -> None:
        """Take over what the run says of itself and its attempts, layer tables and names, and of those that came."""
        with store.read() as theirs, self.store.write() as conn:
            if conn.execute(sa.select(runs.c.id).where(runs.c.id == self.run)).one_or_none() is None:
                row = theirs.execute(sa.select(runs).where(runs.c.id == self.run)).mappings().one()
                empty: dict[str, Any] = {"last_batch": 0, "last_step": _BEFORE_ALL, "health": "ok", "open_alerts": 0}
                conn.execute(sa.insert(runs).values(**(dict(row) | empty)))
                cursor = {"batch": 0, "attempt": 1, "derived_step": 0, "suggestions_step": 0}
                conn.execute(sa.insert(cursors).values(run=self.run, **cursor))
            for table, only in ((attempts, ()), (layer_tables, ()), (names, (sa.not_(names.c.derived),))):
                rows = theirs.execute(sa.select(table).where(table.c.run == self.run, *only)).mappings().all()
                key = [column.name for column in table.primary_key]
                known = {tuple(row) for row in conn.execute(sa.select(*(table.c[name] for name in key)))}
                fresh = [dict(row) for row in rows if tuple(row[name] for name in key) not in known]
                if fresh:
                    conn.execute(sa.insert(table), fresh)

    def put(self, attempt: int, batches: Iterable[tuple[int, Batch]]) -> None:
        """Take in batches of an attempt, each with its rank."""
        with self.store.write() as conn:
            for rank, batch in batches:
                session = f"{attempt}-{rank}"
                if session not in self._sequences:
                    self._begin(conn, session, attempt, rank)
                self._sequences[session] = number = self._sequences.get(session, 0) + 1
                ingest(conn, self.run, replace(batch, session=session, sequence=number), now=0.0)

    def has(self, attempt: int) -> bool:
        """Whether batches of rank 0 of an attempt were put."""
        return f"{attempt}-0" in self._sequences

    def forget(self) -> None:
        """Let go the batches that are derived."""
        with self.store.write() as conn:
            done = sa.select(cursors.c.batch).where(cursors.c.run == self.run).scalar_subquery()
            conn.execute(sa.delete(segments).where(segments.c.run == self.run, segments.c.batch <= done))

    def close_up(self) -> int:
        """Let all that is derived be compacted, the newest steps too; returns the present attempt, for `open_up`."""
        with self.store.write() as conn:
            attempt = int(conn.execute(sa.select(cursors.c.attempt).where(cursors.c.run == self.run)).scalar_one())
            conn.execute(sa.update(cursors).where(cursors.c.run == self.run).values(attempt=attempt + 1))
            compact_anew(conn, self.run)
        return attempt

    def open_up(self, attempt: int) -> None:
        """Go on deriving an attempt."""
        with self.store.write() as conn:
            conn.execute(sa.update(cursors).where(cursors.c.run == self.run).values(attempt=attempt))

    def _begin(self, conn: sa.Connection, session: str, attempt: int, rank: int) -> None:
        values = {"last_sequence": 0, "last_step": _BEFORE_ALL, "complete_through": _BEFORE_ALL, "names_digest": ""}
        ended = {"created_at": 0.0, "last_seen": 0.0, "ended_at": 0.0}
        place = {"id": session, "run": self.run, "attempt": attempt, "rank": rank}
        conn.execute(sa.insert(sessions).values(**place, **values, **ended))
