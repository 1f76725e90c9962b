"""Ranks that stop together, as two objects over one store."""

from __future__ import annotations

import pytest
from gradspectra import together as module
from gradspectra.errors import InstabilityError
from gradspectra.guard import Guard
from gradspectra.together import AHEAD_STEPS, HEAR_SECONDS, Together
from torch.distributed import HashStore


@pytest.fixture
def ranks(monkeypatch):
    """Rank 0 and rank 1; the latter looks at every step."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    store = HashStore()
    return [Together(store, rank, Guard()) for rank in (0, 1)]


def calm():
    """Nothing happens at this step."""


def alarm():
    raise InstabilityError("step 5: loss is NaN", [{"rule": "nonfinite"}])


def test_a_stop_takes_effect_at_the_same_step_on_all_ranks(ranks):
    for taken in range(5):
        for rank in ranks:
            rank.act(calm, taken)
    ranks[0].act(alarm, 5)
    ranks[1].act(calm, 5)
    for taken in range(6, 6 + AHEAD_STEPS):
        ranks[0].act(alarm if taken == 7 else calm, taken)
        ranks[1].act(calm, taken)
    with pytest.raises(InstabilityError, match=r"^step 5: loss is NaN$") as raised:
        ranks[0].act(calm, 6 + AHEAD_STEPS)
    assert raised.value.alerts == [{"rule": "nonfinite"}]
    with pytest.raises(InstabilityError, match=r"^rank 0 stops: step 5: loss is NaN$"):
        ranks[1].act(calm, 6 + AHEAD_STEPS)


def test_no_step_is_named_before_every_rank_has_heard_however_fast_steps_are(monkeypatch):
    monkeypatch.setattr(module, "HEAR_SECONDS", 3600.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 3600.0)
    store = HashStore()
    ranks = [Together(store, rank, Guard(), ranks=3) for rank in range(3)]
    for rank in ranks:
        rank.act(calm, 1)
    ranks[0].act(alarm, 2)
    for taken in range(2, 500):  # both have looked at step 1 and do not look again yet
        for rank in ranks:
            rank.act(calm, taken)
    ranks[1]._next_look = 0.0
    ranks[1].act(calm, 500)
    ranks[0].act(calm, 500)  # rank 2 has not heard
    ranks[2]._next_look = 0.0
    for taken in range(500, 500 + AHEAD_STEPS):
        for rank in (*ranks[1:], ranks[0]):
            rank.act(calm, taken)
    for rank in ranks:
        with pytest.raises(InstabilityError):
            rank.act(calm, 500 + AHEAD_STEPS)


def test_a_rank_that_never_hears_does_not_keep_the_others_running(ranks, monkeypatch):
    """Its watch failed, or was made without stop_on."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    ranks[0].act(alarm, 5)
    ranks[0].act(calm, 50)
    now[0] += HEAR_SECONDS
    ranks[0].act(calm, 60)
    ranks[0].act(calm, 59 + AHEAD_STEPS)
    with pytest.raises(InstabilityError, match="step 5"):
        ranks[0].act(calm, 60 + AHEAD_STEPS)


def test_a_store_that_breaks_after_the_others_were_asked_does_not_put_the_stop_off(ranks, monkeypatch):
    ranks[0].act(alarm, 5)
    monkeypatch.setattr(ranks[0], "_store", None)
    with pytest.raises(InstabilityError, match="step 5"):
        ranks[0].act(calm, 6)


def test_without_a_store_that_works_the_stop_is_not_put_off(ranks, monkeypatch, caplog):
    class Broken:
        def set(self, *_):
            raise RuntimeError("the store is gone")

        check = set

    for rank in ranks:
        monkeypatch.setattr(rank, "_store", Broken())
    with pytest.raises(InstabilityError, match="step 5"):
        ranks[0].act(alarm, 5)
    ranks[1].act(calm, 5)
    assert "the store is gone" in caplog.text


def test_an_error_of_the_user_s_own_is_raised_at_once(ranks):
    def complain():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ranks[0].act(complain, 5)
