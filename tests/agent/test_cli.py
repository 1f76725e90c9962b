import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from agent.service import eventually, service
from gradspectra import cli
from gradspectra.client import Client
from gradspectra.reading_commands import since
from gradspectra.recorder import Recorder
from gradspectra_core import __version__


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real service with one run of 40 steps, of which the last loss is infinite."""
    folder = tmp_path_factory.mktemp("service")
    with service(folder / "data") as url:
        with Recorder(project="p", run="r", total_steps=50, server=url, spool=folder) as recorder:
            for step in range(1, 41):
                recorder.record(step, loss=math.inf if step == 40 else 1.0 / step, lr=0.25)
        with Client(url) as client:
            eventually(lambda: client.runs()[0], lambda run: run.info["derived_step"] == 40)
        yield url


@pytest.fixture(autouse=True)
def _settings(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSPECTRA_SERVER", url)
    monkeypatch.delenv("GRADSPECTRA_TOKEN", raising=False)


@pytest.fixture
def run_id(url: str) -> str:
    with Client(url) as client:
        return client.runs(project="p")[0].id


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(printed(capsys, *arguments, "--json"))


def test_runs_are_listed_as_a_table_and_as_json(run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    head, row = printed(capsys, "runs").splitlines()
    assert head.split() == ["id", "project", "name", "state", "health", "step", "updated"]
    assert row.split()[:6] == [run_id, "p", "r", "finished", "critical", "40/50"]
    assert [run["id"] for run in as_json(capsys, "runs")["items"]] == [run_id]
    assert printed(capsys, "runs", "--project", "none") == "nothing found\n"
    assert as_json(capsys, "runs", "--health", "ok") == {"items": []}


def test_alerts_are_listed_with_where_and_what(run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys, "alerts")
    assert "critical" in line
    assert f"{run_id}  step 40  nonfinite" in line
    assert as_json(capsys, "alerts", "--since", "1h", "--run", run_id)["items"][0]["opened_step"] == 40
    assert printed(capsys, "alerts", "--state", "closed") == "no alerts\n"
    assert as_json(capsys, "alerts", "--since", str(time.time() + 100)) == {"items": []}


def test_show_prints_the_last_steps_or_those_around_one(run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", run_id)
    assert text.startswith(f"p/r ({run_id}): finished, critical, step 40 of 50\n")
    assert text.splitlines()[2].split() == ["step", "loss", "learning_rate"]
    assert "  40  inf" in text
    around = printed(capsys, "show", run_id, "--around", "10", "--window", "1").splitlines()
    assert [line.split() for line in around[3:]] == [
        ["9", "0.111111", "0.25"],
        [">", "10", "0.1", "0.25"],
        ["11", "0.0909091", "0.25"],
    ]
    members = as_json(capsys, "show", run_id, "--around", "40", "--window", "2")
    assert members["series"]["x"] == [38, 39, 40]
    assert members["series"]["series"]["loss"] == [1 / 38, 1 / 39, "Infinity"]
    assert [alert["rule"] for alert in members["alerts"]] == ["nonfinite"]
    assert members["run"]["id"] == run_id


def test_a_run_is_exported_to_a_file_or_the_standard_output(run_id: str, tmp_path: Path, capfdbinary: Any) -> None:
    file = tmp_path / "run.json"
    assert cli.main(["export", run_id, "-o", str(file), "--start", "39"]) == 0
    assert capfdbinary.readouterr().out == f"wrote {file.stat().st_size:,} bytes to {file}\n".encode()
    rows = json.loads(file.read_text())
    assert [(row["step"], row["loss"]) for row in rows] == [(39, 1 / 39), (40, "Infinity")]
    assert cli.main(["export", run_id, "--names", "loss", "--stop", "3"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"step,attempt,time,loss\n1,1,1")
    assert cli.main(["export", run_id, "--names", "loss", "--stop", "2", "--json"]) == 0
    assert capfdbinary.readouterr().out.endswith(b',"loss":1.0}\n]\n')


def test_parquet_is_not_written_to_a_terminal(
    run_id: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["export", run_id, "--format", "parquet"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, "name a file by -o FILE" in shown.err) == ("", True)


def test_an_export_that_cannot_be_is_one_line(run_id: str, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["export", run_id, "-o", str(tmp_path / "none" / "run.csv")]) == 1
    assert f"cannot write {tmp_path / 'none' / 'run.csv'}: No such file or directory" in capsys.readouterr().err
    assert cli.main(["export", run_id, "--names", "los"]) == 1
    assert "there is no series 'los'" in capsys.readouterr().err
    assert cli.main(["export", run_id, "--server", "http://127.0.0.1:9", "-o", str(tmp_path / "x.csv")]) == 1
    assert capsys.readouterr().err.startswith("gradspectra export: no answer from http://127.0.0.1:9: ")
    assert list(tmp_path.iterdir()) == []


def test_an_export_to_a_pipe_leaves_it_a_pipe(run_id: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert cli.main(["export", run_id, "-o", str(pipe), "--names", "loss", "--stop", "2"]) == 0
    assert os.read(reader, 100).startswith(b"step,attempt,time,loss")
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


def test_follow_prints_each_alert_once_until_interrupted(url: str) -> None:
    command = [sys.executable, "-m", "gradspectra.cli", "alerts", "--follow", "--json", "--server", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["opened_step"] == 40
            time.sleep(2.5)
            follower.send_signal(signal.SIGINT)
            rest, errors = follower.communicate(timeout=300)
        finally:
            follower.kill()
    assert (rest, errors, follower.returncode) == ("", "", 130)


@pytest.fixture
def unsteady() -> Iterator[tuple[str, list[Any]]]:
    """A server and the answers it has still to give: None breaks off, a number refuses, a list is alerts."""
    answers: list[Any] = []

    class Unsteady(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.pop(0)
            if answer is None:
                return
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"items": answer, "next": None}).encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Unsteady) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()
        thread.join(60)


def test_follow_outlives_a_server_that_is_away_or_busy_for_a_while(
    unsteady: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradspectra.reading_commands.FOLLOW_EVERY", 0.01)
    server, answers = unsteady
    one, two = ({"id": name, "state": "open", "severity": "warning"} for name in "ab")
    answers += [[one], None, None, 503, [two, one], [two, one], 404]
    assert cli.main(["alerts", "--follow", "--json", "--server", server]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["id"] for line in said.out.splitlines()] == ["a", "b"]
    assert said.err.count("; trying again") == 1
    assert "the server answered 404" in said.err


def test_a_server_that_is_away_or_refuses_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "--server", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("gradspectra runs: no answer from http://127.0.0.1:9: ")
    assert cli.main(["show", "nosuchrun"]) == 1
    assert "nosuchrun" in capsys.readouterr().err
    assert cli.main(["runs", "--server", "nonsense"]) == 1
    assert "server must be an address like" in capsys.readouterr().err


def test_a_reader_that_goes_away_early_is_no_error(url: str) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "gradspectra.cli", "runs", "--json", "--server", url]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False, env=buffered)
    assert (done.stderr, done.returncode) == (b"", 0)


def test_what_the_terminal_cannot_show_is_written_as_a_number(url: str, tmp_path: Path) -> None:
    with Recorder(project="gr\xf6\xdfe", run="\u2192", server=url, spool=tmp_path) as recorder:
        recorder.record(1, loss=1.0)
    command = [sys.executable, "-m", "gradspectra.cli", "runs", "--project", "gr\xf6\xdfe", "--server", url]
    latin = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, encoding="latin-1", timeout=60, check=True, env=latin)
    assert done.stdout.splitlines()[1].split()[1:3] == ["gr\xf6\xdfe", "\\u2192"]
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True, env=latin)
    assert [run["name"] for run in json.loads(shown.stdout)["items"]] == ["\u2192"]


def test_an_alert_of_a_job_with_a_wild_clock_is_listed_too(url: str, tmp_path: Path, capsys: Any) -> None:
    with Recorder(project="clock", server=url, spool=tmp_path) as recorder:
        for step, loss in enumerate((1.0, math.nan, math.nan), 1):
            recorder.record(step, loss=loss, time=1.795e12 + step)
    with Client(url) as client:
        (run,) = client.runs(project="clock")
        eventually(run.refresh, lambda run: run.info["derived_step"] == 3)
    assert printed(capsys, "alerts", "--run", run.id).startswith("1.795e+12  critical  open")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "version") == f"gradspectra {__version__}\n"
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"gradspectra {__version__}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 910.0), ("2m", 880.0), ("0.25h", 100.0), ("1d", 0.0), ("1795000000", 1795000000.0), ("12.5", 12.5)],
)
def test_times_are_read_as_spans_and_seconds(text: str, expected: float) -> None:
    assert since(text, now=1000.0) == expected


def test_a_date_is_local_time_and_nonsense_is_named() -> None:
    assert since("2026-11-21T12:00:00+00:00") == 1795262400.0
    with pytest.raises(argparse.ArgumentTypeError, match="got 'yesterday'"):
        since("yesterday")


def test_without_the_server_extra_its_commands_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = EntryPoint("server", "no_such_package.commands:register", cli.ENTRY_POINTS)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [missing])
    for name in ("serve", "demo", "worker", "migrate", "token", "derive", "doctor"):
        assert cli.main([name, "--port", "1"]) == 2
        expected = f"gradspectra {name}: this needs the server extra: pip install 'gradspectra[server]'\n"
        assert capsys.readouterr().err == expected


def test_other_packages_can_add_commands_and_a_broken_one_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Added:
        name = "added"

        def load(self) -> Any:
            def register(subparsers: Any) -> None:
                subparsers.add_parser("hello").set_defaults(run=lambda _: 7)

            return register

    broken = EntryPoint("broken", "no_such_package:register", cli.ENTRY_POINTS)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Added(), broken])
    assert cli.main(["hello"]) == 7
    assert "commands of no_such_package:register are left out" in capsys.readouterr().err


def test_reading_commands_do_not_import_the_server() -> None:
    code = (
        "import sys; from gradspectra import cli; code = cli.main(['runs', '--server', 'http://127.0.0.1:9']); "
        "print(code, any(name.startswith(('fastapi', 'pydantic', 'gradspectra_backend')) for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ, check=True
    )
    assert done.stdout == "1 False\n"


def test_all_commands_are_there_with_the_server_extra() -> None:
    parser = cli.build_parser()
    (choices,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    assert {"runs", "alerts", "show", "export", "import", "sync", "version", *cli.SERVER_COMMANDS} <= set(choices)


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["runs", "--colour"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --colour" in capsys.readouterr().err


def test_a_missing_command_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_installed_script_runs() -> None:
    script = Path(sys.executable).with_name("gradspectra")
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "sync" in done.stdout
