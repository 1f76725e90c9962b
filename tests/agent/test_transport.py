import errno
import gc
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from agent.records import layer_record, scalar_record
from agent.scripted_server import Handler, ScriptedServer
from gradspectra import sender as sender_module
from gradspectra import transport as transport_module
from gradspectra.record import StepRecord
from gradspectra.settings import access_token, server_address, spool_folder
from gradspectra.transport import Transport


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again within tens of milliseconds, and not of seconds."""
    monkeypatch.setattr(sender_module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(transport_module, "PACE_AWAY", 0.02)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def started(server: ScriptedServer | str, spool: Path, **arguments: Any) -> Transport:
    address = server if isinstance(server, str) else server.url
    transport = Transport(server=address, project="p", name="r", spool=spool, **arguments)
    transport.start()
    return transport


class FullDisk(io.FileIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def refuse(status: int, **members: Any) -> Any:
    return lambda handler: handler.answer(status, {"title": "Refused", "detail": "not this one", **members})


def test_records_arrive_in_order_and_the_spool_is_empty_after_close(server: ScriptedServer, tmp_path: Path) -> None:
    transport = started(server, tmp_path, config={"lr": 0.1}, tags=["x"], total_steps=9, environment={"gpu": "none"})
    for step in range(1, 201):
        transport.record(layer_record(step, spectra=step == 100))
    transport.close()
    assert server.steps() == list(range(1, 201))
    assert [batch.sequence for batch in server.batches] == list(range(1, len(server.batches) + 1))
    assert [batch.layer_table is not None for batch in server.batches].count(True) == 1
    assert server.batches[-1].complete_through == 200
    request = server.runs[transport.local_key]["request"]
    assert (request["config"], request["tags"], request["total_steps"]) == ({"lr": 0.1}, ["x"], 9)
    assert request["environment"]["gpu"] == "none"
    assert server.finished == [{"session": "session1", "state": "finished"}]
    assert list(tmp_path.iterdir()) == []
    assert (transport.run_id, transport.attempt, transport.url) == ("run1", 1, f"{server.url}/runs/run1")


def test_the_first_record_is_sent_at_once_and_later_ones_in_few_batches(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "PACE", 0.3)
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.steps() == [1])
    begun = time.monotonic()
    for step in range(2, 82):
        transport.record(scalar_record(step))
        time.sleep(0.005)
    server.wait_for(lambda: server.steps() == list(range(1, 82)))
    assert len(server.batches) <= 3 + (time.monotonic() - begun) / transport_module.PACE
    transport.close()


def test_what_is_recorded_while_an_answer_is_awaited_makes_few_batches(server: ScriptedServer, tmp_path: Path) -> None:
    answered = threading.Event()
    server.scripts.append(lambda _: answered.wait(120) and False)
    transport = started(server, tmp_path)
    for step in range(1, 101):
        transport.record(scalar_record(step))
        time.sleep(0.04)
    transport.record(scalar_record(101))
    answered.set()
    server.wait_for(lambda: server.steps() == list(range(1, 102)))
    assert len(server.batches) <= 16, "else a way that takes long for each batch never carries what waits"
    transport.close()


def test_record_makes_a_few_calls_and_none_that_waits(server: ScriptedServer, tmp_path: Path) -> None:
    transport = started(server, tmp_path)
    calls: list[list[str]] = []

    def note(frame: FrameType, event: str, called: Any) -> None:
        if event in ("call", "c_call"):
            calls[-1].append(called.__name__ if event == "c_call" else frame.f_code.co_name)

    gc.disable()  # what it finds may be of other tests
    try:
        for step in range(1, 1001):
            record = layer_record(step)
            calls.append([])
            sys.setprofile(note)
            transport.record(record)
            sys.setprofile(None)
    finally:
        gc.enable()
    transport.close()
    assert server.steps() == list(range(1, 1001))
    assert sorted(map(len, calls))[500] <= 14, "what a record costs while the thread knows that it has work"
    assert max(map(len, calls)) <= 24, "and where it is woken up"
    assert {"put", "append"} <= set(calls[0])
    assert {name for one in calls for name in one}.isdisjoint({"open", "write", "send", "sendall", "wait", "join"})


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_gives_one_warning_and_is_served_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = ScriptedServer(away=True)
    transport = started(server, tmp_path)
    for step in range(1, 6):
        transport.record(scalar_record(step))
    server.wait_for(lambda: transport._sender is not None and transport._sender._failures >= 4)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert f"no answer from {server.url}" in warnings[0]
    assert str(tmp_path) in warnings[0]
    assert transport.run_id is None
    server.listen()
    server.wait_for(lambda: server.steps() == [1, 2, 3, 4, 5])
    transport.close()
    server.stop()


def joins(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds at most closing waits for the thread, filled in as it does."""
    waited: list[float] = []
    thread = transport._thread
    assert thread is not None
    join = thread.join

    def bounded(timeout: float) -> None:
        waited.append(timeout)
        join(timeout)

    monkeypatch.setattr(thread, "join", bounded)
    return waited


def test_closing_without_a_server_is_bounded_and_names_the_sync_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transport = started("http://127.0.0.1:9", tmp_path)
    for step in range(1, 4):
        transport.record(scalar_record(step))
    waited = joins(transport, monkeypatch)
    transport.close(timeout=1.0)
    assert waited[0] == 1.0
    assert sum(waited) <= 1.5
    (folder,) = tmp_path.iterdir()
    assert f"3 steps are not sent yet; send with: gradspectra sync {folder}" in caplog.messages[-1]
    assert json.loads((folder / "closed.json").read_text()) == {"state": "finished"}


def test_a_server_that_never_answers_does_not_delay_closing(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, answered = threading.Event(), []

    def wait(_: Handler) -> bool:
        answered.append(closed.wait(60))
        return False

    server.scripts = [wait]
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.scripts == [])
    one = transport.status()["waiting_bytes"]
    transport.record(scalar_record(2))
    server.wait_for(lambda: transport.status()["waiting_bytes"] > 1.5 * one)  # spooled while the first is kept waiting
    waited = joins(transport, monkeypatch)
    transport.close(timeout=0.5)
    assert waited in ([0.5], [0.5, 0.5])
    assert answered == []
    closed.set()


@pytest.mark.usefixtures("quick")
def test_a_lost_answer_is_repeated_and_nothing_doubles(server: ScriptedServer, tmp_path: Path) -> None:
    def store_and_drop(handler: Handler) -> bool:
        handler.wfile = open(os.devnull, "wb")  # noqa: SIM115 (the connection breaks before the answer)
        handler.records()
        return handler.drop()

    server.scripts = [store_and_drop]
    transport = started(server, tmp_path)
    for step in range(1, 4):
        transport.record(scalar_record(step))
    server.wait_for(lambda: server.steps() == [1, 2, 3] and server.repeated == 1)
    transport.close()
    assert server.steps() == [1, 2, 3]
    assert server.repeated == 1


@pytest.mark.usefixtures("quick")
def test_retry_after_is_honoured(server: ScriptedServer, tmp_path: Path) -> None:
    for status in (429, 503):
        server.scripts.append(
            lambda handler, status=status: handler.answer(status, {"title": "busy"}, Retry_After="0.4")
        )
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.steps() == [1])
    transport.close()
    times = [at for method, path, at in server.requests if path.endswith("/records")]
    assert len(times) == 3
    assert all(later - earlier >= 0.4 for earlier, later in itertools.pairwise(times))


def busy(seconds: float) -> Any:
    """The server asks to come again after so many seconds."""
    return lambda handler: handler.answer(503, {"title": "busy"}, Retry_After=str(seconds))


@pytest.mark.usefixtures("quick")
def test_closing_waits_for_a_busy_server_as_long_as_it_asks(server: ScriptedServer, tmp_path: Path) -> None:
    server.scripts = [busy(0.3), refuse(503), busy(0.3)]
    server.on_finish = [busy(0.3), refuse(500)]
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    transport.close(timeout=60.0)
    assert server.steps() == [1]
    assert server.finished == [{"session": "session1", "state": "finished"}]
    assert list(tmp_path.iterdir()) == []
    times = {name: [at for _, path, at in server.requests if path.endswith(name)] for name in ("/records", "/finish")}
    assert [len(found) for found in times.values()] == [4, 3]
    waited = [later - earlier for found in times.values() for earlier, later in itertools.pairwise(found)]
    assert min(waited[0], waited[2], waited[3]) >= 0.3


def test_a_page_in_the_place_of_an_answer_does_not_end_the_run(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def page(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "13")
        handler.end_headers()
        handler.wfile.write(b"<html></html>")
        return True

    server.on_finish = [page]
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    transport.close(timeout=60.0)
    assert server.steps() == [1]
    assert server.finished == []
    assert list(tmp_path.iterdir()) != [], "a sync can still say how the run ended"
    assert "gradspectra sync" in caplog.messages[-1]


def test_closing_does_not_wait_for_a_server_that_is_busy_for_longer(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.scripts = [busy(3600)] * 3
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: len(server.scripts) < 3)
    transport.close(timeout=600.0)
    assert len(server.scripts) == 1, "it was asked once more, since the job ends"
    assert "1 steps are not sent yet" in caplog.messages[-1]


def test_a_sequence_gap_sends_the_sender_back_to_its_spool(server: ScriptedServer, tmp_path: Path) -> None:
    transport = started(server, tmp_path)
    for step in (1, 2, 3):
        transport.record(scalar_record(step))
        server.wait_for(lambda step=step: step in server.steps())
    assert len(server.batches) == 3
    del server.batches[1:]
    transport.record(scalar_record(4))
    server.wait_for(lambda: server.steps() == [1, 2, 3, 4])
    transport.close()
    assert [batch.sequence for batch in server.batches] == [1, 2, 3, 4]


def test_what_the_server_lost_for_good_becomes_a_gap(server: ScriptedServer, tmp_path: Path) -> None:
    transport = started(server, tmp_path)
    for step in (1, 2, 3):
        transport.record(scalar_record(step))
        server.wait_for(lambda step=step: step in server.steps())
    transport._sender.spool.journal.replace([])  # type: ignore[union-attr]
    transport._sender.spool._count()  # type: ignore[union-attr]
    del server.batches[1:]
    transport.record(scalar_record(4))
    server.wait_for(lambda: server.steps() == [1, 4])
    transport.close()
    assert server.gaps() == [(2, 3, "all")]
    assert [batch.sequence for batch in server.batches] == [1, 2]


def test_a_refused_batch_is_kept_aside_and_its_steps_become_a_gap(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.scripts = [refuse(422, field="scalars")]
    transport = started(server, tmp_path)
    transport.record(layer_record(1))
    server.wait_for(lambda: server.gaps() == [(1, 1, "all")])
    transport.record(layer_record(2))
    server.wait_for(lambda: server.steps() == [2])
    transport.close()
    assert server.batches[0].layer_table is not None, "the layer table of the refused batch goes with the gap"
    assert server.batches[1].layer_table is None
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "refused" / "1.json").read_text())["field"] == "scalars"
    refusals = [message for message in caplog.messages if "were refused" in message]
    assert refusals == ["gradspectra: steps 1 to 1 were refused: the server answered 422: not this one"]


def test_a_batch_that_nobody_can_read_becomes_a_gap_and_the_others_arrive(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.steps() == [1])
    transport.record(StepRecord(2, 1.0, {"a name\nof two lines": 1.0}))
    server.wait_for(lambda: server.gaps() == [(2, 2, "all")])
    transport.record(scalar_record(3))
    server.wait_for(lambda: server.steps() == [1, 3])
    transport.close()
    assert server.finished
    assert transport.status()["failed_rounds"] == 0
    assert sum("were refused" in message for message in caplog.messages) == 1


def test_a_table_that_is_the_fault_is_left_out_of_the_gap(server: ScriptedServer, tmp_path: Path) -> None:
    server.scripts = [refuse(422), refuse(422)]
    transport = started(server, tmp_path)
    transport.record(layer_record(1))
    server.wait_for(lambda: server.gaps() == [(1, 1, "all")])
    transport.close()
    assert server.batches[0].layer_table is None


def test_a_wrong_token_is_said_and_nothing_is_lost(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.expected_token = "right"
    transport = started(server, tmp_path, token="wrong")
    transport.record(scalar_record(1))
    server.wait_for(lambda: any("a token is needed" in message for message in caplog.messages))
    time.sleep(0.3)
    assert len([path for _, path, _ in server.requests if path == "/api/v1/runs"]) == 1
    transport.close(timeout=1.0)
    assert "1 steps are not sent yet" in caplog.messages[-1]


def test_alerts_and_stop_at_step_come_from_the_answers(server: ScriptedServer, tmp_path: Path) -> None:
    seen: list[Any] = []

    def on_alerts(alerts: list[dict[str, Any]]) -> None:
        seen.extend(alerts)
        raise RuntimeError("a callback that fails harms nothing")

    server.alerts = [{"rule": "loss_spike", "opened_step": 1}]
    server.stop_at_step = 77
    transport = started(server, tmp_path, on_alerts=on_alerts)
    transport.record(scalar_record(1))
    server.wait_for(lambda: transport.stop_at_step == 77)
    transport.record(scalar_record(2))
    server.wait_for(lambda: server.steps() == [1, 2])
    server.stop_at_step = None
    transport.record(scalar_record(3))
    server.wait_for(lambda: transport.stop_at_step is None)
    transport.close()
    assert seen == [{"rule": "loss_spike", "opened_step": 1}]


def test_the_thread_rests_longer_while_nobody_looks_and_close_does_not_wait_for_it(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "UNVIEWED_REST", 60.0)
    monkeypatch.setattr(transport_module, "LONGEST_REST", 0.1)
    transport = started(server, tmp_path)
    for step in (1, 2):
        transport.record(scalar_record(step))
        server.wait_for(lambda step=step: server.steps()[-1:] == [step])
    server.viewed = False
    transport.record(scalar_record(3))
    server.wait_for(lambda: server.steps() == [1, 2, 3])
    transport.record(scalar_record(4))
    time.sleep(4 * transport_module.LONGEST_REST)
    assert server.steps() == [1, 2, 3]
    transport.close()
    assert server.steps() == [1, 2, 3, 4]


def test_heartbeats_carry_the_overhead(server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "HEARTBEAT", 0.2)
    transport = started(server, tmp_path)
    transport.set_overhead(0.004)
    transport.record(scalar_record(5))
    server.wait_for(lambda: len(server.heartbeats) >= 2)
    transport.close()
    assert server.heartbeats[0] == {"session": "session1", "overhead": 0.004, "step": 5}


def test_a_heartbeat_without_a_measured_overhead_tells_none(server: ScriptedServer, tmp_path: Path) -> None:
    transport = started(server, tmp_path)
    transport.record(scalar_record(5))
    transport.close()
    assert server.heartbeats[-1] == {"session": "session1", "step": 5}
    assert not any("overhead" in beat for beat in server.heartbeats)  # one or two, by the time that it takes to close


@pytest.mark.usefixtures("quick")
def test_a_full_disk_moves_the_spool_to_memory(server: ScriptedServer, tmp_path: Path) -> None:
    server.scripts = [refuse(503)] * 10_000
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: len(server.scripts) < 10_000)
    journal = transport._sender.spool.journal  # type: ignore[union-attr]
    (file,) = tmp_path.glob("*/batches")
    old, journal._file = journal._file, FullDisk(file, "r+b")
    old.close()
    transport.record(scalar_record(2))
    server.wait_for(lambda: journal.in_memory)
    server.scripts.clear()
    server.wait_for(lambda: server.steps() == [1, 2])
    transport.close()
    assert "No space left" in transport.status()["spool_failure"]


def test_a_round_that_fails_again_and_again_is_said_once_and_loses_nothing(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.steps() == [1])

    def fail(*_: Any) -> bool:
        raise ValueError("not what was expected")

    with monkeypatch.context() as patch:
        patch.setattr(type(transport._sender), "advance", fail)
        transport.record(scalar_record(2))
        server.wait_for(lambda: transport.status()["failed_rounds"] >= 1)
        transport.record(scalar_record(3))
        server.wait_for(lambda: transport.status()["failed_rounds"] >= 2)
    server.wait_for(lambda: server.steps() == [1, 2, 3])
    transport.close()
    assert len([text for text in caplog.messages if "sending failed (ValueError('not what" in text]) == 1


@pytest.mark.usefixtures("quick")
def test_a_spool_file_altered_by_others_is_given_up_and_recording_goes_on(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.scripts = [refuse(503)] * 10_000
    transport = started(server, tmp_path)
    transport.record(scalar_record(1))
    server.wait_for(lambda: len(server.scripts) < 10_000)
    (file,) = tmp_path.glob("*/batches")
    file.write_bytes(b"x" * file.stat().st_size)
    server.wait_for(lambda: transport.status()["spool_failure"] is not None)
    assert "was altered while in use" in transport.status()["spool_failure"]
    server.scripts.clear()
    transport.record(scalar_record(2))
    server.wait_for(lambda: server.steps() == [2])
    transport.close()


def test_a_spool_folder_that_cannot_be_written_falls_back_to_the_temporary_folder(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    transport = started(server, Path("/proc/gradspectra/spool"))
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.steps() == [1])
    transport.close()
    assert "cannot be written (No such file or directory)" in caplog.messages[0]


def test_without_any_folder_to_write_to_the_records_go_out_from_memory(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    transport = started(server, Path("/proc/gradspectra/spool"))
    transport.record(scalar_record(1))
    server.wait_for(lambda: server.steps() == [1])
    assert transport.status()["spool"] is None
    transport.close()
    assert caplog.messages == []
    assert server.finished


def test_a_user_without_a_home_spools_to_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: Any) -> Any:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("GRADSPECTRA_SPOOL", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert spool_folder() == Path(tempfile.gettempdir()) / f"gradspectra-spool-{os.getuid()}"
    monkeypatch.setenv("GRADSPECTRA_SPOOL", "~/spool")
    with pytest.raises(ValueError, match="GRADSPECTRA_SPOOL must be a folder, got '~/spool': Could not determine home"):
        spool_folder()


def test_a_forked_child_neither_records_nor_closes(server: ScriptedServer, tmp_path: Path) -> None:
    script = f"""
import os, time
from gradspectra.record import StepRecord
from gradspectra.transport import Transport
transport = Transport(server={server.url!r}, spool={str(tmp_path)!r})
transport.start()
transport.record(StepRecord(1, 1.0))
time.sleep(0.3)
child = os.fork()
if child == 0:
    transport.record(StepRecord(2, 2.0))
    transport.record(StepRecord(3, 3.0))
    transport.close()
    os._exit(0)
os.waitpid(child, 0)
transport.record(StepRecord(3, 3.0))
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, check=True, timeout=120, stderr=subprocess.PIPE, text=True)
    assert done.stderr.count("this process was forked from the one that sends") == 1
    assert server.steps() == [1, 3], "and leaving the program closed the transport"
    assert server.finished == [{"session": "session1", "state": "finished"}]


def test_a_program_that_dies_of_an_exception_ends_its_run_as_failed(server: ScriptedServer, tmp_path: Path) -> None:
    script = f"""
from gradspectra.record import StepRecord
from gradspectra.transport import Transport
transport = Transport(server={server.url!r}, spool={str(tmp_path)!r})
transport.start()
transport.record(StepRecord(1, 1.0))
raise ValueError("boom")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "ValueError: boom" in done.stderr
    assert server.steps() == [1]
    assert server.finished[0]["state"] == "failed"


@pytest.mark.parametrize("address", ["127.0.0.1:7117", "ftp://x", "http://", "http://a b", "http://h:port"])
def test_a_bad_server_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match=r"server must be an address like http://127\.0\.0\.1:7117, got"):
        server_address(address)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSPECTRA_SERVER", "https://example.org/base/")
    monkeypatch.setenv("GRADSPECTRA_TOKEN", " gs_x\n")
    assert server_address() == "https://example.org/base"
    assert access_token() == "gs_x"
    monkeypatch.setenv("GRADSPECTRA_TOKEN", "two words")
    with pytest.raises(ValueError, match="GRADSPECTRA_TOKEN must be printable ASCII"):
        access_token()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "x" * 10_000}, r"run must be printable text of 1 to 200 characters, got 'x+'… \(10000 characters\)"),
        ({"project": ""}, "project must be printable text"),
        ({"name": "a\nb"}, "run must be printable text"),
        ({"total_steps": 0}, "total_steps must be from 1 to 9007199254740992, or None, got 0"),
        ({"config": {"text": "x" * 300_000}}, "config must be at most 262144 bytes as JSON, got 300012"),
        ({"notes": "x" * 70_000}, "notes must be text of at most 65536 characters, got 70000"),
        ({"tags": ["x"] * 65}, "tags must be at most 64, got 65"),
        ({"start_step": -1}, "start_step must be at least 0, got -1"),
        ({"total_steps": float("inf")}, "total_steps must be from 1 to 9007199254740992, or None, got inf"),
        ({"server": 7117}, "server must be an address like http://127.0.0.1:7117, got 7117"),
    ],
)
def test_bad_arguments_raise_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transport(**arguments)
    with pytest.raises(TypeError, match="tags must be a list of strings"):
        Transport(tags="abc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tags": None}, "tags must be a list of strings, got None"),
        ({"notes": None}, "notes must be text, got None"),
        ({"total_steps": "9"}, "total_steps must be a number of steps or None, got '9'"),
        ({"token": 5}, "token must be text, as `gradspectra token create` prints it, got a int"),
        ({"spool": 5}, "spool must be a folder, got 5"),
    ],
)
def test_arguments_of_another_type_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Transport(**arguments)


def test_half_characters_of_a_configuration_become_question_marks(server: ScriptedServer, tmp_path: Path) -> None:
    broken = os.fsdecode(b"runs/caf\xe9")
    transport = started(server, tmp_path, config={"data": broken, broken: Path(broken)})
    server.wait_for(lambda: bool(server.runs))
    transport.close()
    (run,) = server.runs.values()
    assert run["request"]["config"] == {"data": "runs/caf?", "runs/caf?": "runs/caf?"}
