"""Statistics and metrics of all layers over a range of steps: the numbers behind a heatmap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.buckets import Bucketed, shown
from gradspectra_core.layers import Layer
from gradspectra_core.records import Bool, Int64
from gradspectra_core.statistics import METRICS, STATISTICS
from gradspectra_core.views import LayerSeries
from gradspectra_core.widths import level_at, width_of

from gradspectra_store.block_rows import Source
from gradspectra_store.damaged import damaged_stretches
from gradspectra_store.errors import UnknownLayer, UnknownStatistic
from gradspectra_store.holes import Occupied, has_holes, narrowed, occupied
from gradspectra_store.kept_parts import Kept, Place
from gradspectra_store.layer_facts import layer_facts
from gradspectra_store.layer_tables import RunLayers
from gradspectra_store.levels import Levels
from gradspectra_store.names import known_name, known_names
from gradspectra_store.pieces import joined_buckets, merged_damage
from gradspectra_store.quantities import Quantity
from gradspectra_store.ranges import Grid, Range
from gradspectra_store.retired import Coarse, beside, read_beside, told
from gradspectra_store.scan import Found, extent, load
from gradspectra_store.segments import LayerPart, layer_part
from gradspectra_store.stretches import Stretch, within


def read_layers(
    conn: sa.Connection,
    run: str,
    statistic: str,
    start: int | None = None,
    stop: int | None = None,
    columns: int = 1000,
    layers: Sequence[str] | None = None,
    attempt: int | None = None,
) -> LayerSeries:
    """Return a statistic or metric of the run's layers at steps in [start, stop), in at most `columns` buckets.

    layers: names to give, in this order; None for all that have any of it, in the order of the layer tables.
    attempt: as in `read_series`. Raises UnknownStatistic naming those there are, UnknownLayer, UnknownRun and
    BadRequest.
    """
    wanted = Range.of(start, stop, columns)
    place = Place(
        conn, run, ("layers", run, statistic, wanted, columns, None if layers is None else tuple(layers), attempt)
    )
    kept = place.get()
    if kept is None:
        return _read(conn, run, statistic, wanted, columns, layers, attempt, place)
    buckets = _there(shown(kept.parts, kept.factor))
    return _shown(statistic, kept.rows, buckets, wanted, keep_empty=layers is not None)


def _read(
    conn: sa.Connection,
    run: str,
    statistic: str,
    wanted: Range,
    columns: int,
    layers: Sequence[str] | None,
    attempt: int | None,
    place: Place,
) -> LayerSeries:
    """As `read_layers`, where nothing is kept."""
    quantity = layer_quantity(statistic, 0)
    known = None if quantity.function is not None else known_name(conn, run, "layer", statistic)
    derived = quantity.function is None and (statistic in METRICS if known is None else known)
    names = list(dict.fromkeys([statistic, *quantity.inputs]))
    spans, every, reach, coarse, found, standing = layer_facts(conn, run, names, wanted, attempt, derived=derived)
    if known is None and statistic not in STATISTICS and statistic not in METRICS:
        raise UnknownStatistic(statistic, known_names(conn, run, "layer").keys() | STATISTICS.keys() | METRICS.keys())
    places = None if layers is None else _chosen(every, layers)
    rows = every.layers if places is None else [every.layers[at] for at in places]
    quantity = replace(quantity, rows=len(every.layers))
    segments = partial(_segments, conn, derived, every.places)
    retired = [own for one in coarse for own in one.stretches]
    source, most = Source(run, "layers", derived, 0, 0), len(every.layers)
    levels = Levels(conn, source, beside(found, coarse), segments, reach, places, retired, most)
    if coarse:  # there segments are not looked at
        gone = damaged_stretches(conn, run, "layers", derived=derived)
        levels.damaged.update(piece for one in wanted.stretches(spans) for piece in within(gone, one))
    question = _Question(levels, quantity, rows, wanted, spans, coarse)
    grid = Grid.of(*(extent([reach], spans, wanted.start, wanted.stop) or (0, -1)), columns)
    pieces = question.pieces(grid)
    buckets, kept = question.read(grid.width, pieces)
    if not coarse and has_holes(grid, columns, [buckets]):
        there = question.occupied(grid.width, pieces, kept)
        narrow = narrowed(grid, columns, there, [([quantity], levels)], wanted, spans)
        if narrow is not None:
            width, ranges = narrow
            buckets, kept = question.read(width, question.cut(ranges))
    if kept is not None and not levels.damaged:
        place.put(kept, standing)
    damage, left = merged_damage([levels]), told(coarse, wanted.stretches(spans), grid.width)
    return _shown(statistic, rows, buckets, wanted, damage, left, keep_empty=layers is not None)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a statistic, and what reads it. rows: the layers to give; spans: as `visible_spans` gives."""

    levels: Levels
    quantity: Quantity
    rows: Sequence[Layer]
    wanted: Range
    spans: dict[int, tuple[int, int]]
    coarse: Sequence[Coarse]

    def pieces(self, grid: Grid) -> list[list[Stretch]]:
        """The stretches of a grid that are read at a time."""
        widest = max((one.width for one in self.coarse), default=1)
        return self.cut(grid.pieces(self.quantity.rows * len(self.quantity.inputs), self.levels.loose, widest))

    def cut(self, ranges: Iterable[tuple[int, int]]) -> list[list[Stretch]]:
        """What is wanted of each range [first, stop)."""
        start, stop = self.wanted.start, self.wanted.stop
        return [Range(max(first, start), min(end, stop)).stretches(self.spans) for first, end in ranges]

    def read(self, width: int, pieces: Sequence[Sequence[Stretch]]) -> tuple[Bucketed, Kept | None]:
        """Return the buckets that have numbers, and what they are made of where that is one piece."""
        if len(pieces) == 1 and not self.coarse:
            number = level_at(width)
            (parts,) = self.levels.parts([self.quantity], number, pieces[0])
            kept = Kept(self.rows, parts, width // width_of(number))
            return _there(shown(kept.parts, kept.factor)), kept
        read = partial(read_beside, self.levels, self.quantity, width, ends=self.spans, coarse=self.coarse)
        return joined_buckets([_there(read(stretches=own)) for own in pieces], len(self.rows)), None

    def occupied(self, width: int, pieces: Sequence[Sequence[Stretch]], kept: Kept | None) -> list[Occupied]:
        """Return which buckets have numbers, piece by piece. kept: as `read` gave it."""
        if kept is not None:
            return [occupied(kept.parts, kept.factor)]
        number = level_at(width)
        every = (self.levels.parts([self.quantity], number, own)[0] for own in pieces)
        return [occupied(parts, width // width_of(number)) for parts in every]


def layer_quantity(name: str, rows: int) -> Quantity:
    """What a statistic or metric is made of, for so many layers."""
    metric = METRICS.get(name)
    if metric is None or metric.function is None:
        return Quantity(name, (name,), rows, last=False)
    return Quantity(name, metric.inputs, rows, last=False, function=metric.function)


def placed(part: LayerPart, places: Int64 | None) -> Recorded:
    """Return a statistic of a segment with a row for each of the run's layers up to the last that it has.

    places: of the segment's layers in the order of the run's, as RunLayers has them.
    """
    values, present = part.values.T, None if part.present is None else part.present.T
    if places is None:
        return Recorded(part.steps, values, present)
    shape = int(places.max(initial=-1)) + 1, len(part.steps)
    wide, there = np.zeros(shape, values.dtype), np.zeros(shape, np.bool_)
    wide[places] = values
    there[places] = True if present is None else present
    return Recorded(part.steps, wide, there)


def _segments(
    conn: sa.Connection, derived: bool, places: dict[str, Int64 | None], name: str, found: Sequence[Found]
) -> Iterator[tuple[Found, Recorded | None]]:
    for segment, part in load(conn, found, partial(layer_part, statistic=name), name, derived=derived):
        if part is None or segment.digest not in places:
            yield segment, None
        elif len(part.steps):
            yield segment, placed(part, places[segment.digest])


def _chosen(every: RunLayers, names: Sequence[str]) -> Int64:
    for name in names:
        if name not in every.order:
            raise UnknownLayer(name)
    return np.array([every.order[name] for name in dict.fromkeys(names)], np.int64)


def _there(buckets: Bucketed) -> Bucketed:
    """The buckets in which any of the layers has a value."""
    x, mean, low, high, last, nonfinite, present = buckets
    if present.all():
        return buckets
    some: Bool = np.any(present, axis=0)
    return x[some], mean[:, some], low[:, some], high[:, some], last[:, some], nonfinite[:, some], present[:, some]


def _shown(
    statistic: str,
    rows: Sequence[Layer],
    buckets: Bucketed,
    wanted: Range,
    damaged: tuple[tuple[int, int], ...] = (),
    retired: tuple[tuple[int, int, int], ...] = (),
    *,
    keep_empty: bool,
) -> LayerSeries:
    x, mean, low, high, _, nonfinite, present = buckets
    whole = present.size > 0 and present.all()
    if not keep_empty and not whole and not (keep := np.any(present, axis=1)).all():
        rows = [layer for layer, kept in zip(rows, keep.tolist(), strict=True) if kept]
        mean, low, high, nonfinite, present = mean[keep], low[keep], high[keep], nonfinite[keep], present[keep]
    return LayerSeries(
        statistic=statistic,
        axis="step",
        x=np.maximum(x, wanted.start),
        layers=tuple([layer.name for layer in rows]),
        roles=tuple([layer.role for layer in rows]),
        depths=tuple([layer.depth for layer in rows]),
        mean=mean,
        min=low,
        max=high,
        nonfinite=nonfinite,
        present=present,
        damaged=damaged,
        retired=retired,
    )
