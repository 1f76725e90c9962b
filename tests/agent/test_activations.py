"""What leaf modules put out in the forward pass: against plain float64, and when it is left out."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from agent.watched_training import attention, column, loss_of, tokens, value, watched
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("either_way")


def outputs(model, passes):
    """Largest absolute finite output and number of those that are not finite, by module with parameters of its own."""
    found = {}

    def keep(name):
        def hook(_, __, output):
            entries = output.detach().double()
            finite = entries[entries.isfinite()]
            largest, lost = found.get(name, (-1.0, 0))
            largest = max(largest, float(finite.abs().max()) if finite.numel() else -1.0)
            found[name] = largest, lost + entries.numel() - finite.numel()

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if not list(m.children())]
    for run in passes:
        run()
    for handle in handles:
        handle.remove()
    return found


def test_the_largest_output_of_a_step_is_that_of_all_its_forward_passes(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            passes = [lambda s=2 * step + part: model(tokens(4, s)[0]) for part in range(2)]
            twin = copy.deepcopy(model)
            again = [lambda s=2 * step + part, m=twin: m(tokens(4, s)[0]) for part in range(2)]
            expected.append(outputs(twin, again))
            for run in passes:
                run().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for record, found in zip(kept(), expected, strict=True):
        largest, lost = column(record, "act_max"), column(record, "act_nonfinite")
        for module, layer in (("embed", "embed.weight"), ("qkv", "qkv.weight[k]"), ("head", "head.weight")):
            assert largest[layer] == pytest.approx(found[module][0], rel=1e-6)
            assert lost[layer] == 0
        assert largest["head.bias"] is None
        assert largest["unused.weight"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_that_are_not_finite_are_counted_and_the_rest_is_measured(dtype, kept):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer):
        with torch.no_grad():
            model[0].bias[1], model[0].bias[2], model[0].bias[3] = math.nan, -math.inf, 7.0
        twin = copy.deepcopy(model)
        expected = outputs(twin, [lambda: twin(torch.ones(5, 3, dtype=dtype))])
        model(torch.ones(5, 3, dtype=dtype)).sum().backward()
        optimizer.step()
    (record,) = kept()
    assert value(record, "act_nonfinite", "0.weight") == 10
    assert value(record, "act_max", "0.weight") == pytest.approx(expected["0"][0], rel=1e-6)
    assert value(record, "act_nonfinite", "2.weight") == 10
    assert value(record, "act_max", "2.weight") is None


class Wayward(nn.Linear):
    """Puts its output out as `form` gives it."""

    form = staticmethod(lambda output: output)

    def forward(self, x):
        return self.form(super().forward(x))


FORMS = {
    "plain": lambda output: output,
    "in columns": lambda output: output.t(),
    "in part": lambda output: output[:, 1:],
    "repeated": lambda output: output[:1].expand(7, -1),
    "empty": lambda output: output[:0],
    "several": lambda output: {"first": output, "second": 9 * output},
    "wide": lambda output: output.double(),
    "images in channels last": lambda output: output.reshape(1, 5, 2, 3).to(memory_format=torch.channels_last),
    "sparse": lambda output: output.to_sparse(),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_output_is_measured_however_it_lies_in_memory(form, kept):
    torch.manual_seed(3)
    model = nn.ModuleDict({"first": Wayward(3, 6), "last": nn.Linear(3, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(5, 3)
    with watched(model, optimizer):
        model["first"].form = FORMS[form]
        output = model["first"](x)
        model["last"](x).sum().backward()
        optimizer.step()
    output = output["first"] if form == "several" else output
    expected = None if form in ("empty", "sparse") else pytest.approx(float(output.detach().abs().max()), rel=1e-6)
    (record,) = kept()
    assert value(record, "act_max", "first.weight") == expected
    assert value(record, "act_max", "last.weight") > 0


@pytest.mark.parametrize(("of_wide", "of_low"), [(2.0, 1.0), (1.0, 2.0)])
def test_outputs_of_one_module_in_two_types_are_put_together(of_wide, of_low, kept):
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    broken = torch.full((2, 3), of_low)
    broken[0] = math.nan
    with watched(model, optimizer):
        for order in ((True, False), (False, True), (False,), (True,)):
            for low in order:
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    output = model(broken if low else torch.full((2, 3), of_wide))
                assert output.dtype is (torch.bfloat16 if low else torch.float32)
                output.nansum().backward()
            model[0].weight.grad.zero_()
            optimizer.step()
        with torch.no_grad():
            one = float(model(torch.ones(2, 3)).abs().max())
    found = [(value(r, "act_max", "0.weight"), value(r, "act_nonfinite", "0.weight")) for r in kept()]
    both, wide, low = (pytest.approx(size * one, rel=1e-2) for size in (max(of_wide, of_low), of_wide, of_low))
    assert found == [(both, 4), (both, 4), (wide, 0), (low, 4)]


def test_transforms_of_a_function_are_left_alone(kept):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for _ in range(4):
            torch.func.grad(lambda x: model(x).sum())(torch.ones(2, 3))
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        assert not [reason for reason in watch.status()["not_measured"] if "activations" in reason]
    assert all(value(record, "act_max", "0.weight") > 0 for record in kept())


def test_evaluations_copies_and_steps_that_are_not_recorded_are_not_measured(kept):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer, every=2):
        for _ in range(4):
            copy.deepcopy(model)(torch.full((3, 2), 1e6)).sum().backward()
            with torch.no_grad():
                model(torch.full((3, 2), 1e6))
            model(torch.ones(3, 2)).sum().backward()
            optimizer.step()
    assert [r.step for r in kept() if "act_max" in r.statistics] == [2, 4]
    assert value(kept()[1], "act_max", "0.weight") < 10


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_pass_that_checkpointing_runs_again_counts_once(reentrant, kept):
    inner, model = nn.Linear(2, 2), nn.ModuleDict({"first": nn.Linear(2, 2)})
    model["inner"] = inner
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        inner.bias[0] = math.inf
    with watched(model, optimizer):
        hidden = model["first"](torch.ones(3, 2))
        checkpoint(inner, hidden, use_reentrant=reentrant).sum().backward()
        optimizer.step()
    (record,) = kept()
    assert value(record, "act_nonfinite", "first.weight") == 0
    assert value(record, "act_nonfinite", "inner.weight") == (None if reentrant else 3)


def test_no_hook_is_left_on_modules_or_behind_and_files_can_be_written_meanwhile(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        loss_of(model, 4, 0).backward()
        assert torch_module._global_forward_hooks
        assert not any(m._forward_hooks for m in model.modules())
        torch.save(model, io.BytesIO())
        pickle.dumps(model)
        optimizer.step()
        watch.close()
        assert not torch_module._global_forward_hooks
    assert "act_max" in kept()[0].statistics


def test_after_a_loss_that_is_not_finite_all_modules_are_measured_until_it_is_finite_again(kept):
    model = nn.Sequential(*(nn.Linear(80, 80) for _ in range(40)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer, budget=1e-9) as watch:
        watch._session.budget.cadence = 1
        for step in range(6):
            model(torch.ones(1, 80)).sum().backward()
            watch.log(loss=math.nan if step in (1, 2) else 1.0)
            watch._session.budget.cadence = 1
            optimizer.step()
    measured = [
        sum(x is not None for x in column(r, "act_max").values()) if "act_max" in r.statistics else 0 for r in kept()
    ]
    assert measured == [0, 0, 40, 40, 0, 0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using .torch.compile")
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_compiled_later_is_compiled_as_ever_and_then_left_alone(whole, kept):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, every=2) as watch:
        compiled = torch.compile(model if whole else lambda x: model(x).sum(), backend=backend, fullgraph=True)
        for _ in range(10):
            compiled(torch.ones(5, 3)).sum().backward()
            optimizer.step()
        assert any("no module's forward pass is seen" in reason for reason in watch.status()["not_measured"])
        assert not torch_module._global_forward_hooks
    assert len(graphs) <= 2
    assert not any("act_max" in record.statistics for record in kept())
    torch._dynamo.reset()


def test_a_compiled_model_has_none_and_says_so(kept):
    model = attention()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(compiled, optimizer) as watch:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert not torch_module._global_forward_hooks
        optimizer.step()
        assert any("the model is compiled" in reason for reason in watch.status()["not_measured"])
    assert "act_max" not in kept()[0].statistics


def test_outputs_that_are_large_beside_the_weights_come_in_turn_and_all_after_an_alarm(kept, monkeypatch):
    monkeypatch.setattr("gradspectra.activations.FEWEST_OUTPUTS", 100)
    monkeypatch.setattr("gradspectra.budget.Budget.room", lambda _, entries: entries)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))  # 48 weights; 20 × 3 numbers in each output
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(20, 3)
    expected = [float(model[: place + 1](x).detach().abs().max()) for place in range(4)]
    with watched(model, optimizer) as watch:
        for step in range(7):
            loss = model(x).square().mean()
            loss.backward()
            watch.log(loss=math.nan if step == 5 else float(loss.detach()))
            optimizer.step()
    found = [[value(record, "act_max", f"{place}.weight") for place in range(4)] for record in kept()]
    turns = [[place for place in range(4) if row[place] is not None] for row in found]
    assert turns == [[0, 1, 2, 3], [0], [1], [2], [3], [0], [0, 1, 2, 3]]
    assert [row[place] for row, own in zip(found, turns, strict=True) for place in own] == pytest.approx(
        [expected[place] for own in turns for place in own], rel=1e-6
    )
