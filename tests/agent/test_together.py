"""Ranks that act on alerts together, as objects over one store."""

from __future__ import annotations

import math

import pytest
from gradspectra import together as module
from gradspectra.errors import InstabilityError
from gradspectra.guard import Guard
from gradspectra.reactions import Reactions
from gradspectra.together import AHEAD_STEPS, HEAR_SECONDS, Together
from torch.distributed import HashStore


class Rank:
    """One rank of a job: what its on_alert was called with, and at which step."""

    def __init__(self, store, rank, ranks=2, stop_on="critical"):
        self.called = []
        self.taken = 0
        self.reactions = Reactions(self._on_alert, stop_on) if rank == 0 else Reactions(None, None)
        self.together = Together(store, rank, Guard(), ranks, self._on_alert)

    def _on_alert(self, alert):
        self.called.append((self.taken, alert["rule"]))

    def step(self, taken, stop_at_step=None):
        self.taken = taken
        self.together.act(self.reactions, stop_at_step, taken)


@pytest.fixture
def ranks(monkeypatch):
    """Rank 0 and rank 1; the latter looks at every step."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    store = HashStore()
    return [Rank(store, rank) for rank in (0, 1)]


def alert(severity="critical", rule="nonfinite", step=5):
    message = "loss is NaN"
    return {"rule": rule, "severity": severity, "opened_step": step, "message": message, "value": math.nan}


def stopped(rank, taken):
    with pytest.raises(InstabilityError) as raised:
        rank.step(taken)
    return raised.value


def test_a_stop_takes_effect_at_the_same_step_on_all_ranks(ranks):
    for taken in range(5):
        for rank in ranks:
            rank.step(taken)
    ranks[0].reactions.tell([alert()])
    ranks[0].step(5)
    ranks[1].step(5)
    for taken in range(6, 6 + AHEAD_STEPS):
        ranks[0].step(taken)
        ranks[1].step(taken)
    error = stopped(ranks[0], 6 + AHEAD_STEPS)
    assert str(error) == "step 5: loss is NaN"
    assert [own["rule"] for own in error.alerts] == ["nonfinite"]
    assert str(stopped(ranks[1], 6 + AHEAD_STEPS)) == "rank 0 stops: step 5: loss is NaN"


def test_alerts_reach_the_users_function_at_the_same_step_on_all_ranks(ranks):
    for taken in range(100):
        if taken in (5, 7, 40):
            ranks[0].reactions.tell([alert("warning", f"rule at {taken}", taken)])
        for rank in ranks:
            rank.step(taken)
    first = 6 + AHEAD_STEPS  # named once rank 1 has heard, at the step after; what came meanwhile is told of then
    second = first + 2 + AHEAD_STEPS
    expected = [(first, "rule at 5"), (second, "rule at 7"), (41 + AHEAD_STEPS, "rule at 40")]
    assert ranks[0].called == expected
    assert ranks[1].called == expected


def test_alerts_before_a_severe_one_are_acted_on_and_those_after_it_are_not(ranks):
    ranks[0].reactions.tell([alert("warning", "early"), alert("critical", "severe"), alert("warning", "late")])
    for taken in range(5, 6 + AHEAD_STEPS):
        for rank in ranks:
            rank.step(taken)
    for rank in ranks:
        stopped(rank, 6 + AHEAD_STEPS)
        assert rank.called == [(6 + AHEAD_STEPS, "early"), (6 + AHEAD_STEPS, "severe")]


def test_a_stop_that_the_server_asks_for_is_one_of_all_ranks(ranks):
    for taken in range(5, 6 + AHEAD_STEPS):
        for rank in ranks:
            rank.step(taken, stop_at_step=5)
    for rank, said in zip(ranks, ("", "rank 0 stops: "), strict=True):
        assert str(stopped(rank, 6 + AHEAD_STEPS)) == f"{said}the server asked the run to stop at step 5"


def test_no_step_is_named_before_every_rank_has_heard_however_fast_steps_are(monkeypatch):
    monkeypatch.setattr(module, "HEAR_SECONDS", 3600.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 3600.0)
    store = HashStore()
    ranks = [Rank(store, rank, ranks=3) for rank in range(3)]
    for rank in ranks:
        rank.step(1)
    ranks[0].reactions.tell([alert()])
    for taken in range(2, 500):  # both have looked at step 1 and do not look again yet
        for rank in ranks:
            rank.step(taken)
    ranks[1].together._next_look = 0.0
    ranks[1].step(500)
    ranks[0].step(500)  # rank 2 has not heard
    ranks[2].together._next_look = 0.0
    for taken in range(500, 500 + AHEAD_STEPS):
        for rank in (*ranks[1:], ranks[0]):
            rank.step(taken)
    for rank in ranks:
        stopped(rank, 500 + AHEAD_STEPS)


def test_a_rank_that_never_hears_does_not_keep_the_others_running(ranks, monkeypatch):
    """Its watch failed, or was made without on_alert and stop_on."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    ranks[0].reactions.tell([alert()])
    ranks[0].step(5)
    ranks[0].step(50)
    now[0] += HEAR_SECONDS
    ranks[0].step(60)
    ranks[0].step(59 + AHEAD_STEPS)
    assert "step 5" in str(stopped(ranks[0], 60 + AHEAD_STEPS))


def test_a_store_that_breaks_after_the_others_were_asked_does_not_put_the_stop_off(ranks, monkeypatch):
    ranks[0].reactions.tell([alert()])
    ranks[0].step(5)
    monkeypatch.setattr(ranks[0].together, "_store", None)
    assert "step 5" in str(stopped(ranks[0], 6))


def test_without_a_store_that_works_nothing_is_put_off(ranks, monkeypatch, caplog):
    class Broken:
        def set(self, *_):
            raise RuntimeError("the store is gone")

        check = set

    for rank in ranks:
        monkeypatch.setattr(rank.together, "_store", Broken())
    for taken in range(5, 10):  # also once the stage is switched off
        ranks[0].reactions.tell([alert("warning", f"rule {taken}")])
        ranks[0].step(taken)
        ranks[1].step(taken)
    assert ranks[0].called == [(taken, f"rule {taken}") for taken in range(5, 10)]
    assert ranks[1].called == []
    ranks[0].reactions.tell([alert()])
    assert "step 5" in str(stopped(ranks[0], 10))
    assert "the store is gone" in caplog.text


def test_an_error_of_the_user_s_own_function_is_raised_at_that_step(ranks):
    def complain(_):
        raise KeyError("mine")

    ranks[0].reactions = Reactions(complain, None)
    ranks[0].reactions.tell([alert()])
    for taken in range(5, 6 + AHEAD_STEPS):
        for rank in ranks:
            rank.step(taken)
    with pytest.raises(KeyError, match="mine"):
        ranks[0].step(6 + AHEAD_STEPS)
    ranks[1].step(6 + AHEAD_STEPS)
    assert ranks[1].called == [(6 + AHEAD_STEPS, "nonfinite")]
