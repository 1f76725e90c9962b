"""Each figure as a user of the interface sees it: valid Plotly, the right numbers, everything odd marked."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import plotly.graph_objects as go
import pytest
from gradspectra_core.views import Buckets, LayerSeries, Series
from gradspectra_frontend.figures import FIGURES, UnknownFigure, build, figure_needs
from gradspectra_frontend.theme import DARK, LIGHT

from frontend import synthetic

MADE = {
    "series": synthetic.series(),
    "layers": synthetic.layers(),
    "spectra": synthetic.spectra(),
    "suggestions": synthetic.suggestions(),
}
NOTHING = {
    "series": Series("step", np.empty(0, np.int64), {}),
    "layers": LayerSeries("grad_norm", "step", np.empty(0, np.int64), (), (), (), *[np.empty((0, 0))] * 5),
    "spectra": [],
    "suggestions": [],
}


def built(name: str, data: Any = None, **options: Any) -> dict[str, Any]:
    return build(name, data=MADE[figure_needs(name)[0]] if data is None else data, alerts=synthetic.alerts(), **options)


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    found = [one for one in figure["data"] if one.get("name") == name]
    assert len(found) == 1, [one.get("name") for one in figure["data"]]
    return found[0]


def matrix(packed: dict[str, Any]) -> np.ndarray:
    shape = tuple(int(n) for n in packed["shape"].split(","))
    return np.frombuffer(base64.b64decode(packed["bdata"]), np.float32).reshape(shape)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_figure_is_one_that_plotly_accepts(name: str, theme: str) -> None:
    figure = built(name, theme=theme)
    drawn = go.Figure(figure)
    assert len(drawn.data) >= 1
    assert drawn.layout.uirevision
    assert drawn.layout.meta["figure"] == name
    assert drawn.layout.paper_bgcolor == {"light": LIGHT, "dark": DARK}[theme].paper
    assert b"webgl" not in orjson.dumps(figure, option=orjson.OPT_SERIALIZE_NUMPY)
    assert {one["type"] for one in figure["data"]} <= {"scatter", "heatmap", "bar"}


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_run_without_anything_gives_an_empty_figure(name: str) -> None:
    figure = build(name, data=NOTHING[figure_needs(name)[0]])
    go.Figure(figure)
    assert figure["data"] == []
    assert figure["layout"]["meta"]["last_step"] == 0


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_the_zoom_is_kept_while_the_run_goes_on(name: str) -> None:
    later = {
        "series": synthetic.series(1300),
        "layers": synthetic.layers(last=1300),
        "spectra": synthetic.spectra(last=1300),
    }
    kind = figure_needs(name)[0]
    first, second = built(name), built(name, later.get(kind, MADE[kind]))
    assert first["layout"]["uirevision"] == second["layout"]["uirevision"]
    if kind in later:
        assert second["layout"]["meta"]["last_step"] > first["layout"]["meta"]["last_step"]


def test_a_zoom_of_the_values_ends_where_their_scale_turns() -> None:
    kept = {scale: built("loss", scale=scale)["layout"]["yaxis"]["uirevision"] for scale in ("auto", "log", "linear")}
    assert kept["auto"] == kept["linear"] != kept["log"]
    assert (
        built("layer_curves")["layout"]["yaxis"]["uirevision"]
        != built("layer_curves", synthetic.layers("update_ratio"))["layout"]["yaxis"]["uirevision"]
    )


def test_another_statistic_or_layer_starts_with_its_own_zoom() -> None:
    assert (
        built("layers")["layout"]["uirevision"]
        != built("layers", synthetic.layers("update_ratio"))["layout"]["uirevision"]
    )
    assert built("ranks")["layout"]["uirevision"] != built("ranks", synthetic.spectra("other"))["layout"]["uirevision"]


def test_an_unknown_figure_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownFigure, match=r"no figure 'losss'; there are effective_rank, grad_norm, .*suggestions"):
        build("losss", data=MADE["series"])
    with pytest.raises(UnknownFigure):
        figure_needs("")


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="theme must be one of light, dark, got 'pink'"):
        built("loss", theme="pink")
    with pytest.raises(ValueError, match="scale must be auto, log or linear, got 'cubic'"):
        built("loss", scale="cubic")
    with pytest.raises(ValueError, match="order must be one of depth, role, name, got 'size'"):
        built("layers", order="size")


def test_nan_in_the_loss_is_a_gap_in_the_line_and_a_mark_above_it() -> None:
    figure = built("loss")
    line, mark = trace(figure, "loss"), trace(figure, "loss: NaN or inf")
    at = np.flatnonzero(np.asarray(line["x"]) == synthetic.NAN_STEP)
    assert np.isnan(np.asarray(line["y"])[at]).all()
    assert list(mark["x"]) == [synthetic.NAN_STEP]
    assert mark["text"] == ["NaN"]
    assert mark["yaxis"] == "y2"
    assert mark["marker"]["color"] == LIGHT.nonfinite
    assert figure["layout"]["yaxis2"]["range"] == [0, 1]


def test_infinities_and_partly_bad_buckets_say_what_they_are() -> None:
    mean = np.array([1.0, np.inf, -np.inf, 2.0])
    loss = Buckets(mean, mean, mean, mean, np.array([0, 1, 1, 3]), np.ones(4, bool))
    mark = trace(build("loss", data=Series("step", np.arange(1, 5), {"loss": loss})), "loss: NaN or inf")
    assert list(mark["x"]) == [2, 3, 4]
    assert mark["text"] == ["+inf", "−inf", "3 not finite"]


def test_lost_steps_break_the_line_and_a_coarser_cadence_does_not() -> None:
    figure = built("noise_scale")
    line = trace(figure, "noise scale")
    lost = np.flatnonzero(np.isnan(np.asarray(line["y"], float)))
    assert len(lost) == 1
    assert synthetic.LOST_FROM - 8 <= np.asarray(line["x"])[lost[0]] < synthetic.LOST_FROM
    kept = np.asarray(line["x"])[~np.isnan(np.asarray(line["y"], float))]
    assert (kept % 8 == 0).all()


def test_sizes_that_no_linear_axis_can_have_are_marked_or_zero() -> None:
    values = np.array([1.0, 1.7e308, -1.7e308, 5e-324, 1e300])
    loss = build("loss", data=Series("step", np.arange(1, 6), {"loss": synthetic.buckets(values)}))
    np.testing.assert_array_equal(trace(loss, "loss")["y"], [1.0, np.nan, np.nan, 0.0, 1e300])
    mark = trace(loss, "loss: too large")
    assert (list(mark["x"]), mark["text"]) == ([2, 3], ["1.7e+308", "-1.7e+308"])
    log = build("loss", data=Series("step", np.arange(1, 6), {"loss": synthetic.buckets(np.abs(values))}), scale="log")
    np.testing.assert_array_equal(trace(log, "loss")["y"], np.abs(values))
    assert [one["name"] for one in log["data"]] == ["loss"]


def test_without_a_noise_scale_the_batch_size_is_not_drawn_in_its_place() -> None:
    data = Series("step", np.arange(1, 100), {"examples": synthetic.buckets(np.full(99, 32.0))})
    figure = build("noise_scale", data=data, alerts=[synthetic.alerts()[1] | {"opened_step": 5}])
    assert (figure["data"], figure["layout"]["shapes"]) == ([], [])
    both = build(
        "noise_scale", data=Series("step", data.x, dict(data.series) | {"noise_scale": data.series["examples"]})
    )
    assert [one["name"] for one in both["data"]] == ["noise scale", "batch size"]


def test_a_zero_on_a_log_axis_is_said_at_its_foot() -> None:
    view = Series("step", np.arange(1, 4), {"grad_norm": synthetic.buckets(np.array([1.0, 0.0, 1000.0]))})
    figure = build("grad_norm", data=view, scale="log")
    assert np.isnan(trace(figure, "gradient norm")["y"][1])
    mark = trace(figure, "gradient norm: ≤ 0, below a log axis")
    assert (list(mark["x"]), mark["text"]) == ([2], ["0"])
    assert "yaxis2" in figure["layout"]


def test_buckets_of_several_steps_show_their_extremes_as_a_band() -> None:
    figure = built("grad_norm", synthetic.series(every=8))
    band, line = trace(figure, "gradient norm, min to max"), trace(figure, "gradient norm")
    assert band["fill"] == "toself"
    highest = np.nanmax(np.array(band["y"], float))
    assert highest == pytest.approx(1.2 * np.nanmax(line["y"]))
    assert "gradient norm, min to max" not in [one["name"] for one in built("grad_norm")["data"]]


def test_smoothing_is_drawn_over_the_raw_curve_and_can_be_left_out() -> None:
    figure = built("loss")
    raw, over = trace(figure, "loss"), trace(figure, "loss, smoothed")
    assert figure["data"].index(raw) < figure["data"].index(over)
    assert len(raw["y"]) == len(over["y"])
    assert "loss, smoothed" not in [one["name"] for one in built("loss", smooth=0)["data"]]


def test_smoothing_is_an_unbiased_moving_average() -> None:
    view = Series("step", np.arange(1, 5), {"loss": synthetic.buckets(np.array([4.0, 4.0, np.nan, 8.0]))})
    over = trace(build("loss", data=view, smooth=1.0, scale="linear"), "loss, smoothed")["y"]
    keep = np.exp(-1.0)
    expected = ((1 - keep) * 8 + keep * (1 - keep**2) * 4) / ((1 - keep) + keep * (1 - keep**2))
    assert over[:2] == pytest.approx([4.0, 4.0])
    assert np.isnan(over[2])
    assert over[3] == pytest.approx(expected)


def test_smoothing_forgets_in_a_hole_what_it_would_have_forgotten_over_its_steps() -> None:
    x = np.concatenate((np.arange(1, 101), np.arange(181, 281)))
    view = Series("step", x, {"loss": synthetic.buckets(np.where(x > 100, 3.0, 5.0))})
    over = trace(build("loss", data=view, smooth=10.0, scale="linear"), "loss, smoothed")
    before, now = (1 - np.exp(-10)) * np.exp(-8.1), 1 - np.exp(-0.1)
    assert np.isnan(over["y"][100])
    assert over["y"][101] == pytest.approx((5 * before + 3 * now) / (before + now))


def test_alerts_are_shaded_over_their_episode_and_marked_where_they_opened() -> None:
    figure = built("loss")
    spike = next(one for one in figure["layout"]["shapes"] if one["x0"] == synthetic.SPIKE)
    assert spike["x1"] == synthetic.SPIKE + 41, "it has closed, though its state says only that somebody has seen it"
    lost = next(one for one in figure["layout"]["shapes"] if one["x0"] == synthetic.NAN_STEP)
    assert lost["x1"] == 1200, "it is still open, and has told nothing new since it opened"
    marks = next(one for one in figure["data"] if one.get("meta") == "alerts")
    assert marks["x"] == [304, synthetic.SPIKE, synthetic.NAN_STEP]
    assert marks["marker"]["color"][2] == LIGHT.severity["critical"]
    assert marks["customdata"][1] == synthetic.alerts()[1]["id"]


def test_alerts_of_one_severity_that_overlap_have_one_shade_and_a_mark_each() -> None:
    spans = [("warning", 900, 950), ("warning", 10, 60), ("critical", 20, 30), ("warning", 50, 55), ("warning", 60, 80)]
    alerts = [
        synthetic.alerts()[1] | {"state": "closed", "severity": severity, "opened_step": first, "closed_step": last}
        for severity, first, last in spans
    ]
    figure = build("loss", data=MADE["series"], alerts=alerts)
    shades = sorted((one["x0"], one["x1"], one["fillcolor"]) for one in figure["layout"]["shapes"])
    warning, critical = (shades[i][2] for i in (0, 1))
    assert warning != critical
    assert shades == [(10, 80, warning), (20, 30, critical), (900, 950, warning)]
    assert list(trace(figure, "alerts")["x"]) == [10, 20, 50, 60, 900]


def test_an_alert_that_somebody_has_closed_is_shaded_up_to_what_it_told() -> None:
    alert = synthetic.alerts()[0] | {"state": "closed", "last_step": synthetic.NAN_STEP + 5}
    (shape,) = build("loss", data=MADE["series"], alerts=[alert])["layout"]["shapes"]
    assert shape["x1"] == synthetic.NAN_STEP + 5


def test_an_open_alert_is_shaded_in_every_later_range() -> None:
    late = synthetic.series(1200)
    keep = late.x > synthetic.NAN_STEP + 100
    names = ("mean", "min", "max", "last", "nonfinite", "present")
    rows = {name: Buckets(*(getattr(row, one)[keep] for one in names)) for name, row in late.series.items()}
    figure = build("loss", data=Series("step", late.x[keep], rows), alerts=synthetic.alerts()[:1])
    (shape,) = figure["layout"]["shapes"]
    assert (shape["x0"], shape["x1"]) == (synthetic.NAN_STEP + 101, 1200)


def test_markup_in_names_and_messages_is_shown_as_text() -> None:
    alert = synthetic.alerts()[1] | {"message": "<a href='http://x'>click</a> & <b>go</b>"}
    figure = build("loss", data=MADE["series"], alerts=[alert])
    marks = next(one for one in figure["data"] if one.get("meta") == "alerts")
    assert marks["text"] == ["warning: &lt;a href='http://x'&gt;click&lt;/a&gt; &amp; &lt;b&gt;go&lt;/b&gt;"]
    view = Series("step", np.arange(3), {"learning_rate/<b>": synthetic.buckets(np.ones(3))})
    assert build("learning_rate", data=view)["data"][0]["name"] == "group &lt;b&gt;"


def test_each_parameter_group_has_its_rate() -> None:
    rates = {
        name: synthetic.buckets(np.full(3, rate))
        for name, rate in (("learning_rate", 1.0), ("learning_rate/0", 1.0), ("learning_rate/1", 0.1))
    }
    figure = build("learning_rate", data=Series("step", np.arange(1, 4), rates))
    assert [one["name"] for one in figure["data"]] == ["group 0", "group 1"]
    assert list(figure["data"][1]["y"]) == [0.1] * 3


def test_a_single_step_is_a_dot() -> None:
    view = Series("step", np.array([1]), {"loss": synthetic.buckets(np.array([2.5]))})
    line = trace(build("loss", data=view), "loss")
    assert (list(line["x"]), list(line["y"]), line["mode"]) == ([1], [2.5], "lines+markers")


def test_every_number_survives_as_json() -> None:
    for name in FIGURES:
        text = orjson.dumps(built(name), option=orjson.OPT_SERIALIZE_NUMPY)
        assert orjson.loads(text)["layout"]["meta"]["figure"] == name


def test_a_heatmap_of_nothing_that_has_a_colour_is_drawn_with_a_scale_all_the_same() -> None:
    data = synthetic.layers()
    none = replace(data, mean=data.mean * 0, min=data.min * 0, max=data.max * 0, nonfinite=data.nonfinite * 0)
    values = trace(built("layers", none), "value")
    assert (values["zmin"], values["zmax"]) == (-1.0, 0.0)
    assert np.isnan(matrix(values["z"])).all()


@pytest.mark.parametrize("statistic", ["grad_norm", "grad_dot_weight"])
def test_a_compact_heatmap_lacks_the_colours_alone_that_follow_from_its_values(statistic: str) -> None:
    data = replace(synthetic.layers(), statistic=statistic)
    if statistic == "grad_dot_weight":
        data = replace(data, mean=-data.mean, min=-data.max, max=-data.min)
    whole, compact = (trace(built("layers", data, compact=one), "value") for one in (False, True))
    colours = whole.pop("z")
    said = compact.pop("meta")
    np.testing.assert_equal(compact, whole)
    value = matrix(compact["customdata"])
    size = np.abs(value) if said == "log10 of the size" else value
    assert said == {"grad_norm": "log10", "grad_dot_weight": "log10 of the size"}[statistic]
    told = np.full(size.shape, np.nan, np.float32)
    np.log10(size, out=told, where=np.isfinite(size) & (size > 0))
    np.testing.assert_allclose(told, matrix(colours), rtol=1e-6, atol=1e-6)


def test_a_compact_heatmap_keeps_colours_of_values_that_float32_cannot_hold() -> None:
    data = synthetic.layers()
    largest = data.max.copy()
    largest[3, 4] = 1e39
    assert "z" in trace(built("layers", replace(data, max=largest), compact=True), "value")


def test_the_heatmap_has_each_value_in_log_colour_and_exact_on_hover() -> None:
    data = synthetic.layers()
    figure = built("layers", data)
    values = trace(figure, "value")
    row = list(values["y"]).index("transformer.h.6.attn.v_proj.weight")
    column = list(values["x"]).index(synthetic.SPIKE)
    exact = data.max[data.layers.index("transformer.h.6.attn.v_proj.weight"), list(data.x).index(synthetic.SPIKE)]
    assert matrix(values["customdata"])[row, column] == pytest.approx(exact, rel=1e-6)
    assert matrix(values["z"])[row, column] == pytest.approx(np.log10(exact), rel=1e-5)
    assert values["zmin"] == pytest.approx(np.nanmin(matrix(values["z"])))
    assert figure["layout"]["plot_bgcolor"] == LIGHT.missing


def test_missing_zero_and_nan_cells_are_told_apart() -> None:
    figure = built("layers")
    value, nothing = trace(figure, "value"), trace(figure, "missing")
    rows, x = list(value["y"]), np.asarray(value["x"])
    dead = matrix(trace_of(figure, "heatmap", "zero or negative")["z"])[rows.index("transformer.h.2.ln_1.weight")]
    assert set(x[~np.isnan(dead)]) == set(range(304, 420, 4))
    bad = matrix(trace_of(figure, "heatmap", "NaN or inf")["z"])[rows.index("transformer.h.3.attn.q_proj.weight")]
    assert list(x[~np.isnan(bad)]) == [992, 996]
    empty = matrix(value["z"])[rows.index("transformer.h.0.ln_1.weight")]
    assert np.isnan(empty[x < 180]).all()
    assert nothing["marker"]["color"] == LIGHT.missing


def trace_of(figure: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in figure["data"] if (one["type"], one["name"]) == (kind, name))


def test_cells_that_are_not_finite_get_a_cross_too() -> None:
    crosses = trace_of(built("layers"), "scatter", "NaN or inf")
    names = [name for name, _, depth in synthetic.layer_names() if 0 <= depth <= 3]
    assert set(crosses["y"]) == set(names)
    assert set(crosses["x"]) == {992, 996}


def test_rows_go_by_depth_by_role_or_by_name() -> None:
    by_depth = built("layers")["layout"]["meta"]["layers"]
    assert by_depth[0] == "transformer.wte.weight"
    assert by_depth[-2:] == ["transformer.ln_f.weight", "lm_head.weight"]
    by_role = built("layers", order="role")["layout"]["meta"]
    assert by_role["roles"] == sorted(by_role["roles"], key=by_role["roles"].index)
    assert by_role["roles"].count("q") == 8
    by_name = built("layers", order="name")["layout"]["meta"]["layers"]
    assert by_name == sorted(by_name)


def test_a_sparse_measurement_holds_until_the_next_one_but_not_over_a_hole() -> None:
    x = np.arange(1, 101)
    present = np.zeros((1, 100), bool)
    present[0, [9, 19, 29, 98]] = True
    values = np.where(present, x, np.nan).astype(float)
    data = LayerSeries(
        "effective_rank",
        "step",
        x,
        ("a.weight",),
        ("q",),
        (0,),
        values,
        values,
        values,
        np.zeros((1, 100), int),
        present,
    )
    shown = matrix(trace(build("effective_rank", data=data), "value")["customdata"])[0]
    assert np.isnan(shown[:9]).all()
    assert shown[9:29].tolist() == [10.0] * 10 + [20.0] * 10
    assert shown[29:44].tolist() == [30.0] * 15
    assert np.isnan(shown[44:98]).all()
    assert shown[98:].tolist() == [99.0] * 2


def test_cells_begin_at_their_step_however_unevenly_the_steps_lie() -> None:
    x = np.array([1, 2, 4, 8, 16])
    values = np.array([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, np.nan, 1.0, np.nan, 1.0]])
    present = np.array([[True] * 5, [True, False, True, False, True]])
    data = LayerSeries(
        "grad_norm", "step", x, ("a", "b"), ("q", "k"), (0, 0), values, values, values, 0 * present, present
    )
    figure = trace(build("layers", data=data), "value")
    assert list(figure["x"]) == list(range(1, 17))
    assert matrix(figure["customdata"])[0].tolist() == [1.0, 2.0, 2.0] + [4.0] * 4 + [8.0] * 8 + [16.0]


def test_statistics_with_a_sign_are_drawn_by_their_size_and_tell_the_sign() -> None:
    x = np.array([8, 16, 24, 32])
    low, high = np.array([[-3.0, -2.0, 0.0, -9.0]]), np.array([[-1.0, 5.0, 0.0, 4.0]])
    bad, present = np.zeros((1, 4), int), np.ones((1, 4), bool)
    arrays = ((low + high) / 2, low, high, bad, present)
    signed = build("layers", data=LayerSeries("update_dot_grad", "step", x, ("a",), ("q",), (0,), *arrays))
    shown = trace(signed, "value")
    assert matrix(shown["customdata"])[0].tolist() == [-3.0, 5.0, 0.0, 9.0]
    assert matrix(shown["z"])[0] == pytest.approx(np.log10([3, 5, np.nan, 9]), nan_ok=True)
    zero = matrix(trace_of(signed, "heatmap", "zero or negative")["z"])[0]
    assert np.isnan(zero).tolist() == [True, True, False, True]
    plain = build("layers", data=LayerSeries("grad_max", "step", x, ("a",), ("q",), (0,), *arrays))
    positive = (np.ones((1, 4)), np.ones((1, 4)), np.ones((1, 4)), bad, present)
    for statistic, scale in (("grad_dot_weight", "linear"), ("grad_max", "log")):
        curves = build("layer_curves", data=LayerSeries(statistic, "step", x, ("a",), ("q",), (0,), *positive))
        assert curves["layout"]["yaxis"]["type"] == scale
    assert np.isnan(matrix(trace(plain, "value")["z"])[0]).tolist() == [True, False, True, False]


def test_a_count_of_none_is_as_it_should_be_and_not_black() -> None:
    values = np.array([[0.0, 3.0]])
    data = LayerSeries(
        "grad_zero_rows", "step", np.array([1, 2]), ("a",), ("q",), (0,), values, values, values, np.zeros((1, 2), int),
        np.ones((1, 2), bool),
    )  # fmt: skip
    figure = build("layers", data=data)
    none = trace_of(figure, "heatmap", "none")
    assert none["colorscale"][0][1] == LIGHT.paper
    assert np.isnan(matrix(none["z"])[0]).tolist() == [False, True]
    assert matrix(trace(figure, "value")["customdata"])[0].tolist() == [0.0, 3.0]


def test_a_long_uneven_run_keeps_its_extremes_in_few_columns() -> None:
    x = np.array([1, 2, 3, 500_000, 1_000_000])
    values = np.array([[1.0, 7.0, np.nan, 2.0, 3.0]])
    bad = np.array([[0, 0, 2, 0, 0]])
    data = LayerSeries("grad_norm", "step", x, ("a",), ("q",), (0,), values, values, values, bad, np.ones((1, 5), bool))
    figure = build("layers", data=data)
    assert len(trace(figure, "value")["x"]) <= 1201
    assert trace_of(figure, "heatmap", "NaN or inf")["x"][0] == 1
    lost = matrix(trace_of(figure, "heatmap", "NaN or inf")["z"])[0]
    assert not np.isnan(lost[0])


def test_alerts_outside_of_what_is_shown_are_left_out() -> None:
    view = Series("step", np.arange(400, 600), {"loss": synthetic.buckets(np.ones(200))})
    figure = build("loss", data=view, alerts=synthetic.alerts())
    assert [(one["x0"], one["x1"]) for one in figure["layout"]["shapes"]] == [(400, 420)]
    assert next(one for one in figure["data"] if one.get("meta") == "alerts")["x"] == []


def test_layers_that_can_have_no_spectrum_are_left_out_of_the_rank_heatmap() -> None:
    data = synthetic.layers("effective_rank")
    data.present[3] = False
    assert data.layers[3] not in built("effective_rank", data)["layout"]["meta"]["layers"]
    assert len(built("effective_rank", data)["layout"]["meta"]["layers"]) == len(data.layers) - 1


def test_curves_of_chosen_layers_only() -> None:
    names = ["transformer.h.5.attn.v_proj.weight", "lm_head.weight", "not there"]
    figure = built("layer_curves", layer=names)
    assert figure["layout"]["meta"]["layers"] == names[:2]
    assert [one["name"] for one in figure["data"] if one.get("mode") == "lines" and "max" not in one["name"]] == names[
        :2
    ]
    everything = built("layer_curves")["layout"]["meta"]["layers"]
    assert len(everything) == 12


def test_the_spectrum_at_a_step_is_the_last_one_before_it() -> None:
    figure = built("spectrum", step=437)
    chosen = next(one for one in figure["data"] if one.get("meta") == "step")
    assert chosen["name"] == "step 400"
    assert figure["layout"]["meta"]["step"] == 400
    assert chosen["x"][0] == 1
    spectrum = synthetic.spectra()[7]
    np.testing.assert_allclose(chosen["y"], spectrum.singular_values)
    assert figure["layout"]["meta"]["effective_rank"] == pytest.approx(np.exp(spectrum.entropy))
    assert built("spectrum")["layout"]["meta"]["step"] == 1200
    assert built("spectrum", step=3)["layout"]["meta"]["step"] == 50


@pytest.mark.parametrize(("size", "tick"), [(4, "D1"), (64, "D2"), (4096, 1)])
def test_a_spectrum_names_as_many_indices_as_there_is_room_for(size: int, tick: Any) -> None:
    index = np.arange(size)
    one = replace(synthetic.spectra()[0], index=index, singular_values=np.linspace(2, 1, size))
    layout = build("spectrum", data=[one])["layout"]
    assert layout["xaxis"]["dtick"] == tick
    assert "dtick" not in layout["yaxis"], "less than a decade: Plotly's own ticks"
    wide = replace(one, singular_values=np.geomspace(1, 1e-30, size))
    assert build("spectrum", data=[one, wide])["layout"]["yaxis"]["dtick"] == 4


def test_ranks_are_those_of_the_aggregates() -> None:
    figure = built("ranks")
    first = synthetic.spectra()[0]
    sigma = first.singular_values
    effective, stable, ratio = (
        trace(figure, name)["y"][0] for name in ("effective rank", "stable rank", "participation ratio")
    )
    assert effective == pytest.approx(np.exp(first.entropy))
    assert stable == pytest.approx(first.frobenius_sq / sigma[0] ** 2)
    assert ratio == pytest.approx(first.frobenius_sq**2 / first.fourth)
    assert 1 <= stable <= ratio <= effective <= 128
    assert trace(figure, "effective rank of pure noise")["y"][0] == pytest.approx(128 * 0.954, rel=0.01)


def test_suggestions_are_bars_of_their_multiplier_with_the_unsure_at_one() -> None:
    rows = synthetic.suggestions()
    figure = built("suggestions")
    sure = [one for one in rows if one["enough_evidence"] and one["scope"] == "layer"]
    bars = [one for one in figure["data"] if one["type"] == "bar"]
    shown = {name: 2**value for one in bars for name, value in zip(one["y"], one["x"], strict=True)}
    assert shown == pytest.approx({one["layer"]: one["value"] for one in sure})
    unsure = trace(figure, "not enough evidence")
    assert set(unsure["y"]) == {one["layer"] for one in rows if one["scope"] == "layer"} - set(shown)
    assert set(unsure["x"]) == {0}


def test_one_value_alone_is_shown_over_zero_and_no_value_has_no_ticks() -> None:
    x = np.arange(1, 6)
    rates = {name: Series("step", x, {"learning_rate": synthetic.buckets(y)}) for name, y in {
        "constant": np.full(5, 1e-3), "zero": np.zeros(5), "falling": 1e-3 * (1 - x / 50), "none": np.full(5, np.nan),
    }.items()}  # fmt: skip
    axes = {name: built("learning_rate", data)["layout"]["yaxis"] for name, data in rates.items()}
    assert {name: one.get("rangemode") for name, one in axes.items()} == {
        "constant": "tozero",
        "zero": "tozero",
        "falling": None,
        "none": None,
    }
    assert [name for name, one in axes.items() if one.get("showticklabels") is False] == ["none"]
