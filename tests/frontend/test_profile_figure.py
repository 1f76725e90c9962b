"""A profile over depth: kinds of layers, the step shown, what lies outside of the blocks, and what no line can show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gradspectra_core.views import LayerSeries
from gradspectra_frontend.figures import build
from gradspectra_frontend.profile_figure import kinds, mean_absolute_difference

ROWS: dict[str, tuple[str, int, list[float | None]]] = {
    "embed.weight": ("embedding", -1, [9.0, 9.0, 9.0]),
    "h.0.q.weight": ("q", 0, [1.0, 10.0, 100.0]),
    "h.1.q.weight": ("q", 1, [3.0, 30.0, 300.0]),
    "h.2.q.weight": ("q", 2, [2.0, None, 200.0]),
    "h.0.ln1.weight": ("norm", 0, [1.0, 1.0, 1.0]),
    "h.0.ln2.weight": ("norm", 0, [2.0, 2.0, math.nan]),
    "head.weight": ("head", -1, [5.0, 5.0, 5.0]),
}


def layers(rows: dict[str, tuple[str, int, list[float | None]]] = ROWS, statistic: str = "grad_norm") -> LayerSeries:
    values = np.array([[np.nan if v is None else v for v in row] for _, _, row in rows.values()]).reshape(len(rows), -1)
    here = np.array([[v is not None for v in row] for _, _, row in rows.values()]).reshape(len(rows), -1)
    bad = (here & ~np.isfinite(values)).astype(np.int64)
    roles, depths = tuple(r for r, _, _ in rows.values()), tuple(d for _, d, _ in rows.values())
    x = np.arange(1, values.shape[1] + 1) * 10
    return LayerSeries(statistic, "step", x, tuple(rows), roles, depths, values, values, values, bad, here)


def lines(figure: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Points of each line by the first word of its name."""
    drawn = (one for one in figure["data"] if one.get("yaxis") != "y2")
    return {one["name"].split(",")[0]: list(zip(one["x"].tolist(), one["y"].tolist(), strict=True)) for one in drawn}


def test_layers_whose_names_differ_by_their_depth_alone_are_one_line() -> None:
    figure = build("profile", data=layers(), step=10)
    found = lines(figure)
    assert figure["data"][1]["name"] == "q, MAD 1.5"
    assert found["q"] == [(0, 1.0), (1, 3.0), (2, 2.0)]
    assert (found["ln1"], found["ln2"]) == ([(0, 1.0)], [(0, 2.0)])
    assert kinds(layers())[1:5] == ["h.*.q.weight", "h.*.q.weight", "h.*.q.weight", "h.*.ln1.weight"]


MIXTURE: dict[str, tuple[str, int, list[float | None]]] = {
    **{f"h.0.mlp.experts.down[{n}]": ("down", 0, [v]) for n, v in enumerate([1.0, 0.0, 5.0])},
    **{f"h.1.mlp.experts.down[{n}]": ("down", 1, [v]) for n, v in enumerate([9.0, None, 7.0])},
    **{f"h.2.mlp.experts.down[{n}]": ("down", 2, [v]) for n, v in enumerate([math.nan, math.inf, 2.0])},
    **{f"h.3.mlp.experts.down[{n}]": ("down", 3, [v]) for n, v in enumerate([math.nan, math.inf, None])},
    **{f"h.{n}.moe.experts.{n}.w1.weight": ("gate", n, [3.0]) for n in range(3)},
    **{f"h.0.moe.experts.{n}.w1.weight": ("gate", 0, [4.0]) for n in range(1, 3)},
}


def test_experts_of_one_depth_are_one_point_their_median() -> None:
    figure = build("profile", data=layers(MIXTURE))
    found = lines(figure)
    assert found["down"][:3] == [(0, 1.0), (1, 8.0), (2, 2.0)]
    assert found["gate"] == [(0, 4.0), (1, 3.0), (2, 3.0)]
    names = [one["name"] for one in figure["data"] if one.get("yaxis") != "y2"]
    assert names == ["down, median of 3, MAD 6.5", "gate, median of 3, MAD 0.5"]
    (mark,) = (one for one in figure["data"] if one.get("yaxis") == "y2")
    assert mark["x"].tolist() == [2, 3]
    assert set(kinds(layers(MIXTURE))) == {"h.*.mlp.experts.down[*]", "h.*.moe.experts.*.w1.weight"}


def test_experts_whose_role_others_have_too_are_named_in_full() -> None:
    shared = {f"h.{n}.mlp.shared.down": ("down", n, [1.0]) for n in range(2)}
    numbered = {f"h.0.moe.experts.{n}.w2.weight": ("down", 0, [4.0]) for n in range(2)}
    assert list(lines(build("profile", data=layers({**MIXTURE, **shared, **numbered})))) == [
        "mlp.experts.down[*]",
        "gate",
        "mlp.shared.down",
        "moe.experts.*.w2",
    ]


def test_what_lies_outside_of_the_blocks_stands_before_or_after_them() -> None:
    figure = build("profile", data=layers())
    assert (lines(figure)["embedding"], lines(figure)["head"]) == ([(-1, 9.0)], [(3, 5.0)])
    axis = figure["layout"]["xaxis"]
    assert dict(zip(axis["tickvals"], axis["ticktext"], strict=True)) == {
        -1: "embedding",
        0: "0",
        1: "1",
        2: "2",
        3: "after",
    }


@pytest.mark.parametrize(("asked", "shown"), [(None, 30), (5, 10), (10, 10), (19, 10), (20, 20), (99, 30)])
def test_the_step_shown_is_the_last_one_up_to_that_asked_for(asked: int | None, shown: int) -> None:
    meta = build("profile", data=layers(), **({} if asked is None else {"step": asked}))["layout"]["meta"]
    assert (meta["step"], meta["steps"].tolist(), meta["note"]) == (shown, [10, 20, 30], f"step {shown}")


def test_a_measurement_holds_until_the_next_of_its_layer() -> None:
    assert lines(build("profile", data=layers(), step=20))["q"] == [(0, 10.0), (1, 30.0), (2, 2.0)]


def test_the_mean_absolute_difference_is_between_neighbouring_depths() -> None:
    meta = build("profile", data=layers(), step=10)["layout"]["meta"]
    assert meta["mad"]["h.*.q.weight"] == pytest.approx((2.0 + 1.0) / 2)
    assert meta["mad"]["head.weight"] is None
    assert mean_absolute_difference(np.array([2, 0, 1]), np.array([7.0, 1.0, 3.0])) == pytest.approx(3.0)
    assert mean_absolute_difference(np.array([0, 1, 2]), np.array([1.0, math.nan, 4.0])) == pytest.approx(3.0)


def test_what_is_not_finite_is_marked_at_its_depth() -> None:
    figure = build("profile", data=layers())
    (mark,) = (one for one in figure["data"] if one.get("yaxis") == "y2")
    assert (list(mark["x"]), mark["text"]) == ([0], ["NaN"])
    assert mark["name"].startswith("ln2")


def test_a_statistic_with_a_sign_has_a_linear_scale() -> None:
    assert build("profile", data=layers())["layout"]["yaxis"]["type"] == "log"
    assert build("profile", data=layers(statistic="grad_dot_weight"))["layout"]["yaxis"]["type"] == "linear"


def test_many_layers_have_few_ticks() -> None:
    many = {f"h.{i}.q.weight": ("q", i, [1.0]) for i in range(250)}
    axis = build("profile", data=layers(many))["layout"]["xaxis"]
    assert axis["tickvals"] == list(range(0, 250, 25))


def test_nothing_measured_is_an_empty_profile() -> None:
    figure = build("profile", data=layers({"h.0.q.weight": ("q", 0, [None])}))
    assert (figure["data"], figure["layout"]["meta"]["step"]) == ([], None)
