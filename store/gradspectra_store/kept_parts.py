"""What was read for a question, kept for whoever asks the same before anything of its run has changed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.layers import Layer
from gradspectra_core.pyramid import Level

from gradspectra_store.block_schema import compactions
from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import cursors, runs
from gradspectra_store.segment_cache import SegmentCache

_standing = Prepared(
    sa.select(runs.c.attempt, runs.c.last_batch, cursors.c.batch, compactions.c.rounds)
    .select_from(
        runs.outerjoin(cursors, cursors.c.run == runs.c.id).outerjoin(compactions, compactions.c.run == runs.c.id)
    )
    .where(runs.c.id == sa.bindparam("of_run"))
)
_BYTES_A_ROW = 100
MOST_BYTES = 1 << 20
"""What takes more is not kept: most of its time goes to the answer itself, and a server would hold much for few."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Levels that follow one another, `factor` of their buckets in one of the answer, of these layers."""

    rows: Sequence[Layer]
    parts: Sequence[Level]
    factor: int

    @property
    def nbytes(self) -> int:
        """Bytes that it holds: the whole of each array of which it has a part."""
        arrays = [getattr(part, name) for part in self.parts for name in Level.__slots__]
        owners = {id(own): own.nbytes for own in (_owner(array) for array in arrays if array is not None)}
        return sum(owners.values()) + _BYTES_A_ROW * len(self.rows)


@dataclass(frozen=True, slots=True)
class _Entry:
    standing: tuple[Any, ...]
    kept: Kept

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes


class Place:
    """Where what was read for a question is kept in a process. question: says it in full, with its run.

    Made before anything else is read in a transaction. One of the numbers compared grows with each transaction that
    adds, derives, compacts or retires a run's numbers, or begins an attempt; a run's id is never used again.
    """

    def __init__(self, conn: sa.Connection, run: str, question: Hashable) -> None:
        self._cache: SegmentCache | None = conn.get_execution_options().get("segment_cache")
        self._question = question
        rows = [] if self._cache is None else _standing.rows(conn, {"of_run": run})
        self._standing = rows[0] if rows else None

    def get(self) -> Kept | None:
        """Return what is kept, None where nothing is or the run has changed since."""
        entry: _Entry | None = None if self._cache is None else self._cache.get(self._question)
        return None if entry is None or entry.standing != self._standing else entry.kept

    def put(self, kept: Kept) -> None:
        """Keep what was read in this transaction, in the place of what was kept for the same question."""
        if self._cache is not None and self._standing is not None and kept.nbytes <= MOST_BYTES:
            self._cache.put(self._question, _Entry(self._standing, kept))


def _owner(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array whose memory another is a part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
