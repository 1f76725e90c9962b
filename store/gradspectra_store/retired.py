"""Which steps of a run are left only in wide buckets, and reading these beside the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.buckets import Bucketed, shown
from gradspectra_core.widths import level_at, width_of

from gradspectra_store.attempts import visible_spans
from gradspectra_store.block_rows import Source
from gradspectra_store.levels import Levels
from gradspectra_store.prepared import PreparedAmong
from gradspectra_store.quantities import Quantity
from gradspectra_store.ranges import Range
from gradspectra_store.retention_schema import retired
from gradspectra_store.scan import Found
from gradspectra_store.stretches import Stretch, united, within, without

Ends = Mapping[int, tuple[int, int]]
"""As `visible_spans` gives: which steps an attempt speaks for."""


def select_of_names(names: Sequence[sa.BindParameter[str]]) -> sa.Select[Any]:
    """Say in SQL what is left of some names of a source of rank 0: width, attempt, first and stop."""
    return sa.select(*(retired.c[name] for name in ("width", "attempt", "first", "stop"))).where(
        *(retired.c[name] == sa.bindparam(f"of_{name}") for name in ("run", "kind", "derived")),
        retired.c.rank == 0,
        retired.c.name.in_(names),
    )


_of_names = PreparedAmong(select_of_names)


class Coarse(NamedTuple):
    """Stretches of which only buckets of `width` steps are left."""

    width: int
    stretches: list[Stretch]


def coarse_stretches(
    conn: sa.Connection, run: str, kind: str, names: Sequence[str], *, derived: bool = False
) -> list[Coarse]:
    """Return what is left of rank 0's numbers of any of these names, the widest first; no step is in two of them."""
    return coarse_of(_of_names.each(conn, names, {"of_run": run, "of_kind": kind, "of_derived": derived}))


def coarse_of(rows: Iterable[Sequence[Any]]) -> list[Coarse]:
    """As `coarse_stretches`, of rows as `select_of_names` gives."""
    by_width: dict[int, list[Stretch]] = {}
    for width, attempt, first, stop in rows:
        by_width.setdefault(width, []).append(Stretch(attempt, first, stop))
    found: list[Coarse] = []
    wider: list[Stretch] = []
    for width in sorted(by_width, reverse=True):
        own = [piece for one in united(by_width[width]) for piece in without(one, wider)]
        found.append(Coarse(width, own))
        wider = united([*wider, *own])
    return found


def without_retired(conn: sa.Connection, source: Source, fresh: dict[str, Recorded]) -> dict[str, Recorded]:
    """Return numbers by name without those at steps of which a source has only wide buckets left.

    A bucket cannot tell what it was made of, so nothing can be added to it.
    """
    place = [retired.c[field] == value for field, value in source._asdict().items()]
    gone = conn.execute(sa.select(retired.c.first, retired.c.stop).where(*place).distinct()).all()
    if not gone:
        return fresh
    found = {}
    for name, part in fresh.items():
        keep = np.ones(len(part.steps), np.bool_)
        for first, stop in gone:
            keep &= (part.steps < first) | (part.steps >= stop)
        found[name] = Recorded(
            part.steps[keep], part.values[:, keep], None if part.present is None else part.present[:, keep]
        )
    return found


def beside(found: Sequence[Found], coarse: Sequence[Coarse]) -> list[Found]:
    """Return what segments hold of the steps that are left as they were recorded."""
    gone = united(own for one in coarse for own in one.stretches)
    if not gone:
        return list(found)
    return [replace(one, first=piece.first, stop=piece.stop) for one in found for piece in without(one.stretch, gone)]


def told(coarse: Sequence[Coarse], asked: Sequence[Stretch], width: int) -> tuple[tuple[int, int, int], ...]:
    """Return first and last step and width of the ranges in which an answer had to be coarser than `width` steps."""
    return tuple(
        sorted(
            (piece.first, piece.stop - 1, one.width)
            for one in coarse
            if one.width > width
            for stretch in asked
            for piece in united(within(one.stretches, stretch))
        )
    )


def layers_left(conn: sa.Connection, run: str, stretches: Sequence[Stretch]) -> int:
    """Return how wide the widest buckets are of which alone layer values are left in the stretches; 1 for all steps."""
    of_run = retired.c.run == run, retired.c.kind == "layers", retired.c.rank == 0
    columns = [retired.c[name] for name in ("width", "attempt", "first", "stop")]
    return max(
        (
            int(width)
            for width, *place in conn.execute(sa.select(*columns).where(*of_run))
            if within(stretches, Stretch(*place))
        ),
        default=1,
    )


def spectra_left(
    conn: sa.Connection, run: str, start: int | None = None, stop: int | None = None, attempt: int | None = None
) -> tuple[tuple[int, int, int], ...]:
    """Return the ranges of [start, stop), first and last step, that have one spectrum of each layer in so many steps.

    attempt: as in `read_series`. Raises UnknownRun and BadRequest.
    """
    asked = Range.of(start, stop, 1).stretches(visible_spans(conn, run, attempt))
    return told(coarse_stretches(conn, run, "spectra", [""]), asked, 0)


def read_beside(
    levels: Levels, quantity: Quantity, width: int, stretches: Sequence[Stretch], ends: Ends, coarse: Sequence[Coarse]
) -> Bucketed:
    """Return buckets of `width` steps, and the wide ones that are left where it was finer once.

    A wide bucket that a stretch holds only a part of is given whole, unless the attempt does not speak for the rest.
    """
    fine = [piece for one in stretches for piece in without(one, united(own for c in coarse for own in c.stretches))]
    wide: list[tuple[int, list[Stretch]]] = []
    for one in coarse:
        found = [piece for stretch in stretches for piece in within(one.stretches, stretch)]
        pieces = united(_whole(piece, one.width, ends[piece.attempt][1]) for piece in found)
        if one.width > width:
            wide.append((one.width, pieces))
        else:
            fine += pieces
    number = level_at(width)
    (found_fine,) = levels.parts([quantity], number, united(fine))
    parts = [shown(found_fine, width // width_of(number))]
    for own, pieces in wide:
        if pieces:
            parts += [shown(found_wide) for found_wide in levels.parts([quantity], level_at(own), pieces)]
    return _in_order(parts)


def _whole(piece: Stretch, width: int, end: int) -> Stretch:
    """Return all wide buckets with steps of the piece, but for one that reaches over the attempt's end."""
    stop = -(-piece.stop // width) * width
    return piece._replace(first=piece.first // width * width, stop=stop if stop <= end else end // width * width)


def _in_order(parts: Sequence[Bucketed]) -> Bucketed:
    if len(parts) == 1:
        return parts[0]
    x, mean, low, high, last, nonfinite, present = (
        np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)
    )
    at = np.argsort(x, kind="stable")
    return x[at], mean[:, at], low[:, at], high[:, at], last[:, at], nonfinite[:, at], present[:, at]
