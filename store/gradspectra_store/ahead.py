"""The blocks of a level and those at the ends beside it: found by one statement and read by one, not by two each."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from gradspectra_store.block_rows import (
    MOST_PLACES,
    BlockRow,
    Content,
    Source,
    find_blocks,
    find_in_places,
    load_blocks,
)
from gradspectra_store.stretches import Stretch, united, within


class Ahead:
    """Finds and reads the blocks that one answer is made of; holds what was read ahead as long as it is there itself.

    most: as for `load_blocks`.
    """

    def __init__(self, conn: sa.Connection, source: Source, most: int | None) -> None:
        self._conn = conn
        self._source = source
        self._most = most
        self._found: dict[int, list[BlockRow]] = {}
        self._covered: dict[int, list[Stretch]] = {}
        self._contents: dict[int, Content] = {}

    def look(self, places: Sequence[tuple[Sequence[str], int, Sequence[Stretch]]]) -> None:
        """Find the blocks of several levels at once, where these are few places in one attempt; else do nothing.

        places: names, their level, and the stretches that will be asked for of it.
        """
        every = [
            (name, level, one) for names, level, stretches in places for one in united(stretches) for name in names
        ]
        if not 1 < len(every) <= MOST_PLACES or len({one.attempt for _, _, one in every}) > 1:
            return
        rows = sorted(dict.fromkeys(find_in_places(self._conn, self._source, every)), key=_in_order)
        for _, level, stretches in places:
            self._found[level] = [row for row in rows if row.level == level]
            self._covered[level] = united(stretches)

    def find(self, names: Sequence[str], level: int, stretches: Sequence[Stretch]) -> list[BlockRow]:
        """As `find_blocks`."""
        asked = united(stretches)
        if not asked:
            return []
        covered = self._covered.get(level)
        if covered is not None and all(within(covered, one) == [one] for one in asked):
            return [row for row in self._found[level] if row.name in names]
        return find_blocks(self._conn, self._source, names, level, asked)

    def load(self, rows: Sequence[BlockRow], soon: Sequence[str] = ()) -> dict[int, Content]:
        """As `load_blocks`. soon: names whose numbers as recorded are read along, where `look` has found them."""
        rest = [row for row in rows if row.id not in self._contents]
        if rest:
            known = {row.id for row in rest}
            more = [row for row in self._found.get(0, ()) if row.name in soon and row.id not in known]
            self._contents |= load_blocks(self._conn, [*rest, *more], self._most)
        return self._contents


def _in_order(row: BlockRow) -> tuple[int, str, int]:
    return row.attempt, row.name, row.first
