"""The migrations: they make what schema.py says, once, and refuse what they do not know."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from gradspectra_store import Store, migrate
from gradspectra_store.block_schema import metadata
from gradspectra_store.engines import new_engine
from gradspectra_store.errors import StoreTaken, StoreTooNew
from gradspectra_store.migrating import schema_versions
from gradspectra_store.names import whole_names
from gradspectra_store.read import read_series
from gradspectra_store.retention import Retention, adopt_retention, due_runs, retention_in_force
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import update_run
from gradspectra_store.schema import segments
from store.batches import a_batch, columns, started, stored
from store.compacting import compacted, derived_through
from store.schemas import downgraded, emptied

HEAD = "0013"


def test_the_migrations_make_the_schema(url: str) -> None:
    migrate(emptied(url))
    engine = sa.create_engine(url)
    with engine.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
    engine.dispose()


def test_a_second_migration_changes_nothing(url: str) -> None:
    assert [migrate(emptied(url)), migrate(url)] == [HEAD, HEAD]


def test_processes_that_open_at_once_migrate_once(url: str) -> None:
    script = f"from gradspectra_store import migrate; print(migrate({emptied(url)!r}))"
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert answers == [(f"{HEAD}\n", "")] * 4


def test_a_database_of_a_newer_version_is_refused_with_the_remedy(url: str) -> None:
    migrate(emptied(url))
    engine = sa.create_engine(url)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreTooNew, match=r"schema version 9999.*install the newer gradspectra"):
        Store.open(url)
    with engine.begin() as conn:
        conn.execute(sa.text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))
    engine.dispose()


def test_a_database_of_another_program_is_left_alone_and_said(url: str) -> None:
    engine = sa.create_engine(emptied(url))
    assert schema_versions(url) == (None, HEAD)
    with engine.begin() as conn:
        conn.execute(sa.text("CREATE TABLE runs (name TEXT)"))
    for look in (migrate, schema_versions):
        with pytest.raises(StoreTaken, match="a table called runs: it is another program's"):
            look(url)
    assert sa.inspect(engine).get_table_names() == ["runs"]
    engine.dispose()
    migrate(emptied(url))
    assert schema_versions(url) == (HEAD, HEAD)


def test_a_file_with_data_is_copied_before_its_migration(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    engine = sa.create_engine(f"sqlite:///{file}")
    config = Config()
    with as_file(files("gradspectra_store") / "migrations") as folder, engine.begin() as conn:
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
        conn.exec_driver_sql("INSERT INTO names VALUES ('r', 'run', 'loss', 0)")
    engine.dispose()
    assert migrate(f"sqlite:///{file}") == HEAD
    assert sorted(found.name for found in tmp_path.glob("*.backup*")) == ["a.db.0001.backup"]
    for place, version in ((tmp_path / "a.db.0001.backup", "0001"), (file, HEAD)):
        conn = sqlite3.connect(place)
        assert conn.execute("SELECT version_num FROM alembic_version").fetchall() == [(version,)]
        assert conn.execute("SELECT name FROM names").fetchall() == [("loss",)]
        conn.close()


def test_a_new_file_is_not_copied(tmp_path: Path) -> None:
    migrate(f"sqlite:///{tmp_path}/a.db")
    assert [file.name for file in tmp_path.iterdir() if "backup" in file.name] == []


def test_a_database_from_before_blocks_is_read_and_compacted_after_its_migration(url: str) -> None:
    old = Store.open(emptied(url))
    run = started(old)
    for sequence in range(1, 31):
        steps = range(10 * sequence - 9, 10 * sequence + 1)
        losses = columns({"loss": [float(step) for step in steps]}, 10)
        tokens = columns({"tokens": [7] * 10}, 10, np.int64)
        stored(old, run.run, a_batch(run.session, sequence, steps, scalars=losses, counts=tokens))
    with old.read() as conn:
        assert whole_names(conn, run.run, "run") == {"tokens"}
    old.close()
    downgraded(url, "0003")
    store = Store.open(url)
    with store.read() as conn:
        assert whole_names(conn, run.run, "run") == set()  # what came before counts as numbers
    derived_through(store, run.run)
    for rounds in (0, 1):
        assert compacted(store, run.run, rounds) == rounds
        with store.read() as conn:
            found = read_series(conn, run.run, ["loss"], columns=5)
        assert (found.x.tolist(), found.series["loss"].max.tolist()) == (
            [1, 64, 128, 192, 256],
            [63, 127, 191, 255, 300],
        )
    store.close()


def test_runs_from_before_retention_are_not_pinned_and_stay_as_they_are(url: str) -> None:
    config, engine = Config(), new_engine(emptied(url), foreign_keys=False)
    with as_file(files("gradspectra_store") / "migrations") as folder, engine.begin() as conn:
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = conn
        command.upgrade(config, "0004")
        row = dict.fromkeys(("config", "environment"), "{}") | {"notes": "", "total_steps": None, "overhead": None}
        row |= {"id": "old", "project": "p", "name": "n", "state": "finished", "health": "ok", "attempt": 1}
        row |= {"last_step": 7, "last_batch": 0, "open_alerts": 0, "created_at": 1.0, "updated_at": 2.0}
        row["sparkline"] = '{"width":1,"steps":[],"losses":[]}'
        columns_of = f"({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
        conn.execute(sa.text(f"INSERT INTO runs {columns_of}"), row)
        conn.exec_driver_sql("INSERT INTO attempts VALUES ('old', 1, 1, 1.0, '{}', '{}')")
        conn.exec_driver_sql("INSERT INTO cursors VALUES ('old', 0, 1, 7, 0, NULL)")
    engine.dispose()
    store = Store.open(url)
    with store.read() as conn:
        found = get_run(conn, "old")
        assert found is not None
        assert (found["last_step"], found["pinned"]) == (7, False)
        assert (found["retires_at"], found["retired_at"], retention_in_force(conn)) == (None, None, None)
    with store.write() as conn:
        update_run(conn, "old", pinned=True)
        wanted = adopt_retention(conn, Retention(), 1e9)
    with store.read() as conn:
        assert due_runs(conn, wanted, 2e9) == []
    with store.write() as conn:
        update_run(conn, "old", pinned=False)
    with store.read() as conn:
        assert due_runs(conn, wanted, 1e9) == []
        assert due_runs(conn, wanted, 2e9) == ["old"]
    store.close()


def test_segments_from_before_checksums_are_read_and_compacted_and_newer_ones_have_theirs(url: str) -> None:
    old = Store.open(emptied(url))
    run = started(old)
    for sequence in range(1, 31):
        stored(old, run.run, a_batch(run.session, sequence, range(10 * sequence - 9, 10 * sequence + 1)))
    with old.read() as conn:
        before = read_series(conn, run.run, ["loss"], columns=5)
    old.close()
    downgraded(url, "0009")
    store = Store.open(url)
    stored(store, run.run, a_batch(run.session, 31, range(301, 311)))
    with store.read() as conn:
        checksums = conn.execute(sa.select(segments.c.checksum).order_by(segments.c.batch)).scalars().all()
    assert [found is None for found in checksums] == [True] * 30 + [False]
    derived_through(store, run.run)
    for rounds in (0, 1):
        assert compacted(store, run.run, rounds) == rounds
        with store.read() as conn:
            found = read_series(conn, run.run, ["loss"], 0, 301, columns=5)
        assert found.damaged == ()
        np.testing.assert_equal(found.series["loss"].mean, before.series["loss"].mean)
    store.close()
