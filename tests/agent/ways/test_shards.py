"""Parameters sharded by fully_shard over two ranks: local sums, put together by one all-reduce a recorded step."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from agent.watched_training import assert_close, attention, column, squares, watched
from agent.ways.ranks import (
    EXAMPLES,
    RANKS,
    Plan,
    group,
    optimizer_of,
    second_rank,
    train,
    wrapped,
)
from agent.ways.shards import gathering, run
from agent.ways.way import way
from gradspectra.spectra import SHORTEST_INTERVAL
from gradspectra_core.noise import weight_sums
from gradspectra_core.spectrum import aggregates

from agent import experts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
]

PLANS = {
    "sgd": Plan(shards=True),
    "adamw, clipped": Plan(shards=True, adamw=True, clip=0.05),
    "accumulated": Plan(shards=True, parts=2, no_sync=True),
    "exchanged in each pass": Plan(shards=True, parts=2, adamw=True),
    "parts of other weights": Plan(shards=True, parts=2, no_sync=True, weighted=True),
}


def check_second(record, step, plan, steps):
    """The second tier of a record is that of the plain step. steps: all plain ones so far, this one the last."""
    assert_close(column(record, "grad_l1"), of_each(step.gradient, lambda g: np.abs(g).sum()), 1e-4, 1e-12)
    unclear = {"qkv.bias": 0}  # rounding decides what of the key's bias is exactly 0
    assert column(record, "grad_zero_rows") | unclear == of_each(step.gradient, zero_rows) | unclear
    products = {name: None if g is None else (g * step.after[name]).sum() for name, g in step.gradient.items()}
    assert_close(column(record, "grad_dot_weight"), products, 1e-4, 1e-6)
    moved = {n: 0.0 if g is None else (g * (step.after[n] - step.before[n])).sum() for n, g in step.gradient.items()}
    assert_close(column(record, "update_dot_grad"), moved, 2e-3, 1e-9)
    seen = {name: step.outputs.get(name.rpartition(".")[0]) for name in step.gradient}
    seen = {name: None if name.endswith("bias") else found for name, found in seen.items()}
    assert_close(column(record, "act_max"), seen, 1e-4)
    assert column(record, "act_nonfinite") == of_each(seen, lambda _: 0)
    if not plan.adamw:
        assert not {"moment_sq", "second_moment", "second_moment_median"} & set(record.statistics)
        return
    first, second = moments(steps, plan)
    assert_close(column(record, "moment_sq"), squares(first), 1e-4, 1e-12)
    assert_close(column(record, "second_moment"), of_each(second, np.sum), 1e-4, 1e-12)
    assert_close(column(record, "second_moment_median"), of_each(second, lower_median_root), 1e-3, 1e-9)


def of_each(arrays, number):
    return {name: None if array is None else number(array) for name, array in arrays.items()}


def zero_rows(array):
    return int((array.reshape(len(array), -1) == 0).all(1).sum())


def lower_median_root(v):
    return np.sqrt(np.sort(v.ravel())[(v.size - 1) // 2])


def moments(steps, plan):
    """Adam's m̂ and v̂ after these steps, in float64."""
    found = []
    for beta, power in ((0.9, 1), (0.999, 2)):
        mean = dict.fromkeys(steps[0].gradient)
        for step in steps:
            factor = 1.0 if plan.clip is None else min(1.0, plan.clip / (step.norm + 1e-6))
            for name, gradient in step.gradient.items():
                if gradient is not None:
                    before = 0.0 if mean[name] is None else beta * mean[name]
                    mean[name] = before + (1 - beta) * (factor * gradient) ** power
        found.append(of_each(mean, lambda sums, of=1 - beta ** len(steps): sums / of))
    return found


def far(step, start):
    """Squared distance of each layer from the weights it started with."""
    return squares({name: None if now is None else now - start[name] for name, now in step.after.items()})


@way("fully_shard (FSDP2) over all ranks, watched by every rank")
@pytest.mark.parametrize("name", PLANS)
def test_shards_are_measured_as_the_whole(name, kept, the_way, tmp_path):
    plan, expected = PLANS[name], []
    parts = plan.parts * RANKS
    told, _, status = run(plan, tmp_path, gathering(plan, expected))
    assert (told["spooled"], "gradspectra-sender" in told["threads"], told["step"]) == ([], False, plan.steps)
    assert (status["not_measured"], status["cadence_second"]) == ([], 1)
    assert [record.step for record in kept()] == [1, 2, 3]
    weights = [plan.weight(part) / RANKS for part in range(plan.parts)] * RANKS
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step, rel=1e-4, parts=record.step > 1, weights=weights)
        assert_close(column(record, "drift_sq"), far(step, expected[0].before), 1e-4, 1e-12)
        assert (record.counts["parts"], record.counts["examples"]) == (parts, EXAMPLES * parts)
        check_second(record, step, plan, expected[: record.step])
        noise = weight_sums(weights, [EXAMPLES] * parts)
        assert (record.scalars["noise_w"], record.scalars["noise_w2"]) == pytest.approx(noise)
        assert "loss" in record.scalars


def matrices(gradient):
    """The matrices whose spectra are taken, by layer name, of the whole gradient of `Mixed`."""
    found = {name: g.reshape(len(g), -1) for name, g in gradient.items() if g.ndim > 1}
    for name, axis in (("c_attn.weight", 1), ("in_proj_weight", 0)):
        blocks = np.split(found.pop(name), 3, axis)
        found |= {f"{name}[{suffix}]": block for suffix, block in zip("qkv", blocks, strict=True)}
    return found


@pytest.mark.parametrize("plan", [Plan(clip=0.01), Plan(clip_value=1e-4)], ids=["norm", "values"])
def test_matrices_of_all_shapes_are_measured_as_the_whole_before_clipping(plan, kept, tmp_path):
    plan, expected = replace(plan, shards=True, mixed=True, spectra=1), []
    _, _, status = run(plan, tmp_path, gathering(plan, expected))
    assert not [reason for reason in status["not_measured"] if "spectrum" in reason]
    for record, step in zip(kept(), expected, strict=True):
        exact = matrices(step.gradient)
        found = {record.table.names[spectrum.layer]: spectrum for spectrum in record.spectra}
        assert found.keys() == exact.keys()
        if plan.clip_value is None:
            for name, matrix in exact.items():
                outputs = matrix.T if name.startswith("c_attn") else matrix
                assert column(record, "grad_l1")[name] == pytest.approx(np.abs(matrix).sum(), rel=1e-4)
                assert column(record, "grad_zero_rows")[name] == zero_rows(outputs)
        else:
            assert "grad_l1" not in record.statistics
        for name, spectrum in found.items():
            values = np.linalg.svd(exact[name], compute_uv=False)
            assert spectrum.values == pytest.approx(values, rel=1e-4, abs=1e-5 * values[0])
            assert spectrum.aggregates[:4] == pytest.approx(aggregates(values)[:4], rel=1e-4)
            assert (spectrum.rows, spectrum.columns) == exact[name].shape


def test_experts_are_measured_as_the_whole_wherever_each_lies(kept, tmp_path):
    plan = Plan(shards=True, experts=True, parts=2, no_sync=True, adamw=True, clip=0.01, spectra=1)
    expected = []
    _, _, status = run(plan, tmp_path, gathering(plan, expected))
    assert status["not_measured"] == []
    for record, step in zip(kept(), expected, strict=True):
        gradient, after, before = (
            experts.split({name: torch.from_numpy(own) for name, own in arrays.items()})
            for arrays in (step.gradient, step.after, step.before)
        )
        assert_close(column(record, "grad_sq"), of_each(gradient, lambda g: float(g.square().sum())), 1e-4, 1e-12)
        assert_close(column(record, "weight_sq"), of_each(after, lambda w: float(w.square().sum())), 1e-5)
        moved = {name: float((after[name] - before[name]).square().sum()) for name in after}
        assert_close(column(record, "update_sq"), moved, 1e-2, 1e-12)
        found = {record.table.names[spectrum.layer]: spectrum for spectrum in record.spectra}
        exact = experts.matrices({name: torch.from_numpy(own) for name, own in step.gradient.items()})
        exact = {name: matrix.numpy() for name, matrix in exact.items() if matrix.any()}
        assert found.keys() == exact.keys()
        for name, spectrum in found.items():
            values = np.linalg.svd(exact[name], compute_uv=False)
            assert spectrum.values == pytest.approx(values, rel=1e-4, abs=1e-5 * values[0])
            assert (spectrum.rows, spectrum.columns) == exact[name].shape


def test_spectra_come_in_turn_as_the_budgets_of_all_ranks_allow(kept, tmp_path):
    plan = Plan(shards=True, mixed=True, steps=100, budget=0.9, spectra="auto")
    _, _, status = run(plan, tmp_path, gathering(plan))
    taken = {}
    for record in kept():
        assert len(record.spectra) <= 1
        for spectrum in record.spectra:
            taken.setdefault(record.table.names[spectrum.layer], []).append(record.step)
    assert len(taken) == 11
    assert all(later - earlier >= SHORTEST_INTERVAL for steps in taken.values() for earlier, later in pairwise(steps))
    assert SHORTEST_INTERVAL <= status["cadence_spectra"] < 100


@pytest.mark.parametrize("whose", ["own", "rank 0"])
def test_drift_goes_on_from_a_checkpoint_that_each_rank_has_of_its_own_shard(whose, kept, tmp_path):
    plan, expected = Plan(shards=True, adamw=True, resumed=whose), []
    run(plan, tmp_path, gathering(plan, expected))
    assert [record.step for record in kept()] == [4, 5, 6]
    start = expected[0].before if whose == "own" else expected[3].after
    for record, step in list(zip(kept(), expected[3:], strict=True))[whose != "own" :]:
        assert_close(column(record, "drift_sq"), far(step, start), 1e-4, 1e-12)
    if whose != "own":
        assert "drift_sq" not in kept()[0].statistics


def test_without_the_average_over_ranks_parts_are_left_out(kept, tmp_path):
    plan = Plan(shards=True, steps=5, divided=3.0)
    _, _, status = run(plan, tmp_path, gathering(plan))
    assert all(set(column(record, "part_sq").values()) == {None} for record in kept())
    assert all(column(record, "grad_sq")["head.weight"] > 0 for record in kept())
    assert any("divided by something else than the number of ranks" in reason for reason in status["not_measured"])


def test_ranks_follow_one_plan_within_a_budget(kept, tmp_path):
    plan = Plan(shards=True, steps=60, budget=0.001)
    told, _, _ = run(plan, tmp_path, gathering(plan))
    measured = [record.step for record in kept() if "grad_sq" in record.statistics]
    assert told["step"] == 60
    assert measured[:3] == [1, 2, 3]
    assert len(measured) < 40


def test_a_watch_on_one_rank_alone_is_refused(monkeypatch, tmp_path):
    from datetime import timedelta

    from gradspectra import shards

    monkeypatch.setattr(shards, "WAIT_FOR_RANKS", timedelta(seconds=0.5))
    plan = Plan(shards=True, watch=False)
    with second_rank(tmp_path, plan), group(tmp_path, 0):
        model = wrapped(attention(), plan)
        optimizer = optimizer_of(model, plan)
        with pytest.raises(ValueError, match="every rank must make its watch"):
            watched(model, optimizer)
        monkeypatch.undo()
        shards.distributed.distributed_c10d._get_default_store().set("gradspectra/2/here/1", "9 layers, every=7")
        with pytest.raises(ValueError, match=r"must watch alike, got 11 layers, every=1, .*; 9 layers, every=7"):
            watched(model, optimizer)
        with watched(model, optimizer, enabled=False) as watch:
            train(model, optimizer, watch, 0, plan, gathering(plan)(model))
