import math
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradspectra
import numpy as np
import pytest
from agent.scripted_server import ScriptedServer
from agent.service import eventually, service
from gradspectra.client import Client
from gradspectra.recorder import Recorder
from gradspectra_core.records import Batch


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def recorder(server: ScriptedServer, tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(
        project="p", run="r", layers=["a.weight", ("b.weight", (4, 3))], server=server.url, spool=tmp_path
    )
    yield recorder
    recorder.close()


def batch_of(server: ScriptedServer, recorder: Recorder) -> Batch:
    recorder.close()
    assert len(server.batches) == 1
    return server.batches[0]


def scalars(batch: Batch) -> dict[str, float]:
    return {name: float(batch.scalars.values[at, 0]) for at, name in enumerate(batch.scalars.names)}


def test_a_step_arrives_with_scalars_counts_layers_and_time(server: ScriptedServer, recorder: Recorder) -> None:
    recorder.record(
        7,
        loss=np.float32(0.5),
        lr=0.1,
        grad_norm=None,
        my_score=math.inf,
        tokens=2**60,
        time=123.5,
        layers={"grad_sq": np.array([1.0, 2.0]), "mine": [3, None], "grad_nonfinite": [0, 2]},
    )
    batch = batch_of(server, recorder)
    assert (batch.steps.tolist(), batch.times.tolist()) == ([7], [123.5])
    assert scalars(batch) == {"loss": 0.5, "learning_rate": 0.1, "my_score": math.inf}
    assert (batch.counts.names, batch.counts.values.tolist()) == (("tokens",), [[2**60]])
    assert batch.layer_table is not None
    assert [(layer.name, layer.shape) for layer in batch.layer_table.layers] == [("a.weight", ()), ("b.weight", (4, 3))]
    assert batch.layers is not None
    assert batch.layers.statistics == ("grad_sq", "mine")
    assert batch.layers.values[:, 0].tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert batch.layers.present[:, 0].tolist() == [[True, True], [True, False]]
    assert (batch.layers.count_statistics, batch.layers.counts[:, 0].tolist()) == (("grad_nonfinite",), [[0, 2]])


def test_a_spectrum_comes_from_a_matrix_or_from_its_singular_values(server: ScriptedServer, recorder: Recorder) -> None:
    matrix = np.diag([3.0, 1.0, 2.0, 0.0])[:, :3]
    recorder.record(1, spectra={"b.weight": matrix, ("b.weight", "weight"): [1.0, 4.0], "a.weight": [2.0] * 200})
    spectra = batch_of(server, recorder).spectra
    assert spectra is not None
    assert spectra.of == ("gradient", "weight", "gradient")
    assert spectra.layer.tolist() == [1, 1, 0]
    assert list(zip(spectra.rows.tolist(), spectra.columns.tolist(), strict=True)) == [(4, 3), (4, 3), (200, 200)]
    assert spectra.values[0, :3].tolist() == pytest.approx([3.0, 2.0, 1.0])
    assert spectra.aggregates[0].tolist() == pytest.approx([6.0, 14.0, 3.0, 98.0, 1.0114, 2.0, 3.0], abs=1e-4)
    assert spectra.values[1, :2].tolist() == [4.0, 1.0]
    assert spectra.length.tolist() == [3, 2, 96]
    assert spectra.aggregates[2, 0] == 400.0


def test_a_singular_value_beyond_float32_is_infinite_without_a_warning(
    server: ScriptedServer, recorder: Recorder
) -> None:
    recorder.record(1, spectra={"b.weight": [1e300, 1e299]})
    spectra = batch_of(server, recorder).spectra
    assert spectra is not None
    assert spectra.values[0, :2].tolist() == [math.inf, math.inf]
    assert spectra.aggregates[0, :4].tolist() == pytest.approx([1.1e300, math.inf, 1e300, math.inf])
    assert spectra.aggregates[0, 4] == pytest.approx(0.3046, abs=1e-4)


def test_a_spectrum_with_nan_is_recorded_as_such(server: ScriptedServer, recorder: Recorder) -> None:
    recorder.record(1, spectra={"b.weight": np.full((4, 3), np.nan)})
    spectra = batch_of(server, recorder).spectra
    assert spectra is not None
    assert np.isnan(spectra.values).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step": 0}, ValueError, "step must be at least 1"),
        ({"step": 3}, ValueError, "step must be above the last recorded step 3, got 3"),
        ({"step": 1.5}, TypeError, r"step must be a whole number, got 1\.5"),
        ({"loss": "low"}, TypeError, "loss must be one number, got 'low'"),
        ({"loss": [1.0, 2.0]}, TypeError, "loss must be one number"),
        ({"loss": "1.5"}, TypeError, "loss must be one number, got '1.5'"),
        ({"loss": 1j}, TypeError, "loss must be one number, got 1j"),
        ({"loss": np.complex64(1 + 2j)}, TypeError, "loss must be one number, got np.complex64"),
        ({"loss": np.timedelta64(3, "s")}, TypeError, "loss must be one number, got np.timedelta64"),
        ({"loss": 10**400}, TypeError, "loss must be one number, got 1000"),
        ({"step": 2**53 + 1}, ValueError, "step must be at most 9007199254740992, got 9007199254740993"),
        ({"tokens": "5"}, TypeError, "tokens must be one number, got '5'"),
        ({"tokens": 2**63}, ValueError, "tokens must be a whole number of at least 0, got 9223372036854775808"),
        ({"time": datetime(2026, 1, 1)}, TypeError, r"time must be seconds since 1970 \(a datetime has time"),
        ({"layers": [1.0, 2.0]}, TypeError, r"layers must be numbers by the name of their statistic, got \["),
        ({"layers": {"grad_sq": [1j, 2.0]}}, TypeError, r"layers\['grad_sq'\] must be numbers, got an array of c"),
        ({"layers": {"grad_nonfinite": [1.5, 2]}}, ValueError, r"must be whole numbers of at least 0, got 1\.5"),
        ({"layers": {"grad_nonfinite": [0, -2]}}, ValueError, "must be whole numbers of at least 0, got -2"),
        ({"layers": {"grad_nonfinite": [0, math.nan]}}, ValueError, "must be whole numbers of at least 0, got nan"),
        ({"layers": {f"s{n}": [1.0, 2.0] for n in range(65)}}, ValueError, "at most 64 statistics, got 65"),
        ({"spectra": [1.0]}, TypeError, r"spectra must be matrices or singular values by layer, got \[1\.0\]"),
        ({"tokens": 1.5}, ValueError, r"tokens must be a whole number of at least 0, got 1\.5"),
        ({"tokens": -1}, ValueError, "tokens must be a whole number of at least 0, got -1"),
        ({"tokens": math.inf}, ValueError, "tokens must be a whole number of at least 0, got inf"),
        ({"time": math.nan}, ValueError, "time must be seconds since 1970, got nan"),
        ({"layers": {"grad_sq": [1.0]}}, ValueError, r"layers\['grad_sq'\] must have shape \(2,\).*got \(1,\)"),
        ({"layers": {"grad_sq": ["x", "y"]}}, TypeError, r"layers\['grad_sq'\] must be numbers"),
        ({"layers": {"": [1.0, 2.0]}}, ValueError, "the name of a statistic must be printable text, got ''"),
        ({"spectra": {"c": [1.0]}}, ValueError, "spectra names 'c', which is not among the recorder's layers"),
        ({"spectra": {("a.weight", "loss"): [1.0]}}, ValueError, "a spectrum must be of gradient, weight, update"),
        ({"spectra": {"a.weight": [-1.0]}}, ValueError, r"must not be negative, got -1\.0"),
        ({"spectra": {"a.weight": 1.0}}, ValueError, "must be a matrix or its singular values"),
        ({f"s{index}": 1.0 for index in range(257)}, ValueError, "at most 256 scalars, got 257"),
        ({"x" * 600: 1.0}, ValueError, "the name of a scalar must be printable and at most 512 characters"),
    ],
)
def test_wrong_input_is_named_and_not_recorded(
    server: ScriptedServer, recorder: Recorder, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    recorder.record(3, loss=1.0)
    with pytest.raises(error, match=message):
        recorder.record(**{"step": 4, **arguments})
    recorder.record(4, loss=1.0)
    recorder.close()
    assert server.steps() == [3, 4]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("abc", TypeError, "layers must be a list of names, got the string 'abc'"),
        (["a", "a"], ValueError, "layer names must be unique, 'a' occurs twice"),
        ([("a", ("x",))], ValueError, "the shape of layer 'a' must be whole numbers"),
        ([3], ValueError, "a layer must be a printable name, or"),
        ({"a": (2, 3)}, TypeError, r"or \(name, shape\) pairs, got a mapping; give its items"),
        (["x"] * 10_001, ValueError, "layers must be at most 10000, got 10001"),
    ],
)
def test_wrong_layers_raise_at_construction(layers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recorder(layers=layers)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"stop_on": "severe"}, ValueError, "stop_on must be None or one of info, warning, critical, got 'severe'"),
        ({"on_alert": 5}, TypeError, "on_alert must be a function of one alert, got 5"),
        ({"start_step": 1.5}, TypeError, r"start_step must be a whole number, got 1\.5"),
    ],
)
def test_wrong_arguments_raise_at_construction(argument: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recorder(**argument)


def test_masked_numbers_are_absent(server: ScriptedServer, recorder: Recorder) -> None:
    masked = np.ma.masked_invalid([math.nan, 2.0])
    recorder.record(1, layers={"grad_sq": masked, "grad_nonfinite": masked, "mine": [math.nan, 2.0]}, spectra={})
    layers = batch_of(server, recorder).layers
    assert layers is not None
    assert layers.present[:, 0].tolist() == [[False, True], [True, True]]
    assert layers.counts_present[:, 0].tolist() == [[False, True]]
    assert layers.counts[:, 0].tolist() == [[0, 2]]


def test_numbers_of_any_library_are_numbers(server: ScriptedServer, recorder: Recorder) -> None:
    torch = pytest.importorskip("torch")
    recorder.record(
        np.int32(2),
        loss=torch.tensor(0.5),
        a=np.array(1.5),
        b=True,
        c=Fraction(1, 4),
        tokens=np.float64(7.0),
        layers={},
    )
    with pytest.raises(TypeError, match="loss must be one number, got tensor"):
        recorder.record(3, loss=torch.ones(2))
    batch = batch_of(server, recorder)
    assert scalars(batch) == {"loss": 0.5, "a": 1.5, "b": 1.0, "c": 0.25}
    assert batch.counts.values.tolist() == [[7]]


def test_layers_need_a_recorder_that_knows_them(server: ScriptedServer, tmp_path: Path) -> None:
    with Recorder(server=server.url, spool=tmp_path) as recorder:
        with pytest.raises(ValueError, match="layers needs the recorder to know its layers"):
            recorder.record(1, layers={"grad_sq": [1.0]})
        with pytest.raises(ValueError, match="spectra needs the recorder to know its layers"):
            recorder.record(1, spectra={"a": [1.0]})


def test_alerts_reach_the_callback_and_stop_on_raises(server: ScriptedServer, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    recorder = Recorder(server=server.url, spool=tmp_path, on_alert=seen.append, stop_on="critical")
    recorder.record(1, loss=1.0)
    with pytest.raises(gradspectra.InstabilityError, match="step 2") as raised:
        recorder.record(2, loss=math.nan)
    recorder.close(state="failed")
    assert [(alert["rule"], alert["opened_step"]) for alert in seen] == [("nonfinite", 2)]
    assert raised.value.alerts == seen
    assert server.steps() == [1, 2]
    assert server.finished[0]["state"] == "failed"


def test_the_server_can_stop_the_run(server: ScriptedServer, tmp_path: Path) -> None:
    server.stop_at_step = 5
    with Recorder(server=server.url, spool=tmp_path, stop_on="critical") as recorder:
        recorder.record(1, loss=1.0)
        server.wait_for(lambda: recorder._transport.stop_at_step == 5)
        recorder.record(4, loss=1.0)
        with pytest.raises(gradspectra.InstabilityError, match="the server asked the run to stop at step 5"):
            recorder.record(5, loss=1.0)


def test_a_run_that_did_not_agree_to_be_stopped_goes_on(server: ScriptedServer, tmp_path: Path) -> None:
    server.stop_at_step = 1
    with Recorder(server=server.url, spool=tmp_path) as recorder:
        recorder.record(1, loss=1.0)
        server.wait_for(lambda: recorder._transport.stop_at_step == 1)
        recorder.record(2, loss=1.0)
    assert server.steps() == [1, 2]


def test_a_closed_recorder_says_so(server: ScriptedServer, tmp_path: Path) -> None:
    recorder = Recorder(server=server.url, spool=tmp_path)
    with pytest.raises(ValueError, match='state must be "finished" or "failed", got \'done\''):
        recorder.close(state="done")
    recorder.close()
    with pytest.raises(RuntimeError, match="record was called after close"):
        recorder.record(1, loss=1.0)


def test_an_exception_in_the_block_makes_the_run_failed(server: ScriptedServer, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Recorder(server=server.url, spool=tmp_path) as recorder:
        recorder.record(1, loss=1.0 / 0)
    assert server.finished[0]["state"] == "failed"


def test_the_real_service_serves_what_was_recorded(tmp_path: Path) -> None:
    with service(tmp_path / "data") as url:
        layers = [("a.weight", (4, 3)), ("b.weight", (3, 3))]
        with Recorder(project="p", run="r", layers=layers, server=url, spool=tmp_path / "spool") as recorder:
            for step in range(1, 101):
                values = np.array([step, 2.0 * step])
                spectra = {"a.weight": np.eye(4, 3) * step} if step % 10 == 0 else None
                loss = math.nan if step == 100 else 1.0 / step
                recorder.record(step, loss=loss, lr=0.1, layers={"grad_sq": values}, spectra=spectra)
        client = Client(url)
        run = eventually(lambda: client.runs(project="p")[0], lambda run: run.info["derived_step"] == 100)
        assert (run.name, run.state, run.health, run.last_step) == ("r", "finished", "critical", 100)
        series = run.series("loss", "learning_rate")
        assert series.steps.tolist() == list(range(1, 101))
        assert series["loss"][:99].tolist() == [1.0 / step for step in range(1, 100)]
        assert math.isnan(series["loss"][99])
        assert series.nonfinite["loss"].tolist() == [0] * 99 + [1]
        norms = run.layers("grad_norm")
        assert norms.layers == ("a.weight", "b.weight")
        assert norms["b.weight"] == pytest.approx(np.sqrt(2.0 * np.arange(1, 101)))
        assert run.layers("stable_rank", layers=["a.weight"]).mean.tolist() == [[3.0] * 10]
        (spectrum,) = run.spectra("a.weight", step=50)
        assert spectrum.singular_values.tolist() == [50.0, 50.0, 50.0]
        assert (spectrum.step, spectrum.rows, spectrum.columns, spectrum.k90) == (50, 4, 3, 3)
        (alert,) = run.alerts()
        assert (alert["rule"], alert["opened_step"]) == ("nonfinite", 100)
