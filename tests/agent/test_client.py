import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from agent.service import eventually, service
from gradspectra.client import Client, Run
from gradspectra.errors import ServerAway, ServerRefused
from gradspectra.learning_rates import groups_of
from gradspectra.recorder import Recorder
from gradspectra.tables import RunSeries, numbers

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
                recorder.record(step, loss=loss, lr=0.5, layers={"grad_sq": sq} if step % 2 == 0 else None)
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
    (alert,) = run.alerts()
    assert (alert["rule"], alert["opened_step"], alert["state"]) == ("nonfinite", STEPS, "open")
    assert [entry["id"] for entry in client.alerts(state="open")] == [alert["id"]]
    assert client.alerts(since=alert["opened_at"] + 60) == []
    assert all(suggestion["enough_evidence"] is False for suggestion in run.suggestions())
    figure = run.figure("layers", statistic="grad_norm", theme="dark")
    assert {"data", "layout"} <= set(figure)
    assert figure["data"][0]["type"] == "heatmap"


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
    client = Client(f"{url}/health?x=")
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


@pytest.mark.parametrize(
    ("library", "method"), [("pandas", "to_pandas"), ("polars", "to_polars"), ("pyarrow", "to_arrow")]
)
def test_a_missing_library_is_named_and_a_present_one_used(library: str, method: str) -> None:
    row = {part: [1.0, "NaN"] for part in ("mean", "min", "max", "last")}
    series = RunSeries.from_json({"x": [1, 2], "series": {"loss": {**row, "nonfinite": [0, 1]}}})
    if importlib.util.find_spec(library) is None:
        with pytest.raises(ImportError, match=f"this needs {library}, which is not installed: pip install {library}"):
            getattr(series, method)()
    else:
        assert getattr(series, method)().shape == (2, 5)


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
