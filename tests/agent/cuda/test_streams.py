"""The copy beside the training's stream, and the clock of events, against a module that notes what it is asked for."""

from __future__ import annotations

import contextlib

import pytest
import torch
from gradspectra.accounts import Accounts
from gradspectra.budget import Budget
from gradspectra.device_time import DeviceClock, DeviceTimes
from gradspectra.readout import SideStream
from gradspectra.step import OpenStep

CUDA = torch.device("cuda", 0)


class Event:
    """An event that is past at `at` milliseconds, once the module has come there."""

    def __init__(self, cuda, enable_timing=False):
        self.cuda, self.timed, self.at, self.stream = cuda, enable_timing, None, None
        cuda.made += 1

    def record(self, stream):
        assert self.timed
        assert self.stream in (None, stream)  # an event stays with its device
        self.stream = stream
        self.at = self.cuda.put
        self.cuda.calls.append(("event", stream))

    def query(self):
        return self.cuda.reached >= self.at

    def elapsed_time(self, other):
        assert self.query()
        assert other.query()
        return other.at - self.at

    def synchronize(self):
        self.cuda.calls.append(("synchronize",))


class Stream:
    def __init__(self, cuda, _):
        self.cuda = cuda

    def wait_stream(self, other):
        self.cuda.calls.append(("wait", other))

    def record_event(self):
        self.cuda.calls.append(("done",))
        event = Event(self.cuda)
        event.at = self.cuda.put
        return event


class Cuda:
    """What is used of torch.cuda. put: milliseconds of work given to the training's stream; reached: done of it."""

    def __init__(self):
        self.calls, self.made, self.put, self.reached = [], 0, 0.0, 0.0

    def Event(self, enable_timing=False):
        return Event(self, enable_timing)

    def Stream(self, device):
        return Stream(self, device)

    def current_stream(self, device):
        return f"training on {device}"

    @contextlib.contextmanager
    def stream(self, _):
        self.calls.append(("enter",))
        yield
        self.calls.append(("leave",))


class Vector(torch.Tensor):
    """A vector that notes that a stream uses it, and how it is copied."""

    cuda: Cuda

    def record_stream(self, _):
        self.cuda.calls.append(("used",))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            args[1].cuda.calls.append(("copy", kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def vector(cuda, *numbers):
    made = torch.tensor(numbers).as_subclass(Vector)
    made.cuda = cuda
    return made


@pytest.fixture
def side(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(SideStream, "_memory", staticmethod(lambda size, dtype: torch.zeros(size, dtype=dtype)))
    return SideStream(CUDA, cuda), cuda


def test_the_side_stream_waits_for_the_training_and_never_the_other_way_round(side):
    stream, cuda = side
    copy = stream.copy(vector(cuda, 1.0, 2.0, 3.0))
    inside = [("enter",), ("copy", {"non_blocking": True}), ("done",), ("leave",)]
    assert cuda.calls == [("wait", "training on cuda:0"), *inside, ("used",)]
    assert copy.arrived()
    assert copy.numbers().tolist() == [1.0, 2.0, 3.0]
    cuda.put = 1.0
    later = stream.copy(vector(cuda, 4.0))
    assert not later.arrived()
    assert ("synchronize",) in cuda.calls


def test_pinned_memory_is_used_again_once_it_is_read_and_not_before(side):
    stream, cuda = side
    first = stream.copy(vector(cuda, 1.0, 2.0, 3.0))
    second = stream.copy(vector(cuda, 4.0, 5.0, 6.0))
    assert first.numbers().tolist() == [1.0, 2.0, 3.0]
    where = first.numbers().ctypes.data
    first.give_back()
    third = stream.copy(vector(cuda, 7.0, 8.0, 9.0, 10.0))
    assert third.numbers().ctypes.data == where
    assert second.numbers().tolist() == [4.0, 5.0, 6.0]


def close(accounts, cuda, clock, host, device, whole, now):
    """A step of `whole` ms on the stream whose layers took `host` s of the thread and `device` ms of the stream."""
    step = OpenStep(1, True, device=DeviceTimes(clock), measured=True, own=host + 0.001, layers_cost=host)
    started = step.device.start()
    cuda.put += device
    step.device.stop("layers", started)
    cuda.put += whole - device
    accounts.close(step, now)
    return step


def test_a_stage_costs_what_it_takes_of_the_stream_not_of_the_thread(monkeypatch):
    cuda = Cuda()
    clock, told = DeviceClock([CUDA, CUDA, torch.device("cpu")], cuda), []
    budget = Budget(0.01, 1, True)
    monkeypatch.setattr(budget, "step_done", lambda *costs: told.append(costs))
    accounts = Accounts(budget, lambda: 0.0)
    first = close(accounts, cuda, clock, 0.5, 2.0, 100.0, now=1.0)
    assert told == []
    second = close(accounts, cuda, clock, 0.5, 4.0, 100.0, now=1.2)
    cuda.reached = 100.0
    accounts.settle()
    assert told == [(None, pytest.approx(0.001), pytest.approx(0.002), 0.0, 0.0, 0.0, None, 0.0)]
    cuda.reached = 200.0
    accounts.settle()
    assert told[1:] == [(pytest.approx(0.1), pytest.approx(0.001), pytest.approx(0.004), 0.0, 0.0, 0.0, None, 0.0)]
    assert (first.own, second.own) == (pytest.approx(0.003), pytest.approx(0.005))
    assert not any(call == ("synchronize",) for call in cuda.calls)


@pytest.mark.parametrize("devices", [1, 2])
def test_events_are_kept_for_the_next_steps(devices):
    cuda = Cuda()
    cuda.reached = float("inf")
    clock = DeviceClock([torch.device("cuda", number) for number in range(devices)], cuda)
    accounts = Accounts(Budget(0.01, 1, True), lambda: 0.0)
    for number in range(20):
        close(accounts, cuda, clock, 0.5, 2.0, 100.0, now=float(number))
    assert cuda.made == 4 * devices


def test_on_a_cpu_the_threads_time_is_told_at_once(monkeypatch):
    told = []
    budget = Budget(0.01, 1, True)
    monkeypatch.setattr(budget, "step_done", lambda *costs: told.append(costs))
    accounts = Accounts(budget, lambda: 0.25)
    close(accounts, Cuda(), DeviceClock([torch.device("cpu")]), 0.5, 2.0, 100.0, now=1.0)
    close(accounts, Cuda(), DeviceClock([torch.device("cpu")]), 0.5, 2.0, 100.0, now=3.0)
    assert told[0] == (None, pytest.approx(0.001), 0.5, 0.0, 0.25, 0.0, None, 0.0)
    assert told[1] == (2.0, pytest.approx(0.001), 0.5, 0.0, 0.0, 0.0, None, 0.0)
