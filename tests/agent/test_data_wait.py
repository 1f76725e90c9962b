"""The time that a training waits for its data, as the loader itself would tell it."""

from __future__ import annotations

import threading

import pytest
import torch
from agent.watched_training import attention, tokens, watched
from gradspectra import data_wait
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, dataloader

BATCH = 4


class Clock:
    """Seconds that pass only where the data are fetched."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(data_wait, "time", found)
    return found


class Slow(Dataset):
    """Each example takes half a second of the clock."""

    def __init__(self, clock, examples):
        self.clock, self.examples = clock, examples

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        self.clock.now += 0.5
        x, y = tokens(1, index)
        return x[0], y[0]


def train(watch, model, optimizer, batches, parts=1, **logged):
    for index, (x, y) in enumerate(batches):
        nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        watch.log(loss=1.0, **logged)
        if index % parts == parts - 1:
            optimizer.step()
            optimizer.zero_grad()


def waits(kept):
    return [record.scalars.get("data_seconds") for record in kept()]


@pytest.fixture
def job():
    model = attention()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_step_has_waited_as_long_as_its_batches_took(clock, job, kept):
    loader = DataLoader(Slow(clock, 5 * BATCH), batch_size=BATCH)
    with watched(*job) as watch:
        train(watch, *job, loader, parts=2)
        train(watch, *job, [tokens(BATCH, 0)])  # with the fifth batch, that waits for the next step; not from a loader
        train(watch, *job, [tokens(BATCH, 0)])
    assert waits(kept) == [4.0, 4.0, 2.0, None]


def test_what_is_logged_takes_its_place(clock, job, kept):
    with watched(*job) as watch:
        train(watch, *job, DataLoader(Slow(clock, BATCH), batch_size=BATCH), data_seconds=0.25)
    assert waits(kept) == [0.25]


def test_evaluations_and_other_threads_are_not_waited_for(clock, job, kept):
    loader = DataLoader(Slow(clock, BATCH), batch_size=BATCH)
    with watched(*job) as watch:
        train(watch, *job, loader)
        with torch.no_grad():
            list(loader)
        thread = threading.Thread(target=list, args=(loader,))
        thread.start()
        thread.join()
        train(watch, *job, loader)
    assert waits(kept) == [2.0, 2.0]


def test_a_training_in_another_thread_is_followed_there(clock, job, kept):
    loader = DataLoader(Slow(clock, 2 * BATCH), batch_size=BATCH)
    with watched(*job) as watch:
        thread = threading.Thread(target=train, args=(watch, *job, loader))
        thread.start()
        thread.join()
    assert waits(kept) == [None, 2.0]  # before its first step it is not known which thread trains


def test_a_loader_within_a_data_set_is_counted_once(clock, job, kept):
    class Nested(IterableDataset):
        def __iter__(self):
            return iter(DataLoader(Slow(clock, BATCH), batch_size=None))

    with watched(*job) as watch:
        train(watch, *job, DataLoader(Nested(), batch_size=BATCH))
    assert waits(kept) == [2.0]


def test_a_loader_that_fails_has_been_waited_for_and_torch_is_left_as_it_was_found(clock, job, kept):
    def refuse(_):
        raise ValueError("not these")

    before = DataLoader.__iter__, dataloader._BaseDataLoaderIter.__next__
    with watched(*job) as watch:
        assert dataloader._BaseDataLoaderIter.__next__ is not before[1]
        with pytest.raises(ValueError, match="not these"):
            next(iter(DataLoader(Slow(clock, BATCH), batch_size=2, collate_fn=refuse)))
        train(watch, *job, DataLoader(Slow(clock, BATCH), batch_size=BATCH))
    assert (DataLoader.__iter__, dataloader._BaseDataLoaderIter.__next__) == before
    assert waits(kept) == [3.0]
