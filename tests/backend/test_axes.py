"""What is read back lies where it should on every axis, of every attempt and choice of layers, in figures too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend.callers import API, Caller, batch, columns, layer_block, spectrum_block, table
from gradspectra_frontend.figures import FIGURES

NAMES = ("layers.0.up_proj.weight", "layers.1.up_proj.weight")
PLACES = {"step": [1.0, 2.0, 3.0, 4.0], "tokens": [10.0, 20.0, 40.0, 60.0], "fraction": [0.1, 0.2, 0.3, 0.4]}
PLACES["time"] = [0.5, 1.0, 1.5, 3.5]


@pytest.fixture(scope="module")
def caller(shared_caller: Caller) -> Caller:
    """One server for all tests here; each run is its own."""
    return shared_caller


@pytest.fixture(scope="module")
def run(caller: Caller) -> str:
    """Steps 1 to 4, of which a second attempt has the last two anew, with a loss of 20 and 40 times the step."""
    first = caller.start(total_steps=10)
    run, of = str(first["id"]), table(NAMES)
    send(caller, run, first["session"], [1, 2, 3, 4], 20.0, of, [10, 10, 10, 10], [0.5, 0.5, 9.0, 9.0])
    again = caller.client.post(f"{API}/runs", json={"resume": run, "project": "p", "start_step": 2}).json()
    send(caller, run, again["session"], [3, 4], 40.0, of, [20, 20], [0.5, 2.0])
    caller.derived(run, 4)
    return run


def send(
    caller: Caller, run: str, session: str, steps: list[int], size: float, of: Any, tokens: Any, seconds: Any
) -> None:
    squares = layer_block(of, steps, grad_sq=[[size * step, 2 * size * step] for step in steps])
    counts = columns(len(steps), np.int64, tokens=tokens)
    scalars = {"loss": [size * step for step in steps], "step_seconds": seconds}
    spectra = spectrum_block(of, steps[-1], 0, [size, 1.0])
    caller.must_send(
        run, batch(session, 1, steps, layer_table=of, layers=squares, spectra=spectra, counts=counts, **scalars)
    )


@pytest.mark.parametrize("axis", PLACES)
def test_a_figure_lies_along_any_axis(caller: Caller, run: str, axis: str):
    for name in sorted(FIGURES.keys() - {"spectrum", "suggestions", "profile"}):
        own = {"layer": NAMES[0]} if name == "ranks" else {}
        plain = caller.get(f"/runs/{run}/figures/{name}", **own)
        moved = caller.get(f"/runs/{run}/figures/{name}", axis=axis, **own)
        place = dict(zip([1, 2, 3, 4], PLACES[axis], strict=True))
        for before, after in zip(plain["data"], moved["data"], strict=True):
            expected = [None if x is None else place[x] for x in before["x"]]
            assert after["x"] == pytest.approx(expected), (name, before["name"])
    title = moved["layout"]["xaxis"]["title"]["text"]
    assert title == {"time": "seconds of training", "fraction": "fraction of the run"}.get(axis, axis)


def test_alerts_are_shaded_where_they_lie_on_the_axis(caller: Caller):
    started = caller.start()
    run, losses = started["id"], [1.0] * 40 + [float("nan")] + [1.0] * 20
    tokens = columns(61, np.int64, tokens=[100] * 61)
    caller.must_send(run, batch(started["session"], 1, range(1, 62), counts=tokens, loss=losses))
    caller.derived(run, 61)
    (shape,) = caller.get(f"/runs/{run}/figures/loss", axis="tokens")["layout"]["shapes"]
    (closed,) = (one["closed_step"] for one in caller.get(f"/runs/{run}/alerts")["items"])
    assert (shape["x0"], shape["x1"]) == pytest.approx((4100.0, 100.0 * closed))
    assert closed > 41


def test_only_the_alerts_of_an_attempt_are_drawn_with_it(caller: Caller):
    first = caller.start()
    run, losses = first["id"], [1.0] * 40 + [float("nan")] + [1.0] * 20
    caller.must_send(run, batch(first["session"], 1, range(1, 62), loss=losses))
    caller.derived(run, 61)
    again = caller.client.post(f"{API}/runs", json={"resume": run, "project": "p", "start_step": 30}).json()
    caller.must_send(run, batch(again["session"], 1, range(31, 62)))
    caller.derived(run, 61)
    drawn = [caller.get(f"/runs/{run}/figures/loss", attempt=number)["layout"]["shapes"] for number in (1, 2)]
    assert [[shape["x0"] for shape in shapes] for shapes in drawn] == [[41], []]


def test_an_attempt_by_itself_is_drawn(caller: Caller, run: str):
    joined, old = (caller.get(f"/runs/{run}/figures/loss", **own)["data"][0] for own in ({}, {"attempt": 1}))
    assert (joined["y"], old["y"]) == ([20.0, 40.0, 120.0, 160.0], [20.0, 40.0, 60.0, 80.0])
    steps = [caller.get(f"/runs/{run}/figures/spectrum", layer=NAMES[0], attempt=n)["layout"]["meta"] for n in (1, 2)]
    assert [one["operator"] for one in steps] == pytest.approx([20.0, 40.0])
    curve = caller.get(f"/runs/{run}/figures/layer_curves", statistic="grad_sq", layer=NAMES[1], attempt=1)["data"][0]
    assert curve["y"] == [40.0, 80.0, 120.0, 160.0]
    tokens = caller.get(f"/runs/{run}/series", names="loss", attempt=1, axis="tokens")
    assert tokens["x"] == pytest.approx([10.0, 20.0, 30.0, 40.0])


@pytest.mark.parametrize(("field", "value"), [("pattern", r"layers\.1\."), ("depth", "1-4"), ("role", "up")])
def test_layers_of_a_figure_are_chosen_as_layer_values_are(caller: Caller, run: str, field: str, value: str):
    chosen = [NAMES[1]] if field != "role" else list(NAMES)
    drawn = caller.get(f"/runs/{run}/figures/layers", **{field: value})
    assert drawn["layout"]["meta"]["layers"] == chosen
    curves = caller.get(f"/runs/{run}/figures/layer_curves", **{field: value})
    assert [trace["name"] for trace in curves["data"]] == chosen


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("loss", "pattern", "a"), ("spectrum", "axis", "tokens"), ("suggestions", "attempt", 1), ("layers", "depth", "x")],
)
def test_what_a_figure_would_leave_out_of_account_is_refused(
    caller: Caller, run: str, name: str, field: str, value: Any
):
    refused = caller.client.get(f"{API}/runs/{run}/figures/{name}", params={"layer": NAMES[0], field: value})
    assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_a_figure_that_the_caller_has_is_not_sent_again_until_it_changes(caller: Caller):
    started = caller.start()
    address = f"{API}/runs/{started['id']}/figures/loss"
    caller.must_send(started["id"], batch(started["session"], 1, [1]))
    has = {"If-None-Match": caller.client.get(address).headers["etag"]}
    again = caller.client.get(address, headers=has)
    assert (again.status_code, again.content) == (304, b"")
    caller.must_send(started["id"], batch(started["session"], 2, [2]))
    assert caller.client.get(address, headers=has).json()["layout"]["meta"]["last_step"] == 2


@pytest.mark.parametrize("axis", PLACES)
def test_spectra_say_where_they_lie(caller: Caller, run: str, axis: str):
    found = caller.get(f"/runs/{run}/spectra", layer=NAMES[0], axis=axis)
    assert ([one["step"] for one in found["items"]], found["axis"]) == ([4], axis)
    assert found["x"] == pytest.approx([PLACES[axis][3]])


def test_without_step_seconds_time_is_by_the_clock_of_the_records_without_pauses(caller: Caller):
    first = caller.start()
    run = first["id"]
    caller.must_send(run, batch(first["session"], 1, [1, 2, 3, 4], times=[100.0, 101.0, 102.5, 120.0]))
    again = caller.client.post(f"{API}/runs", json={"resume": run, "project": "p", "start_step": 3}).json()
    caller.must_send(run, batch(again["session"], 1, [4, 5, 7, 8], times=[9000.0, 9002.0, 9001.0, 9004.0]))
    joined = caller.get(f"/runs/{run}/series", names="loss", axis="time")
    assert (joined["steps"], joined["x"]) == ([1, 2, 3, 4, 5, 7, 8], [0.0, 1.0, 2.5, 2.5, 4.5, 4.5, 6.5])
    late = caller.get(f"/runs/{run}/series", names="loss", axis="time", start=5, stop=8)
    assert late["x"] == [4.5, 4.5]
    old = caller.get(f"/runs/{run}/series", names="loss", axis="time", attempt=1)
    assert old["x"] == [0.0, 1.0, 2.5, 20.0]
