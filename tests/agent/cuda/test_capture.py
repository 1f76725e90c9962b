"""CUDA graphs without CUDA: what a captured or replayed step does is done while torch says that it captures."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from agent.cuda.jobs import on_host
from agent.watched_training import value, watched


@pytest.fixture
def hidden(monkeypatch):
    """A context in which torch says that the current stream is being captured."""

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            yield

    return context


def trained(steps):
    """The records and weights of a job of so many steps of one part, each clipped."""
    job = on_host()
    job.clip = 0.05
    with watched(job.model, job.optimizer) as watch:
        for number in range(steps):
            job.step(number, lambda **_: None, parts=1)
            job.optimizer.zero_grad()
        assert watch.status()["not_measured"] == []
    return [p.detach().clone() for p in job.model.parameters()]


def test_a_captured_step_is_no_step_and_leaves_nothing_behind(kept, hidden):
    job = on_host()
    job.clip = 0.05
    with watched(job.model, job.optimizer, batch_size=len) as watch:
        job.step(0, watch.log, parts=1)
        job.optimizer.zero_grad()
        with hidden():
            job.step(1, watch.log, parts=2)
            watch.step()
        assert watch.status()["step"] == 1
        opened = watch._session.open
        assert (opened.clips.clips, opened.log.losses, opened.examples) == ([], [], [])
        assert not opened.clipping_unseen
        assert watch._session.measuring.backward.passes == 0
    assert [record.step for record in kept()] == [1]


def test_watch_step_after_a_replay_measures_what_the_replay_has_done(kept, hidden):
    steps = 5
    weights = trained(steps)
    expected = kept()
    job = on_host()
    job.clip = 0.05
    with watched(job.model, job.optimizer) as watch:
        for number in range(steps):
            with contextlib.nullcontext() if number < 2 else hidden():
                job.step(number, lambda **_: None, parts=1)
            watch.step()  # after an eager step it changes nothing
            if number >= 2:
                watch.log(loss=float(number))
            job.optimizer.zero_grad()
    found = kept()
    assert [record.step for record in found] == list(range(1, steps + 1))
    assert [record.scalars.get("loss") for record in found] == [None, None, 2.0, 3.0, 4.0]
    assert [record.counts.get("parts") for record in found] == [1, 1, None, None, None]
    for own, other in zip(found, expected, strict=True):
        for name in ("weight_sq", "update_sq"):
            for layer in own.table.names:
                assert value(own, name, layer) == pytest.approx(value(other, name, layer), rel=1e-5)
    assert all(torch.equal(p, w) for p, w in zip(job.model.parameters(), weights, strict=True))


def test_an_eager_step_between_replays_is_counted_once(kept, hidden):
    job = on_host()
    with watched(job.model, job.optimizer) as watch:
        for number, replayed in enumerate((False, True, False, True)):
            with hidden() if replayed else contextlib.nullcontext():
                job.step(number, lambda **_: None, parts=1)
            watch.step()
            job.optimizer.zero_grad()
    found = kept()
    assert [record.step for record in found] == [1, 2, 3, 4]
    assert all(np.all(record.values[0][:8] > 0) for record in found)


def test_graphs_of_the_passes_alone_leave_the_optimizers_hooks_to_measure(kept, hidden):
    job = on_host()
    step, clip = job.optimizer.step, 0.05
    job.optimizer.step = lambda: None
    with watched(job.model, job.optimizer) as watch:
        for number in range(3):
            with hidden():
                job.step(number, lambda **_: None, parts=1)
            torch.nn.utils.clip_grad_norm_(job.model.parameters(), clip)
            step()
            watch.step()
            job.optimizer.zero_grad()
    assert [record.step for record in kept()] == [1, 2, 3]
    assert all("clip_coefficient" in record.scalars for record in kept())
