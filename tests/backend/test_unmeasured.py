"""What a job says that it does not measure: kept with its attempt, as rank 0 said it last."""

from __future__ import annotations

import pytest
from backend.callers import API, Caller

WHY = ["no spectrum of a: it is not one matrix", "updates of β are not known"]


def said(caller: Caller, run: str) -> list[tuple[list[str], int]]:
    return [(a["not_measured"], a["norms_that_disagreed"]) for a in caller.get(f"/runs/{run}/attempts")["items"]]


def beat(caller: Caller, run: dict, **members):
    return caller.client.post(f"{API}/runs/{run['id']}/heartbeat", json={"session": run["session"], **members})


def test_each_attempt_has_what_its_rank_0_said_last(anywhere: Caller):
    run = anywhere.start()
    assert said(anywhere, run["id"]) == [([], 0)]
    assert beat(anywhere, run, not_measured=WHY, norms_that_disagreed=3).status_code == 200
    assert beat(anywhere, run, overhead=0.01).status_code == 200
    assert said(anywhere, run["id"]) == [(WHY, 3)], "a heartbeat without it changes nothing"
    other = anywhere.start(resume=run["id"], rank=1)
    assert beat(anywhere, other, not_measured=["rank 1 measures nothing"]).status_code == 200
    assert said(anywhere, run["id"]) == [(WHY, 3)]
    newer = anywhere.start(resume=run["id"], start_step=7)
    assert beat(anywhere, newer, not_measured=WHY[:1]).status_code == 200
    assert said(anywhere, run["id"])[0] == (WHY, 3)
    assert said(anywhere, run["id"])[-1] == (WHY[:1], 0)
    assert beat(anywhere, newer, not_measured=[]).status_code == 200
    assert said(anywhere, run["id"])[-1] == ([], 0)
    assert anywhere.client.delete(f"{API}/runs/{run['id']}").status_code == 204


@pytest.mark.parametrize(
    ("members", "field", "told"),
    [
        ({"not_measured": ["x"] * 101}, "not_measured", "must have at most 100 sentences, got 101"),
        ({"not_measured": ["x" * 501]}, "not_measured", "must have 1 to 500 characters, got 501"),
        ({"not_measured": ["a\x00b"]}, "not_measured", ""),
        ({"not_measured": [], "norms_that_disagreed": -1}, "norms_that_disagreed", "from 0 to"),
        ({"not_measured": "text"}, "not_measured", ""),
    ],
)
def test_what_is_no_such_thing_is_refused_and_named(caller: Caller, members, field, told):
    run = caller.start()
    refused = beat(caller, run, **members)
    assert refused.status_code == 422, refused.text
    assert refused.json()["field"] == field
    assert told in refused.json()["detail"]
    assert said(caller, run["id"]) == [([], 0)]
