"""The suggestions of a run: always the newest ones, replaced as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from gradspectra_core.alerts import Suggestion

from gradspectra_store.schema import cursors, suggestions


def replace_suggestions(conn: sa.Connection, run: str, content: Sequence[Suggestion], step: int | None = None) -> None:
    """Put suggestions in place of those the run had. step: the last one whose numbers they rest on."""
    conn.execute(sa.delete(suggestions).where(suggestions.c.run == run))
    if content:
        rows = [{"run": run, "position": at, "content": asdict(one)} for at, one in enumerate(content)]
        conn.execute(sa.insert(suggestions), rows)
    if step is not None:
        conn.execute(sa.update(cursors).where(cursors.c.run == run).values(suggestions_step=step))


def list_suggestions(conn: sa.Connection, run: str) -> list[dict[str, Any]]:
    """Return the run's suggestions in the order they were given."""
    query = sa.select(suggestions.c.content).where(suggestions.c.run == run).order_by(suggestions.c.position)
    return list(conn.execute(query).scalars())
