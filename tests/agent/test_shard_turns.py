"""Whose turn it is in the second tier of sharded layers, as ranks agree, and how their numbers lie in an exchange."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from agent.fake_ranks import as_rank, made, sharded, tier_of
from gradspectra.budget import Budget
from gradspectra.shard_layout import Layout, packed, packed_size, unpacked
from gradspectra.shard_tier import OVERSIZED, STOPPED
from gradspectra.turns import in_turn
from torch import nn


def test_marks_that_ranks_add_up_are_counted_apart():
    for ranks in (1, 2, 7, 8, 1000):
        marks = torch.rand(ranks, 131, generator=torch.Generator().manual_seed(ranks)) < 0.9
        marks[:, 5], marks[:, 6] = True, False
        total = sum(packed(own, ranks) for own in marks)
        assert len(total) == packed_size(131, ranks)
        assert unpacked(total, 131, ranks).tolist() == marks.sum(0).tolist()


def test_a_layout_gives_each_layer_its_places_and_no_more():
    layout = Layout((0, 3), 2, (40, 0), (0, 5))
    rows, slots, counts, samples = layout.split(torch.arange(float(layout.numbers)))
    assert rows.shape[1] == slots.shape[1] == 2
    assert ([len(c) for c in counts], [len(s) for s in samples]) == ([packed_size(40, 2), 0], [0, 5])
    assert rows.numel() + slots.numel() + packed_size(40, 2) + 5 == layout.numbers
    assert samples[1][-1] == layout.numbers - 1


def test_turns_go_round_and_no_two_pieces_have_more_room_than_there_is():
    taken, last = [], -1
    for _ in range(5):
        chosen = in_turn([0, 1, 2, 3], last, int, lambda n: 10 * (n + 1), 50)
        last = chosen[-1]
        taken.append(chosen)
    assert taken == [[0, 1], [2], [3, 0], [1, 2], [3, 0]]
    assert in_turn([], -1, int, int, 50) == []


def known(step_seconds=1.0):
    budget = Budget(0.01, 1, False)
    for _ in range(40):
        budget.step_done(step_seconds, 0.0, 0.0001 * step_seconds, 0.0, 0.0)
    return budget


def turns(tier):
    return [unit.tensors[0].name for unit in tier.due()]


def test_the_ranks_measure_what_the_poorest_of_them_pays_for_and_pass_over_what_one_finds_too_large():
    with as_rank(0, 2) as mesh:
        tier, _, inventory = tier_of(sharded(made(), mesh), mesh, 0, budget=known())
        names = [tensor.name for tensor in inventory.tensors]
        assert (turns(tier), tier.layout.numbers) == ([], 0)
        tier.agree(np.array([5.0, 3.0]), False)
        assert turns(tier) == names[:3]
        assert len(tier.layout.columns) == sum(len(t.pieces) for t in inventory.tensors[:3])
        tier.agree(np.array([0.0, 3.0]), False)
        assert turns(tier) == []
        tier.agree(np.array([2.0, OVERSIZED]), False)
        assert (turns(tier), list(tier.too_large)) == ([], [names[3]])
        tier.agree(np.array([2.0, 2.0]), True)
        assert turns(tier) == names[4:6]
        assert tier.layout.columns == tuple(range(len(inventory.table)))
        assert tier.alarmed
        tier.agree(np.array([float(len(names) - 6)] * 2), False)
        tier.agree(np.array([1.0, 1.0]), False)
        assert turns(tier) == names[:1]
        tier.agree(np.array([1.0, STOPPED]), True)
        tier.agree(np.array([1.0, 1.0]), True)
        assert (turns(tier), tier.layout.numbers, tier.alarmed) == ([], 0, False)


def test_a_rank_pays_for_as_many_turns_as_its_budget_leaves(monkeypatch):
    with as_rank(0, 2) as mesh:
        shards = sharded(made(), mesh)
        budget = known()
        tier, _, _ = tier_of(shards, mesh, 0, budget=budget)
        costs = [unit.expected for unit in tier.every]
        monkeypatch.setattr(budget, "second_seconds", lambda: 0.6 * sum(costs[:4]))
        assert tier.ready() == 2
        assert tier.ready() == 4  # what one turn has left the next may use
        tier.agree(np.array([4.0, 3.0]), False)
        monkeypatch.setattr(budget, "second_seconds", lambda: costs[4])
        assert tier.ready() == 2
        tier.agree(np.array([2.0, 2.0]), False)
        monkeypatch.setattr(budget, "second_seconds", lambda: 0.0)
        assert tier.ready() == 0
        monkeypatch.setattr(budget, "second_seconds", lambda: 1.0)
        assert tier.ready() == len(tier.every)
        tight, _, _ = tier_of(shards, mesh, 0, budget=known(1e-4))
        assert tight.ready() == OVERSIZED


def test_low_precision_shards_are_staged_in_turn_alike_on_all_ranks(monkeypatch):
    monkeypatch.setattr("gradspectra.shard_tier.STAGED", 30)
    model = {"c_attn": nn.Linear(5, 5, bias=False), "b": nn.Linear(5, 5), "c": nn.Linear(5, 5)}
    model = nn.Sequential(OrderedDict(model))
    found = []
    for rank in range(2):
        with as_rank(rank, 2) as mesh:
            tier, _, inventory = tier_of(sharded(model.bfloat16(), mesh), mesh, rank, "sgd")
            names = {id(tensor.parameter): tensor.name for tensor in inventory.tensors}
            own = []
            for _ in range(4):
                if rank or len(own) != 1:
                    tier.stage(tier.due())
                own.append([names[key] for key in tier._staged])
                tier.agree(np.zeros(2), False)
            found.append(own)
    assert found[1] == [["c_attn.weight"], ["b.weight", "b.bias"], ["c.weight", "c.bias"], ["c_attn.weight"]]
    assert found[0] == [found[1][0], [], *found[1][2:]]  # what one rank failed to keep comes round on both


def test_medians_come_in_turn_where_their_samples_have_no_room_together(monkeypatch):
    monkeypatch.setattr("gradspectra.shard_tier.EXCHANGED", 3000)
    with as_rank(0, 2) as mesh:
        tier, _, inventory = tier_of(sharded(made(), mesh), mesh, 0)
        seen = {}
        for turn in range(8):
            assert tier.layout.numbers <= tier.room
            for column, size in zip(tier.layout.columns, tier.layout.samples, strict=True):
                if size:
                    seen.setdefault(column, []).append(turn)
            tier.agree(np.zeros(2), False)
        assert len(seen) == len(inventory.table)
        assert max(len(turns) for turns in seen.values()) - min(len(turns) for turns in seen.values()) <= 1
        sgd, _, _ = tier_of(sharded(made(), mesh), mesh, 0, "sgd")
        assert set(sgd.layout.samples) == {0}
