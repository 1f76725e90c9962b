"""A worker begins, and goes on, only with a database of the schema that it knows."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from gradspectra_store import migrate
from gradspectra_store.errors import StoreTooNew, StoreTooOld
from gradspectra_worker import tasks
from gradspectra_worker.starting import await_schema
from worker.test_celery import COMMAND


@contextmanager
def of_version(url: str, version: str) -> Iterator[None]:
    """The database as if a newer gradspectra had migrated it."""
    engine = sa.create_engine(url)
    with engine.begin() as conn:
        own = conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        conn.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    try:
        yield
    finally:
        with engine.begin() as conn:
            conn.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": own})
        engine.dispose()


class Server(logging.Handler):
    """Migrates once a worker says that it waits for that."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        migrate(self.url)


def test_a_worker_waits_for_a_server_that_starts_beside_it(tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    with pytest.raises(StoreTooOld, match=r"the database has no schema yet.*`gradspectra migrate` alone"):
        await_schema(url, 0.0)
    server = Server(url)
    logging.getLogger("gradspectra_worker").addHandler(server)
    try:
        await_schema(url, 60.0)
    finally:
        logging.getLogger("gradspectra_worker").removeHandler(server)
    assert [said.startswith("the database has no schema yet") for said in server.heard] == [True]
    with of_version(url, "0008"), pytest.raises(StoreTooOld, match="the database has schema version 0008"):
        await_schema(url, 0.0)


@pytest.mark.usefixtures("store")
def test_a_worker_older_than_the_database_says_so_at_once(url):
    with of_version(url, "9999"), pytest.raises(StoreTooNew, match=r"schema version 9999.*install the newer"):
        await_schema(url, 60.0)


def test_a_database_that_does_not_answer_is_left_to_the_tasks(caplog):
    await_schema("postgresql+psycopg://nobody:s3cret@127.0.0.1:9/none", 0.0)
    assert [record.getMessage().count("s3cret") for record in caplog.records] == [0]


def test_the_worker_ends_with_that_said(tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    migrate(url)
    environment = {"GRADSPECTRA_DATABASE_URL": url, "GRADSPECTRA_REDIS_URL": "redis://127.0.0.1:9"}
    with of_version(url, "9999"):
        done = subprocess.run(
            COMMAND, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode != 0
    assert "the database has schema version 9999" in done.stderr


@pytest.mark.usefixtures("store")
def test_a_task_of_a_worker_that_was_left_behind_says_so_and_does_nothing(url, monkeypatch, caplog):
    monkeypatch.setenv("GRADSPECTRA_DATABASE_URL", url)
    tasks._store.cache_clear()
    try:
        with of_version(url, "9999"):
            tasks.deliver_alerts()
    finally:
        tasks._store(os.getpid()).close()
        tasks._store.cache_clear()
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.getMessage().startswith("left for later: the database has schema version 9999")
