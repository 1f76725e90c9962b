"""Statements made once and run by the driver itself, where the library between would take longer than the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

from gradspectra_store.engines import driver_error, driver_execute


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

    def __init__(self, statement: sa.Select[Any] | sa.CompoundSelect[Any] | sa.UpdateBase) -> None:
        self._statement = statement
        self._forms: dict[str, _Form] = {}

    def rows(self, conn: sa.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run it in the connection's transaction and return all rows, of a statement that returns some."""
        return list(self.each(conn, values))

    def each(self, conn: sa.Connection, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """As `rows`, one after the other: those with large values need not lie beside each other."""
        form, given = self._bound(conn, values)
        cursor = driver_execute(conn, form.text, given)
        try:
            yield from cursor
        except conn.dialect.loaded_dbapi.Error as error:
            raise driver_error(conn, error, form.text, given) from error
        finally:
            cursor.close()

    def run(self, conn: sa.Connection, values: Mapping[str, Any]) -> None:
        """Run it in the connection's transaction."""
        form, given = self._bound(conn, values)
        driver_execute(conn, form.text, given).close()

    def _bound(self, conn: sa.Connection, values: Mapping[str, Any]) -> tuple[_Form, Any]:
        """The statement for the connection's database, in a transaction, and its values as the driver takes them."""
        form = self._forms.get(conn.dialect.name) or self._made(conn.dialect)
        if not conn.in_transaction():
            conn.begin()  # the library does so by itself for the statements that go through it
        given = {**form.fixed, **values}
        return form, given if form.names is None else tuple([given[name] for name in form.names])

    def _made(self, dialect: sa.Dialect) -> _Form:
        compiled = self._statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        names = None if compiled.positiontup is None else tuple(compiled.positiontup)
        form = self._forms[dialect.name] = _Form(str(compiled), names, fixed)
        return form


class PreparedAmong:
    """A statement about any of several values, as many as there are.

    make: gives the statement for parameters that stand for these values, made for 1, 2, 4, 8 … of them: the last value
    fills the places that are left.
    """

    def __init__(
        self, make: Callable[[Sequence[sa.BindParameter[Any]]], sa.Select[Any] | sa.CompoundSelect[Any]]
    ) -> None:
        self._make = make
        self._of_size: dict[int, Prepared] = {}

    def each(self, conn: sa.Connection, among: Sequence[Any], values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Run it as `Prepared.each` does. among: the values; none of them finds nothing."""
        if not among:
            return iter(())
        size = 1 << (len(among) - 1).bit_length()
        statement = self._of_size.get(size)
        if statement is None:
            statement = Prepared(self._make([sa.bindparam(f"among_{at}") for at in range(size)]))
            self._of_size[size] = statement
        filled = (*among, *(among[-1],) * (size - len(among)))
        return statement.each(conn, {f"among_{at}": value for at, value in enumerate(filled)} | dict(values))
