"""The second tier of sharded layers from the numbers of all ranks, each rank made in turn in one process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agent.fake_ranks import OPTIMIZERS, as_rank, give_gradients, made, sharded, tier_of
from gradspectra.measure import FirstTier
from gradspectra.second_numbers import ROWS

pytestmark = pytest.mark.usefixtures("either_way")


def drawn(model, seed, dtype=torch.float32):
    """Gradients of all layers but one, some of whose output units are all zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {n: torch.randn(p.shape, generator=generator).to(dtype) for n, p in model.named_parameters()}
    found["head.weight"] = None
    found["c_attn.weight"][:, 3] = 0.0
    found["c_attn.weight"][:7, 20] = 0.0  # zero for some ranks alone
    found["large.c_attn.weight"][:, 90:100] = 0.0
    found["up.weight"][[0, 30]] = 0.0
    found["in_proj_weight"][12:15] = 0.0
    found["down.bias"][2] = 0.0
    return found


def forward_of(layer, rank, ranks):
    """The largest output of a layer's module on a rank, and how many are not finite; None where it saw none."""
    if layer % 5 == 1 and rank == ranks - 1:
        return None
    return (-1.0 if layer % 7 == 2 else 1.0 + (layer * 13 + rank * 5) % 11), float(layer % 3 + rank)


def brought(model, rank, ranks, kind, steps, lost=()):
    """What a rank brings after steps with these gradients: its vector, its first tier's, and both tiers."""
    with as_rank(rank, ranks) as mesh:
        shards = sharded(model, mesh)
        tier, optimizer, inventory = tier_of(shards, mesh, rank, kind)
        first = FirstTier(inventory)
        for step, gradients in enumerate(steps, 1):
            give_gradients(shards, gradients, rank, mesh)
            tier.stage(tier.due())
            optimizer.step()
            if step < len(steps):
                tier.agree(np.zeros(ranks), False)
        fused = first.take(inventory.tensors, optimizer)
        first.repair()
        with torch.no_grad():
            tier.take_shards(step, first.marks, (), fused)
        for layer in range(len(inventory.table)):
            output = forward_of(layer, rank, ranks)
            if output is not None:
                tier.put_forward(slice(layer, layer + 1), torch.tensor([output[0]]), torch.tensor([output[1]]))
        armed = set(range(len(inventory.table))) - set(lost)
        return tier.share(armed), first.share(), tier, first


def together(model, ranks, kind, steps, lost=()):
    """What rank 0 finds once all have brought theirs: statistics of each layer by name, None where absent."""
    vector, shares = 0.0, []
    for rank in reversed(range(ranks)):
        own, share, tier, first = brought(model, rank, ranks, kind, steps, lost if rank else ())
        assert len(own) == tier.numbers == tier.layout.numbers <= tier.room
        vector = vector + own
        shares.append(share)
    summed = torch.stack(shares)
    first.adopt(torch.cat([summed[:, :5].sum(0), summed[:, 5:].amax(0)]).numpy())
    tier.adopt(vector.numpy(), first.marks)
    found = tier.finish()
    (values,) = found.results
    names = first.inventory.table.names
    return {
        row: {name: float(values[at, i]) if found.present[at, i] else None for i, name in enumerate(names)}
        for at, row in enumerate(ROWS)
    }


def layers(arrays):
    """The layers of a model's arrays by name, output units first, in float64."""
    found = {n: None if a is None else a.detach().double().numpy().copy() for n, a in arrays.items()}
    for name, axis in (
        ("c_attn.weight", 1),
        ("large.c_attn.weight", 1),
        ("in_proj_weight", 0),
        ("wide.qkv.weight", 0),
    ):
        blocks = np.split(found.pop(name), 3, axis)
        found |= {f"{name}[{s}]": np.moveaxis(b, axis, 0) for s, b in zip("qkv", blocks, strict=True)}
    experts = found.pop("experts.up")
    return found | {f"experts.up[{expert}]": None if experts is None else experts[[expert]] for expert in range(3)}


def median_of_sample(v):
    numbers = v.ravel()
    sample = np.sort(numbers[:: -(-len(numbers) // 4096) | 1])
    return math.sqrt(sample[(len(sample) - 1) // 2])


def exact(model, kind, steps):
    """The same numbers of the model as a whole, in float64 but for what the optimizer itself rounds."""
    own = OPTIMIZERS[kind](model.parameters())
    for gradients in steps:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        own.step()
    gradient, after, start = layers(steps[-1]), layers(dict(model.named_parameters())), layers(before)
    there = [name for name, g in gradient.items() if g is not None]
    found = {
        "grad_l1": {n: np.abs(gradient[n]).sum() for n in there},
        "grad_zero_rows": {n: (gradient[n].reshape(len(gradient[n]), -1) == 0).all(1).sum() for n in there},
        "grad_dot_weight": {n: (gradient[n] * after[n]).sum() for n in there},
        "update_dot_grad": {n: (gradient[n] * (after[n] - start[n])).sum() if n in there else 0.0 for n in gradient},
    }
    if kind == "adamw":
        m, v = (
            layers(
                {
                    n: own.state[p][key] / (1 - beta ** len(steps)) if p in own.state else None
                    for n, p in model.named_parameters()
                }
            )
            for key, beta in (("exp_avg", 0.8), ("exp_avg_sq", 0.95))
        )
        found |= {
            "moment_sq": {n: np.square(m[n]).sum() for n in there},
            "second_moment": {n: v[n].sum() for n in there},
            "second_moment_median": {n: median_of_sample(v[n]) for n in there},
        }
    return found


def some(column):
    return {name: number for name, number in column.items() if number is not None}


@pytest.mark.parametrize(("ranks", "kind"), [(2, "adamw"), (7, "adamw"), (3, "sgd")])
def test_shards_of_all_ranks_give_the_numbers_of_the_whole(ranks, kind):
    steps = [drawn(made(), seed) for seed in (1, 2)]
    found = together(made(), ranks, kind, steps)
    expected = exact(made(), kind, steps)
    assert {row for row, column in found.items() if some(column)} == {*expected, "act_max", "act_nonfinite"}
    for row, numbers in expected.items():
        rel = {"update_dot_grad": 2e-3, "grad_zero_rows": 0, "second_moment_median": 1e-6}.get(row, 1e-4)
        assert some(found[row]) == pytest.approx(numbers, rel=rel, abs=0 if rel == 0 else 1e-4), row
    assert found["grad_zero_rows"]["c_attn.weight[q]"] == 1
    assert found["grad_zero_rows"]["large.c_attn.weight[k]"] == 10


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_largest_output_is_that_of_all_ranks_which_saw_one(ranks):
    steps = [drawn(made(), 1)]
    found = together(made(), ranks, "sgd", steps)
    for layer, name in enumerate(found["act_max"]):
        seen = [output for rank in range(ranks) if (output := forward_of(layer, rank, ranks)) is not None]
        assert found["act_max"][name] == max(largest for largest, _ in seen)
        assert found["act_nonfinite"][name] == sum(lost for _, lost in seen)
    found = together(made(), ranks, "sgd", steps, lost=[2, 3])
    lacking = [layer for layer, number in enumerate(found["act_max"].values()) if number is None]
    assert lacking == [2, 3]


def test_entries_that_are_not_finite_are_left_out_and_a_layer_without_others_has_none():
    gradients = drawn(made(), 1)
    gradients["up.weight"][0, 1] = math.nan
    gradients["up.weight"][16:] = math.inf  # all that the second rank has
    gradients["conv.weight"][:] = math.nan
    gradients["c_attn.weight"][1, 3] = math.nan  # a NaN is no zero
    found = together(made(), 2, "sgd", [gradients])
    left = gradients["up.weight"].double()
    left = left[left.isfinite()]
    assert found["grad_l1"]["up.weight"] == pytest.approx(float(left.abs().sum()), rel=1e-5)
    assert found["grad_zero_rows"]["up.weight"] == 0
    assert found["grad_zero_rows"]["c_attn.weight[q]"] == 0
    assert {row: found[row]["conv.weight"] for row in ROWS[:3]} == dict.fromkeys(ROWS[:3])


@pytest.mark.parametrize(("ranks", "kind"), [(2, "adamw"), (3, "sgd")])
def test_what_rounding_loses_is_that_of_the_whole(ranks, kind):
    steps = [{n: None if g is None else 1e-2 * g for n, g in drawn(made(), s, torch.bfloat16).items()} for s in (1, 2)]
    found = together(made(torch.bfloat16), ranks, kind, steps)
    model = made(torch.bfloat16)
    own, twin = OPTIMIZERS[kind](model.parameters()), made().double()
    other = OPTIMIZERS[kind](twin.parameters())
    for gradients in steps:
        before = layers(dict(model.named_parameters()))
        for whole, exact_one in zip(model.named_parameters(), twin.parameters(), strict=True):
            whole[1].grad = gradients[whole[0]]
            with torch.no_grad():
                exact_one.copy_(whole[1])
            exact_one.grad = None if whole[1].grad is None else whole[1].grad.double()
        meant = layers(dict(twin.named_parameters()))
        own.step()
        other.step()
    after, target = layers(dict(model.named_parameters())), layers(dict(twin.named_parameters()))
    for name, real in some(found["rounding_lost"]).items():
        assert real == pytest.approx(np.square(after[name] - before[name]).sum(), rel=0.02), name
        assert found["intended_sq"][name] == pytest.approx(np.square(target[name] - meant[name]).sum(), rel=0.05), name
    assert some(found["rounding_lost"]).keys() == after.keys() - {"head.weight"}


@pytest.mark.parametrize("rank", [0, 6])
def test_the_compiled_pass_takes_the_shards_that_are_rows_in_float32(rank, request):
    model, ranks = made(), 7
    with as_rank(rank, ranks) as mesh:
        shards = sharded(model, mesh)
        _, optimizer, inventory = tier_of(shards, mesh, rank)
        first = FirstTier(inventory)
        give_gradients(shards, drawn(model, 1), rank, mesh)
        optimizer.step()
        fused = first.take(inventory.tensors, optimizer)
    if "torch" in request.node.callspec.id:
        assert fused is None
        return
    here = {t.first: t for t in inventory.tensors if t.axis == 0 and t.parameter.to_local().numel()}
    assert fused.tensors == {first for first, tensor in here.items() if tensor.parameter.grad is not None}
    entries = {t.first + at: stop - start for t in here.values() for at, (start, stop) in enumerate(t.pieces)}
    assert fused.entries.tolist() == [entries[column] for column in fused.columns.tolist()]
