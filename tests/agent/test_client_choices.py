"""What the client may ask for beside names and ranges: which layers, which attempt, along which axis."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent.service import eventually, service
from gradspectra.cli import main
from gradspectra.client import Client, Run
from gradspectra.recorder import Recorder

LAYERS = [f"layers.{depth}.attn.{role}_proj.weight" for depth in (0, 1) for role in ("q", "k")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Five steps of an attempt, of which a second one has the last two anew, at 10 tokens and 2 s a step."""
    folder = tmp_path_factory.mktemp("service")
    with service(folder / "data") as url, Client(url) as client:
        settings = {
            "project": "p",
            "run": "r",
            "layers": [(name, (4, 4)) for name in LAYERS],
            "server": url,
            "spool": folder,
            "total_steps": 10,
        }
        for start, steps, size in ((0, (1, 2, 3, 4, 5), 1.0), (3, (4, 5), 10.0)):
            resumed = {"resume": "auto", "start_step": start} if start else {}
            with Recorder(**settings, **resumed) as recorder:
                for step in steps:
                    spectra = {LAYERS[0]: [size, 1.0]} if step == 5 else None
                    values = {"loss": size * step, "tokens": 10, "time": 1e9 + 2 * step}
                    recorder.record(step, layers={"grad_sq": [size] * 4}, spectra=spectra, **values)
        yield eventually(lambda: client.runs()[0], lambda one: one.info["derived_step"] == 5)


def test_layers_come_by_expression_role_and_depth(run: Run) -> None:
    assert run.layers("grad_sq", pattern=r"\.k_proj").layers == (LAYERS[1], LAYERS[3])
    assert run.layers("grad_sq", role="q,k", depth=1).layers == (LAYERS[2], LAYERS[3])
    assert run.layers("grad_sq", layers=LAYERS[:2], depth="0-1", role="q").layers == (LAYERS[0],)


@pytest.mark.parametrize(
    ("axis", "x"),
    [("tokens", [10, 20, 30, 40, 50]), ("fraction", [0.1, 0.2, 0.3, 0.4, 0.5]), ("time", [0, 2, 4, 4, 6])],
)
def test_numbers_come_along_any_axis(run: Run, axis: str, x: list[float]) -> None:
    series, layers = run.series("loss", axis=axis), run.layers("grad_sq", axis=axis, role="q")
    for found in (series, layers):
        assert (found.axis, found.steps.tolist()) == (axis, [1, 2, 3, 4, 5])
        assert found.x == pytest.approx(x)
    assert series.columns()[axis] == pytest.approx(x)
    assert layers.columns()[axis] == pytest.approx([*x, *x])
    (spectrum,) = spectra = run.spectra(LAYERS[0], axis=axis)
    assert (spectrum.step, spectra.columns()[axis]) == (5, pytest.approx([x[4]]))


def test_steps_are_the_axis_unless_another_is_asked_for(run: Run) -> None:
    series = run.series("tokens")
    assert (series.axis, series.x is series.steps, list(series.columns())[:2]) == ("step", True, ["step", "tokens"])
    assert "step" in run.spectra(LAYERS[0]).columns()


def test_a_series_that_is_called_as_the_axis_has_a_column_of_its_own(run: Run) -> None:
    columns = run.series("tokens", axis="tokens").columns()
    assert columns["tokens"].tolist() == [10, 20, 30, 40, 50]
    assert columns["tokens_value"].tolist() == [10] * 5


def test_an_attempt_is_read_by_itself(run: Run) -> None:
    assert run.series("loss")["loss"].tolist() == [1, 2, 3, 40, 50]
    assert run.series("loss", attempt=1)["loss"].tolist() == [1, 2, 3, 4, 5]
    assert run.series("loss", attempt=2, axis="tokens").x.tolist() == [10, 20]
    assert run.layers("grad_sq", attempt=1)[LAYERS[0]].tolist() == [1.0] * 5
    assert [one.singular_values[0] for n in (1, 2) for one in run.spectra(LAYERS[0], attempt=n)] == [1.0, 10.0]


def test_an_export_holds_the_layers_that_were_chosen(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run.export(tmp_path / "a.csv", what="layers", names=["grad_sq"], role="q", depth=1)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["step"], row["layer"]) for row in rows] == [(str(step), LAYERS[2]) for step in range(1, 6)]
    monkeypatch.setenv("GRADSPECTRA_SERVER", run._client.server)
    chosen = ["--what", "layers", "--names", "grad_sq", "--role", "q", "--depth", "1"]
    assert main(["export", run.id, *chosen, "-o", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "b.csv").read_bytes() == file.read_bytes()


def test_an_arrow_table_of_spectra_says_what_is_missing_of_them(run: Run) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
    assert run.spectra(LAYERS[0]).to_arrow().schema.metadata == {b"damaged": b"[]", b"retired": b"[]"}


def test_a_figure_is_that_of_an_axis_an_attempt_and_some_layers(run: Run) -> None:
    figure = run.figure("layers", statistic="grad_sq", axis="tokens", attempt=1, depth="0")
    assert figure.layout.meta["layers"] == LAYERS[:2]
    assert np.asarray(figure.data[0].x).tolist() == [10, 20, 30, 40, 50]
