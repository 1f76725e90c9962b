"""The next transaction that retires a run: fine blocks of layer values go where wide buckets hold their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from gradspectra_core.blocks import pack_level
from gradspectra_core.statistics import METRICS
from gradspectra_core.widths import finer_than

from gradspectra_store.block_rows import Source, find_blocks, portions
from gradspectra_store.block_schema import blocks, extents
from gradspectra_store.compaction import NewBlock, delete_rows
from gradspectra_store.engines import insert_into
from gradspectra_store.layer_tables import layer_count
from gradspectra_store.layer_values import layer_quantity
from gradspectra_store.levels import Levels
from gradspectra_store.retention import Retention
from gradspectra_store.retention_schema import retired
from gradspectra_store.stretches import Stretch, united, without

CHUNK_BYTES = 4 << 20
_MOST_BLOCKS = 500


@dataclass(frozen=True, slots=True)
class Span:
    """Steps [first, stop) of one name of which nothing finer than the retention's level is left."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Retirement:
    """One transaction: these blocks go, these come."""

    source: Source
    width: int
    spans: tuple[Span, ...]
    gone: tuple[int, ...]
    made: tuple[NewBlock, ...]

    def write(self, conn: sa.Connection) -> None:
        """Do it in the caller's transaction, which has taken the run."""
        delete_rows(conn, blocks, self.gone)
        if self.made:
            place = self.source._asdict()
            rows = [{name: getattr(block, name) for name in NewBlock.__slots__} for block in self.made]
            conn.execute(sa.insert(blocks), [place | row for row in rows])
        for span in self.spans:
            note_span(conn, self.source, span, self.width)


def note_span(conn: sa.Connection, source: Source, span: Span, width: int) -> None:
    """Note of which steps nothing finer than `width` is left."""
    key = source._asdict() | {"name": span.name, "width": width}
    reach = {"first": span.first, "stop": span.stop}
    insert = insert_into(conn, retired).values(**key, **reach)
    conn.execute(insert.on_conflict_do_update(index_elements=list(key), set_=reach))


def spans_before(conn: sa.Connection, source: Source, width: int) -> dict[str, Span]:
    """Return by name what has been noted of a source."""
    place = [retired.c[field] == value for field, value in (source._asdict() | {"width": width}).items()]
    rows = conn.execute(sa.select(retired.c.name, retired.c.first, retired.c.stop).where(*place))
    return {row.name: Span(*row) for row in rows}


def open_spans(conn: sa.Connection, run: str, wanted: Retention) -> list[tuple[Source, list[Span]]]:
    """Return for each source of layer values, by name, the steps whose buckets of the level that is kept are there.

    Rank 0's alone: other ranks' numbers have no pyramid. A name without that level is as sparse as its buckets would
    be, and stays as it is.
    """
    query = sa.select(extents).where(extents.c.run == run, extents.c.kind == "layers", extents.c.rank == 0)
    found = []
    for row in conn.execute(query.order_by(extents.c.attempt, extents.c.derived)).all():
        source = Source(run, "layers", row.derived, row.attempt, 0)
        stop = row.through // wanted.width * wanted.width
        first = sa.func.min(blocks.c.first).label("first")
        begins = sa.select(blocks.c.name, first).where(*_of(source), blocks.c.level == wanted.level)
        rows = conn.execute(begins.group_by(blocks.c.name).order_by(blocks.c.name)).all()
        found.append((source, [Span(row.name, row.first, stop) for row in rows if row.first < stop]))
    return found


def finer_blocks(
    source: Source, names: Sequence[str], first: int, stop: int, level: int
) -> list[sa.ColumnElement[bool]]:
    """Say of `blocks`: those of some names that are finer than a level and lie in [first, stop) as a whole."""
    inside = blocks.c.level.in_(finer_than(level)), blocks.c.first >= first, blocks.c.stop <= stop
    return [*_of(source), blocks.c.name.in_(names), *inside]


def next_layers(conn: sa.Connection, run: str, wanted: Retention) -> Retirement | None:
    """Compute the next transaction from one snapshot of the run, of about 4 MiB; None where nothing is left to go."""
    for source, spans in open_spans(conn, run, wanted):
        before = spans_before(conn, source, wanted.width)
        left, done = CHUNK_BYTES, []
        gone: list[int] = []
        for span in spans:
            taken, stop, size = _taken(conn, source, span, wanted, left, _MOST_BLOCKS - len(gone))
            if taken:
                begin = before[span.name].first if span.name in before else span.first
                done.append(Span(span.name, min(begin, span.first), max(stop, _stop(before.get(span.name)))))
                gone += taken
                left -= size
            if left <= 0 or len(gone) >= _MOST_BLOCKS:
                break
        if gone:
            made = _made(conn, source, done, before, wanted)
            return Retirement(source, wanted.width, tuple(done), tuple(gone), tuple(made))
    return None


def _stop(span: Span | None) -> int:
    return 0 if span is None else span.stop


def _of(source: Source) -> list[sa.ColumnElement[bool]]:
    return [blocks.c[field] == value for field, value in source._asdict().items()]


def _taken(
    conn: sa.Connection, source: Source, span: Span, wanted: Retention, left: int, most: int
) -> tuple[list[int], int, int]:
    """Ids of the first blocks that can go, the step below which nothing finer is sure to be left then, their bytes."""
    size = sa.func.length(blocks.c.payload).label("size")
    query = sa.select(blocks.c.id, blocks.c.stop, size).where(
        *finer_blocks(source, [span.name], span.first, span.stop, wanted.level)
    )
    ids: list[int] = []
    stop = total = 0
    for row in conn.execute(query.order_by(blocks.c.stop, blocks.c.id).limit(most)):
        ids.append(row.id)
        stop, total = row.stop, total + row.size
        if total >= left:
            break
    return ids, -(-stop // wanted.width) * wanted.width, total


def _made(
    conn: sa.Connection, source: Source, spans: Sequence[Span], before: dict[str, Span], wanted: Retention
) -> list[NewBlock]:
    """Buckets of metrics that are computed of what goes, where they have none: being sparse, they needed none."""
    found: list[NewBlock] = []
    if source.derived:
        return found
    rows = layer_count(conn, source.run)
    recorded = set(conn.execute(sa.select(blocks.c.name).where(*_of(source), blocks.c.level == 0).distinct()).scalars())
    for name, metric in METRICS.items():
        if metric.function is None or name in recorded or not recorded >= set(metric.inputs):
            continue
        going = [span for span in spans if span.name in metric.inputs]
        asked = united(Stretch(source.attempt, _begin(before.get(one.name), one), one.stop) for one in going)
        there = united(row.stretch for row in find_blocks(conn, source, [name], wanted.level, asked))
        bare = [piece for one in asked for piece in without(one, there)]
        if bare:
            quantity = layer_quantity(name, rows)
            (level,) = Levels(conn, source).read([quantity], wanted.level, bare)
            for cut in portions(level.numbers, level.rows):
                part = level.cut(cut)
                first, stop = int(part.numbers[0]) * wanted.width, (int(part.numbers[-1]) + 1) * wanted.width
                packed = pack_level(wanted.level, part)
                found.append(NewBlock(name, wanted.level, first, stop, len(part.numbers), packed))
    return found


def _begin(before: Span | None, span: Span) -> int:
    """Where what goes now begins: behind what went before."""
    return span.first if before is None else before.stop
