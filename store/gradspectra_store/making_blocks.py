"""Make the blocks of a round: new numbers are laid over what is recorded, and the pyramid above them is made again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import DamagedBlock, Recorded, pack_level, pack_recorded
from gradspectra_core.pyramid import Level, coarser, joined
from gradspectra_core.recorded import between, overlaid
from gradspectra_core.records import Int64
from gradspectra_core.widths import FACTOR, TOP, below, halfway, width_of

from gradspectra_store.block_rows import (
    BlockRow,
    Content,
    Source,
    find_blocks,
    load_blocks,
    most_entries,
    newest_blocks,
    oldest_block,
    portions,
)
from gradspectra_store.compaction import NewBlock
from gradspectra_store.levels import Levels
from gradspectra_store.quantities import Quantity
from gradspectra_store.stretches import Stretch, united, within


@dataclass(slots=True)
class Making:
    """The blocks that come and go in a round. through: below this step the pyramid was whole before the round."""

    conn: sa.Connection
    source: Source
    through: int
    new: list[NewBlock] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)

    def add(self, fresh: dict[str, Recorded], quantities: Sequence[Quantity], through: int) -> None:
        """Add numbers at steps from `self.through` on; the pyramid is then whole below `through`.

        quantities: all that the source has, also those without new numbers: buckets with old ones may become whole.
        """
        for quantity in quantities:
            self._grow(quantity, fresh, through)
        for name, recorded in fresh.items():
            self._record(name, recorded)

    def amend(self, late: dict[str, Recorded], quantities: Sequence[Quantity]) -> None:
        """Add numbers at any steps; whole buckets of the pyramid that hold such steps are made again."""
        for quantity in quantities:
            if set(quantity.inputs) & late.keys():
                self._mend(quantity, late)
        for name, recorded in late.items():
            self._record(name, recorded)

    def _record(self, name: str, fresh: Recorded) -> None:
        """Lay numbers over the blocks of level 0 they meet, else after the newest ones."""
        if not len(fresh.steps):
            return
        rows = fresh.values.shape[0]
        first, stop = int(fresh.steps[0]), int(fresh.steps[-1]) + 1
        met = find_blocks(self.conn, self.source, [name], 0, [Stretch(self.source.attempt, first, stop)])
        if not met:
            met = self._to_join(name, 0, first, len(fresh.steps), rows)
        parts = [part for part in self._taken(met) if isinstance(part, Recorded)]
        whole = overlaid([*parts, fresh], max([rows, *(part.values.shape[0] for part in parts)]))
        for cut in portions(whole.steps, whole.values.shape[0]):
            present = None if whole.present is None else whole.present[:, cut]
            part = Recorded(
                whole.steps[cut], whole.values[:, cut], None if present is None or present.all() else present
            )
            at, end = int(part.steps[0]), int(part.steps[-1]) + 1
            self.new.append(NewBlock(name, 0, at, end, len(part.steps), pack_recorded(part)))

    def _grow(self, quantity: Quantity, fresh: dict[str, Recorded], through: int) -> None:
        """Make the buckets that become whole, level by level, while there are any."""
        levels = Levels(self.conn, self.source)
        attempt, begin = self.source.attempt, _floor(self.through, FACTOR)
        if _floor(through, FACTOR) == begin:
            return
        old = levels.recorded(quantity.inputs, quantity.rows, [Stretch(attempt, begin, through)])
        parts = [
            overlaid([one, *([fresh[name]] if name in fresh else ())], quantity.rows)
            for name, one in zip(quantity.inputs, old, strict=True)
        ]
        lower, dtype = quantity.leaves(parts)
        for number in range(1, TOP + 1):
            width = width_of(number)
            end = _floor(through, width)
            if end == _floor(self.through, width):
                return
            own = lower.cut(lower.numbers < end // (width // FACTOR))
            level = self._raised(quantity, number, own, dtype, levels.damaged)
            begin, stop = _floor(self.through, width * FACTOR), _floor(self.through, width)
            (old_level,) = levels.read([quantity], number, [Stretch(attempt, begin, stop)] if begin < stop else [])
            lower = joined([old_level, level])
            dtype = lower.mean.dtype if len(lower.numbers) else dtype
            for wider in halfway(number):
                begin, end = (_floor(step, width_of(wider)) // width for step in (self.through, through))
                own = lower.cut((lower.numbers >= begin) & (lower.numbers < end))
                self._raised(quantity, wider, own, dtype, levels.damaged)

    def _raised(
        self, quantity: Quantity, number: int, lower: Level, dtype: np.dtype[Any], damaged: Iterable[Stretch]
    ) -> Level:
        """Make buckets of those below them, and write them if they are worth it."""
        level = _made(number, lower, dtype, damaged)
        if self._worth(quantity, number, level, lower):
            self._raise(quantity, number, level)
        return level

    def _worth(self, quantity: Quantity, number: int, level: Level, below: Level) -> bool:
        """Whether buckets are stored: a level begins where it is coarser than the numbers, and then goes on.

        Steps between two blocks of one level thus have no numbers.
        """
        if not len(level.numbers):
            return False
        return len(level.numbers) < len(below.numbers) or self._begins(quantity.name, number) is not None

    def _begins(self, name: str, level: int) -> int | None:
        oldest = oldest_block(self.conn, self.source, name, level)
        return None if oldest is None else oldest.first

    def _raise(self, quantity: Quantity, number: int, level: Level) -> None:
        """Write buckets after the newest ones of their level."""
        width = width_of(number)
        met = self._to_join(quantity.name, number, int(level.numbers[0]) * width, len(level.numbers), quantity.rows)
        parts = [part for part in self._taken(met, together=True) if isinstance(part, Level)]
        places = np.arange(max([quantity.rows, *(part.rows for part in parts)]))
        whole = joined([part.select(places) for part in (*parts, level)])
        for cut in portions(whole.numbers, whole.rows):
            self._put(quantity.name, number, whole.cut(cut))

    def _put(self, name: str, number: int, level: Level, row: BlockRow | None = None) -> None:
        width = width_of(number)
        first, stop = int(level.numbers[0]) * width, (int(level.numbers[-1]) + 1) * width
        if row is not None:
            first, stop = row.first, row.stop
        if level.lost is not None:
            within_it = within((Stretch(0, *one) for one in level.lost.T.tolist()), Stretch(0, first, stop))
            level = _lacking(level, within_it)
        self.new.append(NewBlock(name, number, first, stop, len(level.numbers), pack_level(number, level)))

    def _mend(self, quantity: Quantity, late: dict[str, Recorded]) -> None:
        """Make the whole buckets again that hold the steps of late numbers."""
        levels = Levels(self.conn, self.source)
        steps = np.unique(np.concatenate([late[name].steps for name in quantity.inputs if name in late]))
        numbers = self._whole(steps, 1)
        if not len(numbers):
            return
        stretches = self._over(numbers, 1)
        old = levels.recorded(quantity.inputs, quantity.rows, stretches)
        parts = []
        for name, one in zip(quantity.inputs, old, strict=True):
            new = [between(late[name], at.first, at.stop) for at in stretches] if name in late else []
            parts.append(overlaid([one, *new], quantity.rows))
        lower, dtype = quantity.leaves(parts)
        for number in range(1, TOP + 1):
            level = _made(number, lower, dtype, levels.damaged)
            self._replace(quantity, number, numbers, level)
            for above in halfway(number):
                wider, own = self._around(levels, quantity, number, numbers, level, above)
                if len(wider):
                    self._replace(quantity, above, wider, _made(above, own, dtype, levels.damaged))
            numbers, lower = self._around(levels, quantity, number, numbers, level, number + 1)
            if not len(numbers):
                return
            dtype = lower.mean.dtype if len(lower.numbers) else dtype

    def _around(
        self, levels: Levels, quantity: Quantity, number: int, numbers: Int64, level: Level, above: int
    ) -> tuple[Int64, Level]:
        """The whole buckets of a level above that hold those of `number` made again, and what they are made of."""
        wider = self._whole(numbers * width_of(number), above)
        (stored,) = levels.read([quantity], number, self._over(wider, above))
        lower = joined([stored.cut(~np.isin(stored.numbers, numbers)), level])
        return wider, lower.cut(np.isin(lower.numbers // (width_of(above) // width_of(number)), wider))

    def _replace(self, quantity: Quantity, number: int, numbers: Int64, level: Level) -> None:
        """Put buckets in the place of those of the same numbers, in the blocks that reach over them."""
        rows = find_blocks(self.conn, self.source, [quantity.name], number, self._over(numbers, number))
        contents = load_blocks(self.conn, rows)
        first = level.numbers * width_of(number)
        begins = self._begins(quantity.name, number)
        alone = np.full(len(first), begins is not None) & (first >= (begins or 0))
        for row in rows:
            content = contents[row.id]
            mine = (first >= row.first) & (first < row.stop)
            alone &= ~mine
            if isinstance(content, Level) and mine.any():
                places = np.arange(max(quantity.rows, content.rows))
                kept = content.cut(~np.isin(content.numbers, level.numbers[mine])).select(places)
                self.replaced.append(row.id)
                self._put(quantity.name, number, joined([kept, level.cut(mine).select(places)]), row)
        for at in np.flatnonzero(alone).tolist():
            self._put(quantity.name, number, level.cut(slice(at, at + 1)))

    def _to_join(self, name: str, level: int, first: int, entries: int, rows: int) -> list[BlockRow]:
        """The newest blocks to put together with new entries: eight of a size become one, full ones stay."""
        most = most_entries(rows)
        met: list[BlockRow] = []
        for row in reversed(newest_blocks(self.conn, self.source, name, level, 3 * FACTOR)):
            if row.stop > first or row.entries > most // 2 or _size(row.entries) > _size(entries):
                break
            met.insert(0, row)
        return met if len(met) >= FACTOR - 1 else []

    def _taken(self, rows: Sequence[BlockRow], *, together: bool = False) -> list[Content]:
        """Read blocks that are to be replaced; damaged ones stay where they are, if `together` with all others."""
        contents = load_blocks(self.conn, rows)
        good = [row for row in rows if not isinstance(contents[row.id], DamagedBlock)]
        if together and len(good) < len(rows):
            return []
        self.replaced += [row.id for row in good]
        return [contents[row.id] for row in good]

    def _whole(self, steps: Int64, level: int) -> Int64:
        """Numbers of the whole buckets below `through` that hold these steps."""
        width = width_of(level)
        numbers: Int64 = np.unique(steps // width)
        whole: Int64 = numbers[(numbers + 1) * width <= self.through]
        return whole

    def _over(self, numbers: Int64, level: int) -> list[Stretch]:
        width, attempt = width_of(level), self.source.attempt
        return united(Stretch(attempt, at * width, (at + 1) * width) for at in numbers.tolist())


def _floor(step: int, width: int) -> int:
    return step // width * width


def _made(number: int, lower: Level, dtype: np.dtype[Any], damaged: Iterable[Stretch]) -> Level:
    """Buckets of a level, of those of the level below it."""
    return _lacking(coarser(lower, width_of(number) // width_of(below(number)), dtype), damaged)


def _lacking(level: Level, damaged: Iterable[Stretch]) -> Level:
    """The same buckets, noting the steps that were damaged when they were made."""
    lost = [(one.first, one.stop) for one in united(damaged)]
    return replace(level, lost=np.array(lost, np.int64).T if lost else None)


def _size(entries: int) -> int:
    """0 below eight, 1 below 64, 2 below 512."""
    return (entries.bit_length() - 1) // 3
