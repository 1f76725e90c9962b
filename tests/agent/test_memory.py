"""The memory that a training holds: of its CUDA devices as torch's allocator counts it, or of the process."""

from __future__ import annotations

import resource

import pytest
import torch
from agent.watched_training import watched
from gradspectra.memory import memory_held
from torch import nn


class Cuda:
    """Stands for torch.cuda, with the counts of two devices."""

    @staticmethod
    def memory_stats_as_nested_dict(device):
        current, peak = ((100, 170), (3, 9))[device.index]
        small = {"current": 1, "peak": 1, "allocated": 5, "freed": 4}
        both = {"current": current, "peak": peak, "allocated": 500, "freed": 400}
        return {"allocated_bytes": {"all": both, "small_pool": small}, "reserved_bytes": {"all": small}}


def test_of_cuda_devices_it_is_what_their_tensors_take_now_and_took_at_most():
    devices = [torch.device("cuda", number) for number in (0, 1)]
    assert memory_held(devices, Cuda) == {"device_memory_bytes": 103, "device_memory_peak_bytes": 179}
    assert memory_held(devices[1:], Cuda) == {"device_memory_bytes": 3, "device_memory_peak_bytes": 9}


def test_without_a_device_it_is_what_is_resident_and_grows_with_what_is_touched():
    before = memory_held([])["process_memory_bytes"]
    held = torch.ones(1 << 24)
    after = memory_held([])["process_memory_bytes"]
    assert after - before == pytest.approx(held.nbytes, rel=0.2)
    assert after <= 1.2 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_steps_with_layer_numbers_have_it_and_no_others(kept, caplog):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, every=2) as watch:
        for _ in range(4):
            model(torch.ones(1, 3)).sum().backward()
            watch.log(process_memory_bytes=1)
            optimizer.step()
    records = kept()
    assert [record.values is not None for record in records] == [False, True, False, True]
    found = [record.counts.get("process_memory_bytes") for record in records]
    assert found[0] is found[2] is None
    assert min(found[1], found[3]) > 50e6
    assert not any("process_memory_bytes" in record.scalars for record in records)
    assert "the agent itself records a number of this name" in caplog.text
