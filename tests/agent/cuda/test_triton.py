"""Triton's kernels in its interpreter: sums against plain float64, and records of a training against those of a CPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agent.cuda import jobs
from agent.cuda.jobs import check_alike, check_lost, on_host, simulated, spoiling, weights
from agent.cuda.kernels import NEEDS_INTERPRETER, NEEDS_TRITON, on_simulated
from agent.cuda.simulated import DEVICE, OnDevice, Simulated
from agent.experts import mixture
from agent.watched_training import attention, value
from gradspectra import accelerated, device_build
from gradspectra.device_build import Build, Kernels
from gradspectra.device_proof import proved
from gradspectra.device_table import (
    ADAM,
    GRADIENT_ALONE,
    LINEAR,
    NO_UPDATE,
    NUMBERS,
    WIDE,
    WIDTHS,
    WORDS,
    DeviceLayout,
    there,
)

pytestmark = [NEEDS_TRITON, NEEDS_INTERPRETER]

HOST = torch.device("cpu")
FULL, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
STEPS = 3
BUSY = {f"mlp.experts.{name}[{expert}]" for name in ("gate_up_proj", "down_proj") for expert in range(4)}
IDLE = ("mlp.experts.gate_up_proj[4]", "mlp.experts.down_proj[4]")


@pytest.fixture(scope="module")
def kernels():
    return Kernels(HOST)


@pytest.mark.parametrize("rule", [NO_UPDATE, ADAM, LINEAR, GRADIENT_ALONE])
@pytest.mark.parametrize("width", WIDTHS)
def test_made_up_layers_are_measured_as_torch_does(width, rule, kernels):
    with np.errstate(all="ignore"):
        assert proved(kernels, [((FULL,) * 4, width, rule)], HOST) == 1


@pytest.mark.parametrize(
    "kinds", [(BRAIN,) * 4, (HALF,) * 4, (BRAIN, BRAIN, FULL, FULL), (FULL, FULL, BRAIN, BRAIN)], ids=str
)
def test_types_may_be_mixed(kinds, kernels):
    with np.errstate(all="ignore"):
        assert proved(kernels, [(kinds, 16, ADAM), (kinds, 256, LINEAR)], HOST) == 1


def measured(kernels, gradients, weights, units):
    """results, finite, second of layers whose optimizer is not known; each gradient is an array."""
    shapes = [(count, len(own) // count) for own, count in zip(gradients, units, strict=True)]
    layout = DeviceLayout(shapes, [(FULL,) * 4] * len(shapes), np.arange(len(shapes)), HOST)
    words = np.zeros((len(shapes), WORDS), np.int64)
    words[:, 0], words[:, 1] = [g.data_ptr() for g in gradients], [w.data_ptr() for w in weights]
    words[:, 2] = words[:, 3] = words[:, 0]
    words.view(np.float64)[:, NUMBERS:] = 1.0
    results, finite, second = (torch.full((rows, len(shapes)), -7.0) for rows in (5, 2, 7))
    kernels.measure(layout, there(words, HOST), NO_UPDATE, results, finite.double(), second)
    return results, second, layout


@pytest.mark.parametrize("length", [WIDE, WIDE + 1, 2 * WIDE + 3])
def test_rows_longer_than_a_chunk_are_zero_where_all_their_parts_are(length, kernels):
    gradient = torch.zeros(4, length)
    gradient[0, 0], gradient[2, -1], gradient[3, length // 2] = 2.0, -3.0, 1.0
    weight = torch.full((4, length), 0.5)
    results, second, _ = measured(kernels, [gradient.view(-1)], [weight.view(-1)], [4])
    assert results[:4, 0].tolist() == [14.0, -3.0, 3.0, length]
    assert second[:3, 0].tolist() == [6.0, 1.0, 0.0]


def test_layers_of_many_chunks_and_of_few_numbers_are_measured_together(kernels):
    draw = torch.Generator().manual_seed(1)
    shapes = [(300, 700), (5, 3), (1, 1), (9000, 2), (40, 257)]
    gradients = [torch.randn(a * b, generator=draw) for a, b in shapes]
    weights = [torch.randn(a * b, generator=draw) for a, b in shapes]
    gradients[0].view(300, 700)[10:13] = 0.0
    gradients[3].view(9000, 2)[::3] = 0.0
    results, second, layout = measured(kernels, gradients, weights, [a for a, _ in shapes])
    assert layout.chunks > 15
    exact = [(g.double(), w.double()) for g, w in zip(gradients, weights, strict=True)]
    close = {"rtol": 1e-6, "atol": 1e-4}
    np.testing.assert_allclose(results[0], [float(g @ g) for g, _ in exact], **close)
    np.testing.assert_allclose(results[2], [float(g.abs().max()) for g, _ in exact], **close)
    np.testing.assert_allclose(results[3], [float(w @ w) for _, w in exact], **close)
    np.testing.assert_allclose(second[0], [float(g.abs().sum()) for g, _ in exact], **close)
    np.testing.assert_allclose(second[2], [float(g @ w) for g, w in exact], **close)
    assert second[1].tolist() == [3, 0, 0, 3000, 0]


def test_the_same_numbers_give_the_same_sums(kernels):
    numbers = torch.randn(50_000, generator=torch.Generator().manual_seed(2))
    first, second = (measured(kernels, [numbers], [numbers], [50])[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.fixture
def fresh(monkeypatch):
    """The kernels of the simulated device, none of them ready."""
    yield on_simulated(monkeypatch)
    device_build.build_on.cache_clear()


@pytest.fixture
def build(fresh):
    """The same, all of them ready."""
    fresh.kernels = Kernels(DEVICE)
    fresh._ready |= set(itertools.product([(FULL,) * 4], WIDTHS, [NO_UPDATE, ADAM, LINEAR, GRADIENT_ALONE]))
    return fresh


def trained(prepare, optimizer, steps=STEPS, **options):
    """A job on the simulated device: its weights, what its status said, and what crossed."""
    with Simulated() as device:
        job = simulated(device, optimizer)
        prepare(job)
        said = job.run(steps, **options)
    return weights(job.model), said, device.agent


def run_both(kept, monkeypatch, prepare=lambda _: None, optimizer="adamw", **options):
    """The records of a job by kernels, of the same on the host, and what crossed."""
    host = on_host(optimizer)
    prepare(host)
    host.run(STEPS, **options)
    expected = kept()
    with monkeypatch.context() as patches:
        patches.delattr(accelerated, "finite_rows")  # no gradient is left to torch
        found, said, crossings = trained(prepare, optimizer, **options)
    for own, other in zip(found, weights(host.model), strict=True):
        assert torch.equal(own.view(torch.uint8), other.view(torch.uint8))
    assert said[-1]["not_measured"] == []
    assert said[-1]["fused"] == "compiled by Triton"
    return kept(), expected, crossings


def check(found, expected, crossings):
    assert crossings.waits == []
    assert crossings.to_device == []
    assert [text.split()[-1] for text in crossings.to_host] == ["_copy"] * (1 + STEPS)
    assert len(found) == len(expected) == STEPS
    for own, other in zip(found, expected, strict=True):
        check_alike(own, other, rel=2e-5)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("optimizer", "clip"), [("adamw", 0.05), ("amsgrad", None), ("momentum", 0.05), ("nesterov", None)]
)
@pytest.mark.slow
def test_a_training_is_measured_in_one_pass_as_on_a_cpu(optimizer, clip, kept, monkeypatch):
    def clipped(job):
        job.clip = clip

    check(*run_both(kept, monkeypatch, clipped, optimizer))


@pytest.mark.usefixtures("build")
@pytest.mark.slow
def test_steps_that_an_optimizer_counts_on_the_device_are_read_there(kept, monkeypatch):
    def counted(job):
        def move(_):
            for state in job.optimizer.state.values():
                if isinstance(next(job.model.parameters()), OnDevice) and not isinstance(state["step"], OnDevice):
                    state["step"] = state["step"].to(DEVICE)

        job.after = move

    check(*run_both(kept, monkeypatch, counted))


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(("lost", "clip"), [(float("nan"), 0.05), (float("inf"), None)])
@pytest.mark.slow
def test_entries_that_are_not_finite_are_counted_and_the_others_are_measured(lost, clip, kept, monkeypatch):
    found, expected, crossings = run_both(kept, monkeypatch, spoiling(lost, clip))
    check_lost(found[2])
    check(found, expected, crossings)


@pytest.mark.usefixtures("build")
@pytest.mark.slow
def test_without_the_second_tier_no_update_is_measured(kept):
    job = on_host()
    job.run(STEPS, second_tier="off")
    expected = kept()
    _, said, crossings = trained(lambda _: None, "adamw", second_tier="off")
    assert said[-1]["fused"] == "compiled by Triton"
    found = kept()
    check(found, expected, crossings)
    assert {value(record, "update_sq", "qkv.weight[q]") for record in (*found, *expected)} == {None}


@pytest.mark.usefixtures("build")
@pytest.mark.slow
def test_far_fewer_operations_are_launched(kept, monkeypatch):
    *_, one_pass = run_both(kept, monkeypatch)
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    _, said, by_torch = trained(lambda _: None, "adamw")
    assert said[-1]["fused"] == "not compiled: GRADSPECTRA_FUSED is off"
    assert one_pass.operations < by_torch.operations / 2


def test_kernels_are_used_where_they_are_asked_for(fresh, monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "auto")
    _, said, _ = trained(lambda _: None, "adamw", 1)
    assert said[-1]["fused"] == "not compiled: GRADSPECTRA_FUSED=triton has kernels compiled"
    assert fresh.kernels is None


@pytest.mark.slow
def test_bfloat16_is_measured_with_what_its_rounding_loses(kept, monkeypatch, build):
    build._ready |= set(itertools.product([(BRAIN,) * 4], WIDTHS, [ADAM, GRADIENT_ALONE]))
    monkeypatch.setattr(jobs, "attention", lambda: attention().bfloat16())
    found, expected, _ = run_both(kept, monkeypatch)
    for own, other in zip(found, expected, strict=True):
        assert "rounding_lost" in own.statistics
        check_alike(own, other, rel=2e-3)


@pytest.mark.usefixtures("build")
@pytest.mark.slow
def test_experts_in_one_tensor_are_measured_each(kept, monkeypatch):
    monkeypatch.setattr(jobs, "attention", mixture)
    found, expected, crossings = run_both(kept, monkeypatch, spectra=1)
    for own, other in zip(found, expected, strict=True):
        names = own.table.names
        there, here = ({names[s.layer]: s.aggregates for s in record.spectra} for record in (own, other))
        assert {name for name in there if "experts" in name} == BUSY
        for name in BUSY:
            np.testing.assert_allclose(there[name], here[name], rtol=1e-4)
        assert {value(own, "grad_zero_rows", name) for name in IDLE} == {1}
        own.spectra.clear()
        other.spectra.clear()
    check(found, expected, crossings)


def states():
    """What the state is after the steps of a job, as often as it changes."""
    _, said, _ = trained(lambda _: None, "adamw", 8)
    return [kind for kind, _ in itertools.groupby(own["fused"] for own in said)]


@pytest.mark.usefixtures("fresh")
@pytest.mark.slow
def test_torch_measures_until_the_kernels_are_proved(kept):
    assert states() == ["being compiled", "compiled by Triton"]
    assert all(record.values is not None for record in kept())


@pytest.mark.usefixtures("fresh")
@pytest.mark.slow
def test_kernels_that_measure_wrong_are_not_used(monkeypatch):
    measure = Kernels.measure

    def wrong(self, layout, words, rule, results, finite, second):
        measure(self, layout, words, rule, results, finite, second)
        results[0] *= 1.01

    monkeypatch.setattr(Kernels, "measure", wrong)
    assert states() == ["being compiled", "not compiled: it does not measure made-up numbers as torch does"]


@pytest.mark.usefixtures("build")
@pytest.mark.slow
def test_kernels_that_cannot_be_launched_leave_the_step_to_torch(kept, monkeypatch):
    host = on_host()
    host.run(STEPS)
    expected = kept()

    def broken(*_, **__):
        raise RuntimeError("no such device")

    monkeypatch.setattr(Kernels, "_launch", broken)
    _, said, _ = trained(lambda _: None, "adamw")
    assert {own["fused"] for own in said} == {"not compiled: RuntimeError('no such device')"}
    for own, other in zip(kept(), expected, strict=True):
        check_alike(own, other)


def test_without_triton_torch_measures(monkeypatch):
    monkeypatch.setattr(device_build.importlib.util, "find_spec", lambda _: None)
    assert Build(HOST).state == "not compiled: Triton is not installed"
    assert not Build(HOST).ready(frozenset([((FULL,) * 4, 1, ADAM)]))


@pytest.mark.slow
def test_the_kernels_compile_to_machine_code_of_a_device(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = dict(line.split() for line in done.stdout.splitlines())
    assert set(sizes) == {"sums", "layers", "samples"}
    assert all(int(size) > 1000 for size in sizes.values())
