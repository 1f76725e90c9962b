"""What lies beside a run that is or was derived again, and goes bit by bit: what it had before, or will not have."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from gradspectra_store.block_schema import blocks
from gradspectra_store.compaction import delete_rows
from gradspectra_store.database import Store
from gradspectra_store.kept_states import Key, delete_states, keys_beside
from gradspectra_store.rederivations import forget_again, left_alone, left_runs

BESIDE = 1
"""The rank under which derived blocks lie that are not those of the run, not yet or not any more."""

AT_ONCE = 200
"""Blocks and states that go in a transaction."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of what lies beside a run. blocks: their ids; states: their keys, as they are stored."""

    run: str
    blocks: list[int]
    states: list[Key]

    def delete(self, conn: sa.Connection) -> None:
        """Take it away."""
        delete_rows(conn, blocks, self.blocks)
        if self.states:
            delete_states(conn, self.run, self.states)


def next_portion(conn: sa.Connection, run: str) -> Portion | None:
    """Return some of what lies beside a run, None where nothing does."""
    beside = blocks.c.run == run, blocks.c.derived, blocks.c.rank == BESIDE
    ids = list(conn.execute(sa.select(blocks.c.id).where(*beside).limit(AT_ONCE)).scalars())
    states = [] if ids else keys_beside(conn, run, AT_ONCE)
    return Portion(run, ids, states) if ids or states else None


def free_left(store: Store, now: float) -> None:
    """Take away a portion of what killed processes have left beside each run, so that its space is used again.

    now: seconds since 1970. A run that has nothing left beside it is not looked at any more.
    """
    with store.read() as conn:
        found = left_runs(conn, now)
    for run in found:
        with store.write() as conn:
            if not left_alone(conn, run, now):
                continue
            portion = next_portion(conn, run)
            if portion is None:
                forget_again(conn, run)
            else:
                portion.delete(conn)
