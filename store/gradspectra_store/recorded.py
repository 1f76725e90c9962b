"""What was recorded, at the steps at which it was and in the type in which it came: counts are whole numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import Recorded

from gradspectra_store.attempts import visible_spans
from gradspectra_store.block_rows import Source
from gradspectra_store.errors import UnknownLayer
from gradspectra_store.layer_tables import run_layers
from gradspectra_store.layer_values import placed
from gradspectra_store.levels import Levels
from gradspectra_store.names import known_names
from gradspectra_store.pieces import merged_damage
from gradspectra_store.ranges import Range
from gradspectra_store.scan import Found, find, load
from gradspectra_store.segments import layer_part
from gradspectra_store.series import series_levels


@dataclass(frozen=True, slots=True)
class RecordedNames:
    """What was recorded of names, float32, float64 or int64; damaged: as in core's Series."""

    parts: dict[str, Recorded]
    damaged: tuple[tuple[int, int], ...]


def read_recorded(
    conn: sa.Connection,
    run: str,
    names: Sequence[str],
    start: int | None = None,
    stop: int | None = None,
    attempt: int | None = None,
) -> RecordedNames:
    """Return series at each of their own steps in [start, stop), one row each and every value there, of rank 0.

    Names that the run does not have are left out. attempt: as in `read_series`. Raises UnknownRun, and BadRequest for
    a range that cannot be.
    """
    wanted = Range.of(start, stop, 1)
    spans = visible_spans(conn, run, attempt)
    known = known_names(conn, run, "run")
    found: dict[str, Recorded] = {}
    readers = []
    for derived in (False, True):
        own = [name for name in dict.fromkeys(names) if known.get(name) is derived]
        if own:
            levels = series_levels(conn, run, spans, wanted, derived=derived)
            found.update(zip(own, levels.recorded(own, 1, wanted.stretches(spans)), strict=True))
            readers.append(levels)
    return RecordedNames(found, merged_damage(readers))


def read_recorded_layers(
    conn: sa.Connection,
    run: str,
    statistics: Sequence[str],
    layers: Sequence[str],
    start: int | None = None,
    stop: int | None = None,
    attempt: int | None = None,
) -> RecordedNames:
    """Return statistics of layers at each of their own steps in [start, stop), a row for each of `layers`, of rank 0.

    statistics: those that were sent; others are left out. attempt: as in `read_series`. Raises UnknownLayer,
    UnknownRun, and BadRequest for a range that cannot be.
    """
    wanted = Range.of(start, stop, 1)
    spans = visible_spans(conn, run, attempt)
    known = known_names(conn, run, "layer")
    every = run_layers(conn, run)
    for name in layers:
        if name not in every.order:
            raise UnknownLayer(name)
    rows = np.array([every.order[name] for name in layers], np.int64)
    found = find(conn, run, "layers", spans, wanted.start, wanted.stop, derived=False)

    def segments(name: str, own: Sequence[Found]) -> Iterator[tuple[Found, Recorded | None]]:
        for segment, part in load(conn, own, partial(layer_part, statistic=name), name, derived=False):
            if part is None or segment.digest not in every.places:
                yield segment, None
            elif len(part.steps):
                yield segment, placed(part, every.places[segment.digest])

    levels = Levels(conn, Source(run, "layers", False, 0, 0), found, segments, most=len(every.layers))
    own = [name for name in dict.fromkeys(statistics) if known.get(name) is False]
    parts = levels.recorded(own, len(every.layers), wanted.stretches(spans))
    chosen = (
        Recorded(one.steps, one.values[rows], None if one.present is None else one.present[rows]) for one in parts
    )
    return RecordedNames(dict(zip(own, chosen, strict=True)), merged_damage([levels]))
