"""Sharded parameters on two ranks of which one fails at some stage: nobody waits, and training is the same."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import column
from agent.ways.ranks import Plan
from agent.ways.shards import gathering, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
]

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
    "gradspectra.drift:Drift.begin",
    "gradspectra.drift:Drift.measure",
    "gradspectra.shard_parts:WholeTensors._look",
    "gradspectra.shard_parts:ShardParts.arm",
    "gradspectra.shard_parts:ShardParts.sums",
    "gradspectra.parts:PartSquares._arrives",
    "gradspectra.shard_spectra:ShardSpectra.ready",
    "gradspectra.shard_spectra:ShardSpectra.numbers",
    "gradspectra.shard_spectra:ShardSpectra.adopt",
    "gradspectra.second_measuring:SecondMeasuring.opens",
    "gradspectra.shard_second:ShardSecond.sums",
    "gradspectra.shard_tier:ShardTier.adopt",
    "gradspectra.shard_tier:ShardTier.due",
    "gradspectra.shard_tier:ShardTier.take_shards",
    "gradspectra.shard_tier:ShardTier.share",
    "gradspectra.shard_tier:ShardTier.ready",
    "gradspectra.shard_tier:ShardTier.finish",
    "gradspectra.activations:Activations._measure",
    "gradspectra.activations:Activations.collect",
    "gradspectra.sharded:Sharded._share",
    "gradspectra.sharded:Sharded._adopt",
    "gradspectra.exchange:Exchange._fill",
]
SECOND = ("due", "take_shards", "share", "ready", "adopt", "finish")
"""Methods without which the second tier is left out, at the latest once they have failed three times."""
LAYERS = ("FirstTier.take", "repair", "FirstTier.share", "_share", "_fill")
"""Ends of the stages without which a rank has no layers to bring."""
LEFT_OUT = {
    "drift": ("Drift.begin", "Drift.measure", "Watch._begin"),
    "parts": ("WholeTensors._look", "ShardParts.arm", "ShardParts.sums", "PartSquares._arrives", "Session.stepped"),
    "spectra": ("ShardSpectra.numbers", "ShardSpectra.ready", "ShardSpectra.adopt"),
    "second tier": ("ShardSecond.sums", *(f"ShardTier.{name}" for name in SECOND)),
    "activations": (
        "Activations._measure",
        "Activations.collect",
        "Session.stepped",
        "ShardSecond.sums",
        *(f"ShardTier.{name}" for name in SECOND),
    ),
}
"""What alone is left out where one of these fails."""
TOLD = {"ShardTier.take_shards": "numbers of the second tier", "Activations._measure": "activations"}
"""What the status says where these fail."""
ONE_STATISTIC = ("drift", "parts", "shard_parts", "shard_spectra", "shard_second", "shard_tier", "activations")
ONE_STATISTIC = tuple(f"gradspectra.{module}:" for module in ONE_STATISTIC)
"""Starts of the stages whose failure on the rank that sends loses no record."""


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    """Sums of the two ranks' weights after a training without a watch."""
    torch.set_num_threads(1)
    plan = Plan(shards=True, steps=5, parts=2, watch=False)
    told, total, _ = run(plan, tmp_path_factory.mktemp("plain"), gathering(plan))
    return told["sum"], total


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_fails_holds_up_nobody_and_changes_nothing(stage, rank, kept, tmp_path, unwatched):
    plan = Plan(shards=True, steps=5, parts=2, spectra=1, broken=stage, broken_rank=rank)
    told, total, status = run(plan, tmp_path, gathering(plan))
    assert (told["sum"], total) == unwatched
    if stage.endswith(LAYERS):
        assert any(f"failed on the ranks {rank}" in reason for reason in status["not_measured"])
        assert all("grad_sq" not in record.statistics for record in kept())
        return
    lacking = {name for name, stages in LEFT_OUT.items() if stage.endswith(stages)}
    if rank == 1 and stage.endswith("ShardTier.adopt"):  # which only the rank that sends does
        lacking = set()
    for end, text in TOLD.items():
        if stage.endswith(end):
            assert any(f"{text} were left out at some steps" in reason for reason in status["not_measured"])
            assert any(f"failed on the ranks {rank}" in reason for reason in status["not_measured"])
    if rank == 1 or stage.startswith(ONE_STATISTIC):
        assert [record.step for record in kept()] == [1, 2, 3, 4, 5]
        assert all(column(record, "grad_sq")["head.weight"] > 0 for record in kept())
        last = kept()[-1]
        assert ("drift_sq" not in last.statistics) == ("drift" in lacking)
        assert (column(last, "part_sq")["head.weight"] is None) == ("parts" in lacking)
        assert (last.spectra == []) == ("spectra" in lacking)
        assert ("grad_l1" not in last.statistics) == ("second tier" in lacking)
        assert ("act_max" not in last.statistics) == ("activations" in lacking)
