"""Nothing that the agent does makes the host wait for an accelerator, and what it says is what it says on a CPU."""

from __future__ import annotations

import pytest
import torch
from agent.cuda.jobs import OPTIMIZERS, check_alike, check_lost, on_host, simulated, spoiling, weights
from agent.cuda.simulated import DEVICE, OnDevice, Simulated
from agent.watched_training import attention, column, value

STEPS = 4


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")


def run_both(kept, prepare=lambda _: None, optimizer="adamw", steps=STEPS, said_of=(), **options):
    """The records of a job on the host, of the same on the simulated device, and what crossed there."""
    host = on_host(optimizer)
    prepare(host)
    host.run(steps, **options)
    expected = kept()
    with Simulated() as device:
        job = simulated(device, optimizer)
        prepare(job)
        said = job.run(steps, **options)
    for own, other in zip(weights(job.model), weights(host.model), strict=True):
        assert torch.equal(own.view(torch.int32), other.view(torch.int32))
    assert [why.partition(":")[0] for why in said[-1]["not_measured"]] == list(said_of)
    return kept(), expected, device.agent


def check(found, expected, crossings, copies, starts=1):
    """Records alike, and nothing crossed but one copy to the host a recorded step, and one for the starts of drift."""
    assert crossings.waits == []
    assert crossings.to_device == []
    assert [text.split()[-1] for text in crossings.to_host] == ["_copy"] * (starts + copies)
    assert crossings.operations > 0
    for own, other in zip(found, expected, strict=True):
        check_alike(own, other)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_recorded_step_is_copied_to_the_host_once_and_nothing_else_waits(optimizer, clip, kept):
    def clipped(job):
        job.clip = clip

    check(*run_both(kept, clipped, optimizer), copies=STEPS)


def test_updates_by_copies_of_weights_are_measured_where_the_weights_are(kept):
    def unknown(job):
        job.optimizer = torch.optim.Rprop(job.model.parameters(), lr=0.01)

    missing = "moments are not measured for Rprop, and updates of a few layers at a time, by copies of their weights"
    found, expected, crossings = run_both(kept, unknown, said_of=[missing])
    assert min(column(found[-1], "update_sq").values()) == 0
    assert value(found[-1], "update_sq", "qkv.weight[v]") > 0
    check(found, expected, crossings, copies=STEPS)


def test_spectra_travel_in_the_one_copy(kept):
    found, expected, crossings = run_both(kept, spectra=2)
    assert sum(len(record.spectra) for record in found) == 10
    check(found, expected, crossings, copies=STEPS)


def test_drift_from_all_weights_is_measured_where_they_are(kept):
    check(*run_both(kept, drift="exact"), copies=STEPS, starts=0)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_counted_without_looking(clip, lost, kept):
    found, expected, crossings = run_both(kept, spoiling(lost, clip), steps=3)
    check_lost(found[2])
    check(found, expected, crossings, copies=3)


def test_steps_that_an_optimizer_counts_on_the_device_are_not_asked_for(kept):
    def counted(job):
        def move(_):
            for state in job.optimizer.state.values():
                if isinstance(next(job.model.parameters()), OnDevice) and not isinstance(state["step"], OnDevice):
                    state["step"] = state["step"].to(DEVICE)

        job.after = move

    check(*run_both(kept, counted), copies=STEPS)


@pytest.mark.parametrize("every", [1, 2])
def test_steps_that_are_not_recorded_bring_only_what_was_logged(every, kept):
    found, expected, crossings = run_both(kept, every=every)
    assert [record.table is not None for record in found] == [(n + 1) % every == 0 for n in range(STEPS)]
    check(found, expected, crossings, copies=STEPS)


def test_a_wait_of_the_agent_would_be_seen():
    with Simulated() as device:
        model = device.put(attention())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        from gradspectra.inventory import take_inventory
        from gradspectra.measure import FirstTier

        inventory = take_inventory({"": model}, [optimizer], lambda _: True)
        FirstTier(inventory).share()
    assert len(device.agent.to_host) == 2
    assert all("share" in text for text in device.agent.to_host)
