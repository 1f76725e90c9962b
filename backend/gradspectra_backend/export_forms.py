"""Tables written piece by piece: CSV and JSON by the standard library and orjson, the others where pyarrow is there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import orjson
from gradspectra_core.jsonform import json_array

from gradspectra_backend.export_tables import Cells, Kind, Piece, Table

Format = Literal["csv", "json", "parquet", "arrow"]
MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
}
ROWS_AT_ONCE = 4096


def written(table: Table, form: Format) -> Iterator[bytes]:
    """Write a table in one of the forms, a few thousand rows at a time; parquet and arrow need pyarrow."""
    if form == "csv":
        return as_csv(table)
    if form == "json":
        return as_json(table)
    from gradspectra_backend.columnar import as_arrow, as_parquet

    return as_parquet(table) if form == "parquet" else as_arrow(table)


def as_csv(table: Table) -> Iterator[bytes]:
    """CSV with a line of names. Numbers read back as they were; nan, inf and -inf; a missing one is an empty cell.

    Lists are their entries separated by spaces.
    """
    yield _csv_lines([list(table.columns)])
    kinds = list(table.columns.values())
    for part in _parts(table):
        rows = zip(*(_csv_cells(cells, kind) for cells, kind in zip(part, kinds, strict=True)), strict=True)
        yield _csv_lines(rows)


def as_json(table: Table) -> Iterator[bytes]:
    """A JSON list with an object per row, each on a line; "NaN", "Infinity" and "-Infinity"; null for missing."""
    names, kinds = list(table.columns), list(table.columns.values())
    separator = b"[\n"
    for part in _parts(table):
        lines = io.BytesIO()
        for row in zip(*(_json_cells(cells, kind) for cells, kind in zip(part, kinds, strict=True)), strict=True):
            lines.write(separator)
            lines.write(orjson.dumps(dict(zip(names, row, strict=True))))  # kept by themselves they take 4 KiB each
            separator = b",\n"
        yield lines.getvalue()
    yield b"[]\n" if separator == b"[\n" else b"\n]\n"


def _parts(table: Table) -> Iterator[Piece]:
    """The rows, ROWS_AT_ONCE at a time: a number takes up four times as much room while it is an object."""
    for piece in table.pieces:
        for begin in range(0, len(piece[0]), ROWS_AT_ONCE):
            yield [cells.rows(begin, begin + ROWS_AT_ONCE) for cells in piece]


def _csv_lines(rows: Iterable[Any]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue().encode()


def _csv_cells(cells: Cells, kind: Kind) -> list[Any]:
    if kind in ("integers", "numbers"):
        return [" ".join(map(repr, entry.tolist())) for entry in cells.values]
    entries = cells.values if kind == "text" else cells.values.tolist()
    if cells.present is None:
        return list(entries)
    return [entry if there else None for entry, there in zip(entries, cells.present.tolist(), strict=True)]


def _json_cells(cells: Cells, kind: Kind) -> list[Any]:
    if kind == "text":
        return list(cells.values)
    if kind in ("integers", "numbers"):
        return [json_array(entry) for entry in cells.values]
    return json_array(cells.values, cells.present)
