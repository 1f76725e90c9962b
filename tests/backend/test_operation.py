"""Health, readiness and counters; several processes over Redis."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import redis
from backend.callers import API, Caller, batch
from backend.servers import serving, working
from backend.test_live import PATIENCE, Listening
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.doctor import examine
from gradspectra_backend.problems import KINDS
from gradspectra_backend.settings import load_settings
from gradspectra_store import Store
from gradspectra_store.errors import StoreError, StoreFull, StoreUnavailable
from gradspectra_worker import heartbeat
from gradspectra_worker.announce import LIVE_CHANNEL
from gradspectra_worker.app import SWEEP, make_app


def counter(caller: Caller, name: str) -> float:
    lines = caller.client.get(f"{API}/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_server_says_that_it_is_alive_and_ready(anywhere: Caller):
    assert anywhere.get("/health")["status"] == "ok"
    ready = anywhere.get("/ready")
    assert (ready["status"], ready["dispatcher"]) == ("ok", {"status": "ok", "kind": "inline"})
    assert ready["database"]["dialect"] in ("sqlite", "postgresql")


def test_counters_count_what_was_stored_repeated_and_refused(caller: Caller):
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2, 3]))
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2, 3]))
    caller.send(run["id"], batch(run["session"], 5, [9]))
    caller.send("nowhere", batch(run["session"], 2, [9]))
    for outcome in ("stored", "repeated", "gap", "refused"):
        assert counter(caller, f'gradspectra_batches_total{{outcome="{outcome}"') == 1
    assert counter(caller, f'gradspectra_steps_total{{process="{os.getpid()}"}}') == 3
    assert counter(caller, "gradspectra_runs_running ") == 1
    assert counter(caller, "gradspectra_deliveries_due ") == 0
    assert counter(caller, "gradspectra_deliveries_failed ") == 0


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (StoreUnavailable("gone"), 503, "unavailable"),
        (StoreFull("full"), 507, "storage-full"),
        (StoreError("?"), 500, "internal"),
    ],
)
def test_a_database_in_trouble_is_a_problem_that_says_try_again(caller: Caller, monkeypatch, error, status, name):
    run = caller.start()

    def fail(_: object, *, wait: bool = True) -> None:  # noqa: ARG001
        raise error

    for way in ("write", "write_at_once"):
        monkeypatch.setattr(type(caller.client.app.state.context.store), way, fail)
    answer = caller.send(run["id"], batch(run["session"], 1, [1]))
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{name}")
    assert ("retry-after" in answer.headers) is (status != 500)


def test_a_bug_is_a_problem_without_its_insides(caller: Caller, monkeypatch):
    def bug(_: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(type(caller.client.app.state.context.store), "read", bug)
    answer = caller.client.get(f"{API}/runs")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "secret" not in answer.text
    assert answer.json()["remedy"] == KINDS["internal"].remedy


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of this test's own, on a socket."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    socket = tmp_path / "redis.sock"
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    url = f"unix://{socket}"
    try:
        with redis.Redis.from_url(url) as client:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
        yield url
    finally:
        server.terminate()
        server.wait()


def test_two_processes_tell_each_other_over_redis(tmp_path, redis_url):
    with (
        serving(tmp_path, redis_url=redis_url, processes="2") as server,
        httpx2.Client(base_url=server.url, trust_env=False, timeout=PATIENCE) as client,
    ):
        caller = Caller(client)
        listeners = [Listening(f"{server.url}{API}/live") for _ in range(8)]
        for listener in listeners:
            listener.start()
        assert all(listener.opened.wait(PATIENCE) for listener in listeners)
        run = caller.start()
        caller.must_send(run["id"], batch(run["session"], 1, [1]))
        for listener in listeners:
            listener.heard(run=run["id"], step=1)
        ready = client.get(f"{API}/ready")
        assert (ready.status_code, ready.json()["dispatcher"]) == (503, {"status": "ok", "kind": "celery"})
        assert "no worker was heard for 20 s" in ready.json()["workers"]["detail"]
        server.process.terminate()
        server.process.wait(PATIENCE)
        for listener in listeners:
            listener.join(PATIENCE)
        assert all(listener.clean for listener in listeners)


def test_a_server_is_ready_while_a_worker_lives_and_beat_has_it_sweep(tmp_path, redis_url, monkeypatch):
    app = create_app(load_settings(data=tmp_path, redis_url=redis_url))
    database = f"sqlite:///{tmp_path}/gradspectra.db"
    with TestClient(app, base_url="http://127.0.0.1:7117") as client:

        def ready() -> tuple[int, int]:
            answer = client.get(f"{API}/ready")
            return answer.status_code, answer.json()["workers"]["living"]

        def becomes(expected: tuple[int, int]) -> None:
            deadline = time.monotonic() + PATIENCE
            while ready() != expected:
                assert time.monotonic() < deadline, client.get(f"{API}/ready").text
                time.sleep(0.05)

        becomes((503, 0))
        with working(database, redis_url) as stopped, working(database, redis_url) as killed:
            becomes((503, 2))
            assert "beat is away" in client.get(f"{API}/ready").json()["beat"]["detail"]
            assert examine(lambda: app.state.settings)[-2]["remedy"] == "celery -A gradspectra_worker.app beat"
            make_app(redis_url).send_task(SWEEP)
            becomes((200, 2))
            with redis.Redis.from_url(redis_url) as control:
                assert 0 < control.ttl("gradspectra:swept") <= 60
            report = {entry["name"]: entry for entry in examine(lambda: app.state.settings)}
            assert (report["redis"]["status"], report["redis"]["detail"]) == ("ok", "answers, and of workers 2")
            stopped.terminate()
            becomes((200, 1))
            killed.kill()
            killed.wait()
            assert ready() == (200, 1)
            monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.1)
            becomes((503, 0))
        assert examine(lambda: app.state.settings)[-2]["remedy"] == "gradspectra worker"


@pytest.mark.slow
def test_a_worker_that_is_beat_too_sweeps(tmp_path, redis_url):
    database = f"sqlite:///{tmp_path}/gradspectra.db"
    Store.open(database).close()
    workers = heartbeat.LivingWorkers(redis_url)
    with working(database, redis_url, "--beat", data=str(tmp_path)):
        deadline = time.monotonic() + PATIENCE
        while not workers.sweeping():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    workers.close()


def test_an_answer_says_whether_anybody_looks_here_or_at_another_process(tmp_path, redis_url):
    with (
        serving(tmp_path, redis_url=redis_url) as server,
        httpx2.Client(base_url=server.url, trust_env=False, timeout=PATIENCE) as client,
        redis.Redis.from_url(redis_url) as control,
        control.pubsub() as told,
    ):
        caller = Caller(client)
        run = caller.start()
        numbers = itertools.count(1)

        def viewed() -> bool:
            number = next(numbers)
            stored = caller.must_send(run["id"], batch(run["session"], number, [number]))
            beat = client.post(f"{API}/runs/{run['id']}/heartbeat", json={"session": run["session"]}).json()
            assert beat["viewed"] == stored["viewed"]
            return stored["viewed"]

        assert not viewed()
        control.publish(LIVE_CHANNEL, json.dumps({"type": "audience"}))
        deadline = time.monotonic() + PATIENCE
        while not viewed():
            assert time.monotonic() < deadline
        told.subscribe(LIVE_CHANNEL)
        listener = Listening(f"{server.url}{API}/live")
        listener.start()
        deadline = time.monotonic() + PATIENCE
        while (told.get_message(timeout=1) or {}).get("data") != b'{"type": "audience"}':
            assert time.monotonic() < deadline
        assert viewed()
        assert not [event for event in listener.events if event[0] == "audience"]


def test_a_lost_redis_is_said_stored_through_and_caught_up(tmp_path, redis_url):
    with (
        serving(tmp_path, redis_url=redis_url) as server,
        httpx2.Client(base_url=server.url, trust_env=False, timeout=PATIENCE) as client,
    ):
        caller = Caller(client)
        listener = Listening(f"{server.url}{API}/live")
        listener.start()
        assert listener.opened.wait(PATIENCE)
        run = caller.start()
        with redis.Redis.from_url(redis_url) as control:
            control.client_kill_filter(_type="pubsub")
        deadline = time.monotonic() + PATIENCE
        while not any(event[0] == "resync" for event in listener.events):
            assert time.monotonic() < deadline, listener.events
            time.sleep(0.01)
        caller.must_send(run["id"], batch(run["session"], 1, [1]))
        listener.heard(run=run["id"], step=1)


def test_where_redis_is_away_all_that_it_tells_of_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with TestClient(
        create_app(load_settings(data=tmp_path, redis_url=f"redis://127.0.0.1:{port}/0")),
        base_url="http://127.0.0.1:7117",
    ) as client:
        answer = client.get(f"{API}/ready")
    assert answer.status_code == 503
    for part in ("workers", "beat"):
        assert answer.json()[part]["status"] == "failed"
        assert answer.json()[part]["detail"].startswith("Redis did not say: ")
