"""The records call: what is taken once, what is refused whole, and that nothing makes the server fail."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import orjson
import pytest
from backend.callers import API, BINARY, Caller, batch, columns, layer_block, spectrum_block, table
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import load_settings
from gradspectra_core.jsonform import batch_to_json
from gradspectra_core.records import Gap
from gradspectra_core.wire import encode_batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JSON = {"Content-Type": "application/json"}
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def full_batch(session: str, sequence: int = 1, first: int = 1):
    of = table()
    steps = [first, first + 1]
    return batch(
        session,
        sequence,
        steps,
        layer_table=of,
        layers=layer_block(of, steps, grad_sq=[[1.0, 4.0], [9.0, 16.0]]),
        spectra=spectrum_block(of, first, 0, [3.0, 1.0]),
        counts=columns(2, np.int64, tokens=[100, None]),
        loss=[2.0, None],
    )


def test_a_batch_is_stored_and_answered_with_where_it_stands(anywhere: Caller):
    run = anywhere.start()
    assert anywhere.must_send(run["id"], full_batch(run["session"])) == {
        "status": "stored",
        "next_sequence": 2,
        "last_step": 2,
        "alerts": [],
        "stop_at_step": None,
        "viewed": False,
    }
    assert anywhere.get(f"/runs/{run['id']}")["last_step"] == 2


def test_json_and_binary_forms_say_the_same(anywhere: Caller):
    one, other = anywhere.start(name="binary"), anywhere.start(name="json")
    anywhere.must_send(one["id"], full_batch(one["session"]))
    body = orjson.dumps(batch_to_json(full_batch(other["session"])), option=orjson.OPT_SERIALIZE_NUMPY)
    assert anywhere.client.post(f"{API}/runs/{other['id']}/records", content=body, headers=JSON).status_code == 200
    for path in ("/series?names=loss,tokens", "/layers/grad_sq", "/spectra?layer=layers.0.up.weight", "/layers"):
        assert anywhere.get(f"/runs/{one['id']}{path}") == anywhere.get(f"/runs/{other['id']}{path}")


def test_a_repeated_batch_changes_nothing(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1], loss=[1.0]))
    again = anywhere.must_send(run["id"], batch(run["session"], 1, [1], loss=[5.0]))
    assert (again["status"], again["last_step"]) == ("repeated", 1)
    assert anywhere.get(f"/runs/{run['id']}/series")["series"]["loss"]["mean"] == [1.0]


def test_a_gap_in_the_sequence_is_409_with_the_number_expected(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1]))
    answer = anywhere.send(run["id"], batch(run["session"], 3, [3]))
    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/sequence-gap"
    assert (answer.json()["expected"], answer.json()["last_step"]) == (2, 1)
    assert anywhere.get(f"/runs/{run['id']}")["last_step"] == 1


def test_a_batch_for_an_unknown_run_or_session_is_404(anywhere: Caller):
    run = anywhere.start()
    unknown = anywhere.send("nowhere", batch(run["session"], 1, [1]))
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/unknown-run")
    stranger = anywhere.send(run["id"], batch("nobody", 1, [1]))
    assert (stranger.status_code, stranger.json()["type"]) == (404, "/problems/unknown-session")
    other = anywhere.start()
    mixed = anywhere.send(other["id"], batch(run["session"], 1, [1]))
    assert (mixed.status_code, mixed.json()["type"]) == (404, "/problems/unknown-session")


def test_a_bad_batch_is_refused_whole_with_the_field_named(anywhere: Caller):
    run = anywhere.start()
    of = table()
    block = layer_block(of, [1], grad_sq=[[1.0, 2.0]])
    answer = anywhere.send(run["id"], batch(run["session"], 1, [1], layers=block))
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/bad-batch"
    assert answer.json()["field"] == "layers.digest"
    assert anywhere.get(f"/runs/{run['id']}")["last_step"] == 0
    assert anywhere.get(f"/runs/{run['id']}/series")["x"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": [0]}, "steps"),
        ({"steps": [2, 1], "times": [1.0, 2.0], "scalars": {}}, "steps"),
        ({"sequence": 0}, "sequence"),
        ({"scalars": {"loss": [1.0, 2.0]}}, "scalars.loss"),
        ({"scalars": {"loss": ["nan"]}}, "scalars.loss"),
        ({"scalars": {"x" * 600: [1.0]}}, "scalars"),
        ({"counts": {"tokens": [1.5]}}, "counts.tokens"),
        ({"session": None}, "session"),
    ],
)
def test_a_bad_json_batch_names_the_field(caller: Caller, change, field):
    run = caller.start()
    good = {"session": run["session"], "sequence": 1, "complete_through": 1, "steps": [1], "times": [1.0]}
    good |= {"scalars": {"loss": [1.0]}, "counts": {}}
    answer = caller.client.post(f"{API}/runs/{run['id']}/records", json=good | change)
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"].startswith(field)


def test_too_many_layers_are_refused(caller: Caller):
    run = caller.start()
    wide = table([f"layer{index}" for index in range(10_001)])
    answer = caller.send(run["id"], batch(run["session"], 1, [1], layer_table=wide))
    assert (answer.status_code, answer.json()["field"]) == (422, "layer_table")


def test_gzip_is_taken_and_other_encodings_are_415(caller: Caller):
    run = caller.start()
    body = encode_batch(batch(run["session"], 1, [1]))
    path = f"{API}/runs/{run['id']}/records"
    for encoding in ("zstd", "br", "deflate", "gzip, gzip"):
        answer = caller.client.post(path, content=body, headers=BINARY | {"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-encoding")
    taken = caller.client.post(path, content=gzip.compress(body), headers=BINARY | {"Content-Encoding": "gzip"})
    assert taken.json()["status"] == "stored"


def test_another_content_type_is_415_and_says_which_there_are(caller: Caller):
    run = caller.start()
    answer = caller.client.post(f"{API}/runs/{run['id']}/records", content=b"x", headers={"Content-Type": "text/csv"})
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-media-type")
    assert "application/vnd.gradspectra.batch" in answer.json()["detail"]


def test_a_decompression_bomb_is_413_before_it_unfolds(caller: Caller):
    run = caller.start()
    bomb = zlib.compressobj(9, wbits=31)
    body = b"".join(bomb.compress(bytes(2**20)) for _ in range(200)) + bomb.flush()
    assert len(body) < 2**18
    answer = caller.client.post(
        f"{API}/runs/{run['id']}/records", content=body, headers=BINARY | {"Content-Encoding": "gzip"}
    )
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "trailing"])
def test_a_damaged_gzip_body_is_400(caller: Caller, damage):
    run = caller.start()
    whole = gzip.compress(encode_batch(batch(run["session"], 1, [1])))
    body = {"truncated": whole[:-9], "garbage": b"\x1f\x8b" + b"x" * 50, "trailing": whole + b"more"}[damage]
    answer = caller.client.post(
        f"{API}/runs/{run['id']}/records", content=body, headers=BINARY | {"Content-Encoding": "gzip"}
    )
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-body")


def test_a_body_beyond_the_bound_is_413_whether_announced_or_not(tmp_path):
    app = create_app(load_settings(data=tmp_path, max_body=2**16))
    with TestClient(app, base_url="http://127.0.0.1:7117") as client:
        run = Caller(client).start()
        path = f"{API}/runs/{run['id']}/records"
        chunks = (bytes(1000) for _ in range(100))
        for content in (bytes(2**16 + 1), chunks):
            answer = client.post(path, content=content, headers=BINARY)
            assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
        answer = client.post(f"{API}/runs", json={"project": "p", "name": "r", "notes": "x" * 2**16})
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


@FEW
@given(noise=st.binary(max_size=400))
def test_random_bytes_are_a_problem_and_never_a_failure(caller: Caller, noise):
    run = caller.start()["id"]
    for headers in (BINARY, JSON, BINARY | {"Content-Encoding": "gzip"}):
        answer = caller.client.post(f"{API}/runs/{run}/records", content=noise, headers=headers)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


@FEW
@given(data=st.data())
def test_a_truncated_or_flipped_batch_is_never_a_failure(caller: Caller, data):
    run = caller.start()
    whole = encode_batch(full_batch(run["session"]))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    answer = caller.client.post(f"{API}/runs/{run['id']}/records", content=cut, headers=BINARY)
    assert answer.status_code == 422
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    answer = caller.client.post(f"{API}/runs/{run['id']}/records", content=bytes(flipped), headers=BINARY)
    assert answer.status_code < 500, answer.text
    assert caller.client.get(f"{API}/runs/{run['id']}/series").status_code == 200


def test_dropped_ranges_are_listed_as_gaps(anywhere: Caller):
    run = anywhere.start()
    gap = Gap(2, 9, "all", "the spool was full")
    anywhere.must_send(run["id"], batch(run["session"], 1, [1, 10], gaps=(gap,)))
    found = anywhere.get(f"/runs/{run['id']}/gaps")["items"]
    assert [(entry["first"], entry["last"], entry["what"]) for entry in found] == [(2, 9, "all")]


def test_an_alert_is_answered_once_to_the_session_that_sends(anywhere: Caller):
    run = anywhere.start()
    anywhere.must_send(run["id"], batch(run["session"], 1, [1], loss=[float("nan")]))
    anywhere.derived(run["id"], 1)
    answers = [anywhere.must_send(run["id"], batch(run["session"], step, [step])) for step in (2, 3, 4)]
    told = [alert["rule"] for answer in answers for alert in answer["alerts"]]
    assert told == ["nonfinite"]
    beat = anywhere.client.post(f"{API}/runs/{run['id']}/heartbeat", json={"session": run["session"]})
    assert beat.json()["alerts"] == []
