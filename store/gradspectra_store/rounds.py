"""The next round of compaction of a run: what its segments hold, made into blocks. Reads alone; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.recorded import overlaid
from gradspectra_core.records import Int64
from gradspectra_core.statistics import METRICS

from gradspectra_store.block_rows import Source
from gradspectra_store.compaction import Extent, Loose, Round, extent_of, loose_segments, rounds_of
from gradspectra_store.damaged import DamagedSegment
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.layer_tables import run_layers
from gradspectra_store.layer_values import layer_quantity, placed
from gradspectra_store.making_blocks import Making
from gradspectra_store.names import known_names
from gradspectra_store.quantities import Quantity
from gradspectra_store.retired import without_retired
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import layer_parts, opened, scalar_part, times_of

TIMES = ""
"""The name under which the times of steps lie beside the series."""

_AT_ONCE = 500
Parts = dict[str, Recorded]
"""What one segment holds, by name."""


def next_round(conn: sa.Connection, run: str) -> Round | None:
    """Compute the next round of a run from one snapshot of it; None where nothing can be compacted now.

    A round is about 4 MiB of segments of one source, in order of batches. Where some have steps below those compacted
    before, the round ends with the last of these, and all of it is laid over what is there. Segments that cannot be
    read back stay as they are, and are noted, so that the next round looks past them.
    """
    chosen = loose_segments(conn, run)
    if chosen is None:
        return None
    conn.execution_options(segment_cache=None)  # what is read here is about to go
    source, loose = chosen
    contents, damaged = _contents(conn, source, loose)
    made = _made(conn, source, [one for one in loose if one.id in contents], contents)
    return replace(made, damaged=damaged)


def _made(conn: sa.Connection, source: Source, loose: Sequence[Loose], contents: dict[int, Parts]) -> Round:
    """The round that makes blocks of segments that could be read; of none it does nothing."""
    rounds = rounds_of(conn, source.run)
    if not loose:
        return Round(source, rounds, (), (), (), None)
    extent = extent_of(conn, source)
    through = 0 if extent is None else extent.through
    late = [at for at, one in enumerate(loose) if one.first_step < through]
    own = loose[: late[-1] + 1] if late else loose
    rows = 1 if source.kind == "scalars" else len(run_layers(conn, source.run).layers)
    fresh = _fresh([contents[one.id] for one in own], rows)
    if late:
        fresh = without_retired(conn, source, fresh)
    fresh = {name: recorded for name, recorded in fresh.items() if len(recorded.steps)}
    quantities = _quantities(conn, source, fresh, rows) if source.rank == 0 else []
    making = Making(conn, source, through)
    first, last = min(one.first_step for one in own), max(one.last_step for one in own)
    if late:
        making.amend(fresh, quantities)
    else:
        through = max(through, last + 1)
        making.add(fresh, quantities, through)
    if extent is not None:
        first, last = min(first, extent.first_step), max(last, extent.last_step)
    ids = tuple(one.id for one in own)
    return Round(source, rounds, ids, tuple(making.replaced), tuple(making.new), Extent(first, last, through))


def _fresh(contents: Sequence[Parts], rows: int) -> dict[str, Recorded]:
    """What segments hold by name, later ones over earlier ones."""
    found: dict[str, list[Recorded]] = {}
    for parts in contents:
        for name, part in parts.items():
            found.setdefault(name, []).append(part)
    return {name: overlaid(recorded, rows) for name, recorded in found.items()}


def _quantities(conn: sa.Connection, source: Source, fresh: dict[str, Recorded], rows: int) -> list[Quantity]:
    """What has a pyramid: all numbers of the source, and the metrics that are computed of them when asked for."""
    known = known_names(conn, source.run, "run" if source.kind == "scalars" else "layer")
    own = fresh.keys() | {name for name, derived in known.items() if derived == source.derived}
    names = sorted(own - {TIMES})
    if source.kind == "scalars":
        return [Quantity(name, (name,), 1, last=True) for name in names]
    if not source.derived:
        names += [name for name, metric in METRICS.items() if metric.function is not None and name not in own]
    quantities = [layer_quantity(name, rows) for name in names]
    return [quantity for quantity in quantities if set(quantity.inputs) <= own]


def _contents(
    conn: sa.Connection, source: Source, loose: Sequence[Loose]
) -> tuple[dict[int, Parts], tuple[DamagedSegment, ...]]:
    """What each segment holds, by its id, and the segments that cannot be read back."""
    places = {} if source.kind == "scalars" else run_layers(conn, source.run).places
    found: dict[int, Parts] = {}
    damaged: list[DamagedSegment] = []
    payloads = _payloads(conn, source, loose)
    for one in loose:
        read = partial(_series, derived=source.derived) if source.kind == "scalars" else partial(_layers, places, one)
        try:
            found[one.id] = opened(read, *payloads[one.id])
        except StoreDamaged:
            place = source.kind, one.attempt, one.rank, one.first_step, one.last_step
            damaged.append(DamagedSegment(source.run, source.derived, one.id, *place))
    return found, tuple(damaged)


def _series(payload: bytes, *, derived: bool) -> Parts:
    series = scalar_part(payload)
    found = {name: series.recorded(name) for name in series.rows}
    if not derived:
        steps, times = times_of(payload)
        found[TIMES] = Recorded(steps, times[None], None)
    return found


def _layers(places: dict[str, Int64 | None], segment: Loose, payload: bytes) -> Parts:
    if segment.digest not in places:
        raise StoreDamaged(f"the layer table {segment.digest} of a segment is gone")
    return {name: placed(part, places[segment.digest]) for name, part in layer_parts(payload).items()}


def _payloads(conn: sa.Connection, source: Source, loose: Sequence[Loose]) -> dict[int, tuple[bytes, int | None]]:
    table = derived_segments if source.derived else segments
    found: dict[int, tuple[bytes, int | None]] = {}
    for begin in range(0, len(loose), _AT_ONCE):
        ids = [one.id for one in loose[begin : begin + _AT_ONCE]]
        rows = conn.execute(sa.select(table.c.id, table.c.payload, table.c.checksum).where(table.c.id.in_(ids)))
        found.update((row.id, (row.payload, row.checksum)) for row in rows)
    return found
