"""The databases that are measured: a fresh SQLite file, or a fresh database of a PostgreSQL that runs."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from gradspectra_store import Store

TABLES = "oid IN (SELECT relid FROM pg_stat_user_tables)"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark be told where to measure."""
    what = "postgresql+psycopg://user@host/database: a fresh database is made there, and dropped at the end"
    parser.add_argument("--database", help=f"{what}; a fresh SQLite file if left out")


def told(options: argparse.Namespace) -> dict[str, Any]:
    """The options to print: of a database without its password."""
    url = options.database
    return vars(options) | {"database": url and sa.make_url(url).render_as_string(hide_password=True)}


@contextmanager
def fresh_url(server: str | None) -> Iterator[str]:
    """The URL of a database that nobody has used. server: any database of a PostgreSQL, None for a file."""
    if server is None:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'store.db'}"
        return
    name = f"gradspectra_benchmark_{secrets.token_hex(4)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()


@contextmanager
def fresh_store(server: str | None = None) -> Iterator[Store]:
    """An open store in a database that nobody has used."""
    with fresh_url(server) as url:
        store = Store.open(url)
        yield store
        store.close()


def bytes_on_disk(store: Store) -> int:
    """Bytes of all tables with their indexes and what lies beside them, none of it only in a log."""
    store.checkpoint()
    if store.dialect == "sqlite":
        return Path(str(sa.make_url(store.url).database)).stat().st_size
    with store.read() as conn:
        total = conn.execute(sa.text(f"SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE {TABLES}"))
        return int(total.scalar_one())
