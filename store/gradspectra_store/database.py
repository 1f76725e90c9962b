"""The store itself: opens a database, and gives out connections in one transaction each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from gradspectra_store.engines import BUSY_MILLISECONDS, driver_execute, mapped_errors, new_engine
from gradspectra_store.errors import StoreBusy, StoreUnavailable
from gradspectra_store.migrating import check_version
from gradspectra_store.migrating import migrate as migrate_database
from gradspectra_store.segment_cache import SegmentCache

WRITE_WAIT = 30.0
WAL_BOUND = 64 * 2**20
LOOK_AGAIN = 0.005
"""Seconds after which a writer looks again whether another process has ended its transaction."""
READERS_MILLISECONDS = 100
"""For so long a log that has grown, and all who write with it, waits until nobody reads what lies in it."""


class Store:
    """One open database, for all threads of a process.

    On SQLite a lock in the process orders its writers: waiting on it is quicker than SQLite's own retries. They share
    one connection that stays open, since taking one and giving it back costs as much as a small transaction.
    """

    def __init__(self, url: str, engine: sa.Engine) -> None:
        self.url = url
        self.dialect = engine.dialect.name
        self._engine = engine
        options: dict[str, Any] = {"read_only": True, "segment_cache": SegmentCache()}
        if self.dialect == "postgresql":  # one snapshot for all statements, as SQLite's reading transactions have
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = engine.execution_options(**options)
        self._one_writer = threading.Lock() if self.dialect == "sqlite" else None
        self._writer: sa.Connection | None = None
        self._commits = 0

    @classmethod
    def open(cls, url: str, *, synchronous: str = "NORMAL", migrate: bool = True) -> Store:
        """Open the database at `url`, made and migrated where needed.

        synchronous: of SQLite. NORMAL: a crash of the process loses nothing that was committed, a power cut may
        lose the last commits; FULL: not even that. Raises BadRequest for a URL that cannot be one, StoreTooNew,
        StoreUnavailable (which names the place) and StoreFull.
        """
        engine = new_engine(url, synchronous=synchronous)
        if migrate:
            migrate_database(url)
        return cls(url, engine)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that may write: committed at the end of the block, undone by any exception.

        On SQLite it holds the write lock from its beginning; never nest two in one thread.
        """
        with mapped_errors(self.url), self._alone():
            if self._one_writer is None:
                with self._engine.begin() as conn:
                    yield conn
            else:
                with self._transaction(WRITE_WAIT) as conn:
                    yield conn

    @contextmanager
    def write_at_once(self) -> Iterator[sa.Connection]:
        """As `write`, but raises StoreBusy where another writer would have to be waited for; always on PostgreSQL."""
        if self._one_writer is None or not self._one_writer.acquire(blocking=False):
            raise StoreBusy
        try:
            with mapped_errors(self.url), self._transaction(0.0) as conn:
                yield conn
        finally:
            self._one_writer.release()

    @contextmanager
    def _transaction(self, seconds: float) -> Iterator[sa.Connection]:
        """One of the writers' connection, begun within so many seconds; who calls is alone in this process.

        Begun and ended by the driver: the library takes as long for that as a small batch takes to be written.
        """
        conn = self._writer or self._new_writer()
        self._writer = None
        try:
            _begin(conn, seconds)
            yield conn
            driver_execute(conn, "COMMIT").close()
            self._commits += 1
        except StoreBusy:  # nothing has begun
            self._writer = conn
            raise
        except BaseException:
            conn.invalidate()
            conn.close()
            raise
        self._writer = conn

    def _new_writer(self) -> sa.Connection:
        conn = self._engine.connect().execution_options(begun_by_hand=True)
        conn.begin()
        driver_execute(conn, "PRAGMA busy_timeout=0").close()
        return conn

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One transaction that only reads, all of it as it was at its first statement; never waits for writers.

        It ends with a commit: at a rollback the driver of PostgreSQL forgets what it has prepared, and says so.
        """
        with mapped_errors(self.url), self._reader.connect() as conn:
            yield conn
            conn.commit()

    def check_version(self) -> None:
        """Raise StoreTooOld or StoreTooNew where the database is not of this package's schema, now."""
        with self.read() as conn:
            check_version(conn)

    def checkpoint(self, least: int = 0) -> None:
        """Move the write-ahead log of SQLite into the file, off the path of commits; nothing on PostgreSQL.

        Writers go on meanwhile. Only where the log has grown past 64 MiB they are held up for its last part, so that
        it is written from its beginning again: to write over what is there takes half the time of a longer file.
        least: nothing is done where fewer transactions were committed since the last time.
        """
        if self.dialect != "sqlite" or self._commits < least:
            return
        self._commits = 0
        if self._checkpoint("PASSIVE") > WAL_BOUND:
            with self._alone():
                self._checkpoint("RESTART")

    def close(self) -> None:
        """Give all connections back; the store is not used after."""
        with self._alone():
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        self._engine.dispose()

    def _checkpoint(self, mode: str) -> int:
        """Returns the bytes of the log. Who still reads what is older is waited for only a moment."""
        with mapped_errors(self.url), self._engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT")
            conn.exec_driver_sql(f"PRAGMA busy_timeout={READERS_MILLISECONDS}")
            try:
                _, pages, _ = conn.exec_driver_sql(f"PRAGMA wal_checkpoint({mode})").one()
                return int(pages * conn.exec_driver_sql("PRAGMA page_size").scalar_one())
            finally:
                conn.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._one_writer is None:
            yield
            return
        if not self._one_writer.acquire(timeout=WRITE_WAIT):
            raise StoreUnavailable(f"another writer held the database for more than {WRITE_WAIT:g} s")
        try:
            yield
        finally:
            self._one_writer.release()


def _begin(conn: sa.Connection, seconds: float) -> None:
    """Take SQLite's write lock, which another process may have; raises StoreBusy where there are no seconds to wait."""
    until = time.monotonic() + seconds
    while True:
        try:
            driver_execute(conn, "BEGIN IMMEDIATE").close()
            return
        except sa.exc.OperationalError as error:
            if "is locked" not in str(error.orig):
                raise
            if not seconds:
                raise StoreBusy from None
            if time.monotonic() >= until:
                raise
        time.sleep(LOOK_AGAIN)
