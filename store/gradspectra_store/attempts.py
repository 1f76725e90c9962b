"""Which attempt speaks for which steps: a newer attempt hides all that older ones have from its first step on."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import attempts

END = 2**63 - 1
OF_RUN = sa.select(attempts.c.number, attempts.c.first_step).where(attempts.c.run == sa.bindparam("of_run"))
_of_run = Prepared(OF_RUN)


def visible_spans(conn: sa.Connection, run: str, attempt: int | None = None) -> dict[int, tuple[int, int]]:
    """Return for each attempt that has any the range [first, stop) of steps it speaks for; the ranges never overlap.

    attempt: that attempt by itself, whatever newer ones hide. Raises UnknownRun, and BadRequest for an attempt
    that the run does not have.
    """
    return spans_of(run, _of_run.rows(conn, {"of_run": run}), attempt)


def spans_of(run: str, rows: Sequence[tuple[int, int]], attempt: int | None) -> dict[int, tuple[int, int]]:
    """As `visible_spans`, of the number and first step of each of the run's attempts."""
    if not rows:
        raise UnknownRun(run)
    if attempt is not None:
        if attempt not in {number for number, _ in rows}:
            raise BadRequest("attempt", f"run {run!r} has attempts 1 to {max(rows)[0]}, got {attempt}")
        return {attempt: (0, END)}
    spans, stop = {}, END
    for number, first in sorted(rows, reverse=True):
        if first < stop:
            spans[number] = (first, stop)
            stop = first
    return spans
