"""Bring a database to the schema of this package: safe with several processes at once, backed up before on SQLite."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gradspectra_store.engines import mapped_errors, new_engine
from gradspectra_store.errors import StoreTaken, StoreTooNew, StoreTooOld
from gradspectra_store.schema import metadata

log = logging.getLogger(__name__)
_LOCK = 0x67726164  # any fixed number: the key of the advisory lock on PostgreSQL


def migrate(url: str) -> str:
    """Apply the migrations that the database lacks, all in one transaction; returns the version it then has.

    Processes that do this at once wait for one another; one migrates. An SQLite file that holds data is copied
    beside itself first (`<file>.<version>.backup`). Raises StoreTooNew where the database is of a later version,
    StoreTaken where it is another program's, StoreUnavailable and StoreFull.
    """
    with _migrations(url) as (engine, config, script):
        return _upgrade(engine, config, script)


def schema_versions(url: str) -> tuple[str | None, str]:
    """Return the version that a database has, None where it is empty, and this package's; raises as `migrate`."""
    with _migrations(url) as (engine, _, script), engine.execution_options(read_only=True).connect() as conn:
        version = _version(conn, script)
        if version is None:
            _check_free(conn)
        return version, _head(script)


def check_version(conn: sa.Connection) -> None:
    """Raise StoreTooOld or StoreTooNew where a database's schema is not this package's."""
    version = MigrationContext.configure(conn).get_current_revision()
    head, known = _own_versions()
    _check_known(version, known)
    if version != head:
        has = "no schema yet" if version is None else f"schema version {version}"
        raise StoreTooOld(
            f"the database has {has}, and this version of gradspectra needs {head}; `gradspectra serve` brings it to "
            "that when it starts, and `gradspectra migrate` alone"
        )


@cache
def _own_versions() -> tuple[str, frozenset[str]]:
    """The newest version of this package, and all that it knows."""
    with as_file(files("gradspectra_store") / "migrations") as folder:
        script = ScriptDirectory(str(folder))
        return _head(script), frozenset(revision.revision for revision in script.walk_revisions())


@contextmanager
def _migrations(url: str) -> Iterator[tuple[sa.Engine, Config, ScriptDirectory]]:
    with mapped_errors(url), as_file(files("gradspectra_store") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        engine = new_engine(url, foreign_keys=False)
        try:
            yield engine, config, ScriptDirectory.from_config(config)
        finally:
            engine.dispose()


def _head(script: ScriptDirectory) -> str:
    head = script.get_current_head()
    assert head is not None
    return head


def _upgrade(engine: sa.Engine, config: Config, script: ScriptDirectory) -> str:
    head = _head(script)
    with engine.connect() as conn:
        before = _version(conn, script)
    if before == head:
        return head
    if before is not None and engine.dialect.name == "sqlite":
        _back_up(engine, before)
    with engine.begin() as conn:
        if engine.dialect.name == "postgresql":
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        found = _version(conn, script)
        if found is None:
            _check_free(conn)
        if found != head:
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
            log.info("database migrated from %s to %s", before or "empty", head)
    return head


def _version(conn: sa.Connection, script: ScriptDirectory) -> str | None:
    version = MigrationContext.configure(conn).get_current_revision()
    _check_known(version, {revision.revision for revision in script.walk_revisions()})
    return version


def _check_known(version: str | None, known: Container[str]) -> None:
    if version is not None and version not in known:
        raise StoreTooNew(
            f"the database has schema version {version}, which this version of gradspectra does not know; "
            "install the newer gradspectra that wrote it, or restore the backup made before it"
        )


def _check_free(conn: sa.Connection) -> None:
    """Raise StoreTaken where a database without a version of ours has tables of our names."""
    taken = sorted(metadata.tables.keys() & set(sa.inspect(conn).get_table_names()))
    if taken:
        raise StoreTaken(
            f"the database has no schema version of gradspectra, but a table called {taken[0]}: it is another "
            "program's, or damaged; name another database, or restore a backup"
        )


def _back_up(engine: sa.Engine, version: str) -> None:
    """Copy the file beside itself, unless another process has migrated it meanwhile."""
    path = Path(str(engine.url.database))
    final = path.with_name(f"{path.name}.{version}.backup")
    part = path.with_name(f"{final.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("VACUUM INTO :part"), {"part": str(part)})
    copy = sa.create_engine(f"sqlite:///{part}")
    with copy.connect() as conn:
        same = MigrationContext.configure(conn).get_current_revision() == version
    copy.dispose()
    if same:
        os.replace(part, final)
        log.info("database copied to %s before its migration", final)
    else:
        part.unlink()
