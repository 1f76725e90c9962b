"""Which attempt speaks for which steps: a newer attempt hides all that older ones have from its first step on."""

from __future__ import annotations

import sqlalchemy as sa

from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import attempts

END = 2**63 - 1
_of_run = Prepared(
    sa.select(attempts.c.number, attempts.c.first_step)
    .where(attempts.c.run == sa.bindparam("of_run"))
    .order_by(attempts.c.number.desc())
)


def visible_spans(conn: sa.Connection, run: str, attempt: int | None = None) -> dict[int, tuple[int, int]]:
    """Return for each attempt that has any the range [first, stop) of steps it speaks for; the ranges never overlap.

    attempt: that attempt by itself, whatever newer ones hide. Raises UnknownRun, and BadRequest for an attempt
    that the run does not have.
    """
    rows = _of_run.rows(conn, {"of_run": run})
    if not rows:
        raise UnknownRun(run)
    if attempt is not None:
        if attempt not in {number for number, _ in rows}:
            raise BadRequest("attempt", f"run {run!r} has attempts 1 to {rows[0][0]}, got {attempt}")
        return {attempt: (0, END)}
    spans, stop = {}, END
    for number, first in rows:
        if first < stop:
            spans[number] = (first, stop)
            stop = first
    return spans
