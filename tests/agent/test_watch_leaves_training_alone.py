"""Training with a watch is training without one: same numbers, same files, same random state, whatever fails."""

from __future__ import annotations

import copy
import io
import random

import numpy as np
import pytest
import torch
from agent.watched_training import attention, gradients, loss_of, squares, value, watched
from gradspectra.measure import FirstTier
from gradspectra.measuring import Measuring
from gradspectra.parts import PartSquares
from gradspectra.session import Session
from gradspectra.spectra import Spectra
from gradspectra.step import ClosedStep


def trained(watch_it, steps=12, **options):
    """Weights after some steps with accumulation, clipping, dropout noise and a scheduler."""
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)
    watch = watched(model, optimizer, **({"spectra": 2} | options)) if watch_it else None
    torch.manual_seed(7)
    for step in range(steps):
        for part in range(2):
            loss = loss_of(model, 4, 2 * step + part) * (1 + 0.1 * torch.rand(()))
            (loss / 2).backward()
            if watch is not None:
                watch.log(loss=loss, examples=4)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if watch is not None:
        watch.close()
    return model, optimizer, watch


def test_results_are_bit_identical_on_any_number_of_threads(kept):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        plain, plain_optimizer, _ = trained(False)
        seen, seen_optimizer, _ = trained(True)
        assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
        states = plain_optimizer.state_dict(), seen_optimizer.state_dict()
        assert all(
            torch.equal(states[0]["state"][key][name], states[1]["state"][key][name])
            for key in states[0]["state"]
            for name in ("exp_avg", "exp_avg_sq", "step")
        )
        assert torch.get_num_threads() == threads
    assert len(kept()[-1].spectra) > 0


def test_no_random_state_is_touched(kept):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    model = attention()
    torch.set_rng_state(before[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with watched(model, optimizer, spectra=1) as watch:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        watch.log(loss=1.0)
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert len(kept()) == 1


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def test_saved_files_are_those_of_an_unwatched_training(kept):
    plain, plain_optimizer, _ = trained(False, 3)
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with watched(model, optimizer, parts=2, batch_size=len):
        model.load_state_dict(plain.state_dict())
        optimizer.load_state_dict(plain_optimizer.state_dict())
        assert saved(model.state_dict()) == saved(plain.state_dict())
        assert saved(model) == saved(plain)
        assert b"gradspectra.hooks" not in saved(optimizer)
        assert saved(optimizer.state_dict()).count(b"gradspectra") == 0
        loaded = torch.load(io.BytesIO(saved(optimizer)), weights_only=False)
    assert not loaded._optimizer_step_post_hooks
    assert kept() == []


def test_copies_of_model_and_optimizer_are_not_watched(kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with watched(model, optimizer, parts=2, batch_size=len):
        for part in range(2):
            loss_of(model, 4, part).backward()
        optimizer.step()
        optimizer.zero_grad()
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
        for _ in range(3):
            loss_of(twin, 4, 5).backward()
            twin_optimizer.step()
        for part in range(2):
            loss_of(model, 4, part).backward()
        expected = squares(gradients(model))["head.weight"]
        optimizer.step()
    assert [r.step for r in kept()] == [1, 2]
    assert kept()[1].counts["parts"] == 2
    assert value(kept()[1], "grad_sq", "head.weight") == pytest.approx(expected, rel=1e-5)


STAGES = [
    (FirstTier, "take"),
    (FirstTier, "repair"),
    (PartSquares, "arm"),
    (PartSquares, "_measure"),
    (PartSquares, "sums"),
    (Spectra, "take"),
    (Spectra, "due"),
    (ClosedStep, "record"),
    (ClosedStep, "__init__"),
    (Session, "clips_norm"),
    (Session, "log"),
    (Session, "opens"),
    (Session, "_log_rates"),
    (Session, "_account"),
    (Measuring, "_follow_on"),
]


@pytest.mark.parametrize(("place", "name"), STAGES, ids=[f"{place.__name__}.{name}" for place, name in STAGES])
def test_a_failure_anywhere_is_said_once_and_changes_nothing(place, name, kept, monkeypatch, caplog):
    plain, _, _ = trained(False)

    def fail(*_, **__):
        raise OSError("broken on purpose")

    monkeypatch.setattr(place, name, fail)
    seen, _, watch = trained(True)
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    assert any("broken on purpose" in reason for reason in watch.status()["not_measured"])
    assert sum("training goes on without it" in message for message in caplog.messages) == 1
    if (place, name) not in {(ClosedStep, "record"), (ClosedStep, "__init__"), (Session, "_log_rates")}:
        assert kept()[-1].step == 12 or name in {"opens", "_account"}


def test_without_any_server_training_goes_on_and_one_warning_is_given(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("GRADSPECTRA_SPOOL", str(tmp_path))
    plain, _, _ = trained(False)
    seen, _, watch = trained(True, server="http://127.0.0.1:9")
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    assert watch.status()["sending"]["waiting_steps"] == 12
    assert sum("no answer from" in message for message in caplog.messages) >= 1
