"""The pure part: noise, ranks, suggestions and findings from batches, wherever the stream is cut."""

import dataclasses
import json

import numpy as np
import pytest
from gradspectra_core.layers import LayerTable
from gradspectra_core.multipliers import layer_multipliers
from gradspectra_core.noise import NoiseAverage, equal_parts
from gradspectra_core.records import Columns
from gradspectra_core.spectrum import aggregates
from gradspectra_worker.deriver import Derived, Deriver
from gradspectra_worker.noise_state import NoiseState
from gradspectra_worker.observations import observations
from gradspectra_worker.ranks import rank_metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from worker.synthetic import SIGNAL, TABLE, TR_SIGMA, batches, faulty, numbers, spectra


def derive_all(stream, family: str = "adam", attempt: int = 1) -> tuple[Deriver, list[Derived]]:
    deriver = Deriver()
    return deriver, [deriver.derive(batch, attempt, family) for batch in stream]


def last_suggestions(derived: list[Derived]) -> list:
    return [one.suggestions for one in derived if one.suggestions is not None][-1]


def test_the_noise_of_run_and_layers_is_that_of_the_data():
    _, derived = derive_all(batches(numbers(600), "s", per_batch=16))
    steps, columns = derived[-1].columns
    assert steps.tolist() == [594, 596, 598, 600]
    last = dict(zip(columns.names, columns.values[:, -1].tolist(), strict=True))
    truth = TR_SIGMA.sum() / SIGNAL.sum()
    assert columns.present.all()
    assert last["noise_scale_low"] < truth < last["noise_scale_high"]
    assert last["noise_scale"] == pytest.approx(truth, rel=0.15)
    assert last["tr_sigma"] == pytest.approx(TR_SIGMA.sum(), rel=0.05)
    assert last["signal_sq"] == pytest.approx(SIGNAL.sum(), rel=0.15)
    noise = derived[-1].layer_metrics[0]
    assert (noise.statistics, noise.digest, noise.values.shape) == (("noise_scale",), TABLE.digest, (1, 4, 4))
    assert noise.values[0, -1, 1:].tolist() == pytest.approx((TR_SIGMA / SIGNAL)[1:].tolist(), rel=0.4)


def test_the_averages_equal_those_written_the_slow_way():
    run = numbers(60)
    state = NoiseState()
    for batch in batches(run, "s", per_batch=7):
        state.update(batch)
    keep, weight, tr_sum, signal_sum = np.exp(-1 / 100), 0.0, 0.0, 0.0
    for at in range(1, 60, 2):  # steps 2, 4, … have layer numbers
        part, grad = (run[name][at].astype(np.float32) for name in ("part_sq", "grad_sq"))
        tr, signal = equal_parts(part, grad, 4, 64)
        weight, tr_sum, signal_sum = keep * weight + 1, keep * tr_sum + tr.sum(), keep * signal_sum + signal.sum()
    tr_average, signal_average = state.run.averages()
    assert tr_average[0] == pytest.approx(tr_sum / weight, rel=1e-12)
    assert signal_average[0] == pytest.approx(signal_sum / weight, rel=1e-12)
    assert (state.records, state.since_step, state.last_step, state.unit) == (30, 2, 60, "examples")


def test_the_sums_over_parts_that_the_agent_sent_take_precedence():
    (batch,) = batches(numbers(8), "s")
    sent = np.concatenate((batch.scalars.values, np.full((1, 8), 0.01), np.full((1, 8), 0.002)))
    unequal = dataclasses.replace(
        batch, scalars=Columns((*batch.scalars.names, "noise_w", "noise_w2"), sent, np.ones((5, 8), np.bool_))
    )
    state = NoiseState()
    state.update(unequal)
    part, grad = (batch.layers.values[batch.layers.statistics.index(name), 0] for name in ("part_sq", "grad_sq"))
    expected = ((part.astype(float) - grad) / 0.01).sum()
    first = NoiseState()
    (_, columns), _ = first.update(unequal)
    assert columns.values[columns.names.index("tr_sigma"), 0] == pytest.approx(expected, rel=1e-9)


def test_nothing_is_said_of_the_noise_before_eight_records():
    _, derived = derive_all(batches(numbers(14), "s", per_batch=14, every=2))
    _, columns = derived[0].columns
    present = dict(zip(columns.names, columns.present.sum(1).tolist(), strict=True))
    assert present == {"noise_scale": 0, "noise_scale_low": 0, "noise_scale_high": 0, "tr_sigma": 7, "signal_sq": 7}
    assert not derived[0].layer_metrics[0].present.any()


def test_an_unknown_batch_gives_multiples_of_the_present_one():
    _, derived = derive_all(batches(numbers(400, examples=64) | {"examples": 0}, "s", per_batch=20))
    critical, norm_test, *layers = last_suggestions(derived)
    truth = TR_SIGMA.sum() / SIGNAL.sum() / 64
    assert critical.evidence["unit"] == "batches"
    assert "batch" not in critical.evidence
    assert critical.value == pytest.approx(truth, rel=0.25)
    assert norm_test.value == pytest.approx(4 * critical.value, rel=1e-9)
    assert "times the present batch" in critical.text
    assert layers[3].value == pytest.approx(((1 + truth) / (1 + 30 / 64)) ** 0.5, rel=0.1)


def test_an_interval_whose_low_end_is_rounded_to_zero_is_no_evidence_and_no_error():
    def with_signal(times: float) -> dict:
        run = numbers(400)
        run["grad_sq"][:, 2] = times * np.random.default_rng(0).lognormal(0, 1, 400)
        return run

    def of_layers(times: float) -> NoiseAverage:
        state = NoiseState()
        for batch in batches(with_signal(times), "s"):
            state.update(batch)
        return state.layers

    once, twice = (of_layers(times).averages()[1][2] for times in (1.0, 2.0))
    hardly_any = (1.0 - once / (twice - once)) * (1 + 1e-5)  # a layer's signal rises evenly with its gradient
    assert [limit[2] for limit in of_layers(hardly_any).interval()] == [0.0, np.inf]
    of_layer = last_suggestions(derive_all(batches(with_signal(hardly_any), "s"))[1])[4]
    assert (of_layer.layer, of_layer.enough_evidence) == (TABLE.names[2], False)
    assert "noise scale goes from 0 to inf" in of_layer.text


def test_suggestions_give_each_layer_a_multiplier_by_its_noise():
    stream = batches(numbers(1000), "s", per_batch=20)
    deriver, derived = derive_all(stream)
    critical, norm_test, *layers = last_suggestions(derived)
    assert [one.layer for one in layers] == list(TABLE.names)
    assert (critical.rule, critical.scope, critical.quantity, critical.confidence) == (
        "critical_batch", "run", "batch_size", "high",
    )  # fmt: skip
    assert critical.low < TR_SIGMA.sum() / SIGNAL.sum() < critical.high
    assert "twice the steps of a very large batch and twice the examples of a very small one" in critical.text
    assert (norm_test.rule, norm_test.evidence["theta"]) == ("norm_test", 0.5)
    noise = deriver._noise
    expected = layer_multipliers(noise.layers.scale(), noise.run.scale()[0], 64, 0.5)
    for one, value in zip(layers, expected.tolist(), strict=True):
        if one.enough_evidence:
            assert one.value == value
            assert one.low <= one.value <= one.high
            assert one.confidence in ("low", "medium", "high")
    assert layers[0].value is None or layers[0].value < 0.6
    assert layers[3].value == pytest.approx(((1 + 115.15 / 64) / (1 + 30 / 64)) ** 0.5, rel=0.1)
    sgd = last_suggestions(derive_all(stream, family="sgd")[1])
    assert sgd[-1].value == pytest.approx(layers[3].value ** 2, rel=1e-9)


def test_one_part_per_step_is_not_enough_evidence():
    _, derived = derive_all(batches(numbers(40, parts=1), "s"))
    found = last_suggestions(derived)
    assert [(one.rule, one.quantity, one.scope) for one in found] == [
        ("critical_batch", "batch_size", "run"),
        ("norm_test", "batch_size", "run"),
        ("variance", "learning_rate_multiplier", "run"),
    ]
    for one in found:
        assert (one.enough_evidence, one.value, one.low, one.high, one.confidence) == (False, None, None, None, None)
        assert one.text.startswith("Not enough evidence: one part per step")
    assert all(one.columns is None for one in derived)


def test_few_records_and_a_lost_signal_say_so():
    few = last_suggestions(derive_all(batches(numbers(8), "s"))[1])
    assert few[0].text == "Not enough evidence: 4 recorded steps, 8 are needed."
    lost = numbers(200)
    lost["part_sq"] = 40.0 * lost["grad_sq"]  # as if the gradient were noise alone
    found = last_suggestions(derive_all(batches(lost, "s"))[1])
    assert found[0].text == "Not enough evidence: the gradient's signal is lost in its noise."


def test_steps_without_finite_sums_are_left_out():
    run = numbers(60)
    run["part_sq"][21] = np.nan
    run["grad_sq"][31, 2] = np.inf
    state = NoiseState()
    series = [state.update(batch)[0] for batch in batches(run, "s", per_batch=60)]
    assert 22 not in series[0][0].tolist()
    assert 32 in series[0][0].tolist()
    assert np.isfinite(series[0][1].values[3:]).all()
    assert np.isfinite(state.layers.averages()[0]).all()


def test_layers_that_change_keep_their_averages_by_name():
    stream = batches(numbers(40), "s")
    state = NoiseState()
    for batch in stream:
        state.update(batch)
    kept = state.layers.averages()[0][3]
    turned = LayerTable.of((TABLE.layers[3], dataclasses.replace(TABLE.layers[0], name="new")))
    (one,) = batches(numbers(2, first=41) | {"table": turned}, "s", every=5)
    state._align(turned)
    assert state.layers.averages()[0][0] == kept
    assert np.isnan(state.layers.averages()[0][1])
    assert state.update(one) == (None, None)


def test_examples_that_become_known_start_the_averages_again():
    state = NoiseState()
    for batch in batches(numbers(40) | {"examples": 0}, "s"):
        state.update(batch)
    assert (state.unit, state.records) == ("batches", 20)
    for batch in batches(numbers(20, first=41), "s"):
        state.update(batch)
    assert (state.unit, state.records, state.since_step) == ("examples", 10, 42)


@pytest.mark.parametrize("sent", [False, True])
def test_multiples_of_the_batch_follow_a_batch_that_changes_by_its_parts(sent):
    def stream(known: bool):
        found = []
        for at, parts in enumerate((4, 8, 2, 2, 8, 4)):
            run = numbers(10, at, parts, 16 * parts, first=1 + 10 * at)
            (batch,) = batches(run | ({} if known else {"examples": 0}), "s", per_batch=10, sequence=1 + at)
            if sent:
                size = 16.0 * parts if known else 1.0
                sums = np.array([[(parts - 1) / size], [1 / size]]) * np.ones(10)
                names = (*batch.scalars.names, "noise_w", "noise_w2")
                columns = Columns(names, np.concatenate((batch.scalars.values, sums)), np.ones((5, 10), np.bool_))
                batch = dataclasses.replace(batch, scalars=columns)
            found.append((16 * parts, batch))
        return found

    known, unknown = NoiseState(), NoiseState()
    for (size, one), (_, other) in zip(stream(True), stream(False), strict=True):
        known.update(one)
        unknown.update(other)
        unknown = NoiseState.restore(json.loads(json.dumps(unknown.state())))
        assert (known.unit, unknown.unit) == ("examples", "batches")
        for mine, its in ((unknown.run, known.run), (unknown.layers, known.layers)):
            for found, expected in ((mine.scale(), its.scale()), *zip(mine.interval(), its.interval(), strict=True)):
                np.testing.assert_allclose(found * size, expected, rtol=1e-6)


def test_ranks_come_from_the_spectra_of_gradients():
    block = spectra(np.array([10, 20]))
    metrics = rank_metrics(block, 4)
    assert (metrics.steps.tolist(), metrics.statistics) == (
        [10, 20],
        ("effective_rank", "stable_rank", "participation_ratio"),
    )
    assert metrics.values[:, 0, 1].tolist() == pytest.approx([1.754765, 1.111111, 1.219512], abs=1e-6)
    assert metrics.present.sum() == 6
    assert metrics.present[:, 0, 1].all()
    assert metrics.present[:, 1, 2].all()
    assert rank_metrics(dataclasses.replace(block, of=("weight", "update")), 4) is None
    zeros = dataclasses.replace(block, aggregates=aggregates(np.zeros((2, 2))))
    assert not rank_metrics(zeros, 4).present.any()


def test_an_episode_that_a_resumed_run_goes_on_with_belongs_to_the_attempt_it_opened_in():
    run = faulty(400)
    stream = batches(run, "s", per_batch=4)
    deriver = Deriver()
    found = []
    for batch in stream:
        if batch.steps[0] == 305:
            deriver = Deriver.restore(json.loads(json.dumps(deriver.state())))
        found += deriver.derive(batch, 1 if batch.steps[0] < 305 else 2, "adam").findings
    closed = [(attempt, f.rule) for attempt, f, _ in found if f.change == "close" and f.opened_step == 301]
    assert sorted(closed) == [(1, "gradient_spike"), (1, "loss_spike")]


def test_findings_carry_the_time_of_their_step():
    found = [found for one in derive_all(batches(faulty(400), "s"))[1] for found in one.findings]
    assert {(f.rule, f.change, f.step) for _, f, _ in found if f.change == "open"} == {
        ("dead_layer", "open", 100),
        ("loss_spike", "open", 301),
        ("gradient_spike", "open", 301),
    }
    assert all(time == 1.7e9 + finding.step for _, finding, time in found)


def test_the_detectors_see_the_learning_rate_where_it_was_sent():
    (batch,) = batches(numbers(8), "s")
    assert [seen.learning_rate for seen in observations(batch)] == [None] * 8
    rates = np.arange(8.0)[None]
    present = np.ones((4, 8), np.bool_)
    present[3, 5] = False
    names = (*batch.scalars.names, "learning_rate")
    with_rates = Columns(names, np.concatenate((batch.scalars.values, rates)), present)
    seen = [one.learning_rate for one in observations(dataclasses.replace(batch, scalars=with_rates))]
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0, None, 6.0, 7.0]


def test_a_run_from_before_a_rule_was_there_goes_on_with_it():
    deriver, _ = derive_all(batches(faulty(400), "s"))
    state = json.loads(json.dumps(deriver.state()))
    del state["detectors"]["rules"]["divergence"]
    assert "divergence" in Deriver.restore(state).state()["detectors"]["rules"]


def test_a_state_of_another_version_begins_anew():
    assert Deriver.restore({"version": 0}).state() == Deriver().state()


@settings(max_examples=25)
@given(st.sets(st.integers(0, 30), max_size=5), st.integers(0, 5), st.integers(5, 30))
def test_a_stream_cut_anywhere_derives_the_same(cuts, seed, per_batch):
    stream = batches(faulty(160, seed), "s", per_batch=per_batch)
    whole, expected = derive_all(stream)
    pieces, found = Deriver(), []
    for at, batch in enumerate(stream):
        if at in cuts:
            pieces = Deriver.restore(json.loads(json.dumps(pieces.state(), allow_nan=False)))
        found.append(pieces.derive(batch, 1, "adam"))
    assert pieces.state() == whole.state()
    for mine, its in zip(found, expected, strict=True):
        assert (mine.findings, mine.suggestions) == (its.findings, its.suggestions)
        assert repr(mine.layer_metrics) == repr(its.layer_metrics)
        assert (mine.columns is None) == (its.columns is None)
        if mine.columns is not None:
            np.testing.assert_array_equal(mine.columns[1].values, its.columns[1].values)
