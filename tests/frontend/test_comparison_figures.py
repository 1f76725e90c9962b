"""Figures of several runs say what the arithmetic says: lines apart, relative differences, a sweep's sensitivity."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from frontend.synthetic import buckets
from gradspectra_core.views import LayerSeries, Series
from gradspectra_frontend.comparison_figures import Compared, curves, labels
from gradspectra_frontend.difference_figures import difference
from gradspectra_frontend.sweep_figure import Trial, sensitivity, sweep
from gradspectra_frontend.theme import LIGHT


def run(name: str, losses: list[float], *, run: str = "", series: str = "loss", x: Any = None) -> Compared:
    steps = np.arange(1, len(losses) + 1)
    return Compared(run or name, name, Series("step", steps, {series: buckets(np.array(losses))}), x)


def raw(figure: dict[str, Any], run: str) -> dict[str, Any]:
    (found,) = (one for one in figure["data"] if one["legendgroup"] == run and one["showlegend"])
    return found


def test_each_run_is_one_line_with_a_look_of_its_own() -> None:
    names = [f"r{i}" for i in range(20)]
    figure = curves([run(name, [3.0, 2.0, 1.0]) for name in names], "loss", LIGHT)
    looks = {(raw(figure, name)["line"]["color"], raw(figure, name)["line"]["dash"]) for name in names}
    assert len(looks) == 20
    told = [(one["run"], one["colour"], one["dash"]) for one in figure["layout"]["meta"]["runs"]]
    assert told == [(n, raw(figure, n)["line"]["color"], raw(figure, n)["line"]["dash"]) for n in names]
    assert raw(figure, "r7")["y"].tolist() == [3.0, 2.0, 1.0]
    assert figure["layout"]["meta"]["last_step"] == 3


def test_the_smoothed_line_has_no_entry_and_says_no_values() -> None:
    figure = curves([run("a", [3.0, 2.0, 1.0, 1.0])], "loss", LIGHT, smooth=2.0)
    (over,) = (one for one in figure["data"] if one.get("meta") == "smoothed")
    assert (over["showlegend"], over["hoverinfo"], "hovertemplate" in over) == (False, "skip", False)


def test_runs_lie_where_their_own_steps_lie_on_the_axis() -> None:
    some = [run("a", [3.0, 2.0], x=np.array([10.0, 20.0])), run("b", [3.0, math.nan, 2.0], x=np.array([100, 200, 400]))]
    figure = curves(some, "loss", LIGHT, along="tokens")
    assert [list(raw(figure, one)["x"]) for one in "ab"] == [[10, 20], [100, 200, 400]]
    assert (figure["layout"]["xaxis"]["title"]["text"], figure["layout"]["meta"]["axis"]) == ("tokens", "tokens")
    by_step = curves(some, "loss", LIGHT)
    assert by_step["layout"]["uirevision"] != figure["layout"]["uirevision"], "a zoom of one axis is none of the other"
    lost = next(one for one in figure["data"] if one.get("yaxis") == "y2")
    assert (lost["legendgroup"], list(lost["x"]), list(lost["text"])) == ("b", [200], ["NaN"])


def test_runs_without_the_series_or_the_axis_are_named() -> None:
    some = [run("a", [3.0, 2.0], x=np.array([1.0, 2.0])), run("b", [3.0]), run("c", [1.0], series="eval_loss")]
    assert curves(some, "loss", LIGHT)["layout"]["meta"]["note"] == "no loss: c"
    meta = curves(some, "loss", LIGHT, along="tokens")["layout"]["meta"]
    assert meta["note"] == "no loss, or no tokens: b, c"
    assert [one["drawn"] for one in meta["runs"]] == [True, False, False]
    none = curves(some, "noise_scale", LIGHT)
    assert (none["data"], none["layout"]["meta"]["note"], none["layout"]["meta"]["last_step"]) == ([], "", 0)


def test_ticks_are_at_the_steps_that_are_drawn() -> None:
    late = Series("step", np.array([5000]), {"eval_loss": buckets(np.array([2.0]))})
    assert curves([Compared("a", "a", late)], "eval_loss", LIGHT)["layout"]["xaxis"]["tickvals"] == [5000]
    both = curves([Compared("a", "a", late), run("b", [1.0], series="eval_loss")], "eval_loss", LIGHT)
    assert "tickvals" not in both["layout"]["xaxis"]


def test_one_scale_serves_all_runs() -> None:
    figure = curves([run("a", [1.0, 2.0]), run("b", [100.0, 200.0])], "loss", LIGHT)
    assert figure["layout"]["yaxis"]["type"] == "log"
    with pytest.raises(ValueError, match="scale must be"):
        curves([run("a", [1.0])], "loss", LIGHT, scale="cubic")


def test_damage_is_told_with_the_name_of_its_run() -> None:
    hurt = run("a", [1.0, 2.0])
    hurt = replace(hurt, series=replace(hurt.series, damaged=((3, 5),)))
    said = curves([hurt, run("b", [1.0])], "loss", LIGHT)["layout"]["meta"]["damaged"]
    assert said == "a: steps 3 to 5 are damaged and left out: gradspectra doctor names them"


def test_labels_tell_runs_apart_and_are_no_markup() -> None:
    assert labels(["a", "a", "<b>"], ["id1", "id2", "id3"]) == ["a (id1)", "a (id2)", "&lt;b&gt;"]
    (long,) = labels(["begin" + 190 * "x" + "end"], ["id"])
    assert (len(long), long[:5], long[-3:], "…" in long) == (48, "begin", "end", True)


def layers(rows: dict[str, list[float | None]], steps: list[int], statistic: str = "grad_norm") -> LayerSeries:
    values = np.array([[np.nan if v is None else v for v in row] for row in rows.values()])
    here = np.array([[v is not None for v in row] for row in rows.values()])
    bad = (here & ~np.isfinite(values)).astype(np.int64)
    count = len(rows)
    return LayerSeries(
        statistic, "step", np.array(steps), tuple(rows), ("up",) * count, tuple(range(count)), values, values, values,
        bad, here,
    )  # fmt: skip


def unpacked(packed: dict[str, Any]) -> list[list[float]]:
    shape = [int(n) for n in packed["shape"].split(",")]
    flat = np.frombuffer(base64.b64decode(packed["bdata"]), np.float32)
    return [[round(float(v), 5) for v in row] for row in flat.reshape(shape)]


def test_the_difference_is_relative_and_its_colour_the_log_of_the_ratio() -> None:
    a = layers({"x": [2.0, 1.0, 5.0], "alone": [1.0, 1.0, 1.0]}, [1, 2, 3])
    b = layers({"x": [1.0, 4.0, 5.0]}, [1, 2, 3])
    figure = difference(a, b, LIGHT)
    (trace,) = (one for one in figure["data"] if one["type"] == "heatmap")
    assert unpacked(trace["customdata"]) == [[1.0, -0.75, 0.0]]
    assert unpacked(trace["z"]) == [[1.0, -2.0, 0.0]]
    assert (trace["zmin"], trace["zmax"], trace["y"]) == (-2.0, 2.0, ["x"])
    assert trace["colorbar"]["ticktext"] == ["÷ 4", "÷ 2", "same", "× 2", "× 4"]
    assert figure["layout"]["meta"]["note"] == "1 layer is in one run only"


def test_layers_are_aligned_by_name_and_steps_by_number() -> None:
    a = layers({"x": [1.0, 1.0, 1.0, 1.0], "y": [8.0, 8.0, 8.0, 8.0]}, [1, 2, 3, 4])
    b = layers({"y": [2.0, 4.0], "x": [1.0, 2.0]}, [3, 4])
    (trace,) = (one for one in difference(a, b, LIGHT)["data"] if one["type"] == "heatmap")
    assert (list(trace["x"]), trace["y"]) == ([3, 4], ["x", "y"])
    assert unpacked(trace["customdata"]) == [[0.0, -0.5], [3.0, 1.0]]


def test_columns_are_as_wide_as_the_wider_runs() -> None:
    a = layers({"x": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}, [2, 3, 4, 5, 6, 7])
    b = layers({"x": [1.0, 1.0, 1.0]}, [2, 4, 6])
    (trace,) = (one for one in difference(a, b, LIGHT)["data"] if one["type"] == "heatmap")
    assert list(trace["x"]) == [2, 4, 6]
    assert unpacked(trace["customdata"]) == [[1.0, 3.0, 5.0]]


def test_zeros_what_is_not_finite_and_what_is_missing_are_told_apart() -> None:
    a = layers({"x": [0.0, 0.0, math.nan, None, 1.0]}, [1, 2, 3, 4, 5])
    b = layers({"x": [0.0, 1.0, 1.0, 1.0, math.inf]}, [1, 2, 3, 4, 5])
    data = difference(a, b, LIGHT)["data"]
    by_name = {one["name"]: one for one in data if one["type"] == "heatmap"}
    assert np.isnan(unpacked(by_name["relative difference"]["z"])[0]).tolist() == [False, True, True, True, True]
    assert np.isfinite(unpacked(by_name["zero in one run"]["z"])[0]).tolist() == [False, True, False, False, False]
    # a measurement holds until the next of its row: the NaN of step 3 stands for step 4 too
    assert np.isfinite(unpacked(by_name["NaN or inf"]["z"])[0]).tolist() == [False, False, True, True, True]


def test_runs_without_a_step_or_a_layer_in_common_give_an_empty_figure() -> None:
    a = layers({"x": [1.0]}, [1])
    for b in (layers({"x": [1.0]}, [9]), layers({"y": [1.0]}, [1])):
        assert difference(a, b, LIGHT)["data"] == []


def test_a_difference_of_what_has_a_sign_is_refused() -> None:
    a = layers({"x": [1.0]}, [1], "grad_dot_weight")
    with pytest.raises(ValueError, match="has a sign"):
        difference(a, a, LIGHT)


def test_sensitivity_is_the_mean_over_rates_of_losses_capped_at_the_initial_one_less_the_best() -> None:
    trials = [
        Trial("a", 1e-3, 4.0, 2.0),
        Trial("b", 1e-2, 4.0, 1.0),
        Trial("c", 1e-2, 4.0, 2.0),
        Trial("d", 1e-1, 4.0, 9.0),
    ]
    assert sensitivity(trials) == pytest.approx((2.0 + 1.5 + 4.0) / 3 - 1.5)
    assert sensitivity([*trials, Trial("e", 1.0, 4.0, math.nan)]) == pytest.approx((2.0 + 1.5 + 4.0 + 4.0) / 4 - 1.5)
    assert math.isnan(sensitivity(trials[:1]))


def test_a_run_that_diverged_stands_at_its_initial_loss_with_a_cross() -> None:
    trials = [Trial("bad", 1e-1, 4.0, math.nan), Trial("good", 1e-2, 4.0, 1.0), Trial("no rate", math.nan, 4.0, 1.0)]
    figure = sweep(trials, LIGHT)
    (points,) = figure["data"]
    assert (points["x"], points["y"]) == ([1e-2, 1e-1], [1.0, 4.0])
    assert points["marker"]["symbol"] == ["circle", "x"]
    assert points["text"] == ["good<br>final loss 1", "bad<br>final loss nan, at first 4"]
    assert figure["layout"]["meta"]["sensitivity"] == pytest.approx(1.5)
    assert sweep(trials[2:], LIGHT)["data"] == []
    assert sweep(trials[2:], LIGHT)["layout"]["meta"]["sensitivity"] is None
