"""Sharded parameters of one rank alone: the same numbers as without sharding, from the code that several ranks run."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from agent.watched_training import assert_close, attention, column, loss_of, watched
from gradspectra import sharded
from gradspectra.budget import Budget
from gradspectra.shard_second import ShardSecond
from gradspectra.shard_tier import ShardTier
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")


SECOND = ("grad_l1", "grad_zero_rows", "grad_dot_weight", "update_dot_grad", "moment_sq", "second_moment")
SECOND += ("second_moment_median", "act_max", "act_nonfinite")


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def trained(mesh, weights=(0.5, 0.5), steps=3, late=False, **options):
    """A watched training, sharded if there is a mesh; returns the status of its watch."""
    model = attention()
    if mesh is not None:
        fully_shard(model.norm, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with watched(model, optimizer, spectra=1, drift="exact", **options) as watch:
        for step in range(steps):
            for part, weight in enumerate(weights):
                (loss_of(model, 4, 10 * step + part) * weight).backward()
                watch.log(loss=1.0, examples=4, **({} if late else {"part_weight": weight}))
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            for weight in weights if late else ():
                watch.log(step=step + 1, part_weight=weight)
            optimizer.zero_grad()
        return watch.status()


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.2)])
def test_the_records_are_those_of_a_training_without_shards(weights, mesh, kept):
    trained(None, weights)
    whole = kept()
    status = trained(mesh, weights)
    assert status["not_measured"] == []
    assert status["cadence_second"] == 1
    for step, (own, expected) in enumerate(zip(kept(), whole, strict=True), 1):
        assert own.table.layers == expected.table.layers
        for name in ("grad_sq", "grad_max", "weight_sq", "update_sq", "drift_sq", "weight_dot_init"):
            assert_close(column(own, name), column(expected, name), 1e-4, 1e-12)
        if step > 1:
            assert_close(column(own, "part_sq"), column(expected, "part_sq"), 1e-4, 1e-12)
        for name in SECOND:
            assert_close(column(own, name), column(expected, name), 1e-4, 1e-7)
        assert len(own.spectra) == len(expected.spectra) == 5
        for found, exact in zip(own.spectra, expected.spectra, strict=True):
            assert (found.layer, found.rows, found.columns) == (exact.layer, exact.rows, exact.columns)
            assert found.aggregates[:4] == pytest.approx(exact.aggregates[:4], rel=1e-4)
        for name in ("noise_w", "noise_w2", "grad_norm", "clip_coefficient", "update_norm"):
            assert own.scalars[name] == pytest.approx(expected.scalars[name], rel=1e-4)
        assert own.counts["parts"] == expected.counts["parts"] == 2


def test_weights_that_are_logged_after_the_step_are_too_late_for_its_parts(mesh, kept):
    trained(mesh, (0.8, 0.2), late=True)
    assert all(set(column(record, "part_sq").values()) == {None} for record in kept())


def test_backward_passes_that_the_hooks_do_not_see_leave_the_parts_out(mesh, kept, monkeypatch):
    monkeypatch.setattr(sharded.ShardParts, "sums", lambda self, _: torch.zeros(self._layers).double())
    status = trained(mesh)
    assert all(set(column(record, "part_sq").values()) == {None} for record in kept())
    assert any("not all backward passes of embed.weight were seen" in reason for reason in status["not_measured"])


def test_one_part_of_one_rank_has_no_part_sq(mesh, kept):
    trained(mesh, (1.0,))
    assert all(set(column(record, "part_sq").values()) == {None} for record in kept())


def test_within_a_budget_parts_and_updates_take_turns_and_spectra_are_agreed_on(mesh, kept):
    trained(mesh, steps=40, budget=1.0)
    measured = [record for record in kept() if "grad_sq" in record.statistics]
    parts = [column(record, "part_sq")["head.weight"] is not None for record in measured]
    updates = [column(record, "update_sq")["head.weight"] is not None for record in measured]
    assert min(sum(parts), sum(updates)) > 5
    assert [not turn for turn in parts] == updates
    drifts = sum("drift_sq" in record.statistics for record in measured)
    assert 1 <= drifts <= 1 + len(measured) // 16


def test_a_state_of_another_shard_or_of_some_layers_alone_is_not_taken_for_the_start(mesh, kept):
    model = fully_shard(attention(), mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        loss_of(model, 4, 0).backward()
        optimizer.step()
        state = watch.state_dict()
    assert state["shard"] == [0, 1]
    lacking = {name: start for name, start in state["drift"].items() if name != "embed.weight"}
    for other, moved in (({}, True), ({"shard": [1, 2]}, False), ({"drift": lacking}, False)):
        with watched(model, optimizer) as watch:
            watch.load_state_dict(state | other)
            optimizer.zero_grad()
            loss_of(model, 4, 0).backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
        assert (column(kept()[0], "drift_sq")["head.weight"] > 0) == moved


def test_after_a_loss_that_is_not_finite_the_outputs_of_all_layers_are_followed(mesh, kept, monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")  # compiled, sums of the second tier come at any budget
    model = fully_shard(attention(), mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer, budget=1e-9) as watch:
        for step in range(6):
            loss_of(model, 4, step).backward()
            watch.log(loss=math.nan if step in (1, 2) else 1.0)
            watch._session.budget.cadence = 1
            optimizer.step()
    seen = [
        sum(x is not None for x in column(r, "act_max").values()) if "act_max" in r.statistics else 0 for r in kept()
    ]
    assert seen == [0, 0, 6, 6, 0, 0]  # embed, q, k, v, norm, head
    assert not any("grad_l1" in record.statistics for record in kept())


def test_after_the_loss_of_another_rank_was_not_finite_they_are_followed_too(mesh, kept, monkeypatch):
    agree = ShardSecond.agree
    monkeypatch.setattr(ShardSecond, "agree", lambda self, turns, _: agree(self, turns, True))
    model = fully_shard(attention(), mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer, budget=1e-9):
        for step in range(2):
            loss_of(model, 4, step).backward()
            optimizer.step()
    assert ["act_max" in record.statistics for record in kept()] == [False, True]
    assert sum(x is not None for x in column(kept()[1], "act_max").values()) == 6


def test_within_a_budget_the_second_tier_comes_in_turn_and_is_that_of_a_training_without_shards(
    mesh, kept, monkeypatch
):
    trained(None, steps=12)
    whole = kept()
    monkeypatch.setattr(Budget, "second_seconds", lambda budget: 0.4 * budget.second_lap_seconds)
    monkeypatch.setattr(Budget, "too_large", lambda *_: False)
    monkeypatch.setattr(Budget, "_choose", lambda *_: None)
    monkeypatch.setattr("gradspectra.shard_tier.LARGEST_PIECE", 1.0)
    costs = []
    monkeypatch.setattr(ShardTier, "learn", lambda _, taken, seconds: costs.append((len(taken), seconds)))
    status = trained(mesh, steps=12, budget=1.0)
    assert len(costs) > 5
    assert all(0 < units < 11 and seconds > 0 for units, seconds in costs)
    assert 2 <= status["cadence_second"] <= 4
    seen = set()
    for own, expected in zip(kept(), whole, strict=True):
        for name in set(SECOND) & {*own.statistics, *own.count_statistics}:
            exact = column(expected, name)
            measured = {layer: number for layer, number in column(own, name).items() if number is not None}
            assert len(measured) < len(own.table)
            assert measured == pytest.approx({layer: exact[layer] for layer in measured}, rel=1e-3, abs=1e-6)
            seen |= {(name, layer) for layer in measured}
    assert seen == {(name, layer) for name in SECOND for layer, x in column(whole[0], name).items() if x is not None}


def test_the_second_tier_can_be_left_out(mesh, kept):
    trained(None)
    whole = kept()[-1]
    status = trained(mesh, second_tier="off")
    assert status["cadence_second"] is None
    assert status["not_measured"] == ['update_sq and the second tier are not measured: second_tier is "off"']
    record = kept()[-1]
    assert not set(SECOND) & {*record.statistics, *record.count_statistics}
    for name in ("grad_sq", "weight_sq", "part_sq"):
        assert_close(column(record, name), column(whole, name), 1e-4, 1e-12)
    assert set(column(record, "update_sq").values()) == {None}
    assert "update_norm" not in record.scalars


def test_what_rounding_loses_is_that_of_a_training_without_shards(mesh, kept):
    found = []
    for ranks in (None, mesh):
        model = attention().bfloat16()
        if ranks is not None:
            fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        with watched(model, optimizer):
            for step in range(3):
                loss_of(model, 4, step).backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append([column(record, "rounding_lost") for record in kept()])
    for own, expected in zip(*found, strict=True):
        assert own["head.weight"] > 0.05
        assert_close(own, expected, 1e-3, 1e-3)
