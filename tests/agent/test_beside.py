"""Spectra taken beside the training: of the gradient as it was, under its own step, and never in anybody's way."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from gradspectra.accounts import Accounts
from gradspectra.beside import NICE, Beside, Work
from gradspectra.budget import Budget
from gradspectra.guard import FAILURES_BEFORE_OFF, Guard
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.singular import GRAM, SVD, measured
from gradspectra.spectra import BESIDE_SECONDS, Spectra
from gradspectra.step import OpenStep
from gradspectra_core.spectrum import aggregates
from torch import nn

STEP_SECONDS = 0.01


@pytest.fixture
def beside():
    """The thread; what it failed in is counted by `beside.guard`."""
    guard = Guard()
    made = Beside(guard)
    made.guard = guard
    yield made
    made.close()


@pytest.fixture
def held(monkeypatch):
    """The thread works only when told to: set the event."""
    let = threading.Event()
    do = Work.do

    def wait(work):
        assert let.wait(30)
        do(work)

    monkeypatch.setattr(Work, "do", wait)
    yield let
    let.set()


def wait_for(work, seconds=30.0):
    until = time.monotonic() + seconds
    while not work.done and time.monotonic() < until:
        time.sleep(0.001)
    assert work.done


def exact(matrix):
    return torch.linalg.svdvals(matrix.double()).numpy()


def test_values_are_those_that_are_taken_at_once(beside):
    matrix = torch.randn(30, 40)
    work = beside.give(matrix, GRAM)
    wait_for(work)
    values, method = measured(matrix, GRAM)
    np.testing.assert_allclose(work.values, values, rtol=1e-12)
    assert (work.method, work.matrix) == (method, None)
    assert work.seconds > 0
    drowned = beside.give(torch.randn(30, 1) @ torch.randn(1, 40), GRAM)
    wait_for(drowned)
    assert drowned.method == SVD


def test_the_threads_of_the_training_stay_as_many_as_they_were(beside):
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        wait_for(beside.give(torch.randn(8, 8), GRAM))
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert (torch.get_num_threads(), found) == (3, [3])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="the priority of a single thread is Linux's")
def test_it_has_the_lowest_priority_and_the_others_keep_theirs(beside):
    wait_for(beside.give(torch.randn(8, 8), GRAM))
    (thread,) = [one for one in threading.enumerate() if one.name == "gradspectra-spectra"]
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == NICE
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < NICE
    assert beside.lost < 1


@pytest.mark.parametrize("refused", [True, False])
def test_where_a_thread_has_no_priority_of_its_own_none_is_set_and_all_it_takes_is_charged(refused, monkeypatch):
    asked = []

    def setpriority(*wanted):
        asked.append(wanted)
        raise PermissionError

    monkeypatch.setattr("gradspectra.beside.os.setpriority", setpriority)
    if not refused:
        monkeypatch.setattr("gradspectra.beside.sys.platform", "darwin")
    beside = Beside(Guard())
    wait_for(beside.give(torch.randn(8, 8), GRAM))
    beside.close()
    assert (len(asked), beside.lost) == (int(refused), 1.0)


def test_one_matrix_at_a_time(beside, held):
    assert not beside.busy
    work = beside.give(torch.randn(4, 4), GRAM)
    assert beside.busy
    assert not work.done
    held.set()
    wait_for(work)
    assert not beside.busy


def test_a_failure_is_counted_and_leaves_no_values(beside):
    for number in range(1, FAILURES_BEFORE_OFF + 1):
        work = beside.give(torch.zeros(3), GRAM)
        wait_for(work)
        assert work.values is None
        assert beside.guard.failures("spectra") == number
    assert "spectra" in beside.guard.off


def test_closing_ends_the_matrix_in_hand_and_takes_no_more(beside, held):
    work = beside.give(torch.randn(4, 4), GRAM)
    threading.Timer(0.05, held.set).start()
    beside.close()
    assert work.values is not None
    assert beside.busy
    assert not [one for one in threading.enumerate() if one.name == "gradspectra-spectra" and one is beside._thread]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_waits_for_the_matrix_in_hand_and_the_child_takes_none(beside, held):
    work = beside.give(torch.randn(4, 4), GRAM)
    while not beside.working.locked():
        time.sleep(0.001)
    threading.Timer(0.1, held.set).start()
    receiving, sending = multiprocessing.Pipe()
    child = os.fork()
    if not child:
        sending.send((work.done or work.values is not None, beside.busy, beside.working.acquire(timeout=1)))
        os._exit(0)
    os.waitpid(child, 0)
    assert receiving.recv() == (True, True, True)
    wait_for(beside.give(torch.randn(4, 4), GRAM))


def train(model, optimizer, steps, after=None, clip=None):
    for step in range(1, steps + 1):
        time.sleep(STEP_SECONDS)
        loss_of(model, 4, step).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if after is not None:
            after(step)


def gradients_of(model):
    """Keeps what the gradients of each step were, before they are clipped: by step and name of the parameter."""
    seen, steps = {}, [1]

    def keep(name):
        return lambda gradient: seen.__setitem__((steps[0], name), gradient.clone())

    for name, parameter in model.named_parameters():
        parameter.register_hook(keep(name))
    return seen, steps


@pytest.fixture
def all_beside(monkeypatch):
    """Every spectrum counts as dear."""
    monkeypatch.setattr("gradspectra.spectra.BESIDE_SECONDS", 0.0)


@pytest.mark.usefixtures("all_beside")
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_records_have_the_spectra_of_the_gradients_as_they_were(kept, clip):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, steps = gradients_of(model)
    with watched(model, optimizer, budget=0.9, spectra="auto") as watch:
        train(model, optimizer, 40, lambda step: steps.__setitem__(0, step + 1), clip)
        assert watch.status()["not_measured"] == []
    found = [(r.step if s.step is None else s.step, r.table.names[s.layer], s) for r in kept() for s in r.spectra]
    assert len(found) >= 6
    assert len({layer for _, layer, _ in found}) >= 3
    for step, layer, spectrum in found:
        gradient = seen[step, layer.split("[")[0]]
        if "[" in layer:
            gradient = gradient.chunk(3)["qkv".index(layer[-2])]
        assert spectrum.aggregates[:5] == pytest.approx(aggregates(exact(gradient))[:5], rel=1e-5), (step, layer)


@pytest.mark.usefixtures("all_beside")
def test_what_is_done_late_goes_with_a_later_step_under_its_own(kept, held):
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = {}
    with watched(model, optimizer, budget=0.9, spectra="auto") as watch:
        for step in range(1, 31):
            time.sleep(STEP_SECONDS)
            model[0].weight.grad = gradients[step] = torch.randn(5, 6)
            optimizer.step()
            if step == 20:
                assert sum(len(record.spectra) for record in kept()) == 0
                (waiting,) = {own.step for own, _, _ in watch._session._unfinished}
                held.set()
                while watch._session.measuring.beside.busy:
                    time.sleep(0.001)
    carriers = [record for record in kept() if record.spectra]
    assert [spectrum.step for spectrum in carriers[0].spectra] == [waiting]
    assert carriers[0].step > 19 > waiting
    spectrum = carriers[0].spectra[0]
    assert spectrum.values == pytest.approx(exact(gradients[waiting]), rel=1e-5)


@pytest.mark.usefixtures("all_beside")
def test_closing_waits_for_the_last(kept, held):
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, budget=0.9, spectra="auto"):
        for _ in range(20):
            time.sleep(STEP_SECONDS)
            model[0].weight.grad = torch.randn(5, 6)
            optimizer.step()
        threading.Timer(0.05, held.set).start()
    assert sum(len(record.spectra) for record in kept()) == 1


@pytest.mark.usefixtures("all_beside")
def test_a_layer_that_is_gone_meanwhile_is_left_out(kept, held):
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, budget=0.9, spectra="auto") as watch:
        for step in range(30):
            time.sleep(STEP_SECONDS)
            model(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 19:
                kept()
                assert len(watch._session._unfinished) == 1
                model[0].weight.requires_grad_(False)
                model.add_module("1", nn.Linear(5, 5, bias=False))
                optimizer.add_param_group({"params": model[1].parameters()})
            if step == 24:
                kept()
                held.set()
    records = kept()
    assert records[-1].table.names == ("1.weight",)
    assert all(s.rows == s.columns == 5 for r in records for s in r.spectra)


def planned(threads, beside, monkeypatch, share=0.01):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    budget = Budget(share, 1, True)
    for _ in range(40):
        budget.step_done(1.0, 0.0, 1e-4, 0.0, 0.0)
    model = nn.ModuleDict({"dear": nn.Linear(500, 400, bias=False), "cheap": nn.Linear(8, 8, bias=False)})
    return Spectra(take_inventory({"": model}, [], choice_of(None)), None, budget, beside), budget


@pytest.mark.parametrize(("system", "lost"), [("linux", 0.25), ("darwin", 1.0)])
def test_a_dear_spectrum_is_charged_what_one_of_the_trainings_threads_loses(system, lost, monkeypatch):
    monkeypatch.setattr("gradspectra.beside.sys.platform", system)
    beside = Beside(Guard())
    alone, budget = planned(4, None, monkeypatch)
    dear, cheap = (candidate.expected for candidate in alone.candidates)
    assert dear > BESIDE_SECONDS > cheap
    assert budget.lap_seconds == pytest.approx(dear + cheap)
    spectra, budget = planned(4, beside, monkeypatch)
    assert budget.lap_seconds == pytest.approx(dear * lost / 4 + cheap)
    spectra.candidates[0].tensor.parameter.grad = torch.randn(400, 500)
    taken = spectra.take(spectra.candidates[0], 1)
    wait_for(taken.work)
    assert taken.record().rows == 400
    told = []
    monkeypatch.setattr(budget, "step_done", lambda *costs: told.append(costs[-1]))
    accounts = Accounts(budget, lambda: 0.0, beside)
    steps = [OpenStep(1, False), OpenStep(2, False)]
    for step in steps:
        accounts.close(step, float(step.number))
    spent = beside.seconds_spent
    assert spent >= taken.work.seconds
    assert told == [pytest.approx(spent * lost / 4, rel=0.2), pytest.approx(0.0, abs=0.001)]
    assert [step.own for step in steps] == told
    assert spectra.candidates[0].expected != dear, "what it took is learned"
    beside.close()


def test_a_dear_spectrum_waits_for_the_thread_and_a_cheap_one_does_not(beside, held, monkeypatch):
    spectra, budget = planned(4, beside, monkeypatch)
    budget.savings = 1.0
    assert spectra.due(1) == [spectra.candidates[0]]
    beside.give(torch.randn(4, 4), GRAM)
    assert spectra.due(2) == [spectra.candidates[1]]
    assert spectra.due(3) == []
    held.set()
    while beside.busy:
        time.sleep(0.001)
    assert spectra.due(4) == [spectra.candidates[0]]


def test_a_spectrum_of_weights_is_of_them_as_they_were_at_its_step(beside, held):
    model = nn.Linear(500, 400, bias=False)
    spectra = Spectra(
        take_inventory({"": model}, [], choice_of(None)), None, Budget(0.01, 1, True), beside, ("weight",)
    )
    exact = aggregates(torch.linalg.svdvals(model.weight.detach().double()).numpy())
    taken = spectra.take(spectra.candidates[0], 1)
    with torch.no_grad():
        model.weight.zero_()
    held.set()
    wait_for(taken.work)
    record = taken.record()
    assert record.of == "weight"
    assert record.aggregates == pytest.approx(exact, rel=1e-6)


def test_without_a_budget_or_at_an_interval_all_are_taken_at_once(beside):
    model = nn.Linear(500, 400, bias=False)
    model.weight.grad = torch.randn(400, 500)
    inventory = take_inventory({"": model}, [], choice_of(None))
    for interval, share in ((None, None), (10, 0.01)):
        spectra = Spectra(inventory, interval, Budget(share, 1, True), beside)
        assert spectra.take(spectra.candidates[0], 1).rows == 400
