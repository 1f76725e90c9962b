import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent.records import layer_record, scalar_record
from agent.scripted_server import ScriptedServer
from gradspectra import cli
from gradspectra.client import Client
from gradspectra.lock import DirectoryInUse, DirectoryLock
from gradspectra.sync import sync
from gradspectra.transport import Transport

AWAY = "http://127.0.0.1:9"
JOB = """
import sys, time
from gradspectra.record import StepRecord
from gradspectra.transport import Transport
transport = Transport(server=sys.argv[1], project="p", name="killed", spool=sys.argv[2])
transport.start()
step = 0
while True:
    step += 1
    transport.record(StepRecord(step, time.time(), {"loss": 1.0 / step}))
    print(step, flush=True)
    time.sleep(0.002)
"""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADSPECTRA_SERVER", "GRADSPECTRA_TOKEN", "GRADSPECTRA_SPOOL"):
        monkeypatch.delenv(name, raising=False)


def left_behind(spool: Path, steps: int, server: str = AWAY) -> Path:
    """The directory of a session that recorded `steps` steps and found no server."""
    before = set(spool.iterdir()) if spool.exists() else set()
    transport = Transport(server=server, project="p", name="left", spool=spool)
    transport.start()
    for step in range(1, steps + 1):
        transport.record(layer_record(step, spectra=step % 5 == 0))
    transport.close(timeout=0.5)
    (folder,) = set(spool.iterdir()) - before
    return folder


def killed_job(server: str, spool: Path, seconds: float) -> int:
    """Run a job, kill it with SIGKILL, and return the last step it recorded."""
    job = subprocess.Popen([sys.executable, "-c", JOB, server, str(spool)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    job.stdout.readline()
    time.sleep(seconds)
    job.send_signal(signal.SIGKILL)
    steps = [int(line) for line in job.stdout.read().split() if line]
    job.stdout.close()
    job.wait()
    return steps[-1]


def test_what_a_job_left_is_sent_with_the_run_made_then(server: ScriptedServer, tmp_path: Path) -> None:
    folder = left_behind(tmp_path, 10)
    (result,) = sync(folder, server.url)
    assert (result.status, result.run, result.steps, result.left) == ("sent", "run1", 10, 0)
    assert server.steps() == list(range(1, 11))
    assert server.finished == [{"session": "session1", "state": "finished"}]
    assert not folder.exists()
    with pytest.raises(ValueError, match="holds no spooled session"):
        sync(folder, server.url)


def test_a_spool_folder_is_sent_session_by_session(server: ScriptedServer, tmp_path: Path) -> None:
    left_behind(tmp_path, 3)
    left_behind(tmp_path, 4)
    results = sync(tmp_path, server.url)
    assert [(result.status, result.steps) for result in results] == [("sent", 3), ("sent", 4)]
    assert len(server.runs) == 2


def test_the_server_the_job_sent_to_is_the_default(server: ScriptedServer, tmp_path: Path) -> None:
    folder = left_behind(tmp_path, 2)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "server": server.url}))
    assert sync(folder)[0].status == "sent"


def test_a_sync_that_fails_leaves_the_rest_and_a_second_goes_on(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradspectra.sender.FIRST_WAIT", 0.01)
    folder = left_behind(tmp_path, 200)
    batches = 4
    server.scripts = [lambda handler: (handler.records(), True)[1], *[lambda handler: handler.drop()] * 20]
    (first,) = sync(folder, server.url)
    assert first.status == "failed"
    assert first.error is not None
    assert first.error.startswith(f"no answer from {server.url}")
    assert first.steps + first.left == 200
    assert first.steps > 0
    server.scripts = []
    (second,) = sync(folder, server.url)
    assert (second.status, second.steps) == ("sent", first.left)
    assert server.steps() == list(range(1, 201))
    assert len(server.batches) >= batches
    assert server.repeated == 0


def test_a_killed_job_loses_at_most_what_was_not_spooled_and_doubles_nothing(
    server: ScriptedServer, tmp_path: Path
) -> None:
    last = killed_job(server.url, tmp_path, 3.0)
    sent_before = len(server.steps())
    (result,) = sync(tmp_path, server.url)
    steps = server.steps()
    assert steps == list(range(1, len(steps) + 1)), "in order, without a hole, nothing twice"
    assert result.status == "sent"
    assert sent_before + result.steps == len(steps)
    assert last - len(steps) < 1000, "only the records of the last moments were in memory alone"
    assert server.finished == [], "nobody knows how the job ended"


def test_a_job_killed_without_a_server_can_be_sent_whole(server: ScriptedServer, tmp_path: Path) -> None:
    last = killed_job(AWAY, tmp_path, 2.5)
    (result,) = sync(tmp_path, server.url)
    assert result.status == "sent"
    assert server.steps() == list(range(1, result.steps + 1))
    assert 0 <= last - result.steps < 1500, "while no server answers, a second's records are spooled at once"


def test_a_spool_is_cut_by_the_kill_and_still_sent(server: ScriptedServer, tmp_path: Path) -> None:
    folder = left_behind(tmp_path, 100)
    content = (folder / "batches").read_bytes()
    (folder / "batches").write_bytes(content[:-7])
    (result,) = sync(folder, server.url)
    assert result.status == "sent"
    assert server.steps() == list(range(1, result.steps + 1))


def spooled(transport: Transport, steps: int) -> Path:
    """The directory of a job that finds no server, once so many steps lie there."""
    deadline = time.monotonic() + 60
    while transport._sender is None or transport._sender.spool.waiting_steps < steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert transport.spool_directory is not None
    return Path(transport.spool_directory)


def test_what_a_running_job_has_spooled_is_sent_while_it_goes_on(server: ScriptedServer, tmp_path: Path) -> None:
    transport = Transport(server=AWAY, project="p", spool=tmp_path)
    transport.start()
    for first, last in ((1, 10), (11, 15)):
        for step in range(first, last + 1):
            transport.record(layer_record(step, spectra=True))
        folder = spooled(transport, last)
        code = f"from gradspectra.sync import sync; print(sync({str(folder)!r}, {server.url!r})[0])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert "status='running', run='run1'" in done.stdout
        assert f"steps={last - first + 1}, left=0, refused=0, error=None" in done.stdout
        assert server.steps() == list(range(1, last + 1))
    assert sync(folder, server.url)[0].status == "running", "also from within the job, and with nothing new"
    transport.record(layer_record(16))
    transport.close(timeout=0.5)
    assert server.finished == []
    assert sync(folder, server.url)[0].status == "sent"
    assert server.steps() == list(range(1, 17))
    assert server.repeated == 0
    assert [end["state"] for end in server.finished] == ["finished"]
    assert not folder.exists()


def test_what_a_sync_and_the_job_both_send_is_there_once(server: ScriptedServer, tmp_path: Path) -> None:
    server.scripts = [lambda handler: handler.answer(503, {"title": "busy"}, Retry_After="1")]
    transport = Transport(server=server.url, project="p", spool=tmp_path)
    transport.start()
    for step in range(1, 100):
        transport.record(layer_record(step))
    server.wait_for(lambda: not server.scripts)
    assert sync(spooled(transport, 99), server.url)[0].status == "running"
    transport.close(timeout=30.0)
    assert server.steps() == list(range(1, 100))
    assert [end["state"] for end in server.finished] == ["finished"]
    assert list(tmp_path.iterdir()) == []


def test_two_syncs_do_not_copy_the_same_spool_at_once(server: ScriptedServer, tmp_path: Path) -> None:
    transport = Transport(server=AWAY, project="p", spool=tmp_path)
    transport.start()
    transport.record(scalar_record(1))
    folder = spooled(transport, 1)
    other = DirectoryLock(folder, "syncing", "another sync")
    (result,) = sync(folder, server.url)
    assert (result.status, result.error) == ("in use", f"{folder} is in use by another sync")
    other.release()
    transport.close(timeout=0.1)


def test_a_lock_is_free_again_after_release(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DirectoryInUse, match="in use by a running job"):
        DirectoryLock(tmp_path)
    lock.release()
    DirectoryLock(tmp_path).release()


def test_a_directory_without_a_readable_run_says_so(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text('{"server": "http://x"}')
    (result,) = sync(tmp_path, server.url)
    assert result.status == "failed"
    assert result.error == f"{tmp_path}/run.json does not say which run this is: 'request'"
    assert cli.main(["sync", str(tmp_path), "--server", server.url]) == 1
    assert capsys.readouterr().out == f"not sent: {tmp_path}: {result.error}\n"


def test_the_command_prints_what_it_sent(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = left_behind(tmp_path, 3)
    assert cli.main(["sync", str(folder), "--server", server.url]) == 0
    assert capsys.readouterr().out == f"sent 3 steps to {server.url}/runs/run1\n"
    folder = left_behind(tmp_path, 4)
    assert cli.main(["sync", str(folder), "--server", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["steps"] == 4
    assert cli.main(["sync", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"gradspectra sync: {tmp_path} holds no spooled session (no run.json in it or in a directory of it)\n"
    )


@pytest.mark.parametrize("there", [True, False])
def test_an_empty_default_spool_is_nothing_to_send_and_no_error(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = tmp_path / "spool"
    if there:
        spool.mkdir()
    monkeypatch.setenv("GRADSPECTRA_SPOOL", str(spool))
    assert cli.main(["sync"]) == 0
    assert capsys.readouterr().out == f"nothing to send: {spool} holds no spooled session\n"
    assert cli.main(["sync", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"items": []}
    assert cli.main(["sync", str(spool)]) == 1, "who names a folder means that there is something in it"


def test_a_spool_folder_that_cannot_be_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADSPECTRA_SPOOL", "x" * 300)
    assert cli.main(["sync"]) == 1
    assert f"{'x' * 300} cannot be read: [Errno {errno.ENAMETOOLONG}]" in capsys.readouterr().err


def test_the_real_service_gets_a_killed_job_whole(tmp_path: Path) -> None:
    from agent.service import service

    with service(tmp_path / "data") as url:
        killed_job(url, tmp_path / "spool", 1.0)
        (result,) = sync(tmp_path / "spool", url)
        assert result.status == "sent"
        (run,) = Client(url).runs(project="p")
        series = run.series("loss", columns=10_000)
        steps = series.steps.tolist()
        assert steps == list(range(1, len(steps) + 1))
        assert series["loss"].tolist() == [1.0 / step for step in steps]
        folder = left_behind(tmp_path / "spool", 20)
        kept = [(folder / name, (folder / name).read_bytes()) for name in ("run.json", "batches")]
        assert sync(folder, url)[0].status == "sent"
        os.mkdir(folder)
        for path, content in kept:
            path.write_bytes(content)
        assert sync(folder, url)[0].steps == 20, "the whole spool again: the server knows the session by its key"
        assert len(Client(url).runs(search="left")) == 1
