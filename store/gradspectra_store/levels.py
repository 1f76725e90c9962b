"""Read a level of the pyramid over stretches of steps: from blocks where they reach, the rest from the level below.

What is not compacted yet is read from segments; buckets that hold such steps, or the edge of a stretch, are made of
the buckets below them. The same steps thus give the same bits however they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import DamagedBlock, Recorded
from gradspectra_core.pyramid import Level, coarser, joined
from gradspectra_core.recorded import between, overlaid
from gradspectra_core.records import Int64
from gradspectra_core.widths import ladder, width_of

from gradspectra_store.ahead import Ahead
from gradspectra_store.block_rows import BlockRow, Content, Source
from gradspectra_store.quantities import Quantity
from gradspectra_store.scan import Found, Reaches
from gradspectra_store.stretches import Stretch, united, whole, within, without

FEW = 64
"""So many steps at the ends of a range, or fewer, are read as they were recorded, whatever levels have them."""

Segments = Callable[[str, Sequence[Found]], Iterable[tuple[Found, Recorded | None]]]
"""Gives what segments hold of a name, in the order in which later numbers take the place of earlier ones; None of one
that is damaged."""


class Levels:
    """Reads the levels of one source's quantities.

    found: the segments that are not compacted and lie in what will be asked for; segments: reads them. reaches: first
    and last step of each attempt. chosen: the rows to give of each quantity, None for all. retired: the steps of which
    damaged buckets cannot be made again. most: rows that there are, where blocks may have more of them, which nobody
    knows any more. damaged: afterwards, the steps that a damaged block or segment has lost,
    also before a bucket was made of it.
    """

    def __init__(
        self,
        conn: sa.Connection,
        source: Source,
        found: Sequence[Found] = (),
        segments: Segments | None = None,
        reaches: Reaches | None = None,
        chosen: Int64 | None = None,
        retired: Sequence[Stretch] = (),
        most: int | None = None,
    ) -> None:
        self.damaged: set[Stretch] = set()
        self.reaches = reaches or {}
        self._most = most
        self._conn = conn
        self._source = source
        self._found = [(one, one.stretch) for one in found]
        self._segments = segments
        self._chosen = chosen
        self._retired = retired
        self._loose = united(own for _, own in self._found)

    @property
    def loose(self) -> int:
        """Steps that are not compacted."""
        return sum(one.stop - one.first for one in self._loose)

    def read(self, quantities: Sequence[Quantity], number: int, stretches: Sequence[Stretch]) -> list[Level]:
        """Return level `number` (widths.py) of each over the stretches, which hold no step twice."""
        return [joined(parts) for parts in self.parts(quantities, number, stretches)]

    def parts(self, quantities: Sequence[Quantity], number: int, stretches: Sequence[Stretch]) -> list[list[Level]]:
        """Return what `read` does of each as levels that follow one another in order of their buckets."""
        known = set(self.damaged)
        found = self._parts(quantities, number, stretches, FEW)
        if self.damaged != known:  # levels that were passed over may have what is lost below them
            self.damaged = known
            found = self._parts(quantities, number, stretches, 0)
        return found

    def _parts(
        self, quantities: Sequence[Quantity], number: int, stretches: Sequence[Stretch], few: int
    ) -> list[list[Level]]:
        """As `parts`; where no more than `few` steps are left to read in blocks, as they were recorded."""
        rest = {quantity.name: self._to_the_ends(stretches) for quantity in quantities}
        taken: dict[str, dict[int, list[tuple[Level, Stretch]]]] = {quantity.name: {} for quantity in quantities}
        broken: dict[str, list[Stretch]] = {quantity.name: [] for quantity in quantities}
        blocks = Ahead(self._conn, self._source, self._most)
        inputs = sorted({name for quantity in quantities for name in quantity.inputs})
        if number:
            self._look_ahead(blocks, list(rest), inputs, number, self._to_the_ends(stretches), few)
        for level in reversed(ladder(number)):
            if level != number and all(self._left(own) <= few for own in rest.values()):
                break
            wholes = [whole(one, width_of(level)) for one in _all(rest.values())]
            rows = blocks.find(list(rest), level, wholes)
            wanted = {row.id: (row, self._clean(row, rest[row.name])) for row in rows}
            contents = blocks.load([row for row, parts in wanted.values() if parts], inputs)
            for row, parts in wanted.values():
                content = contents.get(row.id)
                if isinstance(content, Level):
                    taken[row.name].setdefault(level, []).extend((content, part) for part in parts)
                    self.damaged.update(_lost(content, parts))
                else:
                    broken[row.name] += parts
            for name, left in rest.items():
                gone = united(part for _, part in taken[name].get(level, ()))
                rest[name] = [piece for one in left for piece in without(one, gone)]
        for name, parts in broken.items():
            unread = [piece for part in parts for piece in within(rest[name], part)]
            self.damaged.update(own for piece in unread for own in within(self._retired, piece))
        recorded = self._pieces({quantity: rest[quantity.name] for quantity in quantities}, blocks)
        return [
            self._raised(quantity, own, taken[quantity.name], number)
            for quantity, own in zip(quantities, recorded, strict=True)
        ]

    def _to_the_ends(self, stretches: Sequence[Stretch]) -> list[Stretch]:
        """The same stretches, no further than their attempts reach unless numbers are retired, whose last bucket may.

        Where the first begins with its attempt's numbers, the bucket there is a whole one.
        """
        found = sorted(stretches, key=lambda one: one.first)
        if found and found[0].first <= self.reaches.get(found[0].attempt, (-1, -1))[0]:
            found[0] = found[0]._replace(first=0)
        if self._retired:
            return found
        ends = {attempt: last + 1 for attempt, (_, last) in self.reaches.items()}
        cut = (one._replace(stop=min(one.stop, ends.get(one.attempt, one.stop))) for one in found)
        return [one for one in cut if one.first < one.stop]

    def _look_ahead(
        self, blocks: Ahead, names: Sequence[str], inputs: Sequence[str], level: int, asked: list[Stretch], few: int
    ) -> None:
        """Find the blocks of a level, and those of the steps beside it that will be read as they were recorded."""
        width = width_of(level)
        wholes = united(whole(piece, width) for one in asked for piece in without(one, self._loose))
        ends = [piece for one in asked for piece in without(one, wholes)]
        if self._left(ends) <= few:
            blocks.look([(names, level, [whole(one, width) for one in asked]), (inputs, 0, ends)])

    def _left(self, rest: Sequence[Stretch]) -> float:
        """How many of these steps blocks may have as they were recorded, infinite where some have only buckets left."""
        pieces = [piece for one in rest for piece in without(one, self._loose)]
        if any(within(self._retired, piece) for piece in pieces):
            return math.inf
        return sum(piece.stop - piece.first for piece in pieces)

    def recorded(self, names: Sequence[str], rows: int, stretches: Sequence[Stretch]) -> list[Recorded]:
        """Return what was recorded of each name over the stretches, all of its `rows` rows."""
        quantities = {Quantity(name, (name,), rows, last=False): list(stretches) for name in names}
        blocks = Ahead(self._conn, self._source, self._most)
        return [overlaid(pieces[0], rows) for pieces in self._pieces(quantities, blocks)]

    def _clean(self, row: BlockRow, rest: Sequence[Stretch]) -> list[Stretch]:
        """The whole buckets of a block that are asked for and have nothing in segments."""
        width = width_of(row.level)
        pieces = (whole(piece, width) for one in within(rest, row.stretch) for piece in without(one, self._loose))
        return [piece for piece in pieces if piece.first < piece.stop]

    def _raised(
        self,
        quantity: Quantity,
        pieces: list[list[Recorded]],
        taken: dict[int, list[tuple[Level, Stretch]]],
        number: int,
    ) -> list[Level]:
        if number == 0 and (parts := [self._select(quantity.leaves(one)[0]) for one in quantity.apart(pieces)]):
            return parts
        current, dtype = quantity.leaves([overlaid(own, quantity.rows) for own in pieces])
        current = self._select(current)
        parts, width = [current], 1
        for level in ladder(number):
            current = coarser(current, width_of(level) // width, dtype)
            width = width_of(level)
            parts = []
            for content, part in taken.get(level, ()):
                begin, end = np.searchsorted(content.numbers, (part.first // width, part.stop // width))
                whole = end - begin == len(content.numbers)
                cut = content if whole else content.cut(slice(int(begin), int(end)))
                parts.append(self._select(cut, quantity.rows))
            parts = ordered([current, *parts])
            if level != number:
                current = joined(parts)
                dtype = current.mean.dtype if len(current.numbers) else dtype
        return parts

    def _select(self, level: Level, rows: int | None = None) -> Level:
        if self._chosen is not None:
            return level.select(self._chosen)
        return level if rows is None or rows == level.rows else level.select(np.arange(rows))

    def _pieces(self, wanted: dict[Quantity, list[Stretch]], blocks: Ahead) -> list[list[list[Recorded]]]:
        """What was recorded of each quantity's inputs over its own stretches, later pieces over earlier ones."""
        names = sorted({name for quantity in wanted for name in quantity.inputs})
        rows = blocks.find(names, 0, _all(wanted.values())) if names else []
        contents = blocks.load(rows)
        return [
            [self._pieces_of(name, stretches, rows, contents) for name in quantity.inputs]
            for quantity, stretches in wanted.items()
        ]

    def _pieces_of(
        self, name: str, stretches: list[Stretch], blocks: list[BlockRow], contents: dict[int, Content]
    ) -> list[Recorded]:
        parts = []
        for row in blocks:
            if row.name != name:
                continue
            content = contents.get(row.id)
            for piece in within(stretches, row.stretch):
                if isinstance(content, DamagedBlock):
                    self.damaged.add(piece)
                elif isinstance(content, Recorded):
                    parts.append(between(content, piece.first, piece.stop))
        if self._segments is not None:
            asked = {one.id: within(stretches, own) for one, own in self._found}
            for one, part in self._segments(name, [one for one, _ in self._found if asked[one.id]]):
                if part is None:
                    self.damaged.update(asked[one.id])
                else:
                    parts += [between(part, first, stop) for _, first, stop in asked[one.id]]
        return [part for part in parts if len(part.steps)]


def _lost(content: Level, parts: Sequence[Stretch]) -> Iterator[Stretch]:
    """The steps among `parts` whose numbers were damaged when the buckets were made."""
    if content.lost is not None:
        for first, stop in content.lost.T.tolist():
            yield from within(parts, Stretch(parts[0].attempt, first, stop))


def ordered(parts: Sequence[Level]) -> list[Level]:
    """Return levels in order of their buckets; empty ones are left out, but for the first of nothing else."""
    held = [part for part in parts if len(part.numbers)]
    return sorted(held, key=lambda part: int(part.numbers[0])) or list(parts[:1])


def _all(stretches: Iterable[Sequence[Stretch]]) -> list[Stretch]:
    return united(one for own in stretches for one in own)
