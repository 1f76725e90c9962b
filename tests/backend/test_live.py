"""Live events: heard at once, replayed after a break, bounded, and ended at once when the server stops."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from backend.callers import API, Caller, batch
from backend.servers import serving
from gradspectra_backend.lately import MOST_RUNS, Lately
from gradspectra_backend.live import QUEUE_LENGTH, RESYNC, Hub, stream
from gradspectra_backend.routes.live import missed

PATIENCE = 120.0
"""Seconds; on a busy machine an event takes its time."""


async def nothing() -> list[dict[str, Any]]:
    return []


def run_event(run: str, number: int, **more: Any) -> dict[str, Any]:
    return {"type": "run", "run": run, "batch": number, "step": number, **more}


async def take(events: Any, count: int) -> list[Any]:
    return [await asyncio.wait_for(anext(events), PATIENCE) for _ in range(count)]


def test_a_stream_hears_only_of_the_runs_it_asked_for():
    async def scenario() -> None:
        hub = Hub()
        hub.open(asyncio.get_running_loop())
        one, every = stream(hub, ["a"], nothing), stream(hub, None, nothing)
        await take(one, 1)
        await take(every, 1)
        pending = asyncio.ensure_future(anext(one)), asyncio.ensure_future(anext(every))
        await asyncio.sleep(0)
        threading.Thread(target=lambda: [hub.announce(run_event(run, 1)) for run in ("b", "a")]).start()
        assert (await pending[0]).id == "a.1"
        assert (await pending[1]).id == "b.1"
        assert (await take(every, 1))[0].id == "a.1"
        for events in (one, every):
            await events.aclose()
        assert len(hub) == 0

    asyncio.run(scenario())


def test_the_loop_is_woken_for_open_streams_alone():
    async def scenario() -> None:
        hub = Hub()
        woken = []
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe = lambda call, *given: woken.append((call, given))
        hub.open(loop)
        hub.announce(run_event("a", 1))
        assert woken == []
        listener = hub.subscribe(None)
        hub.announce(run_event("a", 2))
        assert woken == [(hub.publish, (run_event("a", 2),))]
        hub.unsubscribe(listener)
        hub.announce(run_event("a", 3))
        assert len(woken) == 1

    asyncio.run(scenario())


def test_a_stream_begins_with_what_was_announced_while_none_was_open():
    async def scenario() -> None:
        hub = Hub()
        hub.open(asyncio.get_running_loop())
        hub.announce(run_event("a", 1))
        hub.publish({"type": "alert", "run": "b", "alert": {}})
        for wanted, runs in ((None, {"a", "b"}), (["b", "c"], {"b"})):
            events = stream(hub, wanted, nothing)
            (event,) = await take(events, 1)
            told = json.loads(event.raw_data)
            assert (event.event, set(told["runs"])) == ("opened", runs)
            assert all(0 <= age <= told["seconds"] for age in told["runs"].values())
            await events.aclose()

    asyncio.run(scenario())


def test_seconds_since_an_announcement_are_known_as_far_back_as_they_say():
    time_now = 100.0
    lately = Lately(lambda: time_now)
    time_now = 110.0
    lately.note(run_event("a", 1))
    time_now = 112.0
    lately.note(run_event("b", 1))
    lately.note(run_event("a", 2))
    time_now = 113.0
    assert lately.told(None) == {"seconds": 13.0, "runs": {"a": 1.0, "b": 1.0}}
    for number in range(MOST_RUNS):
        lately.note(run_event(f"r{number}", 1))
    time_now = 114.0
    found = lately.told(None)
    assert (found["seconds"], len(found["runs"]), found["runs"]["r0"]) == (2.0, MOST_RUNS, 1.0)
    lately.note(RESYNC)
    time_now = 115.0
    assert lately.told(None) == {"seconds": 1.0, "runs": {}}


def test_a_stream_that_is_too_slow_is_told_to_ask_anew():
    async def scenario() -> None:
        hub = Hub()
        events = stream(hub, None, nothing)
        await take(events, 1)
        pending = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        for number in range(QUEUE_LENGTH + 1):
            hub.publish(run_event("a", number))
        hub.publish(run_event("a", 999))
        assert (await pending).event == "resync"
        assert (await take(events, 1))[0].id == "a.999"
        await events.aclose()

    asyncio.run(scenario())


def test_what_happens_while_the_backlog_is_read_is_not_lost_and_not_told_twice():
    async def scenario() -> None:
        hub = Hub()

        async def backlog() -> list[dict[str, Any]]:
            hub.publish(run_event("a", 5, state="running"))
            hub.publish(run_event("a", 6, state="running"))
            return [run_event("a", 5, state="running")]

        events = stream(hub, ["a"], backlog)
        assert [event.id for event in await take(events, 3)] == [None, "a.5", "a.6"]
        await events.aclose()

    asyncio.run(scenario())


def test_closing_ends_streams_that_wait_and_those_that_come_later():
    async def scenario() -> None:
        hub = Hub()
        hub.open(asyncio.get_running_loop())
        waiting = stream(hub, None, nothing)
        await take(waiting, 1)
        end = asyncio.ensure_future(anext(waiting))
        await asyncio.sleep(0)
        hub.close_soon()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(end, PATIENCE)
        late = stream(hub, None, nothing)
        await take(late, 1)
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(late), PATIENCE)

    asyncio.run(scenario())


def test_special_numbers_in_an_alert_are_words_in_its_event():
    async def scenario() -> None:
        hub = Hub()
        events = stream(hub, None, nothing)
        await take(events, 1)
        pending = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        hub.publish({"type": "alert", "run": "a", "alert": {"value": float("nan")}})
        event = await pending
        assert (event.event, json.loads(event.raw_data)) == ("alert", {"run": "a", "alert": {"value": "NaN"}})
        await events.aclose()

    asyncio.run(scenario())


def test_a_reconnected_stream_is_told_where_its_run_stands(anywhere: Caller):
    run = anywhere.start()
    for number in (1, 2):
        anywhere.must_send(run["id"], batch(run["session"], number, [number]))
    anywhere.derived(run["id"], 2)
    context = anywhere.client.app.state.context
    fresh = missed(context, [run["id"], "gone"], None)
    assert [(event["type"], event["run"], event.get("batch"), event.get("step")) for event in fresh] == [
        ("run", run["id"], 2, 2),
        ("run", "gone", None, None),
    ]
    assert fresh[1]["state"] == "deleted"
    assert [event["type"] for event in missed(context, [run["id"]], f"{run['id']}.1")] == ["resync", "run"]
    assert [event["type"] for event in missed(context, [run["id"]], f"{run['id']}.2")] == ["run"]
    assert [event["type"] for event in missed(context, None, "other.7")] == ["resync"]
    assert missed(context, None, None) == []
    anywhere.client.delete(f"{API}/runs/{run['id']}")
    assert missed(context, [run["id"]], f"{run['id']}.2") == [{"type": "run", "run": run["id"], "state": "deleted"}]


def test_a_stream_ends_when_all_its_runs_are_deleted():
    async def scenario() -> None:
        hub = Hub()

        async def backlog() -> list[dict[str, Any]]:
            return [run_event("a", 1), {"type": "run", "run": "b", "state": "deleted"}]

        events = stream(hub, ["a", "b"], backlog)
        assert [event.id for event in await take(events, 3)] == [None, "a.1", "b.deleted"]
        for announcement in (run_event("b", 2), run_event("a", 2), {"type": "run", "run": "a", "state": "deleted"}):
            hub.publish(announcement)
        assert [event.id for event in await take(events, 2)] == ["a.2", "a.deleted"]
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(events), PATIENCE)
        assert len(hub) == 0

    asyncio.run(scenario())


def test_a_deletion_that_was_lost_on_the_way_ends_a_stream_with_the_next_resync():
    async def scenario() -> None:
        hub = Hub()
        events = stream(hub, ["a"], backlog := Backlog([run_event("a", 1)]))
        await take(events, 2)
        backlog.answer = [RESYNC, {"type": "run", "run": "a", "state": "deleted"}]
        hub.publish(RESYNC)
        assert [event.event for event in await take(events, 2)] == ["resync", "run"]
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(events), PATIENCE)

    asyncio.run(scenario())


def test_the_stream_of_a_run_that_is_deleted_ends_and_is_not_opened_again(tmp_path):
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=PATIENCE) as client:
        caller = Caller(client)
        run, other = caller.start()["id"], caller.start()["id"]
        both, one = (Listening(f"{server.url}{API}/live?runs={runs}") for runs in (f"{run},{other}", run))
        for listener in (both, one):
            listener.start()
            listener.heard(run=run)
        assert client.delete(f"{API}/runs/{run}").status_code == 204
        assert [listener.heard(run=run, state="deleted")[1] for listener in (both, one)] == [f"{run}.deleted"] * 2
        one.join(PATIENCE)
        assert (one.clean, both.is_alive()) == (True, True)
        again = {"Last-Event-ID": f"{run}.deleted"}
        refused = client.get(f"{API}/live", params={"runs": run}, headers=again)
        assert (refused.status_code, refused.content) == (204, b"")
        late = Listening(f"{server.url}{API}/live?runs={run},{other}", again)
        late.start()
        late.heard(run=other)
        assert late.is_alive()
        assert client.delete(f"{API}/runs/{other}").status_code == 204
        for listener in (both, late):
            listener.join(PATIENCE)
            assert listener.clean


class Backlog:
    """What a stream has missed, to be changed."""

    def __init__(self, answer: list[dict[str, Any]]) -> None:
        self.answer = answer

    async def __call__(self) -> list[dict[str, Any]]:
        return self.answer


class Listening(threading.Thread):
    """A client that reads a stream in a thread. events: (event, id, data) as they come."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(daemon=True)
        self.url, self.headers = url, headers or {}
        self.opened = threading.Event()
        self.events: list[tuple[str, str, Any]] = []
        self.clean = False

    def run(self) -> None:
        with suppress(httpx2.RemoteProtocolError), self._open() as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                self.opened.set()
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    self.events.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                    fields = {}
            self.clean = True

    def _open(self) -> Any:
        return httpx2.stream("GET", self.url, headers=self.headers, timeout=PATIENCE, trust_env=False)

    def heard(self, kind: str = "run", **wanted: Any) -> tuple[str, str, Any]:
        """Wait for an event of a kind whose data has these members."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for event in list(self.events):
                if event[0] == kind and wanted.items() <= event[2].items():
                    return event
            time.sleep(0.005)
        raise AssertionError(f"{wanted} was not heard, only {self.events}")


def test_a_page_hears_of_a_batch_its_derivation_and_the_alert_and_a_stop_ends_all(tmp_path):
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=PATIENCE) as client:
        caller = Caller(client)
        run = caller.start()
        listeners = [Listening(f"{server.url}{API}/live") for _ in range(20)]
        listeners.append(Listening(f"{server.url}{API}/live?runs={run['id']}", {"Last-Event-ID": "x.1"}))
        for listener in listeners:
            listener.start()
        assert all(listener.opened.wait(PATIENCE) for listener in listeners)
        caller.must_send(run["id"], batch(run["session"], 1, [1], loss=[float("inf")]))
        for listener in (listeners[0], listeners[-1]):
            assert listener.heard(run=run["id"], step=1)[:2] == ("run", f"{run['id']}.1")
            listener.heard(run=run["id"], derived_step=1)
        assert listeners[0].heard("alert", run=run["id"])[2]["alert"]["rule"] == "nonfinite"
        assert [event[0] for event in listeners[-1].events[:2]] == ["opened", "resync"]
        status, log = server.stopped(signal.SIGTERM)
        assert status in (0, -signal.SIGTERM)
        assert "graceful shutdown exceeded" not in log, "the streams ended by themselves, before the server's patience"
        for listener in listeners:
            listener.join(PATIENCE)
        assert all(listener.clean for listener in listeners)


def test_too_many_streams_are_refused_with_what_to_do(caller: Caller):
    hub = caller.client.app.state.context.hub
    for _ in range(1000):
        hub.subscribe(None)
    answer = caller.client.get(f"{API}/live")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
    assert "GRADSPECTRA_MAX_LISTENERS" in answer.json()["remedy"]
    assert answer.headers["retry-after"] == "10"


def test_too_many_runs_on_one_stream_are_refused(caller: Caller):
    answer = caller.client.get(f"{API}/live", params={"runs": ",".join(f"r{index}" for index in range(101))})
    assert (answer.status_code, answer.json()["field"]) == (422, "runs")
