"""What operators of jobs meet: servers put back to a backup, full disks, tokens withdrawn, jobs that just end."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agent.records import layer_record, scalar_record
from agent.scripted_server import Handler, ScriptedServer
from agent.service import service
from gradspectra import sender as sender_module
from gradspectra import transport as transport_module
from gradspectra.client import Client
from gradspectra.run_request import RunRequest
from gradspectra.session_folder import SessionFolder, make_folder
from gradspectra.sync import sync
from gradspectra.transport import Transport
from gradspectra_store import Store
from gradspectra_store.schema import sessions
from gradspectra_store.tokens import create_token


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def test_a_job_that_may_only_send_goes_back_for_what_the_server_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "UNVIEWED_REST", transport_module.PACE)
    monkeypatch.setenv("GRADSPECTRA_AUTH", "tokens")
    with service(tmp_path / "data") as url:
        store = Store.open(f"sqlite:///{tmp_path / 'data' / 'gradspectra.db'}")
        with store.write() as conn:
            token = create_token(conn, "job", ["ingest"], 0.0)[1]

        def stored() -> Any:
            with store.read() as conn:
                return conn.execute(sa.select(sessions.c.last_sequence, sessions.c.last_step)).one_or_none()

        def until_stored(step: int) -> None:
            end = time.monotonic() + 60
            while (row := stored()) is None or row.last_step != step:
                assert time.monotonic() < end, row
                time.sleep(0.02)

        transport = Transport(server=url, token=token, project="p", spool=tmp_path / "spool")
        transport.start()
        for step in (1, 2, 3):
            transport.record(scalar_record(step))
            until_stored(step)
        last = stored().last_sequence
        with store.write() as conn:  # as a backup of before the second step has it
            conn.execute(sa.update(sessions).values(last_sequence=1, last_step=1, complete_through=1))
        transport.record(scalar_record(4))
        until_stored(4)
        transport.close()
        assert stored().last_sequence == last + 1
        store.close()


def test_a_sync_without_a_good_token_says_so_at_once(server: ScriptedServer, tmp_path: Path) -> None:
    transport = Transport(server="http://127.0.0.1:9", spool=tmp_path)
    transport.start()
    transport.record(scalar_record(1))
    transport.close(timeout=0.5)
    server.expected_token = "new"
    (result,) = sync(tmp_path, server.url, "old")
    assert (result.status, result.left) == ("failed", 1)
    assert "401" in str(result.error)
    assert len(server.requests) == 1, "asking again would change nothing"
    (result,) = sync(tmp_path, server.url, "new")
    assert (result.status, server.steps()) == ("sent", [1])


class FullDisk(io.FileIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_only_memory_held_is_not_promised_to_a_later_sync(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender_module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(transport_module, "PACE_AWAY", 0.02)

    def away(handler: Handler) -> bool:
        return handler.drop()

    server.scripts = [away] * 10_000
    transport = Transport(server=server.url, spool=tmp_path)
    transport.start()
    transport.record(scalar_record(1))
    server.wait_for(lambda: len(server.scripts) < 10_000)
    assert transport._sender is not None
    journal = transport._sender.spool.journal
    (file,) = tmp_path.glob("*/batches")
    old, journal._file = journal._file, FullDisk(file, "r+b")
    old.close()
    transport.record(scalar_record(2))
    server.wait_for(lambda: journal.in_memory)
    transport.close(timeout=0.5)
    lost = "2 steps are not sent yet, and those since the spool failed are lost"
    assert f"{lost}; send with: gradspectra sync {file.parent}" in caplog.messages[-1]
    server.scripts.clear()
    assert sync(file.parent, server.url)[0].steps == 1
    assert server.steps() == [1]


def test_a_disk_too_full_to_begin_on_keeps_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SessionFolder, "_write", full)
    monkeypatch.setattr("gradspectra.session_folder.temporary_spool", lambda: tmp_path / "other")
    request = RunRequest.of("p", None, None, [], "", None, None, 0, None, 0)
    folder, why = make_folder(tmp_path / "spool", request, "http://127.0.0.1:9")
    assert (folder, why) == (None, f"the spool folder {tmp_path / 'spool'} cannot be written (No space left on device)")
    assert [path for path in tmp_path.rglob("*") if path.name not in ("spool", "other")] == []


def test_an_error_from_before_the_run_does_not_make_it_a_failed_one(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "last_value", NameError("in a cell of the notebook, long ago"), raising=False)
    for runs, error in enumerate((None, ValueError("in a cell since")), 1):
        transport = Transport(server=server.url, spool=tmp_path)
        transport.start()
        server.wait_for(lambda runs=runs: len(server.runs) == runs)
        if error is not None:
            monkeypatch.setattr(sys, "last_value", error)
        transport._at_exit()
    assert [said["state"] for said in server.finished] == ["finished", "failed"]


TRAINING = """
import sys, torch, gradspectra
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = gradspectra.watch(model, optimizer, server=sys.argv[1], spool=sys.argv[2])
for _ in range(5):
    loss = model(torch.ones(2, 3)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    watch.log(loss=loss)
"""


def test_a_program_that_ends_without_closing_its_watch_loses_no_step(server: ScriptedServer, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TRAINING, server.url, str(tmp_path)], check=True, timeout=300)
    assert server.steps() == [1, 2, 3, 4, 5]
    assert [said["state"] for said in server.finished] == ["finished"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_by_the_name_it_had_before_the_server_answered(tmp_path: Path) -> None:
    """A checkpoint may be written while the server is away: it names the run by the key of the session."""
    early = Transport(server="http://127.0.0.1:9", project="p", name="r", spool=tmp_path / "spool")
    early.start()
    early.record(layer_record(1))
    early.close(timeout=0.5)
    with service(tmp_path / "data") as url:
        assert sync(tmp_path / "spool", url)[0].status == "sent"
        later = Transport(server=url, project="p", name="r", spool=tmp_path, resume=early.local_key, start_step=1)
        later.start()
        later.record(scalar_record(2))
        later.close(timeout=60)
        (run,) = Client(url).runs()
        assert (run.info["attempt"], run.last_step, later.run_id) == (2, 2, run.id)


def test_a_second_process_of_a_rank_has_a_folder_of_its_own(server: ScriptedServer, tmp_path: Path) -> None:
    transports = [Transport(server="http://127.0.0.1:9", name="same", spool=tmp_path) for _ in range(2)]
    for number, transport in enumerate(transports, 1):
        transport.start()
        transport.record(scalar_record(number))
    for transport in transports:
        transport.close(timeout=0.5)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 2
    assert {json.loads((folder / "closed.json").read_text())["state"] for folder in folders} == {"finished"}
    assert sorted(result.steps for result in sync(tmp_path, server.url)) == [1, 1]
    assert sorted(server.steps()) == [1, 2]
