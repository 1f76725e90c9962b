"""A training on CUDA: nothing waits, numbers are those of a CPU, weights those of a training that is not watched."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from agent.cuda.jobs import Job, check_alike, on_host, weights
from agent.cuda.kernels import NEEDS_TRITON
from agent.watched_training import attention, tokens, value, watched
from torch import nn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

STEPS = 5
BATCHES = {part: tokens(4, part) for part in range(2 * 60)}
MAKE = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.03),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.03, fused=True),
    "capturable": lambda parameters: torch.optim.AdamW(parameters, lr=0.03, capturable=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.fixture
def unwaiting():
    """A context in which torch raises where the host waits for the device."""

    @contextlib.contextmanager
    def context():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return context


def on_cuda(kind="adamw"):
    """A job whose data lies on the device already, so that nothing of its own waits."""
    model = attention().cuda()
    job = Job(lambda tensor: tensor.cuda(), model)
    job.optimizer = MAKE[kind](model.parameters())
    job.clip = 0.05
    ready = [[tensor.cuda() for tensor in pair] for pair in BATCHES.values()]

    def step(number, log, parts=2):
        for part in range(parts):
            x, y = ready[parts * number + part]
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()) / parts
            loss.backward()
            log(loss=loss, examples=4)
        if job.spoil is not None:
            job.spoil(model, number)
        nn.utils.clip_grad_norm_(model.parameters(), job.clip)
        job.optimizer.step()

    job.step = step
    return job


def train(job, watch, steps, around=contextlib.nullcontext):
    """Steps of a job, the first few of which may wait: memory is taken, places of layers are made."""
    for number in range(steps):
        with contextlib.nullcontext() if number < 2 else around():
            job.step(number, watch.log)
            job.optimizer.zero_grad()


@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize("options", [{}, {"spectra": 2}, {"budget": 0.01, "spectra": "auto"}])
def test_nothing_waits_and_the_numbers_are_those_of_a_cpu(kind, options, kept, unwaiting):
    cpu = on_host()
    cpu.optimizer, cpu.clip = MAKE[kind if kind in ("sgd",) else "adamw"](cpu.model.parameters()), 0.05
    cpu.run(STEPS, **options)
    expected = kept()
    job = on_cuda(kind)
    with watched(job.model, job.optimizer, **options) as watch:
        train(job, watch, STEPS, unwaiting)
        assert watch.status()["not_measured"] == []
    if "budget" not in options:
        for own, other in zip(kept(), expected, strict=True):
            check_alike(own, other, rel=2e-3)


@NEEDS_TRITON
@pytest.mark.parametrize("kind", list(MAKE))
def test_kernels_take_over_once_they_are_proved_and_the_numbers_stay(kind, kept, unwaiting, monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "triton")
    first = on_cuda(kind)
    with watched(first.model, first.optimizer) as watch:
        for number in range(6000):
            first.step(number % 60, watch.log)
            first.optimizer.zero_grad()
            if number > 20 and watch.status()["fused"] != "being compiled":
                break
            time.sleep(0.02)
    kept()
    cpu = on_host()
    cpu.optimizer, cpu.clip = MAKE[kind if kind in ("sgd",) else "adamw"](cpu.model.parameters()), 0.05
    cpu.run(STEPS)
    expected = kept()
    job = on_cuda(kind)
    with watched(job.model, job.optimizer) as watch:
        train(job, watch, STEPS, unwaiting)
        assert watch.status()["fused"] == "compiled by Triton"
        assert watch.status()["not_measured"] == []
    for own, other in zip(kept(), expected, strict=True):
        check_alike(own, other, rel=2e-3)


def test_entries_that_are_not_finite_are_counted_on_the_device(kept, unwaiting):
    def spoil(model, number):
        if number == 3:
            model.qkv.weight.grad[14, 3:5].fill_(float("nan"))
            model.norm.bias.grad.fill_(float("inf"))

    job = on_cuda()
    job.spoil = spoil
    with watched(job.model, job.optimizer) as watch:
        train(job, watch, 4, unwaiting)
    record = kept()[3]
    counts = {name: value(record, "grad_nonfinite", name) for name in ("qkv.weight[k]", "norm.bias", "head.weight")}
    assert counts == {"qkv.weight[k]": 2, "norm.bias": 12, "head.weight": 0}
    assert value(record, "grad_sq", "qkv.weight[k]") > 0
    assert value(record, "grad_sq", "norm.bias") is None


@pytest.mark.parametrize("kind", list(MAKE))
def test_weights_are_those_of_a_training_that_is_not_watched(kind, kept):
    jobs = [on_cuda(kind) for _ in range(2)]
    for number in range(STEPS):
        jobs[0].step(number, lambda **_: None)
        jobs[0].optimizer.zero_grad()
    with watched(jobs[1].model, jobs[1].optimizer, spectra=2) as watch:
        train(jobs[1], watch, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(*(weights(job.model) for job in jobs), strict=True))
    assert len(kept()) == STEPS


def test_a_graph_is_captured_without_the_agent_and_its_replays_are_measured(kept, unwaiting):
    model = attention().cuda()
    optimizer = MAKE["capturable"](model.parameters())
    x, y = (tensor.cuda() for tensor in tokens(4, 0))

    def step():
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()

    with watched(model, optimizer) as watch:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        assert watch.status()["step"] == 3
        squares = []
        for number in range(4):
            graph.replay()
            with contextlib.nullcontext() if number == 0 else unwaiting():
                watch.step()
            squares.append(sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None))
        assert watch.status()["not_measured"] == []
    records = kept()
    assert [record.step for record in records] == list(range(1, 8))
    for record, square in zip(records[3:], squares, strict=True):
        assert float(record.values[0].sum()) == pytest.approx(float(square), rel=1e-4)


def test_scaled_gradients_and_skipped_steps_wait_for_nothing_of_the_agent(kept):
    model = attention().cuda()
    optimizer = MAKE["fused"](model.parameters())
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    with watched(model, optimizer) as watch:
        for number in range(4):
            x, y = (tensor.cuda() for tensor in BATCHES[number])
            with torch.autocast("cuda", torch.float16):
                loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            scaler.scale(loss).backward()
            if number == 2:
                model.head.weight.grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert watch.status()["not_measured"] == []
    assert [record.counts["skipped"] for record in kept()] == [0, 0, 1, 0]
    assert kept()[3].scalars["loss_scale"] == 2.0**9


def test_the_budget_is_told_of_what_the_stream_took(kept, monkeypatch):
    from gradspectra.device_time import DeviceTimes

    read, found = DeviceTimes.read, []
    monkeypatch.setattr(DeviceTimes, "read", lambda self: found.append(read(self)) or found[-1])
    job = on_cuda()
    with watched(job.model, job.optimizer, budget=0.01, spectra="auto") as watch:
        train(job, watch, 50)
        assert watch.overhead > 0
    assert len(found) > 40
    assert all(0 < stages["layers"] < 1 for stages, _ in found if "layers" in stages)
    assert all(whole is not None and whole > 0 for _, whole in found[1:])
    assert kept()
