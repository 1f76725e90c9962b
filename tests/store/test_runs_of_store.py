"""Runs from their start to their end: attempts, sessions, states, listing, and the text that is refused."""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
from gradspectra_store import Store
from gradspectra_store.alerts import list_alerts
from gradspectra_store.errors import BadRequest, UnknownRun, UnknownSession
from gradspectra_store.run_views import get_run, list_attempts, list_projects, list_runs
from gradspectra_store.runs import delete_run, finish_run, heartbeat, mark_lost, update_run
from store.batches import TABLE, a_batch, columns, started, stored
from store.test_ingest import dump


def shown(store: Store, run: str) -> dict[str, Any]:
    with store.read() as conn:
        found = get_run(conn, run)
    assert found is not None
    return found


def test_a_new_run_shows_what_was_said_of_it(store: Store) -> None:
    said = {"config": {"lr": 3e-3, "text": "a\x00b"}, "tags": ["b", "a", "b"], "notes": "<b>", "total_steps": 20}
    run = started(store, **said, environment={"torch": "2"})
    assert (run.attempt, run.next_sequence, len(run.run)) == (1, 1, 12)
    assert shown(store, run.run) == {
        "stop_at_step": None,
        "pinned": False,
        "retires_at": None,
        "retired_at": None,
        "id": run.run,
        "project": "p",
        "name": "n",
        "state": "running",
        "health": "ok",
        "attempt": 1,
        "attempt_first_step": 1,
        "attempt_created_at": 1000.0,
        "last_step": 0,
        "total_steps": 20,
        "derived_step": 0,
        "suggestions_step": 0,
        "last_batch": 0,
        "created_at": 1000.0,
        "updated_at": 1000.0,
        "config": {"lr": 3e-3, "text": "a\x00b"},
        "tags": ["a", "b"],
        "notes": "<b>",
        "overhead": None,
        "open_alerts": 0,
        "environment": {"torch": "2"},
        "sparkline": [],
        "last_loss": None,
        "learning_rate": None,
        "step_seconds": None,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "x" * 10_000, "must have 1 to 200 characters, got 10000"),
        ("name", "", "must have 1 to 200 characters, got 0"),
        ("name", "a\x00b", "must not contain the character NUL"),
        ("project", "\ud800", "must be valid Unicode"),
        ("name", 3, "must be text, got 3"),
        ("notes", "x" * 70_000, "must have 0 to 65536 characters"),
        ("config", {"x": "y" * 300_000}, "must be at most 262144 bytes as JSON, got 300009"),
        ("config", {"x": object()}, "must hold plain JSON values only"),
        ("config", [1], "must be an object, got a list"),
        ("tags", ["x" * 201], "must have 1 to 200 characters"),
        ("tags", "ab", "must be a list of texts, got 'ab'"),
        ("start_step", -1, "must be a whole number from 0"),
        ("start_step", 2**63, "must be a whole number from 0"),
        ("total_steps", True, "must be a whole number"),
        ("session_key", "", "must have 1 to 200 characters"),
        ("rank", 1, "joins a run that rank 0 has started"),
    ],
)
def test_a_bad_run_is_refused_and_nothing_is_made(store: Store, field: str, value: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        started(store, **{field: value})
    assert caught.value.field == field
    with store.read() as conn:
        assert list_runs(conn) == ([], None)


def test_the_same_session_key_gives_the_same_session(store: Store) -> None:
    first = started(store, session_key="key")
    stored(store, first.run, a_batch(first.session, 1, [1]))
    again = started(store, session_key="key", resume="auto")
    assert (again.run, again.attempt, again.session, again.next_sequence) == (first.run, 1, first.session, 2)
    assert started(store, session_key="other").run != first.run


def test_a_resumed_run_is_a_new_attempt_from_the_step_after(store: Store) -> None:
    first = started(store, config={"lr": 1}, notes="first", tags=["t"])
    stored(store, first.run, a_batch(first.session, 1, range(1, 11)))
    second = started(store, resume=first.run, start_step=6, now=2000.0)
    run = shown(store, first.run)
    assert (run["attempt_first_step"], run["attempt_created_at"], run["created_at"]) == (7, 2000.0, 1000.0)
    assert (second.run, second.attempt, second.next_sequence) == (first.run, 2, 1)
    assert [run[name] for name in ("attempt", "last_step", "derived_step", "config", "notes", "tags")] == [
        *(2, 6, 0, {"lr": 1}, "first", ["t"])
    ]
    assert run["last_loss"] == 1 / 6
    with store.read() as conn:
        attempts = list_attempts(conn, first.run)
    assert [(item["attempt"], item["first_step"], item["last_step"], item["hidden_from"]) for item in attempts] == [
        (1, 1, 10, 7),
        (2, 7, 6, None),
    ]


def test_auto_resumes_the_newest_run_of_the_name_or_makes_one(store: Store) -> None:
    first = started(store, resume="auto")
    newer = started(store, now=1001.0)
    started(store, name="other", now=1002.0)
    assert first.attempt == 1
    resumed = started(store, resume="auto")
    assert (resumed.run, resumed.attempt) == (newer.run, 2)


def test_a_run_is_resumed_by_the_key_of_a_session_too(store: Store) -> None:
    first = started(store, session_key="key of the job")
    started(store)
    resumed = started(store, resume="key of the job", start_step=3)
    assert (resumed.run, resumed.attempt) == (first.run, 2)


def test_resuming_an_unknown_run_is_refused(store: Store) -> None:
    with pytest.raises(UnknownRun):
        started(store, resume="nosuchrun")


def test_another_rank_does_not_make_the_run_that_it_is_to_join(store: Store) -> None:
    with pytest.raises(BadRequest, match="resume: rank 3 joins a run that rank 0 has started, and there is none yet"):
        started(store, resume="auto", rank=3)


def test_another_rank_joins_the_attempt_in_a_session_of_its_own(store: Store) -> None:
    first = started(store)
    other = started(store, resume=first.run, rank=1)
    assert (other.run, other.attempt) == (first.run, 1)
    stored(store, first.run, a_batch(other.session, 1, [1], scalars=columns({"loss": [5.0]}, 1)))
    assert shown(store, first.run)["last_loss"] is None


def test_rank_0_of_the_present_attempt_ends_the_run(store: Store) -> None:
    first = started(store)
    other = started(store, resume=first.run, rank=1)
    second = started(store, resume=first.run)
    states = []
    for session, state in ((other.session, "failed"), (first.session, "failed"), (second.session, "finished")):
        with store.write() as conn:
            finish_run(conn, first.run, session, state, 1005.0)
        states.append(shown(store, first.run)["state"])
    assert states == ["running", "running", "finished"]
    with store.write() as conn, pytest.raises(BadRequest, match="must be finished or failed, got 'done'"):
        finish_run(conn, first.run, first.session, "done", 1005.0)
    with store.write() as conn, pytest.raises(UnknownSession):
        finish_run(conn, first.run, "nosuch", "failed", 1005.0)


def test_a_silent_run_is_lost_and_lives_again_with_a_heartbeat_or_a_batch(store: Store) -> None:
    run, ended = started(store), started(store)
    with store.write() as conn:
        finish_run(conn, ended.run, ended.session, "finished", 1000.0)
        assert mark_lost(conn, 1059.0) == []
        assert mark_lost(conn, 1061.0) == [run.run]
        assert mark_lost(conn, 1061.0) == []
    assert shown(store, run.run)["state"] == "lost"
    with store.write() as conn:
        heartbeat(conn, run.run, run.session, 0.0125, 1062.0)
        assert mark_lost(conn, 1063.0) == []
    assert [shown(store, run.run)[name] for name in ("state", "overhead", "updated_at")] == ["running", 0.0125, 1062.0]
    with store.write() as conn:
        assert mark_lost(conn, 2000.0) == [run.run]
    stored(store, run.run, a_batch(run.session, 1, [1]), now=2001.0)
    assert shown(store, run.run)["state"] == "running"


def test_an_overhead_that_is_no_number_is_not_kept(store: Store) -> None:
    run = started(store)
    for overhead in (math.nan, math.inf, None):
        with store.write() as conn:
            heartbeat(conn, run.run, run.session, overhead, 1001.0)
    assert shown(store, run.run)["overhead"] is None
    with store.write() as conn, pytest.raises(UnknownSession):
        heartbeat(conn, run.run, "nosuch", None, 1001.0)


def test_a_deleted_run_leaves_nothing(store: Store) -> None:
    empty = dump(store)
    run = started(store, tags=["t"])
    stored(store, run.run, a_batch(run.session, 1, [1], layer_table=TABLE))
    with store.write() as conn:
        delete_run(conn, run.run)
    assert dump(store) == empty
    with store.write() as conn, pytest.raises(UnknownRun):
        delete_run(conn, run.run)


def test_a_run_can_be_changed_but_not_what_it_measured(store: Store) -> None:
    run = started(store, tags=["old"])
    with store.write() as conn:
        update_run(conn, run.run, name="new", notes="", tags=["x"], total_steps=None)
    assert [shown(store, run.run)[name] for name in ("name", "notes", "tags", "total_steps")] == [
        "new",
        "",
        ["x"],
        None,
    ]
    with store.write() as conn, pytest.raises(BadRequest, match="state: cannot be changed"):
        update_run(conn, run.run, state="finished")
    with store.write() as conn, pytest.raises(BadRequest, match="name: must have 1 to 200"):
        update_run(conn, run.run, name="")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["c%", "B", "a"]),
        ({"order": "created_at"}, ["a", "B", "c%"]),
        ({"order": "-last_step"}, ["B", "c%", "a"]),
        ({"project": "q"}, ["c%"]),
        ({"state": "running"}, ["c%", "a"]),
        ({"health": "critical"}, []),
        ({"tag": "t"}, ["a"]),
        ({"tag": "T"}, []),
        ({"search": "b"}, ["B"]),
        ({"search": "%"}, ["c%"]),
        ({"search": "from disk"}, ["a"]),
    ],
)
def test_runs_are_filtered_and_ordered(store: Store, filters: Mapping[str, str], names: list[str]) -> None:
    started(store, name="a", tags=["t", "u"], notes="Resumed FROM DISK", now=1.0)
    second = started(store, name="B", now=2.0)
    stored(store, second.run, a_batch(second.session, 1, [9]))
    with store.write() as conn:
        finish_run(conn, second.run, second.session, "finished", 5.0)
    third = started(store, name="c%", project="q", now=3.0)
    stored(store, third.run, a_batch(third.session, 1, [4]))
    with store.read() as conn:
        items, following = list_runs(conn, **filters)  # type: ignore[arg-type]
    assert ([item["name"] for item in items], following) == (names, None)


@pytest.mark.parametrize("order", ["created_at", "-created_at", "name", "-last_step", "-open_alerts"])
def test_pages_give_every_run_once_also_while_new_ones_come(store: Store, order: str) -> None:
    ids = {started(store, name=f"n{at % 3}", now=float(at // 2)).run for at in range(7)}
    seen, cursor = [], None
    while True:
        with store.read() as conn:
            items, cursor = list_runs(conn, order=order, limit=2, cursor=cursor)
        seen += [item["id"] for item in items]
        started(store, now=5000.0, name="zzz")
        if cursor is None or len(seen) > 20:
            break
    assert sorted(seen)[:7] != []
    assert len(set(seen)) == len(seen)
    assert ids <= set(seen)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "A" * 5000, "null", "[]", "[1,2]", '["a","b"]', '["runs.created_at desc",true,"a"]']
    + [f'["runs.created_at desc",{number},"a"]' for number in ("NaN", "1e400", "1" + "0" * 200, "2", '"2"')],
)
def test_a_cursor_that_no_list_gave_is_refused(store: Store, cursor: str) -> None:
    if cursor.startswith(("[", "n")):
        cursor = base64.urlsafe_b64encode(cursor.encode()).decode().rstrip("=")
    with store.read() as conn, pytest.raises(BadRequest, match="cursor: is not one that this list gave"):
        list_runs(conn, cursor=cursor)


def test_a_cursor_goes_on_in_the_order_it_was_given_in_and_no_other(store: Store) -> None:
    for at in range(3):
        started(store, name=f"n{at}", now=float(at))
    with store.read() as conn:
        _, cursor = list_runs(conn, order="-created_at", limit=1)
        assert [run["name"] for run in list_runs(conn, order="-created_at", cursor=cursor)[0]] == ["n1", "n0"]
        for order in ("created_at", "-updated_at", "name"):
            with pytest.raises(BadRequest, match="cursor: is not one that this list gave"):
                list_runs(conn, order=order, cursor=cursor)
        with pytest.raises(BadRequest, match="cursor: is not one that this list gave"):
            list_alerts(conn, cursor=cursor)


@pytest.mark.parametrize("order", ["created_at", "-created_at", "name", "-name"])
def test_runs_that_come_and_go_between_pages_shift_none_of_the_others(store: Store, order: str) -> None:
    rng = random.Random(order)
    staying = {started(store, name=f"n{rng.randrange(5)}", now=float(rng.randrange(20))).run for _ in range(15)}
    going = [started(store, name=f"n{rng.randrange(5)}", now=float(rng.randrange(20))).run for _ in range(15)]
    seen: list[str] = []
    cursor: str | None = None
    while len(seen) < 100:
        with store.read() as conn:
            items, cursor = list_runs(conn, order=order, limit=3, cursor=cursor)
        seen += [item["id"] for item in items]
        if cursor is None:
            break
        gone = items[-1]["id"] if items[-1]["id"] in going else going[-1]  # the one that the cursor names, where it may
        with store.write() as conn:
            delete_run(conn, gone)
        going.remove(gone)
        going.append(started(store, name=f"n{rng.randrange(5)}", now=float(rng.randrange(20))).run)
    assert cursor is None
    assert len(set(seen)) == len(seen)
    assert staying <= set(seen)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"order": "notes"}, "order"), ({"limit": 0}, "limit"), ({"limit": 10**9}, "limit"), ({"tag": "\x00"}, "tag")],
)
def test_a_bad_question_for_runs_is_refused(store: Store, wrong: dict[str, Any], field: str) -> None:
    with store.read() as conn, pytest.raises(BadRequest) as caught:
        list_runs(conn, **wrong)
    assert caught.value.field == field


def test_projects_are_counted(store: Store) -> None:
    started(store, now=5.0)
    ended = started(store, now=6.0)
    started(store, project="a")
    with store.write() as conn:
        finish_run(conn, ended.run, ended.session, "failed", 7.0)
    with store.read() as conn:
        assert list_projects(conn) == [
            {"project": "a", "runs": 1, "running": 1, "updated_at": 1000.0},
            {"project": "p", "runs": 2, "running": 1, "updated_at": 7.0},
        ]


def test_the_sparkline_spans_the_run_in_at_most_60_points(store: Store) -> None:
    run = started(store)
    for sequence in range(20):
        steps = range(sequence * 50 + 1, sequence * 50 + 51)
        stored(store, run.run, a_batch(run.session, sequence + 1, steps))
    line = shown(store, run.run)["sparkline"]
    assert 30 <= len(line) <= 60
    assert line[-1] == 1 / 1000
    assert line == sorted(line, reverse=True)
    assert line[0] == 1 / 31  # the last loss of the bucket of steps 1 to 31


def test_the_newest_learning_rate_and_the_median_step_time_of_the_newest_batch_are_kept(store: Store) -> None:
    run = started(store)
    said = {"learning_rate": [0.5, 0.25, 0.125], "step_seconds": [0.3, 9.0, 0.2]}
    stored(store, run.run, a_batch(run.session, 1, [1, 2, 3], scalars=columns(said, 3)))
    found = shown(store, run.run)
    assert (found["learning_rate"], found["step_seconds"], found["sparkline"]) == (0.125, 0.3, [])
    stored(store, run.run, a_batch(run.session, 2, [4], scalars=columns({"loss": [7.0]}, 1)))
    found = shown(store, run.run)
    assert (found["learning_rate"], found["step_seconds"], found["sparkline"]) == (0.125, 0.3, [7.0])
    stored(store, run.run, a_batch(run.session, 3, [5], scalars=columns({"loss": [6.0], "learning_rate": [0.1]}, 1)))
    found = shown(store, run.run)
    assert (found["learning_rate"], found["step_seconds"], found["sparkline"]) == (0.1, 0.3, [7.0, 6.0])
    started(store, resume=run.run, start_step=4)
    found = shown(store, run.run)
    assert (found["learning_rate"], found["step_seconds"], found["sparkline"]) == (None, None, [7.0])


def test_a_loss_that_is_not_finite_is_in_the_sparkline(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1, 2], scalars=columns({"loss": [math.inf, math.nan]}, 2)))
    line = shown(store, run.run)["sparkline"]
    assert line[0] == math.inf
    assert math.isnan(line[1])
