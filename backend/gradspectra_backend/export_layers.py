"""Layer values of a run as a table, read a range of steps at a time; counts as whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gradspectra_core.blocks import Recorded
from gradspectra_core.records import Int64
from gradspectra_core.statistics import METRICS, STATISTICS
from gradspectra_core.views import LayerSeries
from gradspectra_store import Store, read
from gradspectra_store.names import known_names, whole_names
from gradspectra_store.stretches import Stretch
from sqlalchemy import Connection

from gradspectra_backend.export_tables import (
    PLACE,
    Cells,
    Kind,
    Piece,
    Span,
    Table,
    as_kind,
    beside,
    kinds_of,
    pieces,
    see_to,
)

PARTS = {"": "mean", "_min": "min", "_max": "max"}
"""Of a bucket of several steps, where only such are left: what stands behind the name, and the part."""
LAYER: dict[str, Kind] = {**PLACE, "layer": "text", "role": "text", "depth": "integer"}


def layers_table(
    conn: Connection,
    store: Store,
    run: str,
    spans: Sequence[Span],
    names: Sequence[str],
    layers: Sequence[str],
    skip_damaged: bool = False,
) -> Table:
    """One row per step and layer that has a value: where and which layer, and a column per statistic and metric.

    Where buckets of several steps are left alone, `width` says of how many, and each mean has its minimum and maximum
    beside it. names: none for all there are. layers: those asked for, known ones. Raises UnknownStatistic, and as
    `series_table`.
    """
    chosen = _chosen(conn, run, names, layers)
    places = {layer["name"]: layer for layer in read.layer_list(conn, run)}
    widest = read.layers_left(conn, run, [Stretch(span.attempt, span.first, span.stop) for span in spans])
    kinds = kinds_of(chosen, whole_names(conn, run, "layer") if widest == 1 else set())
    counts = [name for name, kind in kinds.items() if kind == "integer"]
    if widest > 1:
        kinds = {f"{name}{behind}": "number" for name in chosen for behind in PARTS}

    def rows(conn: Connection, span: Span) -> tuple[Piece, int]:
        exact = read.read_recorded_layers(conn, run, counts, layers, span.first, span.stop, span.attempt)
        see_to(exact.damaged, skip_damaged)
        wanted = (span.first, span.stop, span.stop - span.first, layers, span.attempt)
        found = [read.read_layers(conn, run, name, *wanted) for name in chosen if name not in exact.parts]
        for one in found:
            see_to(one.damaged, skip_damaged)
        shown = {one.statistic: _parts(one, widest) for one in found}
        parts = [part for name in chosen for part in shown.get(name) or [exact.parts[name]]]
        typed = [
            replace(part, values=as_kind(kind, part.values)) for part, kind in zip(parts, kinds.values(), strict=True)
        ]
        return _rows(typed, [places[name] for name in layers], span.attempt, found if widest > 1 else ())

    size = len(chosen) * len(layers)
    columns = beside(LAYER | {"width": "integer"} if widest > 1 else LAYER, kinds)
    return Table(columns, pieces(store, (run, "layers"), spans if chosen else (), rows, max(size, 1), widest))


def _chosen(conn: Connection, run: str, names: Sequence[str], layers: Sequence[str]) -> list[str]:
    known = known_names(conn, run, "layer")
    every = [*STATISTICS, *METRICS, *(name for name in known if name not in STATISTICS and name not in METRICS)]
    chosen = list(dict.fromkeys(names)) or [name for name in every if name in known or _computed(name, known)]
    for name in chosen:
        read.read_layers(conn, run, name, 0, 0, 1, layers)
    return chosen


def _computed(name: str, known: dict[str, bool]) -> bool:
    """Whether a metric is computed on reading, from statistics that are there."""
    metric = METRICS.get(name)
    return metric is not None and metric.function is not None and all(entry in known for entry in metric.inputs)


def _parts(found: LayerSeries, widest: int) -> list[Recorded]:
    steps = np.asarray(found.x, np.int64)
    parts = list(PARTS.values()) if widest > 1 else ["mean"]
    return [Recorded(steps, getattr(found, part), found.present) for part in parts]


def _rows(
    parts: Sequence[Recorded], layers: Sequence[dict[str, Any]], attempt: int, of: Sequence[LayerSeries]
) -> tuple[Piece, int]:
    """Put numbers of the same L layers, each over its own steps, side by side. of: what widths are told of, if any."""
    steps = np.unique(np.concatenate([part.steps for part in parts]))
    present = np.zeros((len(parts), len(steps), len(layers)), np.bool_)
    wide = []
    for there, part in zip(present, parts, strict=True):
        at = np.searchsorted(steps, part.steps)
        values = np.zeros(there.shape, part.values.dtype)
        values[at], there[at] = part.values.T, True if part.present is None else part.present.T
        wide.append(values)
    step, layer = np.nonzero(present.any(0))
    own = [layers[place] for place in layer.tolist()]
    cells = [Cells(steps[step]), Cells(np.full(len(step), attempt))]
    cells += [Cells([one[text] for one in own]) for text in ("name", "role")]
    cells.append(Cells(np.array([one["depth"] for one in layers], np.int64)[layer]))
    if of:
        cells.append(Cells(_widths(of, steps)[step]))
    cells += [Cells(values[step, layer], there[step, layer]) for values, there in zip(wide, present, strict=True)]
    return cells, present.size


def _widths(found: Sequence[LayerSeries], steps: Int64) -> Int64:
    """How many steps the widest number at each step stands for, (N,)."""
    widths: Int64 = np.ones(len(steps), np.int64)
    for first, last, width in (entry for one in found for entry in one.retired):
        inside = (steps >= first) & (steps <= last)
        widths[inside] = np.maximum(widths[inside], width)
    return widths
