"""A real PgBouncer in transaction mode before PostgreSQL: clients share its processes, a transaction each in turn."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import postgres
from gradspectra_store import Store
from gradspectra_store.read import read_layers, read_series
from store.batches import TABLE, a_batch, layer_block, started, stored
from system.services import Process, clean_environment, eventually, free_port

BATCHES = 12


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database by way of a PgBouncer that has one connection to it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer on this machine")
    with postgres() as direct:
        url = sa.make_url(direct)
        host = url.host or str(url.query.get("host", ""))
        root = os.geteuid() == 0
        if root and host.startswith("/"):
            pytest.skip("PgBouncer does not run as root, and this socket may know root alone: name a host and a port")
        server = {"host": host, "port": url.port or 5432, "user": url.username, "password": url.password}
        line = " ".join(f"{key}={value}" for key, value in server.items() if value)
        port = free_port()
        settings = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"}
        settings |= {"pool_mode": "transaction", "default_pool_size": 1}
        file = tmp_path / "pgbouncer.ini"
        own = "\n".join(f"{key} = {value}" for key, value in settings.items())
        file.write_text(f"[databases]\n* = {line}\n[pgbouncer]\n{own}\n")
        command = [program, *(("-u", "nobody") if root else ()), str(file)]
        process = Process(command, tmp_path / "log", clean_environment())
        try:
            eventually(lambda: "listening on 127.0.0.1" in process.output(), 20, "PgBouncer listens")
            yield f"postgresql+psycopg://{url.username}@127.0.0.1:{port}/{url.database}"
        finally:
            process.stop()


def test_clients_that_take_turns_at_one_process_of_the_server_get_each_their_own(pooled: str) -> None:
    stores = [Store.open(pooled), Store.open(pooled)]
    runs = [started(store) for store in stores]
    for sequence in range(1, BATCHES + 1):
        for at, (store, run) in enumerate(zip(stores, runs, strict=True)):
            block = layer_block([sequence], {"grad_sq": [[sequence + at] * len(TABLE)]})
            table = TABLE if sequence == 1 else None
            stored(store, run.run, a_batch(run.session, sequence, [sequence], layers=block, layer_table=table))
            with store.read() as conn:
                assert read_series(conn, run.run, ["loss"]).x.tolist() == list(range(1, sequence + 1))
                heat = read_layers(conn, run.run, "grad_sq", layers=[TABLE.layers[0].name])
                assert heat.mean.tolist() == [[step + at for step in range(1, sequence + 1)]]
    for store in stores:
        store.close()
