"""Where a batch is stored: a short one in the event loop, and whatever would have to wait in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from backend.callers import API, Caller, batch
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.context import Context
from gradspectra_backend.promptness import REST_SECONDS, SLOW_SECONDS, Promptness
from gradspectra_backend.routes import records
from gradspectra_backend.settings import load_settings
from gradspectra_core.jsonform import batch_to_json
from gradspectra_store.ingest import ingest

Places = list[str]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    """Where each batch was stored: "loop" or "lane"."""
    found: Places = []

    def noting(*arguments: Any) -> Any:
        name = threading.current_thread().name
        found.append("lane" if name.startswith("gradspectra-ingest") else "loop")
        return ingest(*arguments)

    monkeypatch.setattr(records, "ingest", noting)
    return found


@pytest.fixture(params=["NORMAL"])
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    """A server whose own threads rest, so that no other writer is in the way but a test's own."""
    app = create_app(load_settings(data=tmp_path, sqlite_synchronous=request.param))
    with TestClient(app, base_url="http://127.0.0.1:7117") as client:
        app.state.context.dispatcher.stop()
        yield Caller(client)


def test_a_short_batch_is_stored_in_the_event_loop(caller: Caller, places: Places) -> None:
    run = caller.start()
    assert caller.must_send(run["id"], batch(run["session"], 1, [1]))["status"] == "stored"
    assert places == ["loop"]


def test_a_long_batch_and_one_in_json_are_stored_in_a_thread(
    caller: Caller, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = caller.start()
    body = orjson.dumps(batch_to_json(batch(run["session"], 1, [1])), option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"Content-Type": "application/json"}
    assert caller.client.post(f"{API}/runs/{run['id']}/records", content=body, headers=headers).status_code == 200
    monkeypatch.setattr(records, "AT_ONCE_BYTES", 100)
    assert caller.must_send(run["id"], batch(run["session"], 2, [2]))["status"] == "stored"
    assert places == ["lane", "lane"]


@pytest.mark.parametrize("caller", ["FULL"], indirect=True)
def test_where_a_commit_waits_for_the_disk_it_does_so_in_a_thread(caller: Caller, places: Places) -> None:
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1]))
    assert places == ["lane"]


def test_where_a_commit_is_told_over_the_network_that_is_done_in_a_thread(caller: Caller, places: Places) -> None:
    context = context_of(caller)
    context.settings = context.settings.model_copy(update={"redis_url": "redis://nowhere"})
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1]))
    assert places == ["lane"]


def test_while_another_writes_a_batch_waits_in_a_thread_and_the_server_answers(caller: Caller, places: Places) -> None:
    run = caller.start()
    answers: list[Any] = []
    sending = threading.Thread(
        target=lambda: answers.append(caller.must_send(run["id"], batch(run["session"], 1, [1])))
    )
    with context_of(caller).store.write():
        sending.start()
        sending.join(1.0)
        assert caller.get(f"/runs/{run['id']}")["last_step"] == 0
        assert not answers
    sending.join(120)
    assert (answers[0]["last_step"], places) == (1, ["lane"])


def test_after_a_slow_store_batches_are_stored_in_a_thread_for_a_while(caller: Caller, places: Places) -> None:
    now = [100.0]
    context_of(caller).promptness = Promptness(lambda: now[0])
    store = records.ingest

    def slow(*arguments: Any) -> Any:
        now[0] += 2 * SLOW_SECONDS
        return store(*arguments)

    run = caller.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "ingest", slow)
        caller.must_send(run["id"], batch(run["session"], 1, [1]))
    caller.must_send(run["id"], batch(run["session"], 2, [2]))
    assert places == ["loop", "lane"]
    now[0] += REST_SECONDS
    caller.must_send(run["id"], batch(run["session"], 3, [3]))
    assert places == ["loop", "lane", "loop"]


def test_a_store_that_fails_slowly_counts_too() -> None:
    now = iter([0.0, SLOW_SECONDS, SLOW_SECONDS])
    promptness = Promptness(lambda: next(now))
    with suppress(OSError), promptness.timed():
        raise OSError("full")
    assert not promptness.good


def test_news_are_read_in_a_thread_and_come_with_the_answer(caller: Caller, places: Places) -> None:
    run = caller.start()
    seen: Places = []
    news = context_of(caller).news
    wrapped = news.news

    def noting(*arguments: Any) -> Any:
        seen.append(threading.current_thread().name)
        return wrapped(*arguments)

    news.news = noting  # type: ignore[method-assign]
    for sequence in (1, 2):
        caller.must_send(run["id"], batch(run["session"], sequence, [sequence]))
    assert [name.startswith("gradspectra-ingest") for name in seen] == [True]  # the first time, and not again
    assert places == ["loop", "loop"]


def context_of(caller: Caller) -> Context:
    found: Context = caller.client.app.state.context  # type: ignore[attr-defined]
    return found
