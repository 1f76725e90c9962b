"""Ranks that stop together, as two objects over one store."""

from __future__ import annotations

import pytest
from gradspectra import together as module
from gradspectra.errors import InstabilityError
from gradspectra.guard import Guard
from gradspectra.together import AHEAD_STEPS, Together
from torch.distributed import HashStore


@pytest.fixture
def ranks(monkeypatch):
    """Rank 0 and rank 1; the latter looks at every step."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "AHEAD_SECONDS", 0.0)
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
    for taken in range(6, 5 + AHEAD_STEPS):
        ranks[0].act(alarm if taken == 6 else calm, taken)
        ranks[1].act(calm, taken)
    with pytest.raises(InstabilityError, match=r"^step 5: loss is NaN$") as raised:
        ranks[0].act(calm, 5 + AHEAD_STEPS)
    assert raised.value.alerts == [{"rule": "nonfinite"}]
    with pytest.raises(InstabilityError, match=r"^rank 0 stops: step 5: loss is NaN$"):
        ranks[1].act(calm, 5 + AHEAD_STEPS)


def test_the_step_is_as_far_ahead_as_the_steps_are_fast(ranks, monkeypatch):
    """Four calls a step, as with several optimizers, of two seconds each."""
    monkeypatch.setattr(module, "AHEAD_SECONDS", 6.0)
    clock = iter([100.0, 100.1, 100.2, 100.3, 102.0, 102.1, 102.2, 102.3])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    for taken in (0, 0, 0, 0, 1, 1, 1):
        ranks[0].act(calm, taken)
    ranks[0].act(alarm, 1)
    assert ranks[0]._at == 1 + AHEAD_STEPS + 3


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
