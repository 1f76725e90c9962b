"""Logs of others become runs with the same numbers; what is wrong with a log is said, and then nothing is sent."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from agent.service import eventually, service
from gradspectra import cli, importing
from gradspectra.client import Client, Run
from gradspectra.errors import ServerAway
from gradspectra.importing_text import TextLog
from gradspectra.recorder import Recorder
from gradspectra_store import Store
from gradspectra_store.tokens import create_token

NAN_LOG = """step,loss,lr,note\n\n1,2.5,0.1,\n2,nan,0.1,\n2,,0.2,\n5,-inf,,\n"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service(tmp_path_factory.mktemp("service") / "data") as url:
        yield url


@pytest.fixture(autouse=True)
def _settings(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSPECTRA_SERVER", url)
    monkeypatch.setenv("GRADSPECTRA_SPOOL", str(tmp_path / "spool"))
    monkeypatch.delenv("GRADSPECTRA_TOKEN", raising=False)


def written(folder: Path, text: str, name: str = "log.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def imported(url: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Run, dict[str, Any]]:
    """Import one log; the run, all of it derived, and what the command said."""
    assert cli.main(["import", *arguments, "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["items"]
    assert said["refused"] == 0
    with Client(url) as client:
        return eventually(
            lambda: client.run(said["run"]), lambda run: run.info["derived_step"] == run.last_step, seconds=60
        ), said


def values(run: Run, name: str) -> dict[int, float]:
    series = run.series(name)
    there = series.present[name]
    return dict(zip(series.steps[there].tolist(), series[name][there].tolist(), strict=True))


def refused(capsys: pytest.CaptureFixture[str], url: str, *arguments: str) -> str:
    """What is said of an import that must fail, which sends nothing."""
    with Client(url) as client:
        before = len(client.runs())
        assert cli.main(["import", *arguments]) == 1
        assert len(client.runs()) == before
    return capsys.readouterr().err


def test_a_csv_file_becomes_a_run_with_the_same_numbers(url: str, tmp_path: Path, capsys: Any) -> None:
    run, said = imported(url, capsys, "csv", written(tmp_path, NAN_LOG, "mine.csv"), "--project", "p", "--tag", "old")
    assert (run.project, run.name, run.state, run.last_step) == ("p", "mine", "finished", 5)
    assert run.info["tags"] == ["old"]
    assert repr(values(run, "loss")) == "{1: 2.5, 2: nan, 5: -inf}"
    assert values(run, "learning_rate") == {1: 0.1, 2: 0.2}
    assert (said["steps"], said["renamed"]) == (3, {"lr": "learning_rate"})
    assert run.series().names == ("learning_rate", "loss")
    assert not (tmp_path / "spool").exists()


def test_an_imported_run_gets_alerts_like_any_other(url: str, tmp_path: Path, capsys: Any) -> None:
    run, _ = imported(url, capsys, "csv", written(tmp_path, NAN_LOG))
    assert [(alert["rule"], alert["opened_step"]) for alert in run.alerts()] == [("nonfinite", 2)]
    assert run.health == "critical"


def test_an_imported_run_is_derived_and_watched_like_any_other(url: str, tmp_path: Path, capsys: Any) -> None:
    """A spike at step 150 of a noisy curve, beside what else can be told from a loss, a rate and a norm."""
    random = Random(0)
    lines = ["step,train/loss,lr,train/grad_norm"]
    for step in range(1, 301):
        loss = 2.0 + random.gauss(0, 0.01) + (8.0 if step == 150 else 0.0)
        norm = 1.0 + random.gauss(0, 0.01) + (40.0 if step == 150 else 0.0)
        lines.append(f"{step},{loss!r},0.001,{norm!r}")
    run, _ = imported(url, capsys, "csv", written(tmp_path, "\n".join(lines) + "\n"))
    with Recorder(run="recorded", server=url, spool=tmp_path / "spool") as recorder:
        for line in lines[1:]:
            step, loss, rate, norm = line.split(",")
            recorder.record(int(step), loss=float(loss), lr=float(rate), grad_norm=float(norm))
    with Client(url) as client:
        twin = eventually(
            lambda: client.run(str(recorder.run_id)), lambda run: run.info["derived_step"] == 300, seconds=60
        )
    told = [
        [(a["rule"], a["severity"], a["opened_step"], a["value"], a["threshold"], a["state"]) for a in one.alerts()]
        for one in (run, twin)
    ]
    assert sorted(told[0]) == sorted(told[1]), "those of one step come in the order of their identities"
    assert {alert[0] for alert in told[0]} >= {"loss_spike", "gradient_spike"}
    assert run.series().names == twin.series().names
    assert run.health == twin.health
    for name in run.series().names:
        assert run.series(name)[name].tobytes() == twin.series(name)[name].tobytes(), name
    assert [one["rule"] for one in run.suggestions()] == [one["rule"] for one in twin.suggestions()]


def test_a_log_that_grows_while_it_is_imported_is_imported_as_it_was(
    url: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Path(written(tmp_path, "step,loss,eval\n1,1,\n2,2,\n"))
    real = TextLog.survey

    def then_it_grows(self: TextLog) -> Any:
        found = real(self)
        with log.open("a") as file:
            file.write("2,2,7\n3,3,8\n4,4,9\n")
        return found

    monkeypatch.setattr(TextLog, "survey", then_it_grows)
    run, said = imported(url, capsys, "csv", str(log))
    assert (said["steps"], run.last_step, run.series().names) == (2, 2, ("loss",))


def test_of_several_logs_those_that_went_before_a_failure_are_told(
    tmp_path: Path, capsys: Any, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        event_file(writer, tmp_path / "two" / name, event(1, 1e9, **scalars(loss=1.0)))
    real, times = importing.send, []

    def once(*arguments: Any) -> Any:
        times.append(1)
        if len(times) > 1:
            raise ServerAway("the import is not whole: gone")
        return real(*arguments)

    monkeypatch.setattr("gradspectra.import_command.send", once)
    assert cli.main(["import", "tensorboard", str(tmp_path / "two")]) == 1
    said = capsys.readouterr()
    assert said.out.count("imported 1 steps") == 1
    assert "the import is not whole: gone" in said.err


def test_a_name_that_no_run_can_have_is_refused_before_anything_is_sent(
    url: str, tmp_path: Path, capsys: Any, writer: Any
) -> None:
    event_file(writer, tmp_path / "all" / "a", event(1, 1e9, **scalars(loss=1.0)))
    event_file(writer, tmp_path / "all" / ("b" * 200), event(1, 1e9, **scalars(loss=1.0)))
    said = refused(capsys, url, "tensorboard", str(tmp_path / "all"))
    assert "run must be printable text of 1 to 200 characters" in said


def test_importing_twice_makes_two_runs_and_resume_a_new_attempt(url: str, tmp_path: Path, capsys: Any) -> None:
    log = written(tmp_path, "step,loss\n3,1.0\n4,2.0\n")
    one, _ = imported(url, capsys, "csv", log, "--project", "twice")
    two, _ = imported(url, capsys, "csv", log, "--project", "twice")
    assert one.id != two.id
    grown = written(tmp_path, "step,loss\n3,1.5\n4,2.5\n5,3.5\n")
    again, _ = imported(url, capsys, "csv", grown, "--project", "twice", "--resume", one.id)
    assert again.id == one.id
    assert values(again, "loss") == {3: 1.5, 4: 2.5, 5: 3.5}
    assert [attempt["first_step"] for attempt in again.attempts()] == [3, 3]
    newest, _ = imported(url, capsys, "csv", grown, "--project", "twice", "--resume")
    assert newest.id == two.id


def test_json_lines_become_a_run_with_times_and_names_of_parts(url: str, tmp_path: Path, capsys: Any) -> None:
    lines = [
        {"_step": 0, "train": {"loss": 1, "deep": {"er": 0.5}}, "_timestamp": 1.5e9, "text": "a", "time": 7},
        {"_step": 1, "train": {"loss": "NaN"}, "_timestamp": "2017-07-14T02:40:01+00:00", "text": None},
        {"_step": 1, "eval/loss": "-Infinity", "flag": True},
        {"_step": 2},
    ]
    log = written(tmp_path, "\n".join(map(json.dumps, lines)), "log.jsonl")
    options = (
        "--step-column",
        "_step",
        "--time-column",
        "_timestamp",
        "--numbers-only",
        "--rename",
        "train/deep/er=mine",
    )
    run, said = imported(url, capsys, "jsonl", log, *options)
    assert repr(values(run, "loss")) == "{1: 1.0, 2: nan}"
    assert (values(run, "eval_loss"), values(run, "mine"), values(run, "log/time")) == (
        {2: -math.inf},
        {1: 0.5},
        {1: 7.0},
    )
    rows = json.loads(run.export(tmp_path / "run.json").read_text())
    assert [row["time"] for row in rows] == [1.5e9, 1.5e9 + 1]
    assert said["renamed"] == {
        "train/loss": "loss",
        "train/deep/er": "mine",
        "time": "log/time",
        "eval/loss": "eval_loss",
    }
    assert "'text' is no number on 1 lines and left out there" in said["remarks"]
    assert "each step is imported as step +1, because steps count from 1" in said["remarks"]


def test_the_index_that_pandas_writes_without_a_name_is_no_series(tmp_path: Path) -> None:
    from gradspectra.importing_text import TextLog

    log = TextLog(Path(written(tmp_path, ",step,loss\n0,1,2.0\n1,2,3.0\n")), "csv")
    assert [(row.step, dict(row.numbers)) for row in log.rows()] == [(1, {"loss": 2.0}), (2, {"loss": 3.0})]


def test_the_times_of_a_log_are_sent_with_its_steps(tmp_path: Path) -> None:
    from gradspectra.importing_text import TextLog

    text = "step,at,loss\n1,1500000000.25,1\n1,1500000009,\n2,2017-07-14T02:40:01+00:00,1\n3,,1\n"
    log = TextLog(Path(written(tmp_path, text)), "csv", time_column="at")
    assert [row.time for row in log.rows()] == [1500000000.25, 1500000001.0, None]


def test_a_step_without_a_time_has_that_of_the_step_before() -> None:
    rows = [importing.Row(1, 5.0, {"x": 1.0}), importing.Row(2, None, {"x": 2.0}), importing.Row(3, 9.0, {"x": 3.0})]
    plan = importing.Plan({"x": "x"}, 0, 1)
    assert [record.time for record in importing._records(rows, plan)] == [5.0, 5.0, 9.0]


def test_many_steps_arrive_each_once(url: str, tmp_path: Path, capsys: Any) -> None:
    text = "step,loss\n" + "".join(f"{step},{step / 7}\n" for step in range(1, 1001))
    run, said = imported(url, capsys, "csv", written(tmp_path, text))
    assert (said["steps"], run.last_step, run.gaps()) == (1000, 1000, [])
    assert values(run, "loss") == {step: step / 7 for step in range(1, 1001)}


def test_a_server_that_goes_away_for_a_moment_is_waited_for(url: str, tmp_path: Path, capsys: Any, monkeypatch) -> None:
    from gradspectra.http_client import HttpClient

    real, calls = HttpClient.request, []

    def unreliable(self: Any, method: str, path: str, *rest: Any, **more: Any) -> Any:
        calls.append(path)
        if path.endswith("/records") and len(calls) % 3:
            if len(calls) % 2:
                real(self, method, path, *rest, **more)
            raise ServerAway("for a moment")
        return real(self, method, path, *rest, **more)

    monkeypatch.setattr(HttpClient, "request", unreliable)
    monkeypatch.setattr("gradspectra.sender.FIRST_WAIT", 0.01)
    text = "step,loss\n" + "".join(f"{step},{step / 7}\n" for step in range(1, 301))
    run, _ = imported(url, capsys, "csv", written(tmp_path, text))
    assert values(run, "loss") == {step: step / 7 for step in range(1, 301)}
    assert len(calls) > 10


def test_a_server_that_stays_away_fails_the_import_and_says_so(tmp_path: Path, capsys: Any, monkeypatch) -> None:
    from gradspectra.http_client import HttpClient

    real = HttpClient.request

    def half(self: Any, method: str, path: str, *rest: Any, **more: Any) -> Any:
        if path.endswith("/records"):
            raise ServerAway("no answer from anywhere")
        return real(self, method, path, *rest, **more)

    monkeypatch.setattr(HttpClient, "request", half)
    monkeypatch.setattr("gradspectra.importing.PATIENCE", 0.2)
    assert cli.main(["import", "csv", written(tmp_path, NAN_LOG), "--project", "away"]) == 1
    assert "the import is not whole: no answer from anywhere" in capsys.readouterr().err
    with Client() as client:
        (run,) = client.runs(project="away")
    assert (run.state, run.last_step) == ("failed", 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("step,loss\n1,2.0\n2,oops\n", "log.csv, line 3, 'loss': must be a number, got 'oops'"),
        ("step,loss\n1,2.0\nx,1\n", "line 3, 'step': must be a number, got 'x'"),
        ("step,loss\n1.5,2.0\n", "line 2, 'step': must be a whole number, got '1.5'"),
        ("step,loss\n,2.0\n", "line 2, 'step': the step is missing"),
        ("step,loss\n7,2.0\n3,1\n", "line 3, 'step': steps must not fall, got 3 after 7"),
        ("step,loss\n7,2.0,1\n", "line 2: must have 2 cells as the first line has, got 3"),
        ("epoch,loss\n7,2.0\n", "line 1: there is no column 'step' (--step-column), but 'epoch', 'loss'"),
        ("step,a,a\n7,2.0,1\n", "line 1: two columns are called 'a'"),
        ("step,loss\n-3,2.0\n", "its first step is -3, and steps count from 1; use --step-offset"),
        (
            "step,tokens\n1,7\n2,2.5\n",
            "line 3: 'tokens' becomes 'tokens', which must be whole and not negative, got 2.5",
        ),
        ("step,loss\n1,\n", "holds no numbers by step, there is nothing to import"),
        ("", "holds no numbers by step"),
        ('step,loss\n1,"2.0\n', "line 2: is not CSV: unexpected end of data"),
    ],
)
def test_a_csv_file_that_is_wrong_is_refused_with_line_and_value(
    url: str, tmp_path: Path, capsys: Any, text: str, told: str
) -> None:
    assert told in refused(capsys, url, "csv", written(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{oops", "log.jsonl, line 2: is not JSON: "),
        ("[1, 2]", "line 2: must be an object, got '[1, 2]'"),
        ('{"step": 2, "loss": "high"}', "line 2, 'loss': must be a number, got 'high'; choose by --columns"),
        ('{"step": 2, "loss": true}', "line 2, 'loss': must be a number, got True"),
        ('{"step": 2, "loss": [1]}', "line 2, 'loss': must be a number, got [1]"),
        ('{"step": "2", "loss": 1}', "line 2, 'step': must be a number, got '2'"),
        ('{"loss": 1}', "line 2, 'step': the step is missing"),
        ("[" * 10_000, "line 2: is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_json_lines_that_are_wrong_are_refused_with_line_and_value(
    url: str, tmp_path: Path, capsys: Any, line: str, told: str
) -> None:
    log = written(tmp_path, f'{{"step": 1, "loss": 1}}\n{line}\n', "log.jsonl")
    assert told in refused(capsys, url, "jsonl", log)


def test_options_that_do_not_fit_the_log_are_refused(url: str, tmp_path: Path, capsys: Any) -> None:
    log = written(tmp_path, "step,loss,lr,at\n1,1,1,never\n")
    assert "no column 'x' (--columns)" in refused(capsys, url, "csv", log, "--columns", "loss,x")
    assert "there are no numbers called 'x' (--rename), but 'loss'" in refused(
        capsys, url, "csv", log, "--columns", "loss", "--rename", "x=y"
    )
    both = refused(capsys, url, "csv", log, "--columns", "loss,lr", "--rename", "lr=loss")
    assert "'loss' and 'lr' would both be 'loss'" in both
    assert "'at': must be seconds since 1970 or a date and time, got 'never'" in refused(
        capsys, url, "csv", log, "--time-column", "at"
    )
    late = written(tmp_path, f'{{"step": 1, "loss": 1, "at": {10**400}}}\n', "late.jsonl")
    assert "'at': must be seconds since 1970 or a date and time, got 1000" in refused(
        capsys, url, "jsonl", late, "--time-column", "at"
    )
    assert "there is no such file" in refused(capsys, url, "csv", str(tmp_path / "none.csv"))
    assert "is a folder; name a csv file" in refused(capsys, url, "csv", str(tmp_path))
    (tmp_path / "binary.csv").write_bytes(b"step,loss\n1,\xff\n")
    assert "is not UTF-8 text" in refused(capsys, url, "csv", str(tmp_path / "binary.csv"))


def test_an_unknown_run_to_resume_is_said_at_once(url: str, tmp_path: Path, capsys: Any) -> None:
    assert "there is no run 'none'" in refused(capsys, url, "csv", written(tmp_path, NAN_LOG), "--resume", "none")


def test_a_token_that_may_only_send_is_enough_and_one_that_may_only_read_is_refused(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSPECTRA_AUTH", "tokens")
    with service(tmp_path / "data") as guarded:
        monkeypatch.setenv("GRADSPECTRA_SERVER", guarded)
        store = Store.open(f"sqlite:///{tmp_path / 'data' / 'gradspectra.db'}")
        with store.write() as conn:
            plain = {scope: create_token(conn, scope, [scope], 0.0)[1] for scope in ("ingest", "read")}
        store.close()
        log = written(tmp_path, "step,loss\n1,2.0\n")
        monkeypatch.setenv("GRADSPECTRA_TOKEN", plain["ingest"])
        assert cli.main(["import", "csv", log, "--json"]) == 0
        (said,) = json.loads(capsys.readouterr().out)["items"]
        assert cli.main(["import", "csv", log, "--resume", said["run"]]) == 0
        for token, told in ((plain["read"], "'ingest'"), ("", "401")):
            monkeypatch.setenv("GRADSPECTRA_TOKEN", token)
            assert cli.main(["import", "csv", log]) == 1
            assert told in capsys.readouterr().err
        with Client(token=plain["read"]) as client:
            assert [run.info["attempt"] for run in client.runs()] == [2]


def test_a_server_that_is_away_is_said_before_anything_is_made(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["import", "csv", written(tmp_path, NAN_LOG), "--server", "http://127.0.0.1:9"]) == 1
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "spool").exists()


def test_without_wandb_the_command_says_what_to_install(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "gradspectra.importing_wandb", raising=False)
    assert cli.main(["import", "wandb", str(tmp_path)]) == 1
    assert "pip install 'gradspectra[wandb]'" in capsys.readouterr().err


@pytest.fixture
def writer() -> Any:
    """The event writer of the tensorboard package."""
    return pytest.importorskip(
        "tensorboard.summary.writer.event_file_writer", reason="tensorboard is not installed (the extra dev has it)"
    ).EventFileWriter


def event(step: int, wall_time: float, **members: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(step=step, wall_time=wall_time, **members)


def scalars(**tags: float) -> dict[str, Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return {"summary": Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()])}


def tensors(**tags: float) -> dict[str, Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    return {
        "summary": Summary(
            value=[
                Summary.Value(tag=tag, tensor=make_tensor_proto(value), metadata=plugin) for tag, value in tags.items()
            ]
        )
    }


def event_file(writer: Any, folder: Path, *events: Any) -> Path:
    made = writer(str(folder))
    for one in events:
        made.add_event(one)
    made.close()
    return max(folder.glob("*tfevents*"), key=lambda path: path.stat().st_mtime_ns)


def test_event_files_become_a_run_with_every_scalar_of_both_forms(
    url: str, tmp_path: Path, capsys: Any, writer: Any
) -> None:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    folder = tmp_path / "gpt"
    many = [event(step, 1e9 + step, **scalars(loss=step / 4)) for step in range(1200)]
    event_file(
        writer,
        folder,
        *many,
        event(3, 1e9 + 7, **tensors(**{"eval/loss": 0.5})),
        event(5, 1e9 + 8, **scalars(**{"train/grad_norm": math.nan})),
        event(5, 1e9 + 8, summary=Summary(value=[Summary.Value(tag="weights", histo=HistogramProto(num=1))])),
    )
    run, said = imported(url, capsys, "tensorboard", str(folder))
    assert (run.name, run.last_step) == ("gpt", 1200)
    series = run.series("loss", "eval_loss", "grad_norm", start=1, stop=9)
    assert series["loss"].tolist() == [step / 4 for step in range(8)]
    assert series["eval_loss"][3] == 0.5
    assert math.isnan(series["grad_norm"][5])
    assert int(series.nonfinite["grad_norm"].sum()) == 1
    assert run.series("loss", columns=1)["loss"] == pytest.approx(1199 / 8)
    assert "left out because they are no scalars: weights" in said["remarks"]


def test_a_restart_hides_what_it_writes_anew_and_times_are_kept(tmp_path: Path, writer: Any) -> None:
    from gradspectra.importing_tensorboard import TensorBoardLog
    from tensorboard.compat.proto.event_pb2 import SessionLog

    event_file(writer, tmp_path, *(event(step, 100.0 + step, **scalars(loss=1.0)) for step in (1, 2, 3, 4)))
    restart = event(3, 200.0, session_log=SessionLog(status=SessionLog.START))
    later = event_file(
        writer, tmp_path / "later", restart, event(3, 203.5, **scalars(loss=2.0)), event(3, 204.0, **scalars(lr=0.5))
    )
    later.rename(tmp_path / "zzz.tfevents.later")
    log = TensorBoardLog(tmp_path, "r")
    log.survey()
    assert [(row.step, row.time, dict(row.numbers)) for row in log.rows()] == [
        (1, 101.0, {"loss": 1.0}),
        (2, 102.0, {"loss": 1.0}),
        (3, 203.5, {"loss": 2.0, "lr": 0.5}),
    ]


def test_a_restart_from_nothing_hides_all_that_was_there(tmp_path: Path, writer: Any) -> None:
    from gradspectra.importing_tensorboard import TensorBoardLog
    from tensorboard.compat.proto.event_pb2 import SessionLog

    event_file(writer, tmp_path, *(event(step, 100.0, **scalars(loss=1.0)) for step in (0, 1, 2)))
    restart = event(0, 200.0, session_log=SessionLog(status=SessionLog.START))
    event_file(writer, tmp_path / "later", restart, event(0, 200.0, **scalars(loss=5.0))).rename(
        tmp_path / "z.tfevents"
    )
    log = TensorBoardLog(tmp_path, "r")
    assert log.survey().steps == 1
    assert [(row.step, dict(row.numbers)) for row in log.rows()] == [(0, {"loss": 5.0})]


def test_of_a_step_that_was_written_twice_the_later_counts_by_any_clock(tmp_path: Path, writer: Any) -> None:
    from gradspectra.importing_tensorboard import TensorBoardLog

    event_file(
        writer,
        tmp_path,
        event(2, 900.0, **scalars(loss=1.0)),
        event(1, 500.0, **scalars(loss=2.0)),
        event(2, 100.0, **scalars(loss=3.0)),
    )
    log = TensorBoardLog(tmp_path, "r")
    log.survey()
    assert [(row.step, row.time, dict(row.numbers)) for row in log.rows()] == [
        (1, 500.0, {"loss": 2.0}),
        (2, 900.0, {"loss": 3.0}),
    ]


def test_hyperparameters_become_the_configuration(url: str, tmp_path: Path, capsys: Any) -> None:
    tensorboard = pytest.importorskip(
        "torch.utils.tensorboard", reason="torch's own writer needs torch and tensorboard"
    )
    told = {"lr": 0.1, "layers": 2, "name": "gpt", "tied": True}
    experiment, start, end = tensorboard.summary.hparams(told, {"best": 0.5}, None)
    with tensorboard.SummaryWriter(str(tmp_path / "h")) as summary:
        for one in (experiment, start, end):
            summary.file_writer.add_summary(one)
        summary.add_scalar("loss", 1.0, 1)
    run, said = imported(url, capsys, "tensorboard", str(tmp_path / "h"))
    assert run.config == told
    assert said["remarks"] == []


def test_each_folder_with_event_files_is_a_run(url: str, tmp_path: Path, capsys: Any, writer: Any) -> None:
    for name in ("a", "b/c"):
        event_file(writer, tmp_path / "sweep" / name, event(1, 1e9, **scalars(loss=1.0)))
    assert cli.main(["import", "tensorboard", str(tmp_path / "sweep"), "--project", "sweep"]) == 0
    assert capsys.readouterr().out.count("imported 1 steps") == 2
    assert cli.main(["import", "tensorboard", str(tmp_path / "sweep"), "--project", "sweep", "--run", "x"]) == 0
    with Client(url) as client:
        assert sorted(run.name for run in client.runs(project="sweep")) == ["sweep/a", "sweep/b/c", "x/a", "x/b/c"]
    assert "holds 2 runs" in refused(capsys, url, "tensorboard", str(tmp_path / "sweep"), "--resume", "someid")


def test_runs_of_one_folder_are_moved_on_together_and_empty_ones_left_out(
    url: str, tmp_path: Path, capsys: Any, writer: Any
) -> None:
    event_file(writer, tmp_path / "all" / "train", *(event(step, 1e9, **scalars(a=1.0)) for step in (0, 1)))
    event_file(writer, tmp_path / "all" / "eval", event(1, 1e9, **scalars(b=2.0)))
    event_file(writer, tmp_path / "all" / "texts")
    options = ("--project", "together", "--columns", "a,b", "--rename", "a=mine")
    assert cli.main(["import", "tensorboard", str(tmp_path / "all"), *options]) == 0
    assert "texts holds no numbers by step and is left out" in capsys.readouterr().err
    with Client(url) as client:
        runs = {run.name: run for run in client.runs(project="together")}
    assert set(runs) == {"all/train", "all/eval"}
    assert (values(runs["all/train"], "mine"), values(runs["all/eval"], "b")) == ({1: 1.0, 2: 1.0}, {2: 2.0})
    wrong = refused(capsys, url, "tensorboard", str(tmp_path / "all"), "--columns", "a,c")
    assert "there are no numbers called 'c' (--columns), but 'a'" in wrong


@pytest.mark.parametrize("damage", ["torn in the head", "torn in the record", "altered"])
def test_of_a_damaged_event_file_what_comes_before_is_imported_and_said(
    url: str, tmp_path: Path, capsys: Any, writer: Any, damage: str
) -> None:
    file = event_file(writer, tmp_path / "r", *(event(step, 1e9, **scalars(loss=1.0)) for step in (1, 2, 3)))
    content = file.read_bytes()
    offsets = [0]
    while offsets[-1] < len(content):
        offsets.append(offsets[-1] + 16 + struct.unpack("<Q", content[offsets[-1] : offsets[-1] + 8])[0])
    last = offsets[-2]
    end = {"torn in the head": last + 5, "torn in the record": last + 20, "altered": len(content)}[damage]
    altered = bytearray(content[:end])
    if damage == "altered":
        altered[last + 14] ^= 1
    file.write_bytes(altered)
    run, said = imported(url, capsys, "tensorboard", str(file))
    assert (run.name, run.last_step) == ("r", 2)
    assert said["remarks"] == [f"{file} is torn or damaged at byte {last:,} of {end:,}; what comes before is imported"]


def test_what_is_no_event_file_is_refused(url: str, tmp_path: Path, capsys: Any, writer: Any) -> None:
    assert "there is no event file here" in refused(capsys, url, "tensorboard", str(tmp_path))
    bad = written(tmp_path, "this is not it, by far", "x.tfevents.1")
    assert "x.tfevents.1: is not an event file" in refused(capsys, url, "tensorboard", bad)
    event_file(writer, tmp_path / "r", event(1, 1e9, **scalars(loss=1.0)))
    assert "holds no numbers by step called 'x' (--columns)" in refused(
        capsys, url, "tensorboard", str(tmp_path / "r"), "--columns", "x"
    )


def test_without_tensorboard_the_command_names_the_extra(
    url: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "gradspectra.importing_tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = refused(capsys, url, "tensorboard", str(tmp_path))
    assert "pip install 'gradspectra[tensorboard]'" in said
