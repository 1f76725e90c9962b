"""nonfinite and dead_layer: what opens them, and which layers they name."""

import math
from dataclasses import replace

import numpy as np
import pytest
from gradspectra_core.alerts import Finding
from gradspectra_core.detectors import DetectorSet, LayerObservation, Observation

NAMES = ("embed", "block.0", "block.1", "head")


def layers(
    grad: list[float] | None = None,
    nonfinite: list[int] | None = None,
    present: list[bool] | None = None,
    weights: list[float] | None = None,
    names: tuple[str, ...] = NAMES,
) -> LayerObservation:
    count = len(names)
    here = np.array(present or [True] * count)
    values = np.array(grad or [1.0] * count, np.float32)
    lost = np.array(nonfinite or [0] * count)
    return LayerObservation(
        names,
        names,
        grad_sq=values**2,
        grad_max=values,
        grad_nonfinite=lost,
        weight_sq=np.array(weights or [1.0] * count, np.float32),
        grad_sq_present=here,
        grad_max_present=here,
        grad_nonfinite_present=here | (lost > 0),
        weight_sq_present=np.ones(count, np.bool_),
    )


def run(rule: str, observations: list[Observation]) -> list[Finding]:
    detectors = DetectorSet((rule,))
    return [finding for observation in observations for finding in detectors.observe(observation)]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"loss": math.nan}, "loss NaN"),
        ({"loss": math.inf}, "loss Infinity"),
        ({"loss": -math.inf}, "loss -Infinity"),
        ({"loss": 1.0, "grad_norm": math.nan}, "gradient NaN"),
    ],
)
def test_a_non_finite_number_is_critical_at_its_first_step_and_closes_after_ten_finite_ones(fields, word):
    stream = [Observation(1, loss=2.0), Observation(2, **fields)]
    stream += [Observation(i, loss=2.0) for i in range(3, 20)]
    opened, closed = run("nonfinite", stream)
    assert (opened.change, opened.severity, opened.opened_step, opened.value) == ("open", "critical", 2, None)
    assert opened.message.startswith(f"{word} at step 2")
    assert (closed.change, closed.opened_step, closed.step) == ("close", 2, 12)


def test_finite_numbers_of_any_size_open_nothing():
    assert run("nonfinite", [Observation(1, loss=1e308, grad_norm=0.0), Observation(2, loss=-5.0)]) == []


def test_a_nan_that_began_in_the_backward_pass_names_the_layer_where_it_began():
    bad = layers(nonfinite=[7, 7, 7, 0], present=[False, False, False, True])
    (opened,) = run("nonfinite", [Observation(1, loss=2.0, layers=bad)])
    assert opened.layers == ("block.1", "block.0", "embed")
    assert "first in block.1 (in the backward pass)" in opened.message


def test_gradients_that_are_nan_in_all_layers_name_no_layer():
    (opened,) = run("nonfinite", [Observation(1, loss=2.0, layers=layers(nonfinite=[1, 1, 1, 1]))])
    assert opened.layers == ()
    assert "at the loss or in the last layer" in opened.message


def test_a_nan_loss_names_no_layer_but_those_that_grew_most_before():
    stream = [Observation(i, loss=2.0, layers=layers()) for i in range(1, 40)]
    grown = layers(grad=[1.0, 30.0, 3.0, 1.2])
    stream += [Observation(i, loss=2.5, layers=grown) for i in (40, 41)]
    stream.append(Observation(42, loss=math.nan, layers=layers(nonfinite=[9, 9, 9, 9])))
    (opened,) = run("nonfinite", stream)
    assert opened.layers == ()
    assert opened.evidence["grew_most_before"] == ["block.0", "block.1"]
    assert "in the forward pass, layer unknown; grew most before: block.0, block.1" in opened.message


def outputs(counts: list[int], present: list[bool]) -> LayerObservation:
    bad = layers(nonfinite=[9, 9, 9, 9])
    return replace(bad, act_nonfinite=np.array(counts), act_nonfinite_present=np.array(present))


def test_a_nan_loss_names_the_first_layer_whose_output_was_not_finite_after_one_that_was():
    seen = outputs([0, 0, 3, 8], [True, False, True, True])
    (opened,) = run("nonfinite", [Observation(1, loss=math.nan, layers=seen)])
    assert opened.layers == ("block.1", "head")
    assert opened.message.endswith("first in block.1 (in the forward pass)")
    stream = [Observation(1, loss=math.inf), Observation(2, loss=math.inf, layers=seen)]
    assert [(f.change, f.layers) for f in run("nonfinite", stream)] == [("open", ()), ("update", ("block.1", "head"))]


@pytest.mark.parametrize(
    ("counts", "present"),
    [([1, 1, 1, 1], [True] * 4), ([0, 1, 1, 1], [False, True, True, True]), ([0, 0, 0, 0], [True] * 4)],
)
def test_outputs_that_are_bad_from_the_first_one_measured_on_or_never_name_no_layer(counts, present):
    (opened,) = run("nonfinite", [Observation(1, loss=math.nan, layers=outputs(counts, present))])
    assert (opened.layers, opened.evidence["where"]) == ((), "in the forward pass, layer unknown")


def test_a_nan_loss_at_a_step_without_layers_names_those_that_grew_at_the_next_that_has_them():
    stream = [Observation(i, loss=2.0, layers=layers()) for i in range(1, 40)]
    stream.append(Observation(40, loss=2.5, layers=layers(grad=[1.0, 30.0, 3.0, 1.0])))
    stream.append(Observation(41, loss=math.nan))
    stream += [Observation(i, loss=math.nan, layers=layers(nonfinite=[9] * 4)) for i in (48, 56)]
    opened, updated = run("nonfinite", stream)
    assert (opened.step, opened.evidence["grew_most_before"]) == (41, [])
    assert (updated.step, updated.evidence["grew_most_before"]) == (48, ["block.0", "block.1"])
    assert "grew most before: block.0, block.1" in updated.message


def test_weights_that_are_nan_in_one_layer_name_it():
    (opened,) = run("nonfinite", [Observation(1, loss=2.0, layers=layers(weights=[1.0, math.nan, 1.0, 1.0]))])
    assert (opened.layers, opened.evidence["kinds"]) == (("block.0",), ["weights"])


def test_a_sum_out_of_range_is_not_called_nan():
    big = replace(layers(), grad_sq=np.array([np.inf, 1, 1, 1], np.float32))
    (opened,) = run("nonfinite", [Observation(1, loss=2.0, layers=big)])
    assert opened.message.startswith("gradient out of range (no entry is NaN or infinite)")


def test_layers_seen_later_in_the_episode_are_added():
    stream = [
        Observation(1, loss=2.0, grad_norm=math.nan),
        Observation(2, loss=2.0, layers=layers(nonfinite=[3, 0, 0, 0])),
        Observation(3, loss=2.0, layers=layers(nonfinite=[3, 0, 0, 0])),
    ]
    found = run("nonfinite", stream)
    assert [(f.change, f.step, f.layers) for f in found] == [("open", 1, ()), ("update", 2, ("embed",))]


def test_an_episode_seen_in_layers_closes_only_after_a_clean_layer_record():
    stream = [Observation(1, loss=2.0, layers=layers(nonfinite=[3, 0, 0, 0]))]
    stream += [Observation(i, loss=2.0) for i in range(2, 30)]
    assert [f.change for f in run("nonfinite", stream)] == ["open"]
    stream.append(Observation(30, loss=2.0, layers=layers()))
    stream += [Observation(i, loss=2.0) for i in range(31, 45)]
    assert [(f.change, f.step) for f in run("nonfinite", stream)] == [("open", 1), ("close", 39)]


def test_overflow_on_steps_that_the_loss_scaler_skips_is_no_alarm_until_it_lasts():
    def skipped(step: int) -> Observation:
        return Observation(step, loss=2.0, grad_norm=math.inf, layers=layers(nonfinite=[1] * 4), skipped=True)

    start = [skipped(i) for i in range(1, 15)] + [Observation(i, loss=2.0, grad_norm=1.0) for i in range(15, 30)]
    assert run("nonfinite", start) == []
    (opened,) = run("nonfinite", [skipped(i) for i in range(1, 40)])
    assert opened.step == 20


def test_a_layer_whose_gradient_becomes_exactly_zero_opens_after_thirty_records_and_closes_when_it_is_back():
    healthy, dead = layers(), layers(grad=[1.0, 0.0, 1.0, 1.0])
    stream = [Observation(8 * i, layers=healthy) for i in range(1, 11)]
    stream += [Observation(8 * i, layers=dead) for i in range(11, 61)]
    stream += [Observation(8 * i, layers=healthy) for i in range(61, 70)]
    opened, closed = run("dead_layer", stream)
    assert (opened.change, opened.step, opened.layers, opened.severity) == ("open", 8 * 40, ("block.0",), "warning")
    assert (opened.evidence["since_step"], opened.evidence["absent"]) == (88, [])
    assert opened.message == "the gradient of block.0 is exactly zero since step 88"
    assert (closed.change, closed.opened_step, closed.step) == ("close", 320, 8 * 63)


def test_a_gradient_too_small_to_square_is_not_dead():
    tiny = replace(layers(), grad_sq=np.zeros(4, np.float32), grad_max=np.full(4, 1e-30, np.float32))
    assert run("dead_layer", [Observation(i, layers=tiny) for i in range(1, 200)]) == []
    unknown = replace(tiny, grad_max=None)
    assert run("dead_layer", [Observation(i, layers=unknown) for i in range(1, 200)]) == []


def test_a_layer_that_loses_its_gradient_is_dead_but_one_that_never_had_one_is_frozen():
    stream = [Observation(i, layers=layers(present=[False, True, True, True])) for i in range(1, 11)]
    stream += [Observation(i, layers=layers(present=[False, True, True, False])) for i in range(11, 200)]
    (opened,) = run("dead_layer", stream)
    assert (opened.step, opened.layers, opened.evidence["absent"]) == (40, ("head",), ["head"])
    assert opened.message == "the gradient of head is absent since step 11"


def test_a_gradient_that_is_zero_from_the_start_opens_after_a_hundred_records():
    dead = layers(grad=[1.0, 0.0, 0.0, 1.0])
    gates = [Observation(i, layers=dead) for i in range(1, 90)] + [Observation(i, layers=layers()) for i in (90, 91)]
    assert run("dead_layer", gates) == []
    (opened,) = run("dead_layer", [Observation(i, layers=dead) for i in range(1, 200)])
    assert (opened.step, opened.layers) == (100, ("block.0", "block.1"))
    assert opened.message == "the gradient of block.0 and 1 more layer is exactly zero since step 1"


def test_a_message_of_several_layers_says_what_became_of_each():
    stream = [Observation(1, loss=2.0, layers=layers())]
    gone = layers(grad=[0.0, 0.0, 1.0, 0.0], present=[True, True, True, False])
    stream += [Observation(i, loss=2.0, layers=gone) for i in range(2, 60)]
    (opened,) = run("dead_layer", stream)
    assert opened.message == "the gradient of embed and 2 more layers is exactly zero or absent since step 2"


def test_layers_that_are_not_finite_or_recorded_in_turns_are_not_dead():
    stream = [Observation(1, layers=layers())]
    for i in range(2, 400):
        here = [i % 8 == 0, i % 8 == 1, i % 8 == 2, True]
        stream.append(Observation(i, layers=layers(present=here)))
    assert run("dead_layer", stream) == []
    broken = layers(nonfinite=[5, 0, 0, 0], present=[False, True, True, True])
    assert (
        run("dead_layer", [Observation(1, layers=layers())] + [Observation(i, layers=broken) for i in range(2, 99)])
        == []
    )


def test_a_record_in_which_no_layer_has_a_gradient_says_nothing():
    nothing = layers(present=[False] * 4)
    assert (
        run("dead_layer", [Observation(1, layers=layers())] + [Observation(i, layers=nothing) for i in range(2, 99)])
        == []
    )


def test_layers_that_change_mid_run_keep_their_history_by_name():
    stream = [Observation(i, layers=layers()) for i in range(1, 11)]
    stream += [Observation(i, layers=layers(grad=[0.0, 1.0, 1.0, 1.0])) for i in range(11, 31)]
    moved = ("new", "block.1", "embed")
    stream += [Observation(i, layers=layers(grad=[1.0, 1.0, 0.0], names=moved)) for i in range(31, 60)]
    (opened,) = run("dead_layer", stream)
    assert (opened.step, opened.layers, opened.evidence["since_step"]) == (40, ("embed",), 11)
    stream += [Observation(i, layers=layers(names=("block.1", "new"))) for i in range(60, 70)]
    assert [f.change for f in run("dead_layer", stream)] == ["open", "close"]


def test_layers_that_die_one_after_the_other_have_an_alert_each():
    stream = [Observation(1, layers=layers())]
    stream += [Observation(i, layers=layers(grad=[0.0, float(i < 20), 1.0, 1.0])) for i in range(2, 80)]
    found = run("dead_layer", stream)
    assert [(f.opened_step, f.layers) for f in found] == [(31, ("embed",)), (49, ("block.0",))]


def test_a_healthy_run_with_layers_at_every_eighth_step_raises_no_alarm():
    rng = np.random.default_rng(3)
    detectors = DetectorSet()
    names = tuple(f"layer.{i}" for i in range(50))
    for step in range(1, 4000):
        seen = None
        if step % 8 == 0:
            grad = np.exp(0.3 * rng.normal(size=50)).astype(np.float32)
            seen = layers(grad=grad.tolist(), names=names)
        loss = float((2 + 8 * np.exp(-step / 200)) * np.exp(0.05 * rng.normal()))
        assert detectors.observe(Observation(step, loss=loss, layers=seen)) == []


def test_rows_of_a_record_become_the_statistics_that_detectors_read():
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    present = np.array([[True] * 4, [True, False, True, True]])
    seen = LayerObservation.from_rows(
        NAMES,
        NAMES,
        ("part_sq", "grad_sq"),
        values,
        present,
        ("grad_nonfinite", "act_nonfinite"),
        np.ones((2, 4), np.int64) * [[1], [2]],
        present,
    )
    assert seen.grad_sq is not None
    assert seen.grad_nonfinite is not None
    assert seen.grad_sq.tolist() == [4, 5, 6, 7]
    assert seen.grad_nonfinite.tolist() == [1, 1, 1, 1]
    assert seen.act_nonfinite is not None
    assert seen.act_nonfinite_present is not None
    assert (seen.act_nonfinite.tolist(), seen.act_nonfinite_present.tolist()) == ([2] * 4, present[1].tolist())
    assert (seen.grad_max, seen.weight_sq) == (None, None)
    assert seen.total_norm() == pytest.approx(math.sqrt(4 + 6 + 7))
    assert layers(present=[False] * 4).total_norm() is None
