"""Tables as Parquet and Arrow files, written group by group: null is missing. Needs the extra `export`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradspectra_backend.arrow_arrays import lists, numbers, text
from gradspectra_backend.export_tables import Cells, Kind, Piece, Table

VALUES_A_GROUP = 1 << 20
"""A row group holds about so many cells: fewer, larger groups read faster and keep the file's footer small."""
_TYPES = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float64()),
}


class _Sink:
    """A file that keeps what is written until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep some bytes."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def take(self) -> bytes:
        """Give what was written since the last time."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def as_parquet(table: Table) -> Iterator[bytes]:
    """The table as a Parquet file, in order, about a row group at a time."""
    schema, sink = _schema(table), _Sink()
    with pq.ParquetWriter(sink, schema) as writer:
        for group in _groups(table):
            writer.write_table(pa.Table.from_batches(group, schema))
            yield sink.take()
    yield sink.take()


def as_arrow(table: Table) -> Iterator[bytes]:
    """The table as an Arrow IPC file, in order, a piece at a time."""
    schema, sink = _schema(table), _Sink()
    names, kinds = list(table.columns), list(table.columns.values())
    with pa.ipc.new_file(sink, schema) as writer:
        for piece in table.pieces:
            writer.write_batch(_batch(piece, names, kinds))
            yield sink.take()
    yield sink.take()


def _schema(table: Table) -> pa.Schema:
    return pa.schema([(name, _TYPES[kind]) for name, kind in table.columns.items()])


def _groups(table: Table) -> Iterator[list[pa.RecordBatch]]:
    """Join pieces to groups of about VALUES_A_GROUP cells."""
    group: list[pa.RecordBatch] = []
    values = 0
    kinds = list(table.columns.values())
    for piece in table.pieces:
        group.append(_batch(piece, list(table.columns), kinds))
        values += len(piece) * len(piece[0])
        if values >= VALUES_A_GROUP:
            yield group
            group, values = [], 0
    if group:
        yield group


def _batch(piece: Piece, names: list[str], kinds: list[Kind]) -> pa.RecordBatch:
    columns = [_column(cells, kind) for cells, kind in zip(piece, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=names)


def _column(cells: Cells, kind: Kind) -> pa.Array:
    if kind == "text":
        return text(cells.values)
    if kind in ("integers", "numbers"):
        return lists(cells.values, np.int64 if kind == "integers" else np.float64)
    return numbers(np.asarray(cells.values, np.int64 if kind == "integer" else np.float64), cells.present)
