"""A PostgreSQL whose disk is really full: 507, nothing half written, and all goes on when there is space again."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backend.callers import Caller, batch, layer_block, table
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.doctor import examine
from gradspectra_backend.settings import Settings
from gradspectra_store import Store
from gradspectra_store.errors import StoreFull
from gradspectra_store.ingest import ingest
from gradspectra_store.read import read_recorded
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive

MEBIBYTES = 160
"""Size of the disk: a server with nothing in it takes 60 of them."""

OF = table()


@dataclass(frozen=True)
class Disk:
    """A small file system on which a database lies. url: of the database."""

    folder: Path
    url: str

    def fill(self) -> None:
        """Leave no page free."""
        with (self.folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def free(self) -> None:
        """Give the space back."""
        (self.folder / "filler").unlink()


def run_as_postgres(folder: Path, *command: str) -> None:
    """Run a program of the server as its user, which may not be root."""
    limits: dict[str, Any] = {"check": True, "capture_output": True, "timeout": 60}
    subprocess.run(command, user="postgres", group="postgres", cwd=folder, **limits)


@contextmanager
def small_disk() -> Iterator[tuple[Path, Path]]:
    """A folder, and one in it that is a file system of its own; both belong to the server's user."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        small = folder / "small"
        small.mkdir()
        mounted = ["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", str(small)]
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted here")
        try:
            for own in (folder, small):
                shutil.chown(own, "postgres", "postgres")
            yield folder, small
        finally:
            subprocess.run(["umount", str(small)], check=True)


@pytest.fixture(params=["tables", "everything"])
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A PostgreSQL of the test's own whose tables, or all that it writes, lie on a small disk."""
    binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if os.geteuid() != 0 or not binaries:
        pytest.skip("needs root, who may mount a small disk, and the programs of a PostgreSQL server")
    with small_disk() as (folder, small):
        data = str((small if request.param == "everything" else folder) / "data")
        control = f"{binaries[-1]}/pg_ctl", "-D", data, "-w"
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_wal_size=32MB"
        run_as_postgres(folder, f"{binaries[-1]}/initdb", "--no-sync", "--auth=trust", "--wal-segsize=1", "-D", data)
        run_as_postgres(folder, *control, "-l", f"{folder}/log", "-o", f"{options} -c min_wal_size=2MB", "start")
        try:
            place = "" if request.param == "everything" else "TABLESPACE small"
            server = sa.create_engine(f"postgresql+psycopg://postgres@/postgres?host={folder}")
            with server.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                if place:
                    conn.execute(sa.text(f"CREATE TABLESPACE small LOCATION '{small}'"))
                conn.execute(sa.text(f"CREATE DATABASE full_disk {place}"))
            server.dispose()
            yield Disk(small, f"postgresql+psycopg://postgres@/full_disk?host={folder}")
        finally:
            run_as_postgres(folder, *control, "-m", "immediate", "stop")


def steps_of(sequence: int) -> list[int]:
    return list(range(200 * sequence - 199, 200 * sequence + 1))


def a_batch(session: str, sequence: int) -> Any:
    """200 steps with some 100 KiB of numbers that do not repeat."""
    steps = steps_of(sequence)
    rng = np.random.default_rng(sequence)
    rows = {f"series_{i}": rng.normal(size=len(steps)).tolist() for i in range(40)}
    squares = layer_block(OF, steps, grad_sq=rng.random((len(steps), 2)).tolist())
    return batch(session, sequence, steps, layer_table=OF, layers=squares, loss=[float(s) for s in steps], **rows)


def losses(store: Store, run: str) -> list[float]:
    """The losses of all steps that are derived, as they were recorded."""
    with store.read() as conn:
        part = read_recorded(conn, run, ["loss"]).parts["loss"]
    assert part.steps.tolist() == list(range(1, len(part.steps) + 1))
    return part.values[0].tolist()


@contextmanager
def served(settings: Settings) -> Iterator[Caller]:
    address = {"base_url": "http://127.0.0.1:7117", "raise_server_exceptions": False}
    with TestClient(create_app(settings), **address) as client:
        yield Caller(client)


@pytest.mark.slow
def test_a_full_disk_under_postgresql_is_answered_507_and_all_goes_on_when_there_is_space(
    settings: Settings, disk: Disk
):
    settings = settings.model_copy(update={"database_url": disk.url})
    with served(settings) as caller:
        run = caller.start()
        for sequence in (1, 2):
            caller.must_send(run["id"], a_batch(run["session"], sequence))
        caller.derived(run["id"], 400)
    store = Store.open(disk.url)
    for sequence in range(3, 9):  # that no server derives before the disk is full
        with store.write() as conn:
            ingest(conn, run["id"], a_batch(run["session"], sequence), 1.0)
    disk.fill()
    for work in (derive, compact):
        with pytest.raises(StoreFull, match="No space left on device"):
            work(store, run["id"])
    derived = len(losses(store, run["id"]))
    with served(settings) as caller:
        for _ in range(2):
            answer = caller.send(run["id"], a_batch(run["session"], 9))
            assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-full")
            assert answer.headers["retry-after"] == "30"
        assert caller.get(f"/runs/{run['id']}")["last_step"] == 1600
        findings = {one["name"]: one["status"] for one in examine(lambda: settings)}
        assert [findings[name] for name in ("runs", "segments", "blocks")] == ["ok"] * 3
        assert losses(store, run["id"]) == list(range(1, derived + 1))
        disk.free()
        caller.must_send(run["id"], a_batch(run["session"], 9))
        caller.derived(run["id"], 1800)
    assert compact(store, run["id"]) > 0
    assert losses(store, run["id"]) == list(range(1, 1801))
    findings = {one["name"]: one["detail"] for one in examine(lambda: settings)}
    store.close()
    assert findings["runs"] == "watermarks and rows agree"
    assert [findings[name].partition(", ")[2] for name in ("segments", "blocks")] == ["none is damaged"] * 2
