"""Which series and layer statistics a run has, so that nobody needs to open its segments to know."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import names

_of_scope = Prepared(
    sa.select(names.c.name, names.c.derived)
    .where(names.c.run == sa.bindparam("of_run"), names.c.scope == sa.bindparam("of_scope"))
    .order_by(names.c.name)
)
_of_name = Prepared(
    sa.select(names.c.derived).where(
        *(names.c[field] == sa.bindparam(f"of_{field}") for field in ("run", "scope", "name"))
    )
)


def add_names(
    conn: sa.Connection, run: str, scope: str, wanted: Iterable[str], *, derived: bool, counts: Iterable[str] = ()
) -> None:
    """Note names of a scope ("run" or "layer"): `wanted`, and beside them those of counts.

    Those known already stay as they are, but for one that comes as a count no more: it is not whole from then on.
    """
    found = {"run": run, "scope": scope, "derived": derived}
    rows = [found | {"name": name, "whole": False} for name in wanted]
    rows += [found | {"name": name, "whole": True} for name in counts]
    if rows:
        insert = (postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert)(names)
        no_more = sa.and_(names.c.whole, sa.not_(insert.excluded.whole))
        key = [names.c.run, names.c.scope, names.c.name]
        conn.execute(insert.on_conflict_do_update(index_elements=key, set_={"whole": False}, where=no_more), rows)


def known_name(conn: sa.Connection, run: str, scope: str, name: str) -> bool | None:
    """Return whether a name of a scope is derived, None where the run does not have it."""
    rows = _of_name.rows(conn, {"of_run": run, "of_scope": scope, "of_name": name})
    return bool(rows[0][0]) if rows else None


def known_names(conn: sa.Connection, run: str, scope: str) -> dict[str, bool]:
    """Return the names of a scope in alphabetical order, each with whether it is derived."""
    return {name: bool(derived) for name, derived in _of_scope.rows(conn, {"of_run": run, "of_scope": scope})}


def whole_names(conn: sa.Connection, run: str, scope: str) -> set[str]:
    """Return the names of a scope that have only ever come as counts."""
    query = sa.select(names.c.name).where(names.c.run == run, names.c.scope == scope, names.c.whole)
    return set(conn.execute(query).scalars())
