"""The threads that take in records: what comes back, what is raised, and how many work at once."""

import asyncio
import threading

import pytest
from gradspectra_backend import lane as lanes
from gradspectra_backend.lane import AtOnce, Lane


def test_a_result_comes_back_and_an_error_is_raised():
    async def scenario() -> None:
        lane = Lane("test", 1)
        assert await lane.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.run(divmod, 1, 0)
        assert await lane.run(sorted, [2, 1], reverse=True) == [2, 1]

    asyncio.run(scenario())


def test_calls_run_beside_each_other_up_to_the_number_of_threads():
    async def scenario() -> None:
        lane = Lane("test", 2)
        meet = threading.Barrier(2)
        names = await asyncio.gather(*(lane.run(together, meet) for _ in range(4)))
        assert set(names) == {"test-1", "test-2"}

    def together(meet: threading.Barrier) -> str:
        meet.wait(60)
        return threading.current_thread().name

    asyncio.run(scenario())


def test_a_caller_that_goes_away_leaves_the_lane_as_it_was():
    async def scenario() -> None:
        lane = Lane("test", 1)
        gate, ended = threading.Event(), threading.Event()
        waiting = asyncio.ensure_future(lane.run(lambda: gate.wait(60) and ended.set()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()
        assert await lane.run(ended.is_set)

    asyncio.run(scenario())


def test_after_a_call_that_took_long_in_the_event_loop_none_is_made_there_for_a_while(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(lanes.time, "monotonic", lambda: now[0])

    def taking(seconds: float) -> float:
        now[0] += seconds
        return seconds

    def failing() -> None:
        taking(1.0)
        raise ZeroDivisionError

    at_once = AtOnce()
    assert at_once.run(taking, 0.01) == 0.01
    assert at_once.open
    assert at_once.run(taking, 0.1) == 0.1
    assert not at_once.open
    now[0] += 1.1
    assert at_once.open
    with pytest.raises(ZeroDivisionError):
        at_once.run(failing)
    assert not at_once.open
