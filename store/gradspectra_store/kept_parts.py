"""What was read for a question, kept for whoever asks the same before anything of its run has changed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.layers import Layer
from gradspectra_core.pyramid import Level

from gradspectra_store.block_schema import compactions
from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import cursors, runs
from gradspectra_store.segment_cache import SegmentCache

STANDING = (
    sa.select(runs.c.attempt, runs.c.last_batch, cursors.c.batch, compactions.c.rounds)
    .select_from(
        runs.outerjoin(cursors, cursors.c.run == runs.c.id).outerjoin(compactions, compactions.c.run == runs.c.id)
    )
    .where(runs.c.id == sa.bindparam("of_run"))
)
"""How far a run is. One of these numbers grows with each transaction that adds, derives, compacts or retires its
numbers, or begins an attempt; a run's id is never used again."""

_standing = Prepared(STANDING)
Standing = tuple[int | None, ...]
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
        arrays = {id(array): array for part in self.parts for array in _arrays(part) if array is not None}
        owners = {id(own): own.nbytes for own in map(_owner, arrays.values())}
        return sum(owners.values()) + _BYTES_A_ROW * len(self.rows)


@dataclass(frozen=True, slots=True)
class _Entry:
    standing: Standing
    kept: Kept
    nbytes: int


class Place:
    """Where what was read for a question is kept in a process. question: says it in full, with its run."""

    def __init__(self, conn: sa.Connection, run: str, question: Hashable) -> None:
        self._cache: SegmentCache | None = conn.get_execution_options().get("segment_cache")
        self._conn = conn
        self._run = run
        self._question = question

    def get(self) -> Kept | None:
        """Return what is kept, None where nothing is or the run has changed since."""
        entry: _Entry | None = None if self._cache is None else self._cache.get(self._question)
        if entry is None or _standing.rows(self._conn, {"of_run": self._run}) != [entry.standing]:
            return None
        return entry.kept

    def put(self, kept: Kept, standing: Standing) -> None:
        """Keep what was read, in the place of what was kept for the same question. standing: in that transaction."""
        if self._cache is not None and (size := kept.nbytes) <= MOST_BYTES:
            self._cache.put(self._question, _Entry(standing, kept, size))


_arrays = attrgetter(*Level.__slots__)


def _owner(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array whose memory another is a part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
