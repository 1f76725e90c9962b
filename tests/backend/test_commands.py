"""The server's commands: what keeps them from starting is said in one line, with what to do."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
from contextlib import closing

import httpx2
import pytest
from backend.callers import API, Caller, batch
from backend.servers import command, serving
from gradspectra_backend.settings import load_settings
from gradspectra_backend.start import CannotStart, alone


def test_a_port_that_is_taken_is_said_and_nothing_is_started(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        data = tmp_path / "data"
        done = command("serve", "--port", str(port), "--data", str(data))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert f"--port {port + 1}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(data.iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = command("serve", "--port", "0", "--data", str(tmp_path / "file" / "below"))
    assert done.returncode == 2
    assert f"the data folder {tmp_path}/file/below cannot be written" in done.stderr
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_another_program_has_locked_is_said(tmp_path, monkeypatch):
    command("migrate", "--data", str(tmp_path))
    monkeypatch.setattr("gradspectra_store.engines._PRAGMAS", ("journal_mode=WAL", "busy_timeout=10"))
    with closing(sqlite3.connect(tmp_path / "gradspectra.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = command("serve", "--port", "0", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "database is locked" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_server_on_the_same_data_is_refused_unless_both_have_redis(tmp_path):
    with serving(tmp_path) as server:
        done = command("serve", "--port", "0", "--data", str(tmp_path))
        assert command("token", "list", "--data", str(tmp_path)).returncode == 0
        killed = server.process.pid
        server.process.kill()
        server.process.wait(60)
    assert done.returncode == 2
    assert f"{tmp_path}/gradspectra.db is in use by another gradspectra serve (process {killed})" in done.stderr
    assert "--data" in done.stderr
    shared, own = (load_settings(data=tmp_path, redis_url=url) for url in ("redis://127.0.0.1", None))
    with alone(shared), alone(shared), pytest.raises(CannotStart), alone(own):
        pass
    with alone(own), pytest.raises(CannotStart), alone(shared):
        pass


def test_an_address_of_another_machine_is_said(tmp_path):
    done = command("serve", "--host", "203.0.113.9", "--port", "0", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "203.0.113.9" in done.stderr
    assert "--host" in done.stderr


def test_an_open_address_without_a_token_does_not_start(tmp_path):
    done = command("serve", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "gradspectra token create me --scope admin" in done.stderr
    made = command("token", "create", "me", "--scope", "admin", "--data", str(tmp_path))
    token = made.stdout.strip()
    assert token.startswith("gs_")
    with serving(tmp_path, "--host", "0.0.0.0") as server:
        assert httpx2.get(f"{server.url}{API}/runs", trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx2.get(f"{server.url}{API}/runs", headers=headers, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": "abc"}, "GRADSPECTRA_PORT='abc'"),
        ({"processes": "2"}, "GRADSPECTRA_REDIS_URL"),
        ({"database_url": "oracle://x"}, "GRADSPECTRA_DATABASE_URL='oracle://x'"),
        ({"database_url": "postgresql://nobody@127.0.0.1:1/none"}, "127.0.0.1"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, settings, words):
    done = command("serve", "--data", str(tmp_path), **{"port": "0"} | settings)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path):
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        caller = Caller(client)
        run = caller.start()
        for number in range(1, 21):
            caller.must_send(run["id"], batch(run["session"], number, [number]))
        server.process.kill()
        server.process.wait()
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        caller = Caller(client)
        assert caller.derived(run["id"], 20)["last_step"] == 20
        assert len(caller.get(f"/runs/{run['id']}/series", names="loss")["x"]) == 20


def test_a_job_that_dies_in_the_middle_of_a_batch_is_no_failure_of_the_server(tmp_path):
    with serving(tmp_path) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as job:
            head = f"POST {API}/runs/r/records HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n"
            job.sendall(f"{head}half".encode())
            job.shutdown(socket.SHUT_WR)
            assert job.recv(1) == b""
        status, log = server.stopped(signal.SIGINT)
        assert (status, log) == (0, "")


def test_ctrl_c_ends_the_server_cleanly(tmp_path):
    with serving(tmp_path) as server:
        assert httpx2.get(f"{server.url}{API}/health", trust_env=False).json()["status"] == "ok"
        status, log = server.stopped(signal.SIGINT)
        assert status == 0
        assert "Traceback" not in log
        assert "graceful shutdown exceeded" not in log


def test_tokens_are_made_listed_and_revoked(tmp_path):
    made = command("token", "create", "cluster", "--json", "--data", str(tmp_path))
    token = json.loads(made.stdout)
    assert (token["name"], token["scopes"]) == ("cluster", ["ingest", "read"])
    listed = json.loads(command("token", "list", "--json", "--data", str(tmp_path)).stdout)
    assert [(entry["id"], entry["name"], entry["revoked_at"]) for entry in listed] == [(token["id"], "cluster", None)]
    assert token["token"] not in command("token", "list", "--data", str(tmp_path)).stdout
    assert command("token", "revoke", token["id"], "--data", str(tmp_path)).returncode == 0
    assert "revoked" in command("token", "list", "--data", str(tmp_path)).stdout
    again = command("token", "revoke", token["id"], "--data", str(tmp_path))
    assert again.returncode == 2
    assert " token revoke: there is no token" in again.stderr
    assert token["id"] in again.stderr


def test_migrate_says_the_version(tmp_path):
    done = command("migrate", "--data", str(tmp_path))
    assert done.returncode == 0
    assert "schema version" in done.stdout
    assert (tmp_path / "gradspectra.db").exists()


def test_a_worker_without_redis_says_what_is_missing(tmp_path):
    done = command("worker", data=str(tmp_path))
    assert done.returncode == 2
    assert "GRADSPECTRA_REDIS_URL" in done.stderr


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ("DELETE FROM alembic_version", "failed", "it is another program's, or damaged"),
        ("UPDATE alembic_version SET version_num = '9999'", "failed", "install the newer gradspectra"),
        ("UPDATE alembic_version SET version_num = '0008'", "ok", "the next `gradspectra serve` brings it to 0013"),
    ],
)
def test_the_doctor_says_whether_the_server_will_take_the_database(tmp_path, change, status, words):
    file = tmp_path / "gradspectra.db"
    file.touch()
    assert "ok       database     none yet" in command("doctor", "--data", str(tmp_path)).stdout
    command("migrate", "--data", str(tmp_path))
    with closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.execute(change)
    findings = json.loads(command("doctor", "--json", "--data", str(tmp_path)).stdout)["findings"]
    (found,) = [finding for finding in findings if finding["name"] == "database"]
    assert (found["status"], words in found["detail"]) == (status, True)
    file.write_text("no database\n" * 100)
    assert "put a backup in its place" in command("doctor", "--data", str(tmp_path)).stdout


def test_the_doctor_finds_what_is_wrong_and_what_is_well(tmp_path):
    well = command("doctor", "--json", "--data", str(tmp_path))
    assert well.returncode == 0
    findings = {entry["name"]: entry for entry in json.loads(well.stdout)["findings"]}
    looked_at = {"versions", "settings", "data folder", "database", "runs", "segments", "blocks", "retention"}
    assert set(findings) == looked_at | {"redis", "space"}
    assert findings["data folder"]["status"] == "ok"
    ill = command(
        "doctor",
        "--json",
        data="/dev/null/x",
        redis_url="redis+socket:///nowhere/redis.sock",
        databse_url="x",
    )
    assert ill.returncode == 1
    statuses = {entry["name"]: entry for entry in json.loads(ill.stdout)["findings"]}
    assert statuses["settings"]["status"] == "warning"
    assert "GRADSPECTRA_DATABSE_URL" in statuses["settings"]["detail"]
    assert statuses["data folder"]["status"] == statuses["redis"]["status"] == "failed"
    assert all("remedy" in statuses[name] for name in ("settings", "data folder", "redis"))
    assert "→" in command("doctor", data="/dev/null/x").stdout
