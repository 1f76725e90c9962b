"""What the training job of an attempt said that it does not measure, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from gradspectra_store.checks import clean_count, clean_text
from gradspectra_store.engines import insert_into
from gradspectra_store.errors import BadRequest
from gradspectra_store.schema import LONG, JsonText, metadata, run_column

MOST_REASONS, LONGEST_REASON = 100, 500

unmeasured = sa.Table(
    "unmeasured",
    metadata,
    run_column(primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("not_measured", JsonText, nullable=False),
    sa.Column("norms_that_disagreed", LONG, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """not_measured: a sentence for each thing that is missing, with the reason.

    norms_that_disagreed: steps whose layers did not give the total norm of the gradient.
    """

    not_measured: tuple[str, ...] = ()
    norms_that_disagreed: int = 0

    @classmethod
    def of(cls, not_measured: Sequence[str], norms_that_disagreed: int) -> Unmeasured:
        """Check what came from outside; raises BadRequest naming the field."""
        if len(not_measured) > MOST_REASONS:
            raise BadRequest("not_measured", f"must have at most {MOST_REASONS} sentences, got {len(not_measured)}")
        reasons = tuple(clean_text("not_measured", reason, limit=LONGEST_REASON) for reason in not_measured)
        return cls(reasons, clean_count("norms_that_disagreed", norms_that_disagreed))


def note_unmeasured(conn: sa.Connection, run: str, attempt: int, said: Unmeasured) -> None:
    """Note what an attempt said last."""
    values = {"not_measured": list(said.not_measured), "norms_that_disagreed": said.norms_that_disagreed}
    insert = insert_into(conn, unmeasured).values(run=run, attempt=attempt, **values)
    conn.execute(insert.on_conflict_do_update(index_elements=["run", "attempt"], set_=values))
