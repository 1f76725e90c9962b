"""A disk that loses blocks, or is full: what is lost is told, the rest is served, and nothing is half written."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.doctor import examine, report
from gradspectra_backend.forms import ARRAYS, ARROW
from gradspectra_backend.settings import Settings
from gradspectra_core.container import unpack
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.schema import segments
from gradspectra_worker.compact import compact
from store.spoiling import spoil


def test_damaged_steps_are_told_in_the_answer_and_by_the_doctor(caller: Caller, settings: Settings):
    run = caller.start()
    for sequence in range(1, 11):
        steps = list(range(16 * sequence - 15, 16 * sequence + 1))
        caller.must_send(run["id"], batch(run["session"], sequence, steps, loss=[float(step) for step in steps]))
    caller.derived(run["id"], 160)
    assert caller.get(f"/runs/{run['id']}/series")["damaged"] == []
    store = Store.open(settings.database)
    compact(store, run["id"])
    assert "all 4 read, none is damaged" in report(examine(lambda: settings))  # losses, times, two levels of buckets
    with store.write() as conn:
        lost = blocks.c.name == "loss", blocks.c.level == 0
        identity, payload = conn.execute(sa.select(blocks.c.id, blocks.c.payload).where(*lost)).one()
        damaged = {"id": identity + 1000, "payload": payload[:-1] + bytes([payload[-1] ^ 4])}  # not the one in memory
        conn.execute(sa.update(blocks).where(blocks.c.id == identity).values(damaged))
    store.close()
    answer = caller.get(f"/runs/{run['id']}/series", names="loss")
    assert (answer["damaged"], answer["x"]) == ([[1, 112]], list(range(113, 161)))
    said = "steps 1 to 112 are damaged and left out: gradspectra doctor names them"
    assert caller.get(f"/runs/{run['id']}/figures/loss")["layout"]["meta"]["damaged"] == said
    assert "damaged" not in caller.get(f"/runs/{run['id']}/figures/loss", start=113)["layout"]["meta"]
    packed = caller.client.get(f"{API}/runs/{run['id']}/series", headers={"Accept": ARRAYS})
    assert unpack(packed.content)[0]["damaged"] == [[1, 112]]
    (found,) = [entry for entry in examine(lambda: settings) if entry["name"] == "blocks"]
    assert found["status"] == "failed"
    assert f"1 damaged: run {run['id']} attempt 1 loss level 0 steps 1 to 112" in found["detail"]
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
    streamed = caller.client.get(f"{API}/runs/{run['id']}/series", headers={"Accept": ARROW})
    assert pyarrow.ipc.open_stream(io.BytesIO(streamed.content)).schema.metadata == {b"damaged": b"[[1, 112]]"}


def test_a_full_disk_is_answered_507_and_nothing_is_lost_when_there_is_space_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    address = {"base_url": "http://127.0.0.1:7117", "raise_server_exceptions": False}
    with monkeypatch.context() as patch:
        from gradspectra_store import engines

        patch.setattr(engines, "_PRAGMAS", (*engines._PRAGMAS, "max_page_count=90"))
        with TestClient(create_app(settings), **address) as client:
            caller = Caller(client)
            run = caller.start()
            for sequence in range(1, 200):
                steps = list(range(400 * sequence - 399, 400 * sequence + 1))
                sent = batch(run["session"], sequence, steps, loss=[float(step) for step in steps])
                answer = caller.send(run["id"], sent)
                if answer.status_code != 200:
                    break
            assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (507, "storage-full")
            assert answer.headers["retry-after"] == "30"
            assert caller.get(f"/runs/{run['id']}")["last_step"] == steps[0] - 1
    with TestClient(create_app(settings), **address) as client:
        caller = Caller(client)
        caller.must_send(run["id"], sent)
        caller.derived(run["id"], steps[-1])
        kept = []
        for start in range(0, steps[-1] + 1, 10_000):
            asked = {"names": "loss", "start": start, "stop": start + 10_000, "columns": 10_000}
            kept += caller.get(f"/runs/{run['id']}/series", **asked)["series"]["loss"]["last"]
    assert kept == list(range(1, steps[-1] + 1))


def test_a_damaged_segment_is_told_and_named_by_the_doctor(caller: Caller, settings: Settings):
    run = caller.start()
    of = table()
    whole = batch(run["session"], 1, [1], layer_table=of, spectra=spectrum_block(of, 1, 0, [3.0, 1.0]))
    caller.must_send(run["id"], whole)
    store = Store.open(settings.database)
    for payload in ("substr(payload, 1, 40)", "'text'"):
        with store.write() as conn:
            conn.execute(sa.text(f"UPDATE segments SET payload = {payload} WHERE kind = 'spectra'"))
        answer = caller.get(f"/runs/{run['id']}/spectra", layer=of.names[0])
        assert (answer["items"], answer["damaged"]) == ([], [[1, 1]])
        for name in ("spectrum", "ranks"):
            drawn = caller.get(f"/runs/{run['id']}/figures/{name}", layer=of.names[0])
            assert drawn["layout"]["meta"]["damaged"].startswith("step 1 is damaged and left out")
        asked = {"what": "spectra", "format": "csv"}
        failed = caller.client.get(f"{API}/runs/{run['id']}/export", params=asked)
        assert (failed.status_code, failed.json()["type"]) == (500, "/problems/damaged")
        skipped = caller.client.get(f"{API}/runs/{run['id']}/export", params=asked | {"skip_damaged": "true"})
        assert (skipped.status_code, len(skipped.text.splitlines())) == (200, 1)
    (found,) = [entry for entry in examine(lambda: settings) if entry["name"] == "segments"]
    assert f"1 damaged: run {run['id']} attempt 1 spectra (segment) steps 1 to 1" in found["detail"]
    store.close()


def damage_compacted(settings: Settings, run: str, *statements: str) -> None:
    """Compact a run, then spoil the database by SQL."""
    store = Store.open(settings.database)
    compact(store, run)
    with store.write() as conn:
        for statement in statements:
            conn.execute(sa.text(statement))
    store.close()


def derived_run(caller: Caller) -> dict[str, Any]:
    """A run of 160 steps in ten batches, all of it derived."""
    run = caller.start()
    for sequence in range(1, 11):
        caller.must_send(run["id"], batch(run["session"], sequence, range(16 * sequence - 15, 16 * sequence + 1)))
    caller.derived(run["id"], 160)
    return run


def test_the_doctor_makes_again_what_it_can(caller: Caller, settings: Settings):
    run = derived_run(caller)
    store = Store.open(settings.database)
    compact(store, run["id"])
    spoil(store, run["id"], blocks, name="loss", level=1)
    store.close()

    def said(**options: bool) -> dict[str, str]:
        return next(entry for entry in examine(lambda: settings, **options) if entry["name"] == "blocks")

    assert (said()["status"], "doctor --repair" in said()["remedy"]) == ("failed", True)
    assert said(repair=True)["detail"] == "all 4 read, none is damaged; 1 made again"
    assert said()["detail"] == "all 4 read, none is damaged"


def test_the_doctor_says_what_stays_derived_without_a_segment_that_can_be_read_again(
    caller: Caller, settings: Settings
):
    run = derived_run(caller)
    store = Store.open(settings.database)
    whole = spoil(store, run["id"], kind="scalars", batch=2)
    compact(store, run["id"])
    with store.write() as conn:
        conn.execute(sa.update(segments).where(segments.c.batch == 2).values(payload=whole))
    store.close()
    found = [entry["detail"] for entry in examine(lambda: settings, repair=True) if entry["name"] == "segments"]
    without = f"noise scale and alerts stay derived without run {run['id']} attempt 1 steps 17 to 32"
    again = f"`gradspectra derive {run['id']} --again` makes what is derived anew"
    assert [entry.partition("; ")[2] for entry in found] == [f"1 can be read again; {without}; {again}"]


def test_the_doctor_names_rows_that_hide_whole_numbers_and_mends_them(caller: Caller, settings: Settings):
    run = derived_run(caller)
    damage_compacted(
        settings,
        run["id"],
        "UPDATE segments SET first_step = first_step + 4096 WHERE last_step = 160",
        "UPDATE blocks SET first = 64 WHERE name = 'loss' AND level = 0",
    )
    caller.must_send(run["id"], batch(run["session"], 11, [161]))  # so that no answer is an old one
    assert caller.get(f"/runs/{run['id']}/series", names="loss", stop=161)["x"] == list(range(64, 145))

    def said(**options: bool) -> list[str]:
        found = {entry["name"]: entry["detail"] for entry in examine(lambda: settings, **options)}
        return [found[name].partition(", ")[2] for name in ("segments", "blocks")]

    of = f"1 damaged: run {run['id']} attempt 1"
    assert said() == [
        f"{of} scalars (segment) steps 145 to 160 (its row has a wrong first_step)",
        f"{of} loss level 0 steps 1 to 112 (its row has a wrong first)",
    ]
    assert said(repair=True) == ["none is damaged; 1 row mended"] * 2
    assert said() == ["none is damaged"] * 2
    assert caller.get(f"/runs/{run['id']}/series", names="loss", stop=161)["x"] == list(range(1, 161))


def test_the_doctor_names_a_block_whose_row_is_damaged_too(caller: Caller, settings: Settings):
    run = derived_run(caller)
    store = Store.open(settings.database)
    compact(store, run["id"])
    with store.write() as conn:  # as the disk does it, which keeps to no rules
        conn.execute(sa.text("PRAGMA writable_schema = ON"))
        conn.execute(sa.text("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'blocks'"))
    store.close()
    with closing(sqlite3.connect(settings.data / "gradspectra.db")) as conn:
        conn.execute("UPDATE blocks SET payload = NULL, stop = NULL WHERE name = 'loss' AND level = 0")
        conn.commit()
    (found,) = [entry for entry in examine(lambda: settings) if entry["name"] == "blocks"]
    assert f"1 damaged: run {run['id']} attempt 1 loss level 0 steps 1 to 1" in found["detail"]


def test_the_doctor_tells_of_rows_that_are_gone(caller: Caller, settings: Settings):
    run = derived_run(caller)
    damage_compacted(
        settings,
        run["id"],
        "DELETE FROM blocks WHERE name = 'loss' AND level = 0",
        "DELETE FROM names WHERE name = 'loss'",
        "DELETE FROM segments WHERE kind = 'scalars' AND last_step = 144",
    )

    def said() -> list[str]:
        found = {entry["name"]: entry for entry in examine(lambda: settings)}
        return [f"{found[name]['status']}: {found[name]['detail']}" for name in ("runs", "blocks")]

    gone = f"run {run['id']} attempt 1 loss level 0 steps 0 to 111 (is gone)"
    lost = f"run {run['id']} has lost a batch of attempt 1 between steps 128 and 145"
    assert said() == [f"failed: {lost}", f"failed: all 3 read, 1 damaged: {gone}"]


def test_layers_whose_table_is_lost_are_damage_and_the_doctor_names_the_run(caller: Caller, settings: Settings):
    run, of = caller.start(), table()
    steps = list(range(1, 17))
    squares = layer_block(of, steps, grad_sq=[[1.0, 2.0]] * 16)
    caller.must_send(run["id"], batch(run["session"], 1, steps, layer_table=of, layers=squares))
    caller.derived(run["id"], 16)
    store = Store.open(settings.database)
    with store.write() as conn:
        conn.execute(sa.text("DELETE FROM layer_tables"))
    store.close()
    for statistic in ("grad_sq", "grad_norm"):
        answer = caller.get(f"/runs/{run['id']}/layers/{statistic}")
        assert (answer["damaged"], answer["layers"], answer["x"]) == ([[1, 16]], [], [])
        drawn = caller.get(f"/runs/{run['id']}/figures/layers", statistic=statistic)
        assert drawn["layout"]["meta"]["damaged"].startswith("steps 1 to 16 are damaged and left out")
    assert len(caller.get(f"/runs/{run['id']}/series", names="loss")["x"]) == 16
    for path in ("/layers", "/figures/layers", "/export", "/export?what=spectra"):
        assert caller.client.get(f"{API}/runs/{run['id']}{path}").status_code == 200, path
    refused = caller.client.get(f"{API}/runs/{run['id']}/export?what=layers")
    assert (refused.status_code, refused.json()["type"]) == (500, "/problems/damaged")
    assert f"run {run['id']} has lost a table of its layers" in report(examine(lambda: settings))
