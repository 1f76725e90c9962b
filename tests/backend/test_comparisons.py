"""Figures of several runs over HTTP: each along its own axis, two layer by layer, a sweep; refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend.callers import API, Caller, batch, columns, layer_block, table

NAMES = ("layers.0.up.weight", "layers.1.up.weight")


def trained(
    caller: Caller, name: str, losses: list[float], *, rate: float = 0.1, tokens: int = 0, size: float = 1.0
) -> str:
    """A run of as many steps as losses, whose gradient norms are size and twice size; its identity."""
    started, count, of = caller.start(name=name), len(losses), table(NAMES)
    squares = layer_block(of, range(1, count + 1), grad_sq=[[size**2, 4 * size**2]] * count)
    counted = {"counts": columns(count, np.int64, tokens=[tokens] * count)} if tokens else {}
    sent: dict[str, Any] = {"loss": losses, "learning_rate": [rate] * count}
    caller.must_send(
        started["id"],
        batch(started["session"], 1, range(1, count + 1), layer_table=of, layers=squares, **counted, **sent),
    )
    caller.derived(started["id"], count)
    return str(started["id"])


def line(figure: dict[str, Any], run: str) -> list[tuple[float, float]]:
    (found,) = (one for one in figure["data"] if one["legendgroup"] == run and one["showlegend"])
    return list(zip(found["x"], found["y"], strict=True))


def test_curves_of_runs_lie_along_the_axis_of_each(anywhere: Caller):
    first = trained(anywhere, "a", [3.0, 2.0, 1.0], tokens=10)
    other = trained(anywhere, "b", [3.0, 1.5], tokens=100)
    without = trained(anywhere, "c", [5.0])
    runs = f"{first},{other},{without}"
    by_step = anywhere.get("/comparisons/curves", runs=runs)
    assert line(by_step, first) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert line(by_step, without) == [(1, 5.0)]
    by_tokens = anywhere.get("/comparisons/curves", runs=runs, axis="tokens")
    assert [line(by_tokens, run) for run in (first, other)] == [
        [(10, 3.0), (20, 2.0), (30, 1.0)],
        [(100, 3.0), (200, 1.5)],
    ]
    assert by_tokens["layout"]["meta"]["note"] == "no loss, or no tokens: c"
    zoomed = anywhere.get("/comparisons/curves", runs=runs, start=2, stop=3)
    assert [line(zoomed, run) for run in (first, other)] == [[(2, 2.0)], [(2, 1.5)]]
    rates = anywhere.get("/comparisons/curves", runs=first, series="learning_rate")
    assert line(rates, first) == [(1, 0.1), (2, 0.1), (3, 0.1)]


def test_a_difference_is_of_the_steps_that_both_runs_have(anywhere: Caller):
    first, other = trained(anywhere, "a", [1.0] * 5, size=3.0), trained(anywhere, "b", [1.0] * 3, size=2.0)
    figure = anywhere.get("/comparisons/difference", runs=f"{first},{other}")
    trace = figure["data"][0]
    assert (trace["x"], trace["y"]) == ([1, 2, 3], list(NAMES))
    assert figure["layout"]["meta"]["title"] == "Gradient norm: relative difference"
    late = anywhere.get("/comparisons/difference", runs=f"{first},{other}", start=4)
    assert late["data"] == []


def test_a_sweep_has_the_final_loss_of_each_rate(anywhere: Caller):
    runs = [
        trained(anywhere, "low", [4.0, 3.0, 2.0, 2.0], rate=0.001),
        trained(anywhere, "good", [4.0, 2.0, 1.0, 1.0], rate=0.01),
        trained(anywhere, "high", [4.0, 8.0, 9.0, float("nan")], rate=0.1),
    ]
    empty = anywhere.start(name="empty")["id"]
    figure = anywhere.get("/comparisons/sweep", runs=",".join([*runs, empty]))
    (points,) = figure["data"]
    assert (points["x"], points["y"]) == ([0.001, 0.01, 0.1], [2.0, 1.0, 4.0])
    assert figure["layout"]["meta"]["sensitivity"] == pytest.approx((2 + 1 + 4) / 3 - 1)


def test_many_runs_get_fewer_columns_each(caller: Caller):
    runs = [trained(caller, f"r{i}", [1.0 + step % 7 for step in range(1300)]) for i in range(2)]
    empty = [caller.start(name="empty")["id"] for _ in range(18)]
    few = caller.get("/comparisons/curves", runs=",".join(runs), columns=1000)
    many = caller.get("/comparisons/curves", runs=",".join([*runs, *empty]), columns=1000)
    assert len(line(few, runs[0])) == 651
    assert len(line(many, runs[0])) == 326


@pytest.mark.parametrize(
    ("path", "runs", "more", "status"),
    [
        ("curves", "", {}, 422),
        ("curves", ",".join(f"r{i}" for i in range(21)), {}, 422),
        ("curves", "nosuchrun", {}, 404),
        ("curves", "{a}", {"scale": "cubic"}, 422),
        ("curves", "{a}", {"start": 3, "stop": 2}, 422),
        ("difference", "{a}", {}, 422),
        ("difference", "{a},{a}", {}, 422),
        ("difference", "{a},{b}", {"statistic": "grad_dot_weight"}, 422),
        ("difference", "{a},{b}", {"statistic": "nosuch"}, 404),
        ("difference", "{a},nosuchrun", {}, 404),
        ("sweep", "nosuchrun", {}, 404),
    ],
)
def test_what_cannot_be_compared_is_refused(
    shared_caller: Caller, path: str, runs: str, more: dict[str, Any], status: int
):
    places = {name: shared_caller.start(name=name)["id"] for name in "ab"}
    asked = {"runs": runs.format(**places), **more}
    answer = shared_caller.client.get(f"{API}/comparisons/{path}", params=asked)
    assert answer.status_code == status, answer.text
    assert answer.json()["remedy"]
