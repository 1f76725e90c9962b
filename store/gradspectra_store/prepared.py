"""Statements made once and run by the driver itself, where the library between would take longer than the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

from gradspectra_store.engines import driver_execute


@dataclass(frozen=True, slots=True)
class _Form:
    """A statement for one database.

    names: of its parameters by position, None where they go by name; fixed: those that it was made with.
    """

    text: str
    names: tuple[str, ...] | None
    fixed: dict[str, Any]


class Prepared:
    """A statement with parameters (`sa.bindparam`) that are numbers, texts or bytes as the database keeps them.

    Values go to the driver as they are and rows come as it gives them: columns of JSON as text. Made for each
    database at its first call. Errors are SQLAlchemy's, as everywhere in the store.
    """

    def __init__(self, statement: sa.Select[Any] | sa.UpdateBase) -> None:
        self._statement = statement
        self._forms: dict[str, _Form] = {}

    def rows(self, conn: sa.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run it in the connection's transaction and return all rows, of a statement that returns some."""
        cursor = self._run(conn, values)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        cursor.close()
        return found

    def run(self, conn: sa.Connection, values: Mapping[str, Any]) -> None:
        """Run it in the connection's transaction."""
        self._run(conn, values).close()

    def _run(self, conn: sa.Connection, values: Mapping[str, Any]) -> Any:
        form = self._forms.get(conn.dialect.name) or self._made(conn.dialect)
        given = {**form.fixed, **values}
        return driver_execute(
            conn, form.text, given if form.names is None else tuple(given[name] for name in form.names)
        )

    def _made(self, dialect: sa.Dialect) -> _Form:
        compiled = self._statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        names = None if compiled.positiontup is None else tuple(compiled.positiontup)
        form = self._forms[dialect.name] = _Form(str(compiled), names, fixed)
        return form
