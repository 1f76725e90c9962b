import json
import math
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent.service import eventually, service
from gradspectra.answers import numbers
from gradspectra.client import Client, Run
from gradspectra.errors import ServerAway, ServerRefused
from gradspectra.files import write_whole
from gradspectra.learning_rates import groups_of
from gradspectra.recorder import Recorder
from gradspectra.tables import RunLayers, RunSeries, RunSpectra, Table
from gradspectra_frontend.figures import FIGURES

STEPS = 300
LAYERS = ["a.weight", "odd,name.weight"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real service with three runs: `first`, `second` (with layers and a NaN at the end) and one of project q."""
    folder = tmp_path_factory.mktemp("service")
    with service(folder / "data") as url:
        for project, name in (("p", "first"), ("q", "other")):
            with Recorder(project=project, run=name, server=url, spool=folder) as recorder:
                recorder.record(1, loss=1.0)
        with Recorder(
            project="p", run="second", layers=LAYERS, server=url, spool=folder, config={"lr": 0.5}
        ) as recorder:
            for step in range(1, STEPS + 1):
                loss = math.inf if step == STEPS else float(step)
                sq = [float(step), None if step <= 100 else 4.0]
                spectra = {10: {"a.weight": [3.0, 4.0]}, 20: {"a.weight": [2.0]}}.get(step)
                layers = {"grad_sq": sq} if step % 2 == 0 else None
                recorder.record(step, loss=loss, lr=0.5, layers=layers, spectra=spectra)
        with Client(url) as client:
            eventually(lambda: client.runs(search="second")[0], lambda run: run.info["derived_step"] == STEPS)
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def run(client: Client) -> Run:
    return client.runs(search="second")[0]


def test_runs_are_listed_newest_first_and_filtered(client: Client) -> None:
    assert [run.name for run in client.runs()] == ["second", "other", "first"]
    assert [run.name for run in client.runs(project="p", order="created_at")] == ["first", "second"]
    assert [run.name for run in client.runs(health="critical")] == ["second"]
    assert [entry["project"] for entry in client.projects()] == ["p", "q"]
    assert client.runs(state="lost") == []


def test_pages_are_followed_up_to_the_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradspectra.client.PAGE", 1)
    assert [run.name for run in client.runs()] == ["second", "other", "first"]
    assert [run.name for run in client.runs(limit=2)] == ["second", "other"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        client.runs(limit=0)


def test_a_run_knows_itself(client: Client, run: Run) -> None:
    again = client.run(run.id)
    assert (again.project, again.name, again.last_step, again.config) == ("p", "second", STEPS, {"lr": 0.5})
    assert repr(again) == f"<Run {run.id} p/second finished critical step {STEPS}>"
    assert run.refresh().info == again.info
    assert [attempt["attempt"] for attempt in run.attempts()] == [1]
    assert run.gaps() == []


def test_series_come_as_arrays_in_full_and_in_buckets(run: Run) -> None:
    full = run.series("loss", "learning_rate", "none_such")
    assert full.names == ("loss", "learning_rate")
    assert "none_such" not in full.available
    assert full.steps.tolist() == list(range(1, STEPS + 1))
    assert full["loss"][:-1].tolist() == [float(step) for step in range(1, STEPS)]
    assert full["loss"][-1] == math.inf
    coarse = run.series("loss", columns=10, start=64, stop=128)
    assert coarse.min["loss"][0] == 64.0
    assert coarse.max["loss"][-1] == 127.0
    assert len(coarse.steps) <= 10
    assert set(run.series().names) >= {"loss", "learning_rate"}


def test_layers_come_as_arrays_with_what_is_absent_marked(run: Run) -> None:
    layers = run.layers("grad_norm")
    assert layers.layers == ("a.weight", "odd,name.weight")
    assert layers.steps.tolist() == list(range(2, STEPS + 1, 2))
    assert layers["a.weight"] == pytest.approx(np.sqrt(layers.steps))
    assert layers.present[1].tolist() == [step > 100 for step in range(2, STEPS + 1, 2)]
    assert np.isnan(layers["odd,name.weight"][0])
    assert layers["odd,name.weight"][-1] == 2.0
    only = run.layers("grad_sq", layers=["odd,name.weight"])
    assert only.layers == ("odd,name.weight",)
    assert [layer["name"] for layer in run.layer_list()] == LAYERS
    with pytest.raises(TypeError, match="names must be a list of names"):
        run.layers("grad_sq", layers="a.weight")


def test_alerts_suggestions_and_figures_are_read(client: Client, run: Run) -> None:
    found = {alert["rule"]: alert for alert in run.alerts()}
    assert set(found) == {"nonfinite", "divergence"}, "the loss rises from 1 to the last step, where it is not finite"
    alert = found["nonfinite"]
    assert (alert["opened_step"], alert["state"]) == (STEPS, "open")
    assert {entry["id"] for entry in client.alerts(state="open")} == {one["id"] for one in found.values()}
    assert client.alerts(since=alert["opened_at"] + 60) == []
    assert all(suggestion["enough_evidence"] is False for suggestion in run.suggestions())
    figure = run.figure("layers", statistic="grad_norm", theme="dark")
    assert set(figure) >= {"data", "layout"}
    assert figure["data"][0]["type"] == "heatmap"


def test_runs_are_compared_by_themselves_or_their_ids(client: Client, run: Run) -> None:
    other = client.runs(search="first")[0]
    compared = client.compare([run, other.id])
    assert repr(compared) == f"<Comparison {run.id}, {other.id}>"
    curves = compared.figure("curves", series="loss", axis="time")
    assert {one["run"] for one in curves["layout"]["meta"]["runs"]} == {run.id, other.id}
    assert compared.figure() == compared.figure("curves", series="loss")
    assert compared.figure("sweep")["layout"]["meta"]["sensitivity"] is None
    with pytest.raises(ServerRefused, match="a difference is of two runs, got 1"):
        client.compare([run]).figure("difference")
    with pytest.raises(ServerRefused, match=r"serie: is not known here; did you mean series\?"):
        compared.figure("curves", serie="loss")
    with pytest.raises(TypeError, match="runs must be a list of runs or ids, got the string"):
        client.compare(run.id)
    with pytest.raises(TypeError, match="runs must be runs or their ids, got 5 among them"):
        client.compare([run, 5])  # type: ignore[list-item]


def test_rules_are_read(client: Client) -> None:
    rules = {rule["name"]: rule for rule in client.rules()}
    assert rules["nonfinite"]["severity"] == "critical"
    assert rules["nonfinite"]["remedy"]


def test_refusals_carry_the_problem(client: Client, run: Run) -> None:
    with pytest.raises(ServerRefused) as refused:
        client.run("nosuchrun")
    assert refused.value.status == 404
    assert refused.value.type.endswith("unknown-run")
    with pytest.raises(ServerRefused, match="the server answered 4"):
        run.layers("none_such")
    with pytest.raises(ServerRefused):
        client.run("../../../health")


def test_no_server_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError, match=r"no answer from http://127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9").runs()
    with pytest.raises(ServerAway):
        Client("http://127.0.0.1:9").runs()


def test_an_answer_that_is_no_json_names_the_server(url: str) -> None:
    client = Client(f"{url}/health")
    with pytest.raises((ServerRefused, ServerAway)):
        client.runs()


def test_numbers_keep_special_values_apart_from_missing_ones() -> None:
    values, present = numbers([1.5, None, "NaN", "Infinity", "-Infinity"])
    assert values.tolist()[0] == 1.5
    assert np.isnan(values[[1, 2]]).all()
    assert values[3:].tolist() == [math.inf, -math.inf]
    assert present.tolist() == [True, False, True, True, True]
    assert [part.tolist() for part in numbers([])] == [[], []]


def test_tables_have_one_column_per_number_and_one_row_per_value(run: Run) -> None:
    series = run.series("loss").columns()
    assert list(series) == ["step", "loss", "loss_min", "loss_max", "loss_nonfinite"]
    layers = run.layers("grad_sq").columns()
    assert list(layers) == ["step", "layer", "mean", "min", "max", "nonfinite"]
    assert len(layers["step"]) == 150 + 100
    assert layers["layer"][-1] == "odd,name.weight"
    assert layers["mean"][-1] == 4.0


def test_a_series_keeps_its_name_where_another_s_column_would_be_called_so() -> None:
    def row(value: float) -> dict[str, list[float]]:
        parts = {"mean": value, "min": value - 1, "max": value + 1, "last": value}
        return {name: [number] for name, number in parts.items()} | {"nonfinite": [0]}

    names = {"reward_min": 10.0, "reward": 20.0, "step": 30.0}
    series = RunSeries.from_json({"x": [7], "series": {name: row(value) for name, value in names.items()}})
    columns = {name: float(column[0]) for name, column in series.columns().items() if "nonfinite" not in name}
    assert columns == {
        "step": 7,
        "reward_min": 10,
        "reward_min_min": 9,
        "reward_min_max": 11,
        "reward": 20,
        "reward_max": 21,
        "step_value": 30,
        "step_min": 29,
        "step_max": 31,
    }
    assert set(series.missing()) == set(columns) - {"step"}


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, math.inf, None, "5"])
def test_a_timeout_that_is_none_is_named(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0, got "):
        Client(timeout=timeout)


@pytest.mark.parametrize(
    ("library", "method"), [("pandas", "to_pandas"), ("polars", "to_polars"), ("pyarrow", "to_arrow")]
)
def test_a_missing_library_is_named(library: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"this needs {library}, which is not installed: pip install {library}"):
        getattr(RunSeries.from_json({"x": [], "series": {}}), method)()


def lists(table: Any) -> dict[str, list[Any]]:
    """Columns of a table of any of the libraries."""
    if hasattr(table, "to_pydict"):
        return dict(table.to_pydict())
    return {name: table[name].to_list() for name in table.columns}


@pytest.fixture(params=["pandas", "polars", "pyarrow"])
def made_by(request: pytest.FixtureRequest) -> Callable[[Table], dict[str, list[Any]]]:
    """Makes a table of one of the libraries and reads it back as lists."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed (the extra dev has it)")
    method = {"pandas": "to_pandas", "polars": "to_polars", "pyarrow": "to_arrow"}[request.param]
    return lambda table: lists(getattr(table, method)())


def test_series_are_tables_that_keep_nan_apart_from_missing(
    made_by: Callable[[Table], dict[str, list[Any]]], request: pytest.FixtureRequest
) -> None:
    row = {part: [1.5, "NaN", None, "-Infinity"] for part in ("mean", "min", "max", "last")}
    series = RunSeries.from_json({"x": [1, 2, 3, 7], "series": {"loss": {**row, "nonfinite": [0, 1, 0, 1]}}})
    columns = made_by(series)
    assert list(columns) == ["step", "loss", "loss_min", "loss_max", "loss_nonfinite"]
    assert (columns["step"], columns["loss_nonfinite"]) == ([1, 2, 3, 7], [0, 1, 0, 1])
    missing = "nan" if "pandas" in request.node.name else "None"
    for name in ("loss", "loss_min", "loss_max"):
        assert repr(columns[name]) == f"[1.5, nan, {missing}, -inf]"


def test_layers_and_spectra_are_tables_too(run: Run, made_by: Callable[[Table], dict[str, list[Any]]]) -> None:
    layers = made_by(run.layers("grad_sq", start=99, stop=103))
    assert layers["step"] == [100, 102, 102]
    assert layers["layer"] == ["a.weight", "a.weight", "odd,name.weight"]
    assert layers["mean"] == layers["max"] == [100.0, 102.0, 4.0]
    spectra = made_by(run.spectra("a.weight"))
    assert (spectra["step"], spectra["layer"], spectra["of"]) == ([10, 20], ["a.weight"] * 2, ["gradient"] * 2)
    assert [list(entry) for entry in spectra["singular_values"]] == [[3.0, 4.0][::-1], [2.0]]
    assert [list(entry) for entry in spectra["index"]] == [[0, 1], [0]]
    assert spectra["frobenius_sq"] == [25.0, 4.0]
    assert list(spectra)[:4] == ["layer", "of", "step", "attempt"]


def test_what_has_no_rows_is_an_empty_table(run: Run, made_by: Callable[[Table], dict[str, list[Any]]]) -> None:
    assert made_by(run.series("loss", start=5000))["loss"] == []
    assert made_by(run.layers("grad_sq", start=5000))["mean"] == []
    assert made_by(run.spectra("a.weight", start=5000))["singular_values"] == []


def test_spectra_come_by_step(run: Run) -> None:
    (spectrum,) = run.spectra("a.weight", step=10)
    assert spectrum.singular_values.tolist() == [4.0, 3.0]
    assert [spectrum.step for spectrum in run.spectra("a.weight", stop=20)] == [10]
    with pytest.raises(ServerRefused, match=r"no layer 'b\.weight'"):
        run.spectra("b.weight")


def test_a_name_that_is_not_here_is_said_with_those_that_are(run: Run) -> None:
    with pytest.raises(KeyError, match="there is no series 'los' here, but learning_rate, loss"):
        run.series()["los"]
    with pytest.raises(KeyError, match=r"there is no layer 'b' here, but a\.weight"):
        run.layers("grad_sq")["b"]


def test_a_figure_is_plotlys_own_where_it_is_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
    figure = run.figure("loss")
    assert isinstance(figure, graph_objects.Figure)
    assert figure.data[0].type == "scatter"
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    plain = run.figure("loss")
    assert type(plain) is dict
    assert plain["data"][0]["type"] == "scatter"


def test_every_figure_is_one_for_plotly(run: Run) -> None:
    pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
    for name in FIGURES:
        layer = {"layer": "a.weight"} if name in ("spectrum", "ranks", "layer_curves") else {}
        assert run.figure(name, **layer).layout.template is not None


@pytest.mark.parametrize("name", ["run.csv", "run.JSON", "run.parquet", "run.arrow"])
def test_a_run_is_exported_whole_by_the_end_of_the_name(run: Run, tmp_path: Path, name: str) -> None:
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra dev has it)")
    file = run.export(tmp_path / name, names=["loss"], start=2)
    assert file == tmp_path / name
    if name.endswith("csv"):
        rows = [line.split(",") for line in file.read_text().splitlines()]
        losses = [float(row[rows[0].index("loss")]) for row in rows[1:]]
    elif name.endswith("JSON"):
        losses = [float(row["loss"]) for row in json.loads(file.read_text())]
    elif name.endswith("parquet"):
        from pyarrow import parquet

        losses = parquet.read_table(file)["loss"].to_pylist()
    else:
        from pyarrow import ipc

        losses = ipc.open_file(file.read_bytes()).read_all()["loss"].to_pylist()
    assert losses == [*map(float, range(2, STEPS)), math.inf]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_the_server_could_not_read_back_is_said() -> None:
    row = {part: [1.0] for part in ("mean", "min", "max", "last")}
    answer = {"x": [1], "series": {"loss": {**row, "nonfinite": [0]}}, "damaged": [[3, 4], [7, 7]]}
    assert RunSeries.from_json(answer).damaged == ((3, 4), (7, 7))
    layers = {"statistic": "s", "layers": [], "roles": [], "depths": [], "nonfinite": []}
    parts = {"mean": [], "min": [], "max": []}
    lossy = RunLayers.from_json({**layers, **parts, "x": [], "damaged": [[3, 4]], "retired": [[1, 64, 64]]})
    assert lossy.damaged == ((3, 4),)
    assert RunLayers.from_json({**layers, **parts, "x": []}).damaged == ()
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra dev has it)")
    assert RunSeries.from_json(answer).to_arrow().schema.metadata == {b"damaged": b"[[3, 4], [7, 7]]"}
    assert lossy.to_arrow().schema.metadata == {
        b"statistic": b"s",
        b"damaged": b"[[3, 4]]",
        b"retired": b"[[1, 64, 64]]",
    }


def test_layers_and_spectra_are_exported_by_name(run: Run, tmp_path: Path) -> None:
    layers = run.export(tmp_path / "x", format="csv", what="layers", names=["grad_sq"], layers=["odd,name.weight"])
    lines = layers.read_text().splitlines()
    assert lines[0] == "step,attempt,layer,role,depth,grad_sq"
    assert len(lines) == 101
    assert lines[1].startswith('102,1,"odd,name.weight",')
    spectra = json.loads(run.export(tmp_path / "s.json", what="spectra", of="gradient").read_text())
    assert [row["singular_values"] for row in spectra] == [[4.0, 3.0], [2.0]]


def test_an_export_that_fails_leaves_the_file_that_was_there(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    file.write_text("old")
    with pytest.raises(ServerRefused, match="attempts 1 to 1, got 7"):
        run.export(file, attempt=7)
    with pytest.raises(ValueError, match=r"format must be one of csv, json, parquet, arrow, got 'xlsx' for 'run.xlsx'"):
        run.export(tmp_path / "run.xlsx")
    with pytest.raises(FileNotFoundError):
        run.export(tmp_path / "none" / "run.csv")
    assert (file.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)


def test_an_answer_that_breaks_off_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nstep,\r\n"
    with answering(whole) as address:
        parts = Client(address).parts("/runs/x/export")
        with pytest.raises(ServerAway, match=f"{address} broke off before the end of its answer"):
            write_whole(tmp_path / "run.csv", parts)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """A server that answers one request with these bytes and goes away."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(content)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(60)


@dataclass(eq=False)
class Parameter:
    requires_grad: bool = True


class Model:
    """What of a module the groups are made from."""

    def __init__(self, *names: str) -> None:
        self.parameters = {name: Parameter(requires_grad="frozen" not in name) for name in names}

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        return list(self.parameters.items())


def suggestion(layer: str | None, value: float | None, enough: bool = True) -> dict[str, Any]:
    return {"quantity": "learning_rate_multiplier", "layer": layer, "value": value, "enough_evidence": enough}


def test_parameters_are_grouped_by_suggested_multiplier() -> None:
    model = Model("module.a", "module.b", "module.qkv", "module.c", "module.frozen")
    suggestions = [suggestion("a", 2.0), suggestion("qkv[q]", 1.0), suggestion("qkv[k]", 4.0)]
    suggestions += [suggestion("b", None, enough=False), suggestion(None, 3.0)]
    groups = groups_of(model, suggestions, {"a", "b", "c", "qkv[q]", "qkv[k]"}, 0.1)
    assert [(group["layers"], group["multiplier"], group["lr"]) for group in groups] == [
        (["a", "qkv"], 2.0, 0.2),
        (["b", "c"], 1.0, 0.1),
    ]
    assert groups[0]["params"] == [model.parameters["module.a"], model.parameters["module.qkv"]]
    assert "lr" not in groups_of(model, suggestions, {"a"}, None)[0]


def test_the_groups_of_another_model_are_refused(run: Run) -> None:
    (group,) = run.parameter_groups(Model("a.weight", "odd,name.weight"))
    assert (group["layers"], group["multiplier"], group["lr"]) == (LAYERS, 1.0, 0.5)
    with pytest.raises(ValueError, match="is it the same model"):
        run.parameter_groups(Model("x.weight"))


def test_what_of_a_run_was_retired_is_told(run: Run) -> None:
    assert (run.layers("grad_norm").retired, run.spectra("a.weight").retired) == ((), ())
    assert (run.info["pinned"], run.info["retired_at"]) == (False, None)
    answer = run._read("/layers/grad_norm") | {"retired": [[1, 64, 8]]}
    assert RunLayers.from_json(answer).retired == ((1, 64, 8),)
    assert RunSpectra.from_json({"items": [], "retired": [[1, 64, 32]]}).retired == ((1, 64, 32),)
