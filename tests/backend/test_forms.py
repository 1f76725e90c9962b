"""The forms of an answer say the same, special numbers and missing ones included; what has not changed is not sent."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from backend.callers import API, Caller, batch, columns, layer_block, table
from gradspectra_backend.forms import ARRAYS, ARROW
from gradspectra_core.container import unpack

LOSS = [1.0, math.nan, math.inf, None, -math.inf]
NAMES = ("layers.0.up.weight", "layers.1.up.weight")


@pytest.fixture(scope="module")
def caller(shared_caller: Caller) -> Caller:
    """One server for all tests here; each run is its own."""
    return shared_caller


@pytest.fixture(scope="module")
def run(caller: Caller) -> str:
    """A run of five steps with every kind of number."""
    run = caller.start(total_steps=10)
    of = table(NAMES)
    block = layer_block(of, [1, 2], weight_sq=[[1.0, math.nan], [math.inf, -math.inf]])
    steps = [1, 2, 3, 4, 5]
    counts = columns(5, np.int64, tokens=[10, 10, 10, 20, 30])
    times = {"step_seconds": [0.5, 0.5, 1.0, 1.0, 2.0], "step": [0.0] * 5}
    caller.must_send(
        run["id"], batch(run["session"], 1, steps, layer_table=of, layers=block, counts=counts, loss=LOSS, **times)
    )
    caller.derived(run["id"], 5)
    return str(run["id"])


def asked(caller: Caller, path: str, form: str, **params: Any) -> Any:
    answer = caller.client.get(API + path, params=params, headers={"Accept": form})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == form
    return answer


def test_the_binary_form_keeps_special_numbers_and_says_what_is_missing(caller: Caller, run: str):
    meta, blocks = unpack(asked(caller, f"/runs/{run}/series", ARRAYS, names="loss,step").content)
    assert (meta["kind"], meta["axis"], meta["names"]) == ("series", "step", ["loss", "step"])
    assert blocks["place.step"].tolist() == [1, 2, 3, 4, 5]
    present = np.unpackbits(blocks["present"], count=10, bitorder="little")
    assert present.tolist() == [1, 1, 1, 0, 1, *[1] * 5]
    for part in ("mean", "min", "max", "last"):
        np.testing.assert_array_equal(blocks[part][0][present[:5] == 1], [1.0, math.nan, math.inf, -math.inf])
    assert blocks["nonfinite"].tolist() == [[0, 1, 1, 0, 1], [0] * 5]
    meta, blocks = unpack(asked(caller, f"/runs/{run}/layers/weight_sq", ARRAYS).content)
    assert (meta["kind"], meta["statistic"], meta["layers"], meta["depths"]) == (
        "layers",
        "weight_sq",
        list(NAMES),
        [0, 1],
    )
    np.testing.assert_array_equal(blocks["mean"], [[1.0, math.inf], [math.nan, -math.inf]])
    assert "present" not in blocks


def test_an_arrow_stream_keeps_special_numbers_apart_from_missing_ones(caller: Caller, run: str):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
    answer = asked(caller, f"/runs/{run}/series", ARROW, names="loss,step", axis="tokens")
    found = pyarrow.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert found.column_names[:3] == ["step", "tokens", "loss"]
    assert found["step"].to_pylist() == [1, 2, 3, 4, 5]
    assert found["tokens"].to_pylist() == [10.0, 20.0, 30.0, 50.0, 80.0]
    for name in ("loss", "loss_min", "loss_max", "loss_last"):
        values = found[name].to_pylist()
        assert math.isnan(values[1])
        assert [values[at] for at in (0, 2, 3, 4)] == [1.0, math.inf, None, -math.inf]
    assert found["step_mean"].to_pylist() == [0.0] * 5
    answer = asked(caller, f"/runs/{run}/layers/weight_sq", ARROW)
    found = pyarrow.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert found["layer"].to_pylist() == [NAMES[0], NAMES[0], NAMES[1], NAMES[1]]
    assert found["step"].to_pylist() == [1, 2, 1, 2]
    assert str(found["mean"].to_pylist()) == "[1.0, inf, nan, -inf]"
    assert found.schema.metadata == {b"statistic": b"weight_sq", b"damaged": b"[]", b"retired": b"[]"}


def test_an_empty_answer_has_every_form(caller: Caller):
    run = caller.start()["id"]
    assert unpack(asked(caller, f"/runs/{run}/series", ARRAYS).content)[1]["mean"].size == 0
    assert unpack(asked(caller, f"/runs/{run}/layers/weight_sq", ARRAYS).content)[1]["mean"].size == 0
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
    assert asked(caller, f"/runs/{run}/series", ARROW).content
    assert asked(caller, f"/runs/{run}/layers/weight_sq", ARROW).content


def test_the_preferred_form_is_answered_and_an_unknown_one_refused(caller: Caller, run: str, monkeypatch):
    address = f"{API}/runs/{run}/series"

    def form(accept: str) -> str:
        return caller.client.get(address, headers={"Accept": accept}).headers["content-type"]

    assert form("text/html,*/*;q=0.8") == "application/json"
    assert form(f"application/json;q=0.5, {ARRAYS}") == ARRAYS
    assert form(f"{ARRAYS};q=0, application/json;q=nonsense, application/*;q=0.1") == "application/json"
    assert form("") == "application/json"
    assert form(f"text/csv;q=0.9, {ARRAYS};q=0.1") == ARRAYS
    lines = [("Accept", "text/csv"), ("Accept", ARRAYS)]
    assert caller.client.get(address, headers=lines).headers["content-type"] == ARRAYS
    refused = caller.client.get(address, headers={"Accept": "text/csv"}).json()
    assert (refused["status"], refused["type"]) == (406, "/problems/not-acceptable")
    assert ARROW in refused["detail"]
    monkeypatch.setattr("gradspectra_backend.forms.find_spec", lambda _: None)
    missing = caller.client.get(address, headers={"Accept": ARROW}).json()
    assert missing["status"] == 406
    assert "pip install 'gradspectra[export]'" in missing["remedy"]


@pytest.mark.parametrize("path", ["series", "layers/weight_sq", "spectra?layer=layers.0.up.weight"])
def test_what_the_caller_has_is_not_sent_again_until_it_changes(caller: Caller, run: str, path: str):
    address = f"{API}/runs/{run}/{path}"
    first = caller.client.get(address)
    tag = first.headers["etag"]
    again = caller.client.get(address, headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert again.headers["cache-control"] == "private, no-cache"
    assert "Accept" in again.headers["vary"]
    for known, status in (
        ("*", 304),
        (f" {tag} ", 304),
        (f'"a,b",{tag}', 304),
        ('"other"', 200),
        (tag[1:-1], 200),
        ("", 200),
    ):
        assert caller.client.get(address, headers={"If-None-Match": known}).status_code == status, known
    lines = [("If-None-Match", '"other"'), ("If-None-Match", tag)]
    assert caller.client.get(address, headers=lines).status_code == 304
    assert caller.client.get(address, headers={"If-None-Match": '"other"'}).content == first.content
    if not path.startswith("spectra"):
        binary = caller.client.get(address, headers={"If-None-Match": tag, "Accept": ARRAYS})
        assert (binary.status_code, binary.headers["etag"] == tag) == (200, False)


def test_an_etag_changes_with_the_run(caller: Caller):
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1], loss=[1.0]))
    address = f"{API}/runs/{run['id']}/series"
    tag = caller.client.get(address).headers["etag"]
    caller.must_send(run["id"], batch(run["session"], 2, [2], loss=[1.0]))
    assert caller.client.get(address, headers={"If-None-Match": tag}).json()["x"] == [1, 2]


@pytest.mark.parametrize(
    ("axis", "x"),
    [
        ("tokens", [10.0, 20.0, 30.0, 50.0, 80.0]),
        ("time", [0.5, 1.0, 2.0, 3.0, 5.0]),
        ("fraction", [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_series_and_layers_go_along_other_axes(caller: Caller, run: str, axis: str, x: list[float]):
    answer = caller.get(f"/runs/{run}/series", names="loss,step", axis=axis)
    assert (answer["axis"], answer["x"], answer["steps"]) == (axis, pytest.approx(x), [1, 2, 3, 4, 5])
    zoomed = caller.get(f"/runs/{run}/series", names="loss,step", axis=axis, start=3, stop=5)
    assert (zoomed["x"], zoomed["steps"]) == (pytest.approx(x[2:4]), [3, 4])
    layers = caller.get(f"/runs/{run}/layers/weight_sq", axis=axis)
    assert (layers["axis"], layers["x"], layers["steps"]) == (axis, pytest.approx(x[:2]), [1, 2])


def test_an_axis_stays_true_in_buckets_and_where_its_series_has_holes(caller: Caller):
    run = caller.start()
    steps = list(range(1, 4001))
    tokens = columns(4000, np.int64, tokens=[None if step % 2 == 0 else 7 for step in steps])
    caller.must_send(run["id"], batch(run["session"], 1, steps, counts=tokens, loss=[1.0] * 4000))
    answer = caller.get(f"/runs/{run['id']}/series", names="loss", axis="tokens", columns=100, start=1000)
    assert answer["x"] == pytest.approx([7.0 * step for step in answer["steps"]], rel=2e-3)
    assert answer["x"] == sorted(answer["x"])


def test_an_axis_that_was_not_recorded_is_refused_and_says_which_series_it_needs(caller: Caller):
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2], loss=[1.0, 2.0]))
    refused = caller.client.get(f"{API}/runs/{run['id']}/series", params={"axis": "tokens"}).json()
    assert (refused["status"], refused["field"]) == (422, "axis")
    assert "'tokens'" in refused["remedy"]
    fraction = caller.get(f"/runs/{run['id']}/series", axis="fraction")
    assert fraction["x"] == [0.5, 1.0]


@pytest.mark.parametrize("path", ["series", "layers/weight_sq", "spectra?layer=layers.0.up.weight"])
@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("columns", {"columns": 0}),
        ("columns", {"columns": 10**9}),
        ("columns", {"columns": "many"}),
        ("stop", {"start": 4, "stop": 2}),
        ("start", {"start": -1}),
        ("start", {"start": 2**60}),
    ],
)
def test_ranges_and_columns_that_cannot_be_are_refused(caller: Caller, run: str, path: str, field: str, params: Any):
    refused = caller.client.get(f"{API}/runs/{run}/{path}", params={**_query(path), **params})
    assert (refused.status_code, refused.json()["field"]) == (422, field)


@pytest.mark.parametrize("path", ["series", "layers/weight_sq"])
def test_a_range_beyond_the_run_is_empty(caller: Caller, run: str, path: str):
    assert caller.get(f"/runs/{run}/{path}", start=10**12)["x"] == []
    assert caller.get(f"/runs/{run}/{path}", start=2, stop=10**12)["x"][0] == 2


def _query(path: str) -> dict[str, str]:
    return dict([path.partition("?")[2].split("=")]) if "?" in path else {}
