"""Parameters sharded by fully_shard over two ranks: local sums, put together by one all-reduce a recorded step."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from agent.watched_training import attention, column, watched
from agent.ways.plain import Plain
from agent.ways.ranks import (
    EXAMPLES,
    RANKS,
    Plan,
    broken,
    gathered,
    group,
    optimizer_of,
    part_loss,
    second_rank,
    train,
    weight_sum,
    wrapped,
)
from agent.ways.way import way

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
]

PLANS = {
    "sgd": Plan(shards=True),
    "adamw, clipped": Plan(shards=True, adamw=True, clip=0.05),
    "accumulated": Plan(shards=True, parts=2, no_sync=True),
    "exchanged in each pass": Plan(shards=True, parts=2, adamw=True),
}


def run(plan, folder, look=lambda _: None, **options):
    """Train as rank 0 beside the other rank; returns what that told, the own weights' sum and the watch's status."""
    with second_rank(folder, plan) as told, group(folder, 0):
        model = wrapped(attention(), plan)
        optimizer = optimizer_of(model, plan)
        with broken(plan, 0), watched(model, optimizer, enabled=plan.watch, **options) as watch:
            train(model, optimizer, watch, 0, plan, look(model))
            status = watch.status()
        total = weight_sum(model)
    return told, total, status


def gathering(model):
    """Gathers the weights where the other rank does."""

    @contextmanager
    def around(_):
        gathered(model, attention())
        yield
        gathered(model, attention())

    return around


@way("fully_shard (FSDP2) over all ranks, watched by every rank", parts=False)
@pytest.mark.parametrize("name", PLANS)
def test_shards_are_measured_as_the_whole(name, kept, the_way, tmp_path):
    plan, expected, inner = PLANS[name], [], attention()
    plain = Plain(inner)

    def look(model):
        @contextmanager
        def around(step):
            gathered(model, inner)
            losses = [
                lambda m, r=rank, j=part: part_loss(m, r, step, j, plan.parts) / RANKS
                for rank in range(RANKS)
                for part in range(plan.parts)
            ]
            expected.append(plain.step(inner, *losses))
            yield
            gathered(model, inner)
            expected[-1].after = plain.weights(inner)

        return around

    told, _, status = run(plan, tmp_path, look)
    assert (told["spooled"], "gradspectra-sender" in told["threads"], told["step"]) == ([], False, plan.steps)
    assert any("the parameters are sharded" in reason for reason in status["not_measured"])
    assert [record.step for record in kept()] == [1, 2, 3]
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step, rel=1e-4)
        assert record.counts["examples"] == EXAMPLES * RANKS * plan.parts
        assert "loss" in record.scalars
        assert "noise_w" not in record.scalars


STAGES = [
    "gradspectra.measure:FirstTier.take",
    "gradspectra.measure:FirstTier.repair",
    "gradspectra.measure:FirstTier.share",
    "gradspectra.measure:FirstTier.adopt",
    "gradspectra.session:Session.opens",
    "gradspectra.session:Session.stepped",
    "gradspectra.session:Session._account",
    "gradspectra.measuring:Measuring._follow_on",
    "gradspectra.watch:Watch._begin",
]


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    """Sums of the two ranks' weights after a training without a watch."""
    torch.set_num_threads(1)
    told, total, _ = run(Plan(shards=True, steps=5, watch=False), tmp_path_factory.mktemp("plain"), gathering)
    return told["sum"], total


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_fails_holds_up_nobody_and_changes_nothing(stage, rank, kept, tmp_path, unwatched):
    plan = Plan(shards=True, steps=5, broken=stage, broken_rank=rank)
    told, total, status = run(plan, tmp_path, gathering)
    assert (told["sum"], total) == unwatched
    if stage.endswith(("take", "repair", "share")):
        assert any(f"failed on the ranks {rank}" in reason for reason in status["not_measured"])
        assert all("grad_sq" not in record.statistics for record in kept())
    elif rank == 1:
        assert [record.step for record in kept()] == [1, 2, 3, 4, 5]
        assert all(column(record, "grad_sq")["head.weight"] > 0 for record in kept())


def test_ranks_follow_one_plan_within_a_budget(kept, tmp_path):
    told, _, _ = run(Plan(shards=True, steps=60), tmp_path, gathering, budget=0.001)
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
        with pytest.raises(ValueError, match="must watch alike, got 11 layers, every=1; 9 layers, every=7"):
            watched(model, optimizer)
        with watched(model, optimizer, enabled=False) as watch:
            train(model, optimizer, watch, 0, plan, gathering(model))
