"""What is exported equals what was sent: every step, special numbers, gaps, attempts, layers that change."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backend.callers import API, Caller, batch, columns, layer_block, spectrum_block, table
from fastapi.testclient import TestClient
from gradspectra_backend import export_tables
from gradspectra_store import read
from gradspectra_store.errors import StoreUnavailable
from gradspectra_store.schema import segments
from gradspectra_worker.compact import compact

OLD, NEW = ("layers.0.up.weight", "layers.1.up.weight"), ("layers.1.up.weight", "head.weight")
LOSS = [1.0, math.nan, math.inf, None, -math.inf, 0.1]
NEWER_LOSS = [0.30000000000000004, 5e-324, -0.0]
FORMS = ("csv", "json", "parquet", "arrow")
ODD = 2**53 + 1  # float64 has no such number
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def send_all(caller: Caller) -> str:
    """A run of two attempts: steps 1 to 8 without 4, and again from 6 on to 9 without 7, with other layers."""
    run = caller.start(name="Größe/1")
    of, later = table(OLD), table(NEW)
    squares = {"weight_sq": [[0.1, math.nan], [math.inf, -math.inf]], "grad_sq": [[4.0, 9.0]] * 2}
    block = layer_block(of, [1, 2], counts={"seen": [[0, ODD], [1, -ODD]]}, **squares)
    tokens = columns(2, np.int64, tokens=[7, None])
    spectra = spectrum_block(of, 2, 1, [3.0, 1.0])
    first = {"layer_table": of, "layers": block, "spectra": spectra, "counts": tokens, "step": [0.5] * 2}
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2], loss=LOSS[:2], **first))
    tokens = columns(3, np.int64, tokens=[ODD, 9, 9])
    caller.must_send(run["id"], batch(run["session"], 2, [3, 5, 6], loss=LOSS[2:5], counts=tokens, step=[0.5] * 3))
    spectra = spectrum_block(of, 8, 1, [5.0])
    caller.must_send(run["id"], batch(run["session"], 3, [8], loss=LOSS[5:], spectra=spectra))
    newer = caller.start(resume=run["id"], start_step=5)
    block = layer_block(later, [6], weight_sq=[[2.5, 3.5]], mine=[[math.nan, 1.0]])
    spectra = spectrum_block(later, 6, 0, [4.0, 2.0, 1.0])
    caller.must_send(
        run["id"],
        batch(newer["session"], 1, [6, 8, 9], layer_table=later, layers=block, spectra=spectra, loss=NEWER_LOSS),
    )
    caller.derived(run["id"], 9)
    return str(run["id"])


@pytest.fixture(scope="module")
def caller(shared_caller: Caller) -> Caller:
    return shared_caller


@pytest.fixture(scope="module")
def run(caller: Caller) -> str:
    return send_all(caller)


def rows_of(answer: Any, form: str) -> list[dict[str, Any]]:
    """The rows of an export: numbers, None for missing, lists of numbers."""
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra export has it)")
        return list(parquet.read_table(io.BytesIO(answer)).to_pylist())
    if form == "arrow":
        ipc = pytest.importorskip("pyarrow.ipc", reason="pyarrow is not installed (the extra export has it)")
        return list(ipc.open_file(answer).read_all().to_pylist())
    if form == "json":
        return [{name: _read(value) for name, value in row.items()} for row in json.loads(answer)]
    return [
        {name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(io.StringIO(answer.decode()))
    ]


def _read(value: Any) -> Any:
    return [_read(entry) for entry in value] if isinstance(value, list) else WORDS.get(value, value)


def _cell(name: str, text: str) -> Any:
    if name in ("layer", "role", "of", "method"):
        return text
    if name in ("index", "singular_values"):
        return [float(entry) for entry in text.split()]
    return None if not text else int(text) if text.removeprefix("-").isdigit() else float(text)


def exported(caller: Caller, run: str, form: str, **params: Any) -> list[dict[str, Any]]:
    if form in ("parquet", "arrow"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
    answer = caller.client.get(f"{API}/runs/{run}/export", params={"format": form, **params})
    assert answer.status_code == 200, answer.text
    return rows_of(answer.content, form)


def unguarded(caller: Caller) -> TestClient:
    """A client of the same server that raises what a server's log would have."""
    return TestClient(caller.client.app, base_url="http://127.0.0.1:7117")


def same(found: list[Any], expected: list[Any]) -> bool:
    """Whether both hold the same numbers to the last bit, NaN at the same places, and None at the same places."""
    return repr([None if one is None else float(one) for one in found]) == repr(
        [None if one is None else float(one) for one in expected]
    )


@pytest.mark.parametrize("form", FORMS)
def test_series_come_back_as_they_were_sent_with_attempts_joined_at_the_cut(caller: Caller, run: str, form: str):
    rows = exported(caller, run, form)
    assert [(row["step"], row["attempt"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (8, 2), (9, 2)]
    assert same([row["loss"] for row in rows], LOSS[:4] + NEWER_LOSS)
    assert repr([row["tokens"] for row in rows]) == repr([7, None, ODD, 9, None, None, None])
    assert same([row["step_value"] for row in rows], [0.5] * 4 + [None] * 3)
    assert same([row["time"] for row in rows], [1e9 + row["step"] for row in rows])
    assert list(rows[0]) == ["step", "attempt", "time", "loss", "step_value", "tokens"]


@pytest.mark.parametrize("form", FORMS)
def test_an_attempt_by_itself_has_what_a_newer_one_hides(caller: Caller, run: str, form: str):
    rows = exported(caller, run, form, attempt=1)
    assert [(row["step"], row["attempt"]) for row in rows] == [(step, 1) for step in (1, 2, 3, 5, 6, 8)]
    assert same([row["loss"] for row in rows], LOSS)
    only = exported(caller, run, form, attempt=1, names="loss")
    assert [row["step"] for row in only] == [1, 2, 3, 6, 8]
    assert [row["step"] for row in exported(caller, run, form, start=3, stop=8)] == [3, 5, 6]


@pytest.mark.parametrize("form", FORMS)
def test_layers_come_in_long_form_also_where_they_change(caller: Caller, run: str, form: str):
    rows = exported(caller, run, form, what="layers")
    places = [(row["step"], row["attempt"], row["layer"], row["depth"]) for row in rows]
    assert places == [
        (1, 1, OLD[0], 0),
        (1, 1, OLD[1], 0),
        (2, 1, OLD[0], 0),
        (2, 1, OLD[1], 0),
        (6, 2, NEW[0], 0),
        (6, 2, NEW[1], 1),
    ]
    assert same([row["weight_sq"] for row in rows], [float(np.float32(0.1)), math.nan, math.inf, -math.inf, 2.5, 3.5])
    assert same([row["grad_norm"] for row in rows], [2, 3, 2, 3, None, None])
    assert same([row["mine"] for row in rows], [None] * 4 + [math.nan, 1.0])
    assert repr([row["seen"] for row in rows]) == repr([0, ODD, 1, -ODD, None, None])
    assert {row["role"] for row in rows} == {"up"}
    chosen = exported(caller, run, form, what="layers", names="weight_norm", pattern="1", stop=3)
    assert [list(row) for row in chosen] == [["step", "attempt", "layer", "role", "depth", "weight_norm"]] * 2
    assert same([row["weight_norm"] for row in chosen], [math.nan, math.nan])


@pytest.mark.parametrize("form", FORMS)
def test_a_name_that_comes_as_a_count_and_then_as_a_scalar_is_a_number(caller: Caller, form: str):
    run = caller.start()
    counts = columns(2, np.int64, mine=[3, 4], ids=[ODD, 2])
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2], counts=counts))
    assert repr([row["mine"] for row in exported(caller, run["id"], form)]) == "[3, 4]"
    caller.must_send(run["id"], batch(run["session"], 2, [3], mine=[0.5], counts=columns(1, np.int64, ids=[5])))
    rows = exported(caller, run["id"], form)
    assert repr([row["mine"] for row in rows]) == "[3.0, 4.0, 0.5]"
    assert repr([row["ids"] for row in rows]) == repr([ODD, 2, 5])


@pytest.mark.parametrize("form", FORMS)
def test_spectra_come_with_their_singular_values(caller: Caller, run: str, form: str):
    rows = exported(caller, run, form, what="spectra")
    assert [(row["layer"], row["step"], row["attempt"]) for row in rows] == [(OLD[1], 2, 1), (OLD[1], 6, 2)]
    assert [row["singular_values"] for row in rows] == [[3.0, 1.0], [4.0, 2.0, 1.0]]
    assert [row["index"] for row in rows] == [[0, 1], [0, 1, 2]]
    assert [(row["of"], row["nuclear"], row["rows"], row["columns"]) for row in rows] == [
        ("gradient", 4.0, 8, 4),
        ("gradient", 7.0, 8, 4),
    ]
    hidden = exported(caller, run, form, what="spectra", attempt=1, start=3)
    assert [(row["step"], row["singular_values"]) for row in hidden] == [(8, [5.0])]
    assert exported(caller, run, form, what="spectra", of="weight") == []


def test_a_step_at_which_nothing_was_recorded_but_its_time_comes_where_no_series_is_named(caller: Caller):
    run = caller.start()
    mine, loss = [None, None, 1.5, None], [None, 2.5, None, None]
    times = [10.25, 11.0, 12.5, 13.0]
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2, 4, 5], mine=mine, loss=loss, times=times))
    rows = exported(caller, run["id"], "json")
    assert rows == [
        {"step": 1, "attempt": 1, "time": 10.25, "loss": None, "mine": None},
        {"step": 2, "attempt": 1, "time": 11.0, "loss": 2.5, "mine": None},
        {"step": 4, "attempt": 1, "time": 12.5, "loss": None, "mine": 1.5},
        {"step": 5, "attempt": 1, "time": 13.0, "loss": None, "mine": None},
    ]
    assert exported(caller, run["id"], "json", names="loss,mine") == rows[1:3]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["series", "layers", "spectra"])
def test_the_same_rows_come_whatever_is_read_and_written_at_once(
    caller: Caller, run: str, form: str, what: str, monkeypatch
):
    whole = repr(exported(caller, run, form, what=what))
    monkeypatch.setattr("gradspectra_backend.export_forms.ROWS_AT_ONCE", 2)
    assert repr(exported(caller, run, form, what=what)) == whole
    monkeypatch.setattr(export_tables, "VALUES_AT_ONCE", 1)
    assert repr(exported(caller, run, form, what=what)) == whole


@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_steps_all_come(caller: Caller, form: str):
    run = caller.start()
    for sequence, first in enumerate((1, 4001, 8001), 1):
        steps = list(range(first, first + 4000))
        caller.must_send(run["id"], batch(run["session"], sequence, steps, loss=[step / 7 for step in steps]))
    rows = exported(caller, run["id"], form, names="loss")
    assert [(row["step"], row["loss"]) for row in rows] == [(step, step / 7) for step in range(1, 12_001)]


def odd_numbers(seed: int, count: int) -> list[float | None]:
    """Numbers, among them special ones and missing ones."""
    rng = np.random.default_rng(seed)
    odd: list[float | None] = [math.nan, math.inf, -math.inf, -0.0, 5e-324, None]
    return [odd[rng.integers(6)] if rng.random() < 0.2 else float(rng.normal()) for _ in range(count)]


def test_what_became_blocks_comes_as_it_was_sent(anywhere: Caller):
    run = anywhere.start()
    of = table(OLD)
    losses, squares = odd_numbers(1, 1000), np.random.default_rng(2).normal(size=(1000, 2)).astype(np.float32) ** 2
    squares[::7, 1] = math.nan
    session, sequence, resumed = run["session"], 0, 0
    for first in range(0, 1000, 50):
        if first == 600:
            session, sequence, resumed = anywhere.start(resume=run["id"], start_step=550)["session"], 0, 50
        steps = range(first - resumed, first - resumed + 50)
        block = layer_block(of, [step + 1 for step in steps], weight_sq=squares[first : first + 50])
        sequence += 1
        anywhere.must_send(
            run["id"],
            batch(
                session,
                sequence,
                [step + 1 for step in steps],
                layer_table=of,
                layers=block,
                counts=columns(50, np.int64, ids=[ODD + step for step in steps]),
                loss=losses[first : first + 50],
                mine=[0.1] * 50,
            ),
        )
    anywhere.derived(run["id"], 950)
    store = anywhere.client.app.state.context.store
    compact(store, run["id"])
    with store.read() as conn:
        left = conn.execute(sa.select(sa.func.count()).select_from(segments).where(segments.c.run == run["id"]))
        assert left.scalar_one() < 20
    kept = [*range(550), *range(600, 1000)]
    rows = exported(anywhere, run["id"], "json")
    assert same([row["time"] for row in rows], [1e9 + row["step"] for row in rows])
    assert [row["step"] for row in rows] == list(range(1, 951))
    assert same([row["loss"] for row in rows], [losses[at] for at in kept])
    assert [row["ids"] for row in rows] == [ODD + step for step in range(950)]
    layers = exported(anywhere, run["id"], "json", what="layers", names="weight_sq")
    assert same([row["weight_sq"] for row in layers], [float(value) for at in kept for value in squares[at]])


def test_what_is_read_at_once_does_not_grow_with_the_run(caller: Caller, monkeypatch):
    run = caller.start()
    sizes: list[int] = []
    real = read.read_recorded

    def counted(*arguments: Any) -> Any:
        found = real(*arguments)
        sizes.append(sum(len(part.steps) for part in found.parts.values()))
        return found

    first = 1
    for sequence, (count, apart) in enumerate(((300, 100), (2000, 1)), 1):
        steps = list(range(first, first + count * apart, apart))
        first = steps[-1] + 1
        caller.must_send(run["id"], batch(run["session"], sequence, steps, loss=[0.5] * count, mine=[1.0] * count))
    monkeypatch.setattr(export_tables, "VALUES_AT_ONCE", 64)
    monkeypatch.setattr(export_tables.read, "read_recorded", counted)
    rows = exported(caller, run["id"], "json", names="loss,mine")
    assert len(rows) == 2300
    assert max(sizes) <= 64 * export_tables.MOST_GROWTH
    assert sum(sizes) == 4600


def test_a_job_that_resumes_meanwhile_changes_nothing_in_an_export_that_has_begun(caller: Caller, monkeypatch):
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2, 3, 4], loss=[1.0, 2.0, 3.0, 4.0]))
    monkeypatch.setattr(export_tables, "VALUES_AT_ONCE", 1)
    monkeypatch.setattr(export_tables, "MOST_GROWTH", 1)
    asked = []
    real = read.read_recorded

    def resumed(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 2:
            newer = caller.start(resume=run["id"], start_step=1)
            caller.must_send(run["id"], batch(newer["session"], 1, [2, 3, 4, 5], loss=[9.0] * 4))
        return real(*arguments)

    monkeypatch.setattr(export_tables.read, "read_recorded", resumed)
    assert [row["loss"] for row in exported(caller, run["id"], "json", names="loss")] == [1.0, 2.0, 3.0, 4.0]
    monkeypatch.undo()
    assert [row["loss"] for row in exported(caller, run["id"], "json", names="loss")] == [1.0, 9.0, 9.0, 9.0, 9.0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["series", "layers", "spectra"])
def test_a_run_without_records_gives_an_empty_table(caller: Caller, form: str, what: str):
    assert exported(caller, caller.start()["id"], form, what=what) == []


def test_a_file_has_a_name_that_every_system_takes(caller: Caller, run: str):
    headers = caller.client.get(f"{API}/runs/{run}/export", params={"what": "layers"}).headers
    assert headers["content-disposition"] == f'attachment; filename="Gr-e-1-{run}-layers.csv"'
    assert headers["content-type"] == "text/csv; charset=utf-8"


@pytest.mark.parametrize(
    ("params", "status", "field", "told"),
    [
        ({"format": "xml"}, 422, "format", "csv"),
        ({"names": "los"}, 422, "names", "'los'"),
        ({"what": "layers", "names": "los"}, 404, None, "'los'"),
        ({"what": "layers", "layers": "layers.7"}, 404, "layer", "'layers.7'"),
        ({"what": "spectra", "layers": f"{OLD[1]},layers.7"}, 404, "layer", "'layers.7'"),
        ({"what": "spectra", "names": "loss"}, 422, "names", "spectra"),
        ({"layers": OLD[0]}, 422, "layers", "series"),
        ({"pattern": "up"}, 422, "pattern", "series"),
        ({"role": "up"}, 422, "role", "series"),
        ({"depth": "0"}, 422, "depth", "series"),
        ({"of": "weight"}, 422, "of", "series"),
        ({"what": "layers", "of": "weight"}, 422, "of", "layers"),
        ({"attempt": 3}, 422, "attempt", "attempts 1 to 2, got 3"),
        ({"start": 4, "stop": 2}, 422, "stop", "4, got 2"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_sent(
    caller: Caller, run: str, params: dict[str, Any], status: int, field: str | None, told: str
):
    refused = caller.client.get(f"{API}/runs/{run}/export", params=params).json()
    assert (refused["status"], refused.get("field")) == (status, field)
    assert told in refused["detail"]


def test_an_unknown_run_and_a_missing_library_are_said(caller: Caller, run: str, monkeypatch):
    assert caller.client.get(f"{API}/runs/none/export").json()["type"] == "/problems/unknown-run"
    monkeypatch.setattr("gradspectra_backend.forms.find_spec", lambda _: None)
    missing = caller.client.get(f"{API}/runs/{run}/export", params={"format": "parquet"}).json()
    assert missing["status"] == 406
    assert "pip install 'gradspectra[export]'" in missing["remedy"]


def test_a_database_that_fails_at_once_is_a_problem_and_one_that_fails_later_breaks_the_answer_off(
    caller: Caller, run: str, monkeypatch
):
    monkeypatch.setattr(export_tables, "VALUES_AT_ONCE", 1)
    monkeypatch.setattr(export_tables, "MOST_GROWTH", 1)
    real, good = read.read_recorded, 0

    def failing(*arguments: Any) -> Any:
        nonlocal good
        good -= 1
        if good < 0:
            raise StoreUnavailable("the database is away")
        return real(*arguments)

    monkeypatch.setattr(export_tables.read, "read_recorded", failing)
    refused = caller.client.get(f"{API}/runs/{run}/export")
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
    good = 2
    with pytest.raises(RuntimeError, match="response already started"):
        unguarded(caller).get(f"{API}/runs/{run}/export")


@pytest.mark.parametrize(
    ("what", "reads"),
    [
        ("series", "read_recorded"),
        ("series", "read_times"),
        ("layers", "read_layers"),
        ("layers", "read_recorded_layers"),
    ],
)
def test_what_cannot_be_read_back_is_an_error_or_skipped_if_that_is_asked_for(
    caller: Caller, run: str, what: str, reads: str, monkeypatch
):
    real = getattr(read, reads)
    monkeypatch.setattr(export_tables.read, reads, lambda *given: replace(real(*given), damaged=((3, 4), (7, 7))))
    refused = caller.client.get(f"{API}/runs/{run}/export", params={"what": what}).json()
    assert (refused["status"], refused["type"]) == (500, "/problems/damaged")
    assert "steps 3 to 4, 7 to 7 cannot be read back" in refused["detail"]
    assert "skip_damaged" in refused["remedy"]
    assert len(exported(caller, run, "json", what=what, skip_damaged=True)) > 5


def test_the_same_comes_from_postgresql(anywhere: Caller):
    run = send_all(anywhere)
    rows = exported(anywhere, run, "json")
    assert same([row["loss"] for row in rows], LOSS[:4] + NEWER_LOSS)
    assert len(exported(anywhere, run, "json", what="layers")) == 6
    assert len(exported(anywhere, run, "json", what="spectra")) == 2
