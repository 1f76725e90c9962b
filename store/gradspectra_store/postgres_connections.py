"""Connections to PostgreSQL: numbers come as bytes and not as text, and little is said that is not asked."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

KEPT, MOST = 16, 64
"""Connections: so many stay open, as many as threads take in batches; so many there are while calls come at once."""
QUIET_SECONDS = 10.0
"""After so long in the pool a connection is asked whether it still stands: something on the way may have dropped it."""


def new_postgresql_engine(url: sa.URL) -> sa.Engine:
    """Make an engine of up to MOST connections, each as `_set_up` and `_checkout` say."""
    engine = sa.create_engine(
        url, pool_size=KEPT, max_overflow=MOST - KEPT, pool_timeout=30, pool_use_lifo=True, use_native_hstore=False
    )
    dialect = engine.dialect
    assert dialect.loaded_dbapi is not None
    binary = dialect.loaded_dbapi.pq.Format.BINARY

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _record: Any) -> None:
        _set_up(dbapi, binary)

    @sa.event.listens_for(engine, "checkin")
    def _checkin(_dbapi: Any, record: Any) -> None:
        record.info["since"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _checkout(dbapi: Any, record: Any, _proxy: Any) -> None:
        """Take a new connection where the server has ended this one: one that was used lately and of which nothing was
        heard since stands, and is not asked, which would be one more way there and back for every transaction.
        """
        since = record.info.get("since")
        if since is None or (time.monotonic() - since < QUIET_SECONDS and not _heard(dbapi.fileno())):
            return
        try:
            dialect.do_ping(dbapi)
        except dialect.loaded_dbapi.Error as error:
            raise sa.exc.InvalidatePoolError from error

    return engine


def _set_up(dbapi: Any, binary: Any) -> None:
    """Let results come in their binary form: a payload as text has twice its bytes, and takes three times as long to be
    sent and seven times as long to be read. Behind a pooler nothing stays prepared: the next transaction may have
    another process of the server, which does not know a statement or knows another client's by its name.
    """
    plain = dbapi.cursor_factory

    def cursor(*args: Any, **options: Any) -> Any:
        made = plain(*args, **options)
        made.format = binary
        return made

    dbapi.cursor_factory = cursor
    if _behind_a_pooler(dbapi):
        dbapi.prepare_threshold = None


def _behind_a_pooler(dbapi: Any) -> bool:
    """Whether something such as PgBouncer stands between: it names another process at the connection's beginning than
    the one that answers.
    """
    answer: bytes = dbapi.pgconn.exec_(b"SELECT pg_backend_pid()").get_value(0, 0)
    named: int = dbapi.info.backend_pid
    return int(answer) != named


def _heard(socket: int) -> bool:
    """Whether something came that nobody asked for, such as the end of the connection."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def together(conn: sa.Connection) -> Iterator[None]:
    """Send the block's statements without waiting for the answer to each; on SQLite they run as everywhere.

    Nothing can be read in it, and an error of a statement may come as late as the end of the block.
    """
    library: Any = conn.dialect.loaded_dbapi
    if conn.dialect.name != "postgresql" or not library.Pipeline.is_supported():
        yield
        return
    driver: Any = conn.connection.driver_connection
    try:
        with driver.pipeline():
            yield
    except library.Error as error:
        raise sa.exc.DBAPIError.instance("", (), error, library.Error, dialect=conn.dialect) from error
