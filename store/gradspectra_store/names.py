"""Which series and layer statistics a run has, so that nobody needs to open its segments to know."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gradspectra_store.schema import names


def add_names(conn: sa.Connection, run: str, scope: str, wanted: Iterable[str], *, derived: bool) -> None:
    """Note names of a scope ("run" or "layer"); those known already stay as they are."""
    rows = [{"run": run, "scope": scope, "name": name, "derived": derived} for name in wanted]
    if rows:
        insert = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
        conn.execute(insert(names).on_conflict_do_nothing(), rows)


def known_names(conn: sa.Connection, run: str, scope: str) -> dict[str, bool]:
    """Return the names of a scope in alphabetical order, each with whether it is derived."""
    query = sa.select(names.c.name, names.c.derived).where(names.c.run == run, names.c.scope == scope)
    return {row.name: row.derived for row in conn.execute(query.order_by(names.c.name))}
