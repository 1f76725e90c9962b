"""What a question about layers must know of its run before it reads, in one statement: several take longer to run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from gradspectra_store import attempts
from gradspectra_store.kept_parts import STANDING, Standing
from gradspectra_store.layer_tables import RunLayers, layers_of, unbroken
from gradspectra_store.prepared import PreparedAmong
from gradspectra_store.ranges import Range
from gradspectra_store.retired import Coarse, coarse_of, select_of_names
from gradspectra_store.scan import (
    REACHES_OF_BLOCKS,
    Found,
    Reaches,
    found_of,
    reaches_of,
    select_in_range,
    select_reaches,
)
from gradspectra_store.schema import layer_tables

_ATTEMPT, _TABLE, _REACH, _RETIRED, _SEGMENT, _STANDING = range(6)
_NUMBERS = 6
_TABLES = sa.select(layer_tables.c.position, layer_tables.c.digest).where(layer_tables.c.run == sa.bindparam("of_run"))


class LayerFacts(NamedTuple):
    """What the functions of these names tell of a run.

    spans: `visible_spans`; layers: `run_layers`; reach: `reaches`; coarse: `coarse_stretches`; found: `find`;
    standing: as STANDING says.
    """

    spans: dict[int, tuple[int, int]]
    layers: RunLayers
    reach: Reaches
    coarse: list[Coarse]
    found: list[Found]
    standing: Standing


def layer_facts(
    conn: sa.Connection, run: str, names: Sequence[str], wanted: Range, attempt: int | None, *, derived: bool
) -> LayerFacts:
    """Return what there is to know of layer values of some names. Raises as `visible_spans` does."""
    place = {"of_run": run, "of_kind": "layers", "of_derived": derived, "start": wanted.start, "stop": wanted.stop}
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(_STANDING + 1)]
    for what, *numbers, digest in _facts[derived].each(conn, names, place):
        rows[what].append((*numbers, digest))
    spans = attempts.spans_of(run, [row[:2] for row in rows[_ATTEMPT]], attempt)
    return LayerFacts(
        spans,
        layers_of(conn, run, unbroken((row[0], row[-1]) for row in rows[_TABLE])),
        reaches_of(row[:3] for row in rows[_REACH]),
        coarse_of(row[:4] for row in rows[_RETIRED]),
        found_of(rows[_SEGMENT], spans, wanted.start, wanted.stop, derived=derived),
        rows[_STANDING][0][:4],
    )


def _select(derived: bool, names: Sequence[sa.BindParameter[str]]) -> sa.CompoundSelect[Any]:
    return sa.union_all(
        _padded(_ATTEMPT, attempts.OF_RUN),
        _padded(_TABLE, _TABLES),
        _padded(_REACH, select_reaches(derived, "layers")),
        _padded(_REACH, REACHES_OF_BLOCKS),
        _padded(_RETIRED, select_of_names(names)),
        _padded(_SEGMENT, select_in_range(derived, "layers")),
        _padded(_STANDING, STANDING),
    )


def _padded(what: int, query: sa.Select[Any]) -> sa.Select[Any]:
    """A query of numbers and, it may be, a digest, as rows of one form: what they are, the numbers, the digest."""
    columns = list(query.selected_columns)
    digest = columns.pop() if columns[-1].name == "digest" else sa.literal_column("''")
    zeros: list[sa.ColumnElement[Any]] = [sa.literal_column("0")] * (_NUMBERS - len(columns))
    return query.with_only_columns(sa.literal_column(str(what)), *columns, *zeros, digest)


_facts = {derived: PreparedAmong(partial(_select, derived)) for derived in (False, True)}
