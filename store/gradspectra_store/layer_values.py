"""Statistics and metrics of all layers over a range of steps: the numbers behind a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.buckets import Bucketed, bucket
from gradspectra_core.layers import Layer
from gradspectra_core.records import Bool, Int64
from gradspectra_core.statistics import METRICS, STATISTICS
from gradspectra_core.views import LayerSeries
from numpy.typing import NDArray

from gradspectra_store.attempts import visible_spans
from gradspectra_store.errors import UnknownLayer, UnknownStatistic
from gradspectra_store.layer_tables import RunTable, run_tables
from gradspectra_store.names import known_names
from gradspectra_store.pieces import joined_buckets
from gradspectra_store.ranges import Grid, Range
from gradspectra_store.scan import Found, extent, find, load, pieces
from gradspectra_store.segments import layer_part

_Values = tuple[Int64, NDArray[Any], Bool]


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
    spans = visible_spans(conn, run, attempt)
    known = known_names(conn, run, "layer")
    if statistic not in known and statistic not in STATISTICS and statistic not in METRICS:
        raise UnknownStatistic(statistic, known.keys() | STATISTICS.keys() | METRICS.keys())
    tables = run_tables(conn, run)
    rows = _chosen(tables, layers)
    metric = METRICS.get(statistic)
    inputs = metric.inputs if metric is not None and metric.function is not None else (statistic,)
    derived = known.get(statistic, statistic in METRICS) and inputs == (statistic,)
    found = find(conn, run, "layers", spans, wanted.start, wanted.stop, derived=derived)
    grid = Grid.of(*(extent(found) or (0, -1)), columns)
    function = None if metric is None else metric.function
    answers = []
    for piece in pieces(found, grid.piece(len(rows) * len(inputs))):
        read = [_read(conn, piece, name, tables, rows, derived=derived) for name in inputs]
        steps, values, present = read[0] if function is None else _computed(function, read)
        some: Bool = np.any(present, axis=1)
        if not some.all():
            steps, values, present = steps[some], values[some], present[some]
        answers.append(bucket(steps, values.T, present.T, grid.width))
    return _shown(statistic, rows, joined_buckets(answers, len(rows)), keep_empty=layers is not None)


def _chosen(tables: dict[str, RunTable], names: Sequence[str] | None) -> list[Layer]:
    """The layers to give: of a layer that changed its shape, the newest."""
    every = {layer.name: layer for table in tables.values() for layer in table.table.layers}
    if names is None:
        return list(every.values())
    for name in names:
        if name not in every:
            raise UnknownLayer(name)
    return [every[name] for name in dict.fromkeys(names)]


def _read(
    conn: sa.Connection,
    found: Sequence[Found],
    statistic: str,
    tables: dict[str, RunTable],
    rows: list[Layer],
    *,
    derived: bool,
) -> _Values:
    """Steps (S,), values and presence (S, L) of one stored statistic, as recorded."""
    places = {digest: _places(table, rows) for digest, table in tables.items()}
    pieces = []
    for segment, part in load(conn, found, partial(layer_part, statistic=statistic), statistic, derived=derived):
        cut = segment.cut(part.steps) if len(part.steps) else slice(0, 0)
        if cut.stop > cut.start:
            pieces.append((part.steps[cut], part.values[cut], part.present, cut, places[segment.digest or ""]))
    steps = np.concatenate([piece[0] for piece in pieces]) if pieces else np.empty(0, np.int64)
    dtype = np.result_type(np.float32, *{piece[1].dtype for piece in pieces})
    values = np.full((len(steps), len(rows)), np.nan, dtype)
    present = np.zeros(values.shape, np.bool_)
    end = 0
    for own_steps, own_values, own_present, cut, (source, target) in pieces:
        begin, end = end, end + len(own_steps)
        values[begin:end, target] = own_values[:, source]
        present[begin:end, target] = True if own_present is None else own_present[cut][:, source]
    return _sorted(steps, values, present)


def _places(table: RunTable, rows: list[Layer]) -> tuple[Any, Any]:
    """Which columns of a segment of this table go to which columns of the answer; slices where all go as they are."""
    target = {layer.name: place for place, layer in enumerate(rows)}
    names = table.table.names
    if names == tuple(target):
        return slice(None), slice(None)
    source = [place for place, name in enumerate(names) if name in target]
    return source, [target[names[place]] for place in source]


def _sorted(steps: Int64, values: NDArray[Any], present: Bool) -> _Values:
    """Bring steps in order and join rows of one step: metrics of one batch may come in several blocks."""
    if (steps[1:] > steps[:-1]).all():
        return steps, values, present
    unique, row = np.unique(steps, return_inverse=True)
    joined = np.full((len(unique), values.shape[1]), np.nan, values.dtype)
    there = np.zeros(joined.shape, np.bool_)
    at, layer = np.nonzero(present)
    joined[row[at], layer] = values[at, layer]
    there[row[at], layer] = True
    return unique, joined, there


def _computed(function: Any, inputs: list[_Values]) -> _Values:
    """Apply an on-read metric where all its inputs are present, at the steps they share."""
    steps = inputs[0][0]
    for other, _, _ in inputs[1:]:
        steps = np.intersect1d(steps, other, assume_unique=True)
    taken = [(values, present) for _, values, present in (_at(one, steps) for one in inputs)]
    present = np.logical_and.reduce([own for _, own in taken])
    return steps, function(*(values for values, _ in taken)), present


def _at(one: _Values, steps: Int64) -> _Values:
    if len(one[0]) == len(steps):
        return one
    at = np.searchsorted(one[0], steps)
    return steps, one[1][at], one[2][at]


def _shown(statistic: str, rows: list[Layer], buckets: Bucketed, *, keep_empty: bool) -> LayerSeries:
    x, mean, low, high, _, nonfinite, present = buckets
    keep: Bool = np.any(present, axis=1)
    if not keep_empty and not keep.all():
        rows = [layer for layer, kept in zip(rows, keep.tolist(), strict=True) if kept]
        mean, low, high, nonfinite, present = mean[keep], low[keep], high[keep], nonfinite[keep], present[keep]
    return LayerSeries(
        statistic=statistic,
        axis="step",
        x=x,
        layers=tuple(layer.name for layer in rows),
        roles=tuple(layer.role for layer in rows),
        depths=tuple(layer.depth for layer in rows),
        mean=mean,
        min=low,
        max=high,
        nonfinite=nonfinite,
        present=present,
    )
