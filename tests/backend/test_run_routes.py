"""Runs through the door: made, listed, changed, resumed, finished, deleted."""

from __future__ import annotations

import json

import httpx2
import pytest
from backend.callers import API, Caller, batch


def test_a_run_is_made_with_everything_the_sender_needs(anywhere: Caller):
    answer = anywhere.client.post(
        f"{API}/runs", json={"project": "p", "name": "r", "config": {"lr": 0.1}, "tags": ["a"]}
    )
    assert answer.status_code == 201
    started = answer.json()
    assert answer.headers["location"] == f"/api/v1/runs/{started['id']}"
    assert started["url"] == f"http://127.0.0.1:7117/runs/{started['id']}"
    assert (started["attempt"], started["next_sequence"]) == (1, 1)
    run = anywhere.get(f"/runs/{started['id']}")
    assert (run["project"], run["name"], run["state"], run["health"]) == ("p", "r", "running", "ok")
    assert (run["config"], run["tags"], run["last_step"], run["derived_step"]) == ({"lr": 0.1}, ["a"], 0, 0)


def test_the_name_may_be_called_run_or_left_out(caller: Caller):
    named = caller.client.post(f"{API}/runs", json={"project": "p", "run": "mine"}).json()
    unnamed = caller.client.post(f"{API}/runs", json={"project": "p"}).json()
    assert caller.get(f"/runs/{named['id']}")["name"] == "mine"
    assert caller.get(f"/runs/{unnamed['id']}")["name"].startswith("run 20")


def test_special_numbers_and_huge_ones_in_a_configuration_come_back(anywhere: Caller):
    config = '{"a": NaN, "b": [Infinity], "c": 36893488147419103232, "d": "\\u0000"}'
    body = f'{{"project": "p", "name": "r", "config": {config}}}'
    started = anywhere.client.post(f"{API}/runs", content=body, headers={"Content-Type": "application/json"})
    assert started.status_code == 201
    stored = anywhere.get(f"/runs/{started.json()['id']}")["config"]
    assert stored == {"a": "NaN", "b": ["Infinity"], "c": "36893488147419103232", "d": "\x00"}


def test_a_configuration_that_could_not_be_answered_again_is_refused_or_mended(anywhere: Caller):
    def made(config: str) -> httpx2.Response:
        body = f'{{"project": "p", "name": "r", "config": {config}}}'
        return anywhere.client.post(f"{API}/runs", content=body, headers={"Content-Type": "application/json"})

    for levels in (101, 300, 600):
        refused = made('{"a":' * levels + "1" + "}" * levels)
        assert (refused.status_code, refused.json()["field"]) == (422, "config"), levels
    assert made('{"a":' + "[" * 99 + "]" * 99 + "}").status_code == 201
    assert made('{"\\ud800": "\\udcff.txt"}').status_code == 201
    mended, deep = anywhere.get("/runs")["items"]
    assert mended["config"] == {"?": "?.txt"}
    assert json.dumps(deep["config"]) == '{"a": ' + "[" * 99 + "]" * 99 + "}"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "x" * 10_000}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": 5}, "name"),
        ({"project": "x" * 10_000}, "project"),
        ({"tags": ["t" * 10_000]}, "tags"),
        ({"tags": "one"}, "tags"),
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": 2**63}, "total_steps"),
        ({"start_step": -1}, "start_step"),
        ({"config": [1]}, "config"),
        ({"config": {"a": "x" * 300_000}}, "config"),
        ({"notes": "x" * 100_000}, "notes"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_made(caller: Caller, change, field):
    answer = caller.client.post(f"{API}/runs", json={"project": "p", "name": "r"} | change)
    problem = answer.json()
    assert answer.status_code == problem["status"] == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == "/problems/bad-request"
    assert problem["field"].startswith(field)
    assert problem["remedy"]
    assert caller.get("/runs")["items"] == []


def test_a_member_that_nobody_knows_is_named_in_short(caller: Caller):
    run = caller.start()
    refused = caller.client.patch(f"{API}/runs/{run['id']}", json={"x" * 100_000: 1})
    assert (refused.status_code, refused.json()["field"]) == (422, "x" * 200 + "…")
    assert len(refused.content) < 1000


def test_markup_in_a_name_is_kept_as_text_and_served_as_json(caller: Caller):
    name = "<script>alert(1)</script>&amp;"
    run = caller.start(name=name)
    answer = caller.client.get(f"{API}/runs/{run['id']}")
    assert answer.json()["name"] == name
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_that_is_not_json_is_a_problem_and_no_failure(caller: Caller):
    json = {"Content-Type": "application/json"}
    for body in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"project": "\\ud800", "name": "r"}', b"null", b"[]"):
        answer = caller.client.post(f"{API}/runs", content=body, headers=json)
        assert answer.status_code in (400, 422), body[:40]
        assert answer.headers["content-type"] == "application/problem+json"


def test_runs_are_filtered_ordered_and_paged(anywhere: Caller):
    for index in range(5):
        anywhere.start(project="even" if index % 2 == 0 else "odd", name=f"run {index}", tags=[f"t{index}"])
    names = [run["name"] for run in anywhere.get("/runs", order="name")["items"]]
    assert names == [f"run {index}" for index in range(5)]
    assert [run["name"] for run in anywhere.get("/runs", project="odd", order="-name")["items"]] == ["run 3", "run 1"]
    assert [run["name"] for run in anywhere.get("/runs", tag="t2")["items"]] == ["run 2"]
    assert [run["name"] for run in anywhere.get("/runs", search="RUN 4")["items"]] == ["run 4"]
    first = anywhere.get("/runs", order="name", limit=3)
    second = anywhere.get("/runs", order="name", limit=3, cursor=first["next"])
    assert [run["name"] for run in first["items"] + second["items"]] == names
    assert second["next"] is None
    projects = anywhere.get("/projects")["items"]
    assert [(project["project"], project["runs"]) for project in projects] == [("even", 3), ("odd", 2)]


def test_a_broken_cursor_and_an_unknown_order_are_refused(caller: Caller):
    for params in ({"cursor": "x"}, {"order": "color"}, {"limit": 0}, {"state": "asleep"}):
        answer = caller.client.get(f"{API}/runs", params=params)
        assert answer.status_code == 422
        assert answer.json()["field"] == next(iter(params))


def test_tags_and_notes_are_changed_and_other_fields_refused(anywhere: Caller):
    run = anywhere.start()["id"]
    changed = anywhere.client.patch(f"{API}/runs/{run}", json={"tags": ["b", "a"], "notes": "better"})
    assert changed.status_code == 200
    assert (changed.json()["tags"], changed.json()["notes"], changed.json()["name"]) == (["a", "b"], "better", "r")
    for wrong in ({"state": "running"}, {"state": None}, {"health": "ok"}):
        refused = anywhere.client.patch(f"{API}/runs/{run}", json=wrong)
        assert (refused.status_code, refused.json()["field"]) == (422, next(iter(wrong)))


def test_a_run_whose_job_is_gone_is_ended_from_outside(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2]))
    path = f"{API}/runs/{run['id']}"
    ended = anywhere.client.patch(path, json={"state": "failed", "notes": "the machine was switched off"})
    assert (ended.status_code, ended.json()["state"]) == (200, "failed")
    assert anywhere.get(f"/runs/{run['id']}")["notes"] == "the machine was switched off"
    anywhere.must_send(run["id"], batch(run["session"], 2, [3]))
    anywhere.client.post(f"{path}/heartbeat", json={"session": run["session"]})
    still = anywhere.derived(run["id"], 3)
    assert (still["state"], still["last_step"]) == ("failed", 3)
    finished = anywhere.client.patch(path, json={"state": "finished"})
    assert finished.json()["state"] == "finished"
    assert anywhere.client.patch(f"{API}/runs/nowhere", json={"state": "failed"}).status_code == 404


def test_a_job_is_asked_to_stop_until_it_is_resumed(anywhere: Caller):
    run = anywhere.start()
    path = f"{API}/runs/{run['id']}"

    def asked(of: dict, sequence: int) -> tuple:
        stored = anywhere.must_send(run["id"], batch(of["session"], sequence, [10 + sequence]))
        repeated = anywhere.must_send(run["id"], batch(of["session"], sequence, [10 + sequence]))
        beat = anywhere.client.post(f"{path}/heartbeat", json={"session": of["session"]}).json()
        return stored["stop_at_step"], repeated["stop_at_step"], beat["stop_at_step"]

    assert asked(run, 1) == (None, None, None)
    assert anywhere.client.patch(path, json={"stop_at_step": 70}).json()["stop_at_step"] == 70
    assert asked(run, 2) == (70, 70, 70)
    assert anywhere.client.patch(path, json={"stop_at_step": None}).json()["stop_at_step"] is None
    assert asked(run, 3) == (None, None, None)
    assert anywhere.client.patch(path, json={"stop_at_step": -1}).json()["field"] == "stop_at_step"
    anywhere.client.patch(path, json={"stop_at_step": 80})
    again = anywhere.start(resume=run["id"], start_step=9)
    assert asked(again, 1) == (None, None, None)
    anywhere.client.patch(path, json={"stop_at_step": 90})
    assert asked(run, 4) == (None, None, None)


def test_a_deleted_run_is_gone_with_all_it_had(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2]))
    assert anywhere.client.delete(f"{API}/runs/{run['id']}").status_code == 204
    for path in ("", "/series", "/layers", "/alerts", "/attempts", "/figures/loss", "/suggestions", "/gaps"):
        answer = anywhere.client.get(f"{API}/runs/{run['id']}{path}")
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/unknown-run"
    assert anywhere.client.delete(f"{API}/runs/{run['id']}").status_code == 404


def test_a_finished_run_says_so_and_a_resumed_one_runs_again(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2, 3]))
    ended = anywhere.client.post(f"{API}/runs/{run['id']}/finish", json={"session": run["session"], "state": "failed"})
    assert ended.json() == {"id": run["id"], "state": "failed", "last_step": 3}
    again = anywhere.start(resume="auto", start_step=2)
    assert (again["id"], again["attempt"]) == (run["id"], 2)
    assert anywhere.get(f"/runs/{run['id']}")["state"] == "running"
    attempts = anywhere.get(f"/runs/{run['id']}/attempts")["items"]
    assert [(entry["attempt"], entry["first_step"], entry["hidden_from"]) for entry in attempts] == [
        (1, 1, 3),
        (2, 3, None),
    ]


def test_the_newer_attempt_hides_the_older_from_its_first_step(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 2, 3], loss=[1.0, 2.0, 3.0]))
    again = anywhere.start(resume=run["id"], start_step=2)
    anywhere.must_send(run["id"], batch(again["session"], 1, [3], loss=[30.0]))
    assert anywhere.get(f"/runs/{run['id']}/series", names="loss")["series"]["loss"]["mean"] == [1.0, 2.0, 30.0]
    old = anywhere.get(f"/runs/{run['id']}/series", names="loss", attempt=1)
    assert old["series"]["loss"]["mean"] == [1.0, 2.0, 3.0]


def test_a_heartbeat_keeps_the_overhead(anywhere: Caller):
    run = anywhere.start()
    answer = anywhere.client.post(
        f"{API}/runs/{run['id']}/heartbeat", json={"session": run["session"], "overhead": 0.007}
    )
    assert answer.json() == {"alerts": [], "stop_at_step": None, "viewed": False}
    assert anywhere.get(f"/runs/{run['id']}")["overhead"] == 0.007


@pytest.mark.parametrize("overhead", ["NaN", "Infinity", "-Infinity", None])
def test_a_heartbeat_with_no_usable_overhead_still_counts(caller: Caller, overhead):
    run = caller.start()
    answer = caller.client.post(
        f"{API}/runs/{run['id']}/heartbeat", json={"session": run["session"], "overhead": overhead}
    )
    assert answer.status_code == 200
    assert caller.get(f"/runs/{run['id']}")["overhead"] is None


@pytest.mark.parametrize("call", ["heartbeat", "finish"])
def test_a_session_or_run_that_is_not_there_is_named(anywhere: Caller, call):
    run = anywhere.start()["id"]
    nobody = anywhere.client.post(f"{API}/runs/{run}/{call}", json={"session": "nobody"})
    assert nobody.status_code == 404
    assert nobody.json()["type"] == "/problems/unknown-session"
    nowhere = anywhere.client.post(f"{API}/runs/nowhere/{call}", json={"session": "nobody"})
    assert nowhere.json()["type"] == "/problems/unknown-run"


def test_an_unknown_address_and_method_are_problems(caller: Caller):
    missing = caller.client.get(f"{API}/nothing")
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/not-found")
    wrong = caller.client.put(f"{API}/runs", json={})
    assert (wrong.status_code, wrong.json()["type"]) == (405, "/problems/method-not-allowed")
    nul = caller.client.get(f"{API}/runs?project=%00")
    assert (nul.status_code, nul.json()["type"]) == (400, "/problems/malformed-body")
