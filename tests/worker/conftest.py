"""A store on each database, and a Redis of its own, for the worker's tests."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import metadata

_PLACES = ("postgresql+psycopg://root@/test?host=/var/run/postgresql", "postgresql+psycopg://root@127.0.0.1:5432/test")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A fresh, empty database; dropped at the end."""
    places = [os.environ["GRADSPECTRA_TEST_POSTGRES"]] if "GRADSPECTRA_TEST_POSTGRES" in os.environ else _PLACES
    name = f"gradspectra_test_{secrets.token_hex(4)}"
    for place in places:
        server = sa.create_engine(place, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
        try:
            with server.connect() as conn:
                conn.execute(sa.text(f"CREATE DATABASE {name}"))
        except sa.exc.OperationalError:
            server.dispose()
            continue
        yield sa.make_url(place).set(database=name).render_as_string(hide_password=False)
        with server.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()
        return
    pytest.skip("no PostgreSQL answers; set GRADSPECTRA_TEST_POSTGRES to the URL of one")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> str:
    """The URL of an empty or emptied database, once of each kind."""
    if request.param == "sqlite":
        shutil.copy(empty_database, tmp_path / "worker.db")
        return f"sqlite:///{tmp_path}/worker.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An open store without a run in it."""
    opened = Store.open(url)
    if opened.dialect == "postgresql":
        with opened.write() as conn:
            conn.execute(sa.text(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)} CASCADE"))
    yield opened
    opened.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of at most 64 entries, so that short runs have several."""
    monkeypatch.setattr("gradspectra_store.block_rows.MOST_ENTRIES", 64)


class RedisServer:
    """A real Redis on a Unix socket that can be stopped and started, losing its data."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=self.socket.parent)
        with redis.Redis.from_url(self.url) as client:
            for _ in range(200):
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.02)
        raise RuntimeError("redis-server did not answer within 4 s")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis; skipped where there is no redis-server."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
