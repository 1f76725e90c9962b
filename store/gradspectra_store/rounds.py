"""The next round of compaction of a run: what its segments hold, made into blocks. Reads alone; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.recorded import overlaid
from gradspectra_core.statistics import METRICS

from gradspectra_store.block_rows import Source
from gradspectra_store.compaction import Extent, Loose, Round, extent_of, loose_segments, rounds_of
from gradspectra_store.layer_tables import run_layers
from gradspectra_store.layer_values import layer_quantity, placed
from gradspectra_store.levels import Quantity
from gradspectra_store.making_blocks import Making
from gradspectra_store.names import known_names
from gradspectra_store.retired import without_retired
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import layer_parts, scalar_part, times_of

TIMES = ""
"""The name under which the times of steps lie beside the series."""

_AT_ONCE = 500
Parts = dict[str, list[Recorded]]


def next_round(conn: sa.Connection, run: str) -> Round | None:
    """Compute the next round of a run from one snapshot of it; None where nothing can be compacted now.

    A round is about 4 MiB of segments of one source, in order of batches. Where some have steps below those compacted
    before, the round ends with the last of these, and all of it is laid over what is there.
    """
    chosen = loose_segments(conn, run)
    if chosen is None:
        return None
    conn.execution_options(segment_cache=None)  # what is read here is about to go
    source, loose = chosen
    extent = extent_of(conn, source)
    through = 0 if extent is None else extent.through
    late = [at for at, one in enumerate(loose) if one.first_step < through]
    own = loose[: late[-1] + 1] if late else loose
    rows, parts = _contents(conn, source, own)
    fresh = {name: overlaid(recorded, rows) for name, recorded in parts.items()}
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
    new, gone = tuple(making.new), tuple(making.replaced)
    return Round(source, rounds_of(conn, run), ids, gone, new, Extent(first, last, through))


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


def _contents(conn: sa.Connection, source: Source, loose: Sequence[Loose]) -> tuple[int, Parts]:
    """Number of rows, and by name what the segments hold, in order of batches."""
    payloads = _payloads(conn, source, loose)
    found: Parts = {}
    if source.kind == "scalars":
        for one in loose:
            series = scalar_part(payloads[one.id])
            for name in series.rows:
                found.setdefault(name, []).append(series.recorded(name))
            if not source.derived:
                steps, times = times_of(payloads[one.id])
                found.setdefault(TIMES, []).append(Recorded(steps, times[None], None))
        return 1, found
    places = run_layers(conn, source.run).places
    for one in loose:
        for name, part in layer_parts(payloads[one.id]).items():
            found.setdefault(name, []).append(placed(part, places[one.digest or ""]))
    return max((int(own.max(initial=-1)) + 1 for own in places.values()), default=0), found


def _payloads(conn: sa.Connection, source: Source, loose: Sequence[Loose]) -> dict[int, bytes]:
    table = derived_segments if source.derived else segments
    found: dict[int, bytes] = {}
    for begin in range(0, len(loose), _AT_ONCE):
        ids = [one.id for one in loose[begin : begin + _AT_ONCE]]
        rows = conn.execute(sa.select(table.c.id, table.c.payload).where(table.c.id.in_(ids)))
        found.update((row.id, row.payload) for row in rows)
    return found
