"""Engines for both databases: pragmas, explicit BEGIN, and database errors turned into the store's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gradspectra_store.errors import BadRequest, StoreFull, StoreUnavailable
from gradspectra_store.postgres_connections import new_postgresql_engine

SYNCHRONOUS = ("NORMAL", "FULL")
PAGE_BYTES = 8_192  # of new files: a batch of one step changes about eight pages, and the log takes them whole
WAL_BOUND = 128 * 2**20  # bytes: past it a commit checkpoints by itself, should nobody call Store.checkpoint
CACHE_KIB = 4_096  # of pages in each connection, of which eight are kept: with 16 MiB reads are hardly quicker
BUSY_MILLISECONDS = 30_000  # that a writer waits for another process
_PRAGMAS = (
    f"page_size={PAGE_BYTES}",
    "journal_mode=WAL",
    f"busy_timeout={BUSY_MILLISECONDS}",
    "temp_store=MEMORY",
    f"cache_size=-{CACHE_KIB}",
    "mmap_size=0",  # a mapping counts as memory of the process once for each connection, and ends at every commit
    "journal_size_limit=67108864",
)
_FULL_STATE = "53100"  # PostgreSQL's disk_full
_CALLERS_FAULT = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError, sa.exc.NotSupportedError)
_FULL = re.compile(r"disk is full|no space left|disk quota", re.IGNORECASE)


def new_engine(url: str, *, synchronous: str = "NORMAL", foreign_keys: bool = True) -> sa.Engine:
    """Make an engine whose write transactions are exclusive on SQLite from their BEGIN on.

    url: `sqlite:////absolute/path.db` or `postgresql+psycopg://…`; the folder of an SQLite file is made. A
    connection with the execution option `read_only` begins without taking the write lock; one with `begun_by_hand` does
    not begin by itself.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise BadRequest("url", "not a database URL; expected sqlite:////path/to/file.db or postgresql://…") from error
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, synchronous, foreign_keys)
    if parsed.get_backend_name() == "postgresql":
        return new_postgresql_engine(parsed.set(drivername="postgresql+psycopg"))
    raise BadRequest("url", f"{parsed.get_backend_name()!r} is not supported; use sqlite or postgresql")


def _sqlite(url: sa.URL, synchronous: str, foreign_keys: bool) -> sa.Engine:
    if not url.database or url.database.startswith((":", "file:")):
        raise BadRequest("url", "must name a file (not memory, not a URI): sqlite:////path/to/file.db")
    if synchronous not in SYNCHRONOUS:
        raise BadRequest("synchronous", f"must be NORMAL or FULL, got {synchronous!r}")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot make the folder of {url.database}: {error.strerror}") from error
    engine = sa.create_engine(url, pool_size=8, max_overflow=56, pool_timeout=30)
    pragmas = (*_PRAGMAS, f"synchronous={synchronous}", f"foreign_keys={'ON' if foreign_keys else 'OFF'}")

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _record: Any) -> None:
        dbapi.isolation_level = None  # the driver must not begin transactions: "begin" below does
        set_up_sqlite(dbapi, pragmas)
        (page,) = dbapi.execute("PRAGMA page_size").fetchone()  # as it was when the file was made
        dbapi.execute(f"PRAGMA wal_autocheckpoint={WAL_BOUND // page}")

    @sa.event.listens_for(engine, "begin")
    def _begin(conn: sa.Connection) -> None:
        options = conn.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT" and not options.get("begun_by_hand"):
            driver_execute(conn, "BEGIN" if options.get("read_only") else "BEGIN IMMEDIATE").close()

    return engine


def driver_execute(conn: sa.Connection, text: str, values: Any = ()) -> Any:
    """Run a statement by the driver of the connection; returns its cursor, raises SQLAlchemy's errors."""
    cursor = conn.connection.cursor()
    try:
        cursor.execute(text, values)
    except conn.dialect.loaded_dbapi.Error as error:
        raise driver_error(conn, error, text, values) from error
    return cursor


def driver_error(conn: sa.Connection, error: Exception, text: str, values: Any) -> BaseException:
    """Return SQLAlchemy's error for one that the driver of the connection raised in a statement."""
    kinds = conn.dialect.loaded_dbapi.Error
    return sa.exc.DBAPIError.instance(text, values, error, kinds, dialect=conn.dialect)


def insert_into(conn: sa.Connection, table: sa.Table) -> Any:
    """Return an insert that can say what to do where the row is there already."""
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)


def set_up_sqlite(dbapi: Any, pragmas: Sequence[str]) -> None:
    """Apply pragmas to a new connection; raises StoreUnavailable where the file cannot have a write-ahead log."""
    for pragma in pragmas:
        (answer,) = dbapi.execute(f"PRAGMA {pragma}").fetchone() or (None,)
        if pragma == "journal_mode=WAL" and answer != "wal":
            raise StoreUnavailable("SQLite cannot keep a write-ahead log there; use a local disk, not a network one")


@contextmanager
def mapped_errors(url: str) -> Iterator[None]:
    """Turn errors of the database that no caller is to blame for into StoreFull and StoreUnavailable."""
    try:
        yield
    except (sa.exc.DatabaseError, sa.exc.TimeoutError) as error:
        if isinstance(error, _CALLERS_FAULT):
            raise
        origin = getattr(error, "orig", None) or error
        text = str(origin).strip()
        if _FULL.search(text) or getattr(origin, "sqlstate", None) == _FULL_STATE:
            raise StoreFull(f"the disk of the database is full ({text})") from error
        place = sa.make_url(url).render_as_string(hide_password=True)
        raise StoreUnavailable(f"the database {place} is not available: {text}") from error
