"""Numbers read back: NaN and ±inf as strings, missing as null, layers that change, runs with little in them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from backend.callers import API, Caller, batch, columns, layer_block, spectrum_block, table

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@pytest.mark.parametrize(("word", "value"), SPECIAL.items())
def test_special_scalars_come_back_as_their_words_and_are_counted(anywhere: Caller, word, value):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2, 3], loss=[1.0, value, None], other=[1.0, 2.0, 3.0]))
    answer = anywhere.get(f"/runs/{run['id']}/series", names="loss,other")
    assert answer["x"] == [1, 2, 3]
    for row in ("mean", "min", "max", "last"):
        assert answer["series"]["loss"][row] == [1.0, word, None]
        assert answer["series"]["other"][row] == [1.0, 2.0, 3.0]
    assert answer["series"]["loss"]["nonfinite"] == [0, 1, 0]


@pytest.mark.parametrize(("word", "value"), SPECIAL.items())
def test_special_layer_numbers_come_back_as_their_words_and_are_counted(anywhere: Caller, word, value):
    run = anywhere.start()
    of = table()
    block = layer_block(of, [1, 2], weight_sq=[[1.0, value], [4.0, 9.0]])
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2], layer_table=of, layers=block))
    answer = anywhere.get(f"/runs/{run['id']}/layers/weight_sq")
    assert answer["layers"] == list(of.names)
    assert answer["mean"] == answer["max"] == answer["min"] == [[1.0, 4.0], [word, 9.0]]
    assert answer["nonfinite"] == [[0, 0], [1, 0]]


@pytest.mark.parametrize("word", SPECIAL)
def test_special_numbers_in_a_spectrum_come_back_as_their_words(anywhere: Caller, word):
    run = anywhere.start()
    of = table()
    block = spectrum_block(of, 1, 0, [2.0, 1.0])
    block.values[0, 0] = SPECIAL[word]
    block.aggregates[0] = SPECIAL[word]
    answer = anywhere.send(run["id"], batch(run["session"], 1, [1], layer_table=of, spectra=block))
    if answer.status_code == 422:
        assert answer.json()["field"].startswith("spectra")
        return
    found = anywhere.get(f"/runs/{run['id']}/spectra", layer=of.names[0])["items"][0]
    assert found["singular_values"][0] == word
    assert found["operator"] == word


@pytest.mark.parametrize(("cells", "fewest", "drawn"), [(16, 1, 8), (400_000, 100, 64), (1, 16, 16)])
def test_a_heatmap_of_many_layers_has_no_more_cells_than_a_screen_shows(
    anywhere: Caller, monkeypatch: pytest.MonkeyPatch, cells: int, fewest: int, drawn: int
):
    monkeypatch.setattr("gradspectra_backend.routes.figures.MOST_CELLS", cells)
    monkeypatch.setattr("gradspectra_backend.routes.figures.FEWEST_COLUMNS", fewest)
    run = anywhere.start()
    of = table()
    assert len(of) == 2
    steps = list(range(64))
    block = layer_block(of, [step + 1 for step in steps], weight_sq=[[step + 1.0, 2.0] for step in steps])
    anywhere.must_send(run["id"], batch(run["session"], 1, block.steps.tolist(), layer_table=of, layers=block))
    figure = anywhere.get(f"/runs/{run['id']}/figures/layers", statistic="weight_sq", columns=64)
    rows, columns = map(int, figure["data"][0]["z"]["shape"].split(","))
    assert rows == 2
    assert drawn / 2 < columns <= drawn + 1


def test_figures_of_special_numbers_are_drawn(anywhere: Caller):
    run = anywhere.start()
    of = table()
    values = np.array([[math.nan, 1.0], [math.inf, 4.0], [1.0, -math.inf]])
    block = layer_block(of, [1, 2, 3], grad_sq=values)
    loss = [math.nan, math.inf, -math.inf]
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2, 3], layer_table=of, layers=block, loss=loss))
    for name in ("loss", "layers", "layer_curves"):
        figure = anywhere.get(f"/runs/{run['id']}/figures/{name}")
        assert figure["layout"]
        assert figure["data"]


def test_a_bucket_keeps_the_spike_of_one_step(anywhere: Caller):
    run = anywhere.start()
    loss = [1.0] * 1000
    loss[777] = 50.0
    anywhere.must_send(run["id"], batch(run["session"], 1, list(range(1, 1001)), loss=loss))
    answer = anywhere.get(f"/runs/{run['id']}/series", names="loss", columns=10)
    assert len(answer["x"]) <= 20
    assert max(answer["series"]["loss"]["max"]) == 50.0
    assert max(answer["series"]["loss"]["mean"]) < 2.0
    part = anywhere.get(f"/runs/{run['id']}/series", names="loss", start=776, stop=780)
    assert (part["x"], part["series"]["loss"]["mean"]) == ([776, 777, 778, 779], [1.0, 1.0, 50.0, 1.0])


def test_layers_that_change_mid_run_are_absent_where_they_were_not(anywhere: Caller):
    run = anywhere.start()
    before, after = table(["a.weight", "b.weight"]), table(["b.weight", "c.weight"])
    first = layer_block(before, [1], grad_sq=[[1.0, 2.0]])
    second = layer_block(after, [2], grad_sq=[[20.0, 30.0]])
    anywhere.must_send(run["id"], batch(run["session"], 1, [1], layer_table=before, layers=first))
    anywhere.must_send(run["id"], batch(run["session"], 2, [2], layer_table=after, layers=second))
    answer = anywhere.get(f"/runs/{run['id']}/layers/grad_sq")
    rows = dict(zip(answer["layers"], answer["mean"], strict=True))
    assert rows == {"a.weight": [1.0, None], "b.weight": [2.0, 20.0], "c.weight": [None, 30.0]}
    since = {layer["name"]: layer["since_step"] for layer in anywhere.get(f"/runs/{run['id']}/layers")["items"]}
    assert since == {"a.weight": 1, "b.weight": 1, "c.weight": 2}
    anywhere.derived(run["id"], 2)


def test_a_run_without_layers_answers_everything(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2], loss=[1.0, 0.5]))
    anywhere.derived(run["id"], 2)
    assert anywhere.get(f"/runs/{run['id']}/layers")["items"] == []
    assert anywhere.get(f"/runs/{run['id']}/alerts")["items"] == []
    for name in ("loss", "grad_norm", "learning_rate", "noise_scale", "step_time", "suggestions"):
        assert "layout" in anywhere.get(f"/runs/{run['id']}/figures/{name}")


def test_a_single_step_is_a_run(anywhere: Caller):
    run = anywhere.start()
    of = table()
    single = batch(
        run["session"],
        1,
        [1],
        layer_table=of,
        layers=layer_block(of, [1], grad_sq=[[1.0, 4.0]], weight_sq=[[4.0, 4.0]]),
        spectra=spectrum_block(of, 1, 0, [3.0, 1.0]),
    )
    anywhere.must_send(run["id"], single)
    anywhere.derived(run["id"], 1)
    assert anywhere.get(f"/runs/{run['id']}/series", names="loss")["x"] == [1]
    assert anywhere.get(f"/runs/{run['id']}/layers/grad_norm")["mean"] == [[1.0], [2.0]]
    assert anywhere.get(f"/runs/{run['id']}/spectra", layer=of.names[0])["items"][0]["singular_values"] == [3.0, 1.0]
    rank = anywhere.get(f"/runs/{run['id']}/layers/effective_rank")
    assert rank["mean"][0][0] == pytest.approx(1.754765, abs=1e-5)
    for name in ("loss", "layers", "effective_rank"):
        assert anywhere.get(f"/runs/{run['id']}/figures/{name}")["data"]
    assert anywhere.get(f"/runs/{run['id']}/figures/spectrum", layer=of.names[0])["data"]


def test_a_run_without_any_record_answers_everything(anywhere: Caller):
    run = anywhere.start()["id"]
    empty: dict[str, Any] = {"axis": "step", "x": [], "series": {}, "available": [], "damaged": []}
    assert anywhere.get(f"/runs/{run}/series") == empty
    for path in ("layers", "alerts", "incidents", "gaps", "suggestions"):
        assert anywhere.get(f"/runs/{run}/{path}")["items"] == []
    assert "layout" in anywhere.get(f"/runs/{run}/figures/loss")


def test_a_clock_that_jumps_back_changes_no_order(anywhere: Caller):
    run = anywhere.start()
    times = [2e9, 1e9, -5.0, 1e9 + 1]
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2, 3, 4], times=times, loss=[4.0, 3.0, 2.0, 1.0]))
    anywhere.derived(run["id"], 4)
    answer = anywhere.get(f"/runs/{run['id']}/series", names="loss")
    assert (answer["x"], answer["series"]["loss"]["last"]) == ([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0])


def test_several_rates_and_counts_are_series_too(anywhere: Caller):
    run = anywhere.start()
    big = 2**60 + 1
    rates = {"learning_rate": [0.1, 0.1], "learning_rate/head": [0.3, 0.2]}
    anywhere.must_send(
        run["id"], batch(run["session"], 1, [1, 2], counts=columns(2, np.int64, tokens=[big, 1]), **rates)
    )
    answer = anywhere.get(f"/runs/{run['id']}/series")
    assert answer["available"] == ["learning_rate", "learning_rate/head", "tokens"]
    assert answer["series"]["learning_rate/head"]["last"] == [0.3, 0.2]
    assert answer["series"]["tokens"]["last"][0] == pytest.approx(big)
    figure = anywhere.get(f"/runs/{run['id']}/figures/learning_rate")
    assert len(figure["data"]) >= 1


def test_what_is_not_there_is_named_with_what_is(caller: Caller):
    run = caller.start()
    of = table()
    block = layer_block(of, [1], grad_sq=[[1.0, 2.0]])
    caller.must_send(run["id"], batch(run["session"], 1, [1], layer_table=of, layers=block))
    base = f"{API}/runs/{run['id']}"
    statistic = caller.client.get(f"{base}/layers/colour").json()
    assert statistic["type"] == "/problems/unknown-statistic"
    assert "grad_norm" in statistic["known"]
    layer = caller.client.get(f"{base}/spectra", params={"layer": "nothing"}).json()
    assert layer["type"] == "/problems/unknown-layer"
    figure = caller.client.get(f"{base}/figures/nothing").json()
    assert figure["type"] == "/problems/unknown-figure"
    assert "learning_rate" in figure["detail"]
    spectrum = caller.client.get(f"{base}/figures/spectrum").json()
    assert (spectrum["status"], spectrum["field"]) == (422, "layer")
    attempt = caller.client.get(f"{base}/series", params={"attempt": 7}).json()
    assert (attempt["status"], attempt["field"]) == (422, "attempt")
    option = caller.client.get(f"{base}/figures/loss", params={"order": "role"}).json()
    assert option["status"] == 422


def test_layers_can_be_chosen_by_name(caller: Caller):
    run = caller.start()
    of = table()
    block = layer_block(of, [1], grad_sq=[[1.0, 2.0]])
    caller.must_send(run["id"], batch(run["session"], 1, [1], layer_table=of, layers=block))
    answer = caller.get(f"/runs/{run['id']}/layers/grad_sq", layers=of.names[1])
    assert (answer["layers"], answer["mean"]) == ([of.names[1]], [[2.0]])


def test_a_statistic_of_ones_own_may_have_a_slash_in_its_name(caller: Caller):
    run = caller.start()
    of = table()
    block = layer_block(of, [1], **{"attn/entropy": [[1.0, 2.0]]})
    caller.must_send(run["id"], batch(run["session"], 1, [1], layer_table=of, layers=block))
    answer = caller.get(f"/runs/{run['id']}/layers/attn%2Fentropy")
    assert (answer["statistic"], answer["mean"]) == ("attn/entropy", [[1.0], [2.0]])
