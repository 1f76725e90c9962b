"""Training with a watch is training without one: same numbers, same files, same random state, whatever fails."""

from __future__ import annotations

import copy
import errno
import io
import logging
import random

import numpy as np
import pytest
import torch
from agent.scripted_server import Handler, ScriptedServer
from agent.watched_training import KeepingTransport, attention, gradients, loss_of, squares, value, watched
from gradspectra import journal
from gradspectra.activations import Activations
from gradspectra.backward import Backward
from gradspectra.drift import Drift
from gradspectra.measure import FirstTier
from gradspectra.measuring import Measuring
from gradspectra.packing import Packer
from gradspectra.parts import PartSquares
from gradspectra.readout import Readout
from gradspectra.rules import LocalRules
from gradspectra.second_tier import SecondTier
from gradspectra.session import Session
from gradspectra.spectra import Spectra
from gradspectra.spool import Spool
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


SECOND = {"grad_l1", "moment_sq", "act_max"}
LAYERS = {"grad_sq", "weight_sq", "update_sq", "part_sq", "drift_sq"} | SECOND
EVERYTHING = LAYERS | {"spectra", "loss", "learning_rate", "clip_coefficient", "parts", "step_seconds"}
STAGES = [
    (FirstTier, "take", "layers", LAYERS),
    (FirstTier, "repair", "layers", LAYERS),
    (PartSquares, "arm", "parts", {"part_sq"}),
    (PartSquares, "_measure", "parts", {"part_sq"}),
    (PartSquares, "squares", "parts", {"part_sq"}),
    (Backward, "saw", "backward", {"part_sq", "parts"}),
    (Drift, "begin", "drift", {"drift_sq"}),
    (Drift, "measure", "drift", {"drift_sq"}),
    (SecondTier, "due", "second tier", SECOND),
    (SecondTier, "stage", "second tier", SECOND),
    (SecondTier, "take", "second tier", SECOND),
    (SecondTier, "finish", "second tier", SECOND),
    (Activations, "arm", "activations", {"act_max"}),
    (Activations, "_measure", "activations", {"act_max"}),
    (Spectra, "take", "spectra", {"spectra"}),
    (Spectra, "due", "spectra", {"spectra"}),
    (ClosedStep, "__init__", "record", EVERYTHING),
    (ClosedStep, "record", "record", EVERYTHING),
    (Readout, "arrays", "record", EVERYTHING),
    (Session, "clips_norm", "clipping", {"clip_coefficient", "grad_sq", "grad_l1", "part_sq", "spectra"}),
    (Session, "hold", "log", {"loss"}),
    (Session, "_release", "log", {"loss"}),
    (Session, "opens", "step", {"part_sq", "parts"}),
    (Session, "_log_rates", "rates", {"learning_rate"}),
    (Session, "_account", "overhead", {"step_seconds"}),
    (Measuring, "_follow_on", "inventory", set()),
    (LocalRules, "observe", "rules", set()),
    (KeepingTransport, "record", "handing on", EVERYTHING),
    (KeepingTransport, "start", None, set()),
]
"""Where a failure is injected, the stage that is then switched off, and what the records lack for it."""


def found(records):
    """What is there in any of the records."""
    names = {name for r in records for name in (*r.scalars, *r.counts)} & EVERYTHING
    for record in records:
        names |= {"spectra"} if record.spectra else set()
        for row, name in enumerate(record.statistics):
            names |= {name} & LAYERS if record.present[row].any() else set()
    return names


@pytest.mark.parametrize(
    ("place", "name", "stage", "lost"), STAGES, ids=[f"{place.__name__}.{name}" for place, name, *_ in STAGES]
)
def test_a_failure_anywhere_is_said_once_and_the_other_stages_go_on(
    place, name, stage, lost, kept, monkeypatch, caplog
):
    plain, _, _ = trained(False)

    def fail(*_, **__):
        raise OSError("broken on purpose")

    monkeypatch.setattr(place, name, fail)
    reacting = {"on_alert": lambda _: None} if place is LocalRules else {}
    seen, _, watch = trained(True, **reacting)
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    assert sum("training goes on without it" in message for message in caplog.messages) == 1
    status = watch.status()
    off = [reason.split(":")[0] for reason in status["not_measured"] if "switched off" in reason]
    assert off == ([stage] if stage else [])
    assert not torch.nn.modules.module._global_forward_hooks, "whatever failed, the watch is closed"
    assert (status["step"], watch.state_dict()["step"]) == (12, 12)
    assert KeepingTransport.last.closed == "finished"
    assert found([record for record in kept() if record.step > 6]) == EVERYTHING - lost
    assert {record.counts.get("parts", 2) for record in kept()} <= {2}
    if lost != EVERYTHING:
        assert [record.step for record in kept()] == list(range(1, 13))


def test_a_failure_that_comes_twice_switches_nothing_off(kept, monkeypatch):
    calls, take = [], FirstTier.take

    def fail_twice(*arguments):
        calls.append(1)
        if len(calls) < 3:
            raise OSError("broken on purpose")
        take(*arguments)

    monkeypatch.setattr(FirstTier, "take", fail_twice)
    _, _, watch = trained(True)
    assert watch.status()["not_measured"] == []
    assert [r.step for r in kept() if "grad_sq" in r.statistics] == list(range(3, 13))


def test_what_a_failure_would_make_wrong_is_left_out(kept, monkeypatch):
    """The scale of a loss scaler, and a clipping by value, which nobody can undo."""

    def fail(*_):
        raise OSError("broken on purpose")

    monkeypatch.setattr(Session, "scaled", fail)
    monkeypatch.setattr(Session, "clips_value", fail)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler, unclipped = torch.amp.GradScaler("cpu", init_scale=1024.0), None
    with watched(model, optimizer, spectra=1):
        for step in range(4):
            for part in range(2):
                scaler.scale(loss_of(model, 4, part) / 2).backward()
            scaler.unscale_(optimizer)
            if step == 3:
                torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)
            expected = squares(gradients(model))["head.weight"]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            unclipped = expected if step == 2 else unclipped
    assert value(kept()[2], "grad_sq", "head.weight") == pytest.approx(unclipped, rel=1e-5)
    assert value(kept()[3], "grad_sq", "head.weight") is None
    assert value(kept()[3], "grad_max", "head.weight") is None
    assert [len(record.spectra) > 0 for record in kept()] == [True, True, True, False]
    for record in kept():
        assert value(record, "part_sq", "head.weight") is None
        assert value(record, "weight_sq", "head.weight") > 0


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = ScriptedServer()
    monkeypatch.setenv("GRADSPECTRA_SERVER", server.url)
    monkeypatch.setenv("GRADSPECTRA_SPOOL", str(tmp_path))
    yield server
    server.stop()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("place", "name"), [(Packer, "_batch"), (Spool, "_frame")])
def test_a_record_that_cannot_be_sent_is_a_gap_and_the_others_arrive(place, name, server, monkeypatch, caplog):
    """One record breaks packing, or every batch with it the spooling."""
    plain, _, _ = trained(False)
    original = getattr(place, name)

    def fail(self, what, *rest):
        steps = what.steps.tolist() if place is Spool else [record.step for record in what]
        if 5 in steps:
            raise OSError("broken on purpose")
        return original(self, what, *rest)

    monkeypatch.setattr(place, name, fail)
    seen, _, watch = trained(True)
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    gaps = [step for first, last, what in server.gaps() if what == "all" for step in range(first, last + 1)]
    assert 5 in gaps
    assert sorted([*server.steps(), *gaps]) == list(range(1, 13))
    assert place is Spool or gaps == [5]
    assert len(warnings_of(caplog)) == 1
    assert "broken on purpose" in caplog.text
    assert watch.status()["sending"]["waiting_steps"] == 0
    assert server.finished == [{"session": "session1", "state": "finished"}]


def test_a_full_disk_is_said_once_and_the_records_arrive_from_memory(server, monkeypatch, caplog):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 2000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[: max(1, 2000 - self.tell())])

    monkeypatch.setattr(journal, "open_file", lambda path: path.touch() or Full(path, "r+"))
    plain, _, _ = trained(False)
    seen, _, watch = trained(True)
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    assert server.steps() == list(range(1, 13))
    (warning,) = warnings_of(caplog)
    assert "No space left on device" in warning
    assert "kept in memory" in warning
    assert watch.status()["sending"]["waiting_steps"] == 0


def test_a_server_that_breaks_off_every_answer_changes_nothing_and_nothing_is_lost(server, caplog, tmp_path):
    plain, _, _ = trained(False)
    server.on_make_run = Handler.drop
    seen, _, watch = trained(True)
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    status = watch.status()["sending"]
    assert status["waiting_steps"] == 12
    assert status["last_error"]
    assert sum("the records are kept in" in message for message in warnings_of(caplog)) == 1
    assert len(list(tmp_path.glob("*/batches"))) == 1


def test_without_any_server_training_goes_on_and_one_warning_is_given(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("GRADSPECTRA_SPOOL", str(tmp_path))
    plain, _, _ = trained(False)
    seen, _, watch = trained(True, server="http://127.0.0.1:9")
    assert all(map(torch.equal, plain.state_dict().values(), seen.state_dict().values()))
    assert watch.status()["sending"]["waiting_steps"] == 12
    assert sum("no answer from" in message for message in caplog.messages) >= 1
