"""Which layers a run has: as a function of the user says, and as many as can be recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent.watched_training import KeepingTransport, assert_close, attention, column, loss_of, total_norm, watched
from agent.watched_training import gradients as gradients_of
from gradspectra import inventory as inventory_module
from gradspectra.client import Client
from gradspectra_core.limits import Limits
from torch import nn
from torch.nn.utils import clip_grad_norm_

LOW, HIGH = ("[low]", 0, 0, 2), ("[high]", 0, 2, 5)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, r"layers\('head.weight'\) must give True, False, or blocks .*, got None"),
        (1, "must give True, False, or blocks .*, got 1"),
        ((), r"got \(\)"),
        ("[low]", r"must give .*, got '\[low\]'"),
        (torch.ones(2), r"must give .*, got tensor\(\[1., 1.\]\)"),
        (LOW, r"got a block '\[low\]'"),
        ((None,), "got a block None"),
        ((("[low]", 0, 0, 2, 2),), r"got a block \('\[low\]', 0, 0, 2, 2\)"),
        (((slice(0, 2),),), r"got a block \(slice\(0, 2, None\),\)"),
        ((torch.ones(4, 12),), "got a block tensor"),
        (((3, 0, 0, 2),), "the suffix of a block of 'head.weight' must be text, got 3"),
        ((("", 0, 0, 2),), "the suffix .* must be printable text .*, got ''"),
        ((("[a]\n", 0, 0, 2),), r"must be printable text .*, got '\[a\]\\n'"),
        ((("x" * 512, 0, 0, 2),), "a name of at most 512 characters, got 'xxx"),
        ((("[low]", 0, 0, 2.0),), r"whole numbers after its suffix, got \('\[low\]', 0, 0, 2.0\)"),
        ((("[low]", "0", 0, 2),), "whole numbers after its suffix"),
        ((("[low]", 2, 0, 2),), "the axis of a block of 'head.weight' must be one of its 2, from 0"),
        ((("[low]", -1, 0, 2),), "must be one of its 2, from 0"),
        ((("[low]", 0, 0, 6),), r"must lie within 0 and 5 on axis 0, got \('\[low\]', 0, 0, 6\)"),
        ((("[low]", 0, -1, 2),), "must lie within 0 and 5"),
        ((("[low]", 0, 2, 2),), "must lie within 0 and 5"),
        ((LOW, ("[high]", 1, 2, 5)), "must give blocks along one axis"),
        ((LOW, ("[low]", 0, 2, 5)), "must give each block a suffix of its own"),
        ((("[high]", 0, 1, 5), LOW), r"do not overlap, got \('\[low\]', 0, 0, 2\) and \('\[high\]', 0, 1, 5\)"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_blocks_that_no_layers_can_be_made_of_raise_at_construction(given, error):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match=error):
        watched(model, optimizer, layers=lambda name: given if name == "head.weight" else True)
    assert not optimizer._optimizer_step_post_hooks
    assert not KeepingTransport.last.started
    assert all(not parameter._backward_hooks for parameter in model.parameters())


def test_numbers_of_numpy_are_whole_numbers_too(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    blocks = [["[low]", np.int64(0), np.int32(0), np.int64(2)], list(HIGH)]
    with watched(model, optimizer, layers=lambda name: blocks if name == "head.weight" else np.bool_(False)):
        loss_of(model, 4, 0).backward()
        optimizer.step()
    assert kept()[0].table.names == ("head.weight[low]", "head.weight[high]")
    assert kept()[0].table.digest


@pytest.mark.usefixtures("kept")
def test_a_choice_of_nothing_is_told():
    model = attention()
    with watched(model, torch.optim.SGD(model.parameters(), lr=0.1), layers="nothing") as watch:
        reasons = watch.status()["not_measured"]
    assert reasons == ["no layer is measured: none of the 9 trainable tensors was chosen"]


def train_clipped(layers, kept, log):
    """Two steps clipped to a norm of 0.5; gives the gradients before, the records and the watch."""
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = []
    with watched(model, optimizer, layers=layers) as watch:
        for step in range(2):
            (10 * loss_of(model, 6, step)).backward()
            before.append(gradients_of(model))
            norm = clip_grad_norm_(model.parameters(), 0.5)
            if log:
                watch.log(grad_norm=norm)
            optimizer.step()
            optimizer.zero_grad()
    return before, kept(), watch


HALF = (("[low]", 0, 0, 2),)
CHOICES = {
    "some": r"^(head|norm)\.",
    "part of one": lambda name: HALF if name == "head.weight" else True,
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_norm_of_the_whole_gradient_says_nothing_of_some_of_its_layers(choice, log, kept):
    before, records, watch = train_clipped(CHOICES[choice], kept, log)
    for gradients, record in zip(before, records, strict=True):
        gradients["head.weight[low]"] = gradients["head.weight"][:2]
        expected = {name: gradients[name] for name in record.table.names}
        squares = {name: None if g is None else float(np.square(g).sum()) for name, g in expected.items()}
        assert_close(column(record, "grad_sq"), squares, 1e-5)
        del gradients["head.weight[low]"]
        assert record.scalars["grad_norm"] == pytest.approx(total_norm(gradients), rel=1e-5)
    assert watch.status()["norms_that_disagreed"] == 0


@pytest.fixture
def few(monkeypatch):
    """A run may have no more than 12 layers."""
    monkeypatch.setattr(inventory_module, "DEFAULT_LIMITS", Limits(max_layers=12))


@pytest.mark.usefixtures("few")
def test_layers_beyond_what_a_run_can_have_are_left_out_and_said(kept, caplog):
    models = {"first": attention(1), "second": attention(2)}
    optimizer = torch.optim.SGD([p for model in models.values() for p in model.parameters()], lr=0.1)
    with watched(models, optimizer) as watch:
        for model in models.values():
            loss_of(model, 4, 0).backward()
        optimizer.step()
        reasons = watch.status()["not_measured"]
    assert kept()[0].table.names[-1].startswith("second.")
    assert len(kept()[0].table) == 12
    assert reasons == ["10 layers after the first 12 are left out, as many as a run can have: choose some by layers="]
    assert caplog.messages == [f"gradspectra: {reasons[0]}"]


def test_a_name_that_no_batch_can_carry_leaves_out_its_layers_alone(kept, caplog):
    model = attention()
    model.extra = nn.ParameterDict({"a\nb": nn.Parameter(torch.ones(3))})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        (loss_of(model, 4, 0) + model.extra["a\nb"].sum()).backward()
        optimizer.step()
        reasons = watch.status()["not_measured"]
    assert "head.weight" in kept()[0].table.names
    assert all(name.isprintable() for name in kept()[0].table.names)
    assert reasons == ["1 layers are left out: a name has 1 to 512 printable characters"]
    assert len(caplog.messages) == 1


@pytest.mark.slow
def test_the_service_takes_a_run_of_as_many_layers_as_there_can_be(tmp_path, caplog):
    from agent.service import service

    model = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(10_003)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with service(tmp_path / "data") as url:
        with watched(model, optimizer, server=url, spool=tmp_path / "spool", second_tier="off") as watch:
            torch.stack(list(model)).sum().backward()
            watch.log(loss=1.0)
            optimizer.step()
            watch.close(timeout=60.0)
        (run,) = Client(url).runs(project="tests")
        assert len(run.layer_list()) == 10_000
    assert [message.partition(" layers after")[0] for message in caplog.messages] == ["gradspectra: 3"]
