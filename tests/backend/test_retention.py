"""Retention over HTTP and on the command line: told in advance, said afterwards, never of pinned runs."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from backend.servers import command
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.doctor import examine
from gradspectra_backend.forms import ARRAYS
from gradspectra_backend.settings import Settings, SettingsError, load_settings
from gradspectra_core.container import unpack
from gradspectra_store import Store
from gradspectra_store.retention import DAY, NOTICE_DAYS, Retention
from gradspectra_store.schema import runs
from gradspectra_worker.compact import compact
from gradspectra_worker.retain import retain

OF = table()
STEPS = 1200
SPIKE = 501


def a_run(caller: Caller, name: str = "old") -> str:
    """A run that has ended: losses, a spike in one layer, a spectrum every sixth step."""
    run = caller.start(name=name)
    for sequence, first in enumerate(range(1, STEPS + 1, 60), 1):
        steps = list(range(first, first + 60))
        values = np.array([[1e6 if step == SPIKE else step, step] for step in steps])
        spectra = spectrum_block(OF, first + 5, 0, [4.0, 2.0])
        sent = batch(run["session"], sequence, steps, layer_table=OF, layers=layer_block(OF, steps, grad_sq=values**2),
                     spectra=spectra)  # fmt: skip
        caller.must_send(run["id"], sent)
    caller.client.post(f"{API}/runs/{run['id']}/finish", json={"session": run["session"]})
    caller.derived(run["id"], STEPS)
    return str(run["id"])


def aged(settings: Settings, run: str, days: float) -> None:
    """Compact a run, and let it have ended so many days ago."""
    store = Store.open(settings.database)
    compact(store, run)
    with store.write() as conn:
        conn.execute(sa.update(runs).where(runs.c.id == run).values(updated_at=time.time() - days * DAY))
    store.close()


def retired(settings: Settings, run: str, wanted: Retention) -> None:
    store = Store.open(settings.database)
    assert retain(store, run, wanted, time.time()) > 0
    store.close()


def test_it_is_on_by_default_and_told_in_advance_by_the_run_and_for_all_runs(caller: Caller, settings: Settings):
    begin = time.time()
    told = caller.get("/retention")
    assert {name: told["retention"][name] for name in ("on", "days", "level", "width", "spectra", "notice_days")} == {
        "on": True, "days": 180.0, "level": 1, "width": 8, "spectra": 100, "notice_days": 14.0
    }  # fmt: skip
    assert begin - 60 < told["retention"]["since"] <= begin
    assert told["items"] == []
    going, run, old = caller.start(name="going")["id"], a_run(caller), a_run(caller, "older")
    assert caller.get(f"/runs/{going}")["retires_at"] is None
    found = caller.get(f"/runs/{run}")
    assert (found["retires_at"], found["retired_at"]) == (found["updated_at"] + 180 * DAY, None)
    aged(settings, old, 400)
    first, second = caller.get("/retention")["items"]
    assert (first["run"], second["run"]) == (old, run)
    assert first["retires_at"] == told["retention"]["since"] + NOTICE_DAYS * DAY
    assert second["retires_at"] == found["retires_at"]
    assert 0 < first["bytes_after"] < first["bytes"]
    page = caller.get("/retention", limit=1)
    assert [item["run"] for item in page["items"]] == [old]
    assert [item["run"] for item in caller.get("/retention", cursor=page["next"])["items"]] == [run]
    changed = caller.client.patch(f"{API}/runs/{old}", json={"pinned": True}).json()
    assert (changed["pinned"], changed["retires_at"]) == (True, None)
    assert [item["run"] for item in caller.get("/retention")["items"]] == [run]
    refused = caller.client.patch(f"{API}/runs/{old}", json={"pinned": None})
    assert (refused.status_code, refused.json()["field"]) == (422, "pinned")
    assert refused.json()["detail"] == "pinned: must be true or false, got null"


def test_answers_figures_and_exports_say_what_is_left(caller: Caller, settings: Settings):
    run = a_run(caller)
    path = f"/runs/{run}/layers/grad_norm"
    before, series = caller.get(path, columns=10_000), caller.get(f"/runs/{run}/series", columns=10_000)
    assert before["retired"] == []
    aged(settings, run, 400)
    retired(settings, run, Retention(180.0, 1, 5))
    now = caller.get(path, columns=10_000)
    ((first, last, width),) = now["retired"]
    assert (first, width) == (1, 8)
    assert 500 < last < STEPS
    assert now["x"][:3] == [1, 8, 16]
    assert now["x"][-1] == STEPS
    assert max(now["max"][0]) == 1e6
    assert now["mean"][1][:3] == pytest.approx([4.0, 11.5, 19.5])
    packed = caller.client.get(API + path, params={"columns": 10_000}, headers={"Accept": ARRAYS})
    assert unpack(packed.content)[0]["retired"] == [[first, last, width]]
    assert caller.get(path, columns=100)["retired"] == []
    assert caller.get(f"/runs/{run}/series", columns=10_000) == series
    spectra = caller.get(f"/runs/{run}/spectra", layer=OF.names[0])
    assert (len(spectra["items"]), spectra["retired"]) == (4, [[6, 1535, 512]])
    for name in ("layers", "layer_curves"):
        figure = caller.get(f"/runs/{run}/figures/{name}", columns=2000)
        assert figure["layout"]["meta"]["note"] == f"steps 1 to {last:,} in buckets of 8: finer ones were retired"
        assert caller.get(f"/runs/{run}/figures/{name}", columns=100)["layout"]["meta"]["note"] == ""
    told = caller.get(f"/runs/{run}")
    assert (told["retires_at"], told["retired_at"] > time.time() - 60) == (None, True)
    (found,) = [entry for entry in examine(lambda: settings) if entry["name"] == "retention"]
    assert found["status"] == "ok"
    rows = exported(caller, run)
    assert [(row["step"], row["width"]) for row in rows[:4:2]] == [("1", "8"), ("8", "8")]
    assert {row["width"] for row in rows if int(row["step"]) > last} == {"1"}
    assert max(float(row["grad_norm_max"]) for row in rows) == 1e6
    assert len({(row["step"], row["layer"]) for row in rows}) == len(rows) == 2 * len(now["x"])
    own = [row for row in rows if row["layer"] == OF.names[1]]
    assert [float(row["grad_norm"]) for row in own] == pytest.approx(now["mean"][1])
    assert [float(row["grad_norm_min"]) for row in own] == now["min"][1]


def exported(caller: Caller, run: str) -> list[dict[str, str]]:
    answer = caller.client.get(f"{API}/runs/{run}/export", params={"what": "layers", "names": "grad_norm"})
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_an_export_of_a_whole_run_has_the_columns_it_always_had(caller: Caller):
    rows = exported(caller, a_run(caller))
    assert list(rows[0]) == ["step", "attempt", "layer", "role", "depth", "grad_norm"]
    assert len(rows) == 2 * STEPS


def test_the_command_shows_what_would_go_and_lets_it_go(settings: Settings, tmp_path: Path):
    with TestClient(create_app(settings), base_url="http://127.0.0.1:7117") as client:
        run, pinned = a_run(Caller(client)), a_run(Caller(client), "pinned")
        client.patch(f"{API}/runs/{pinned}", json={"pinned": True})
    for identity in (run, pinned):
        aged(settings, identity, 60)
    where = ("--data", str(tmp_path))
    shown = command("retention", *where)
    assert "180 days after a run ended" in shown.stdout
    assert f"{run}" in shown.stdout
    assert pinned not in shown.stdout
    assert "1 run to come; --apply would take 0 of them now" in shown.stdout
    told = json.loads(command("retention", *where, "--days", "30", "--json").stdout)
    assert told["retention"]["days"] == 30.0
    (item,) = told["items"]
    assert command("retention", *where, "--apply", "--json").stdout == '{"items": []}\n'
    done = command("retention", *where, "--days", "30", "--apply")
    assert run in done.stdout
    assert "1 retired, " in done.stderr
    with TestClient(create_app(settings), base_url="http://127.0.0.1:7117") as client:
        caller = Caller(client)
        assert caller.get(f"/runs/{run}")["retired_at"] is not None
        assert caller.get(f"/runs/{pinned}")["retired_at"] is None
        assert caller.get(f"/runs/{run}/layers/grad_norm", columns=10_000)["retired"] != []
        assert caller.get(f"/runs/{pinned}/layers/grad_norm", columns=10_000)["retired"] == []
    assert item["run"] == run
    off = command("retention", *where, retention_days="0")
    assert off.stdout.startswith("Retention is off: every number is kept for ever.")


def test_settings_that_differ_from_those_in_force_are_told_by_the_doctor(settings: Settings):
    with TestClient(create_app(settings), base_url="http://127.0.0.1:7117"):
        pass
    other = settings.model_copy(update={"retention_days": 7.0})
    (found,) = [entry for entry in examine(lambda: other) if entry["name"] == "retention"]
    assert found["status"] == "warning"
    assert "7 days after" in found["detail"]
    assert "180 days after" in found["detail"]
    with pytest.raises(SettingsError, match="GRADSPECTRA_RETENTION_SPECTRA=1"):
        load_settings(retention_spectra=1)


def test_off_nothing_comes_to_a_run(settings: Settings):
    off = settings.model_copy(update={"retention_days": 0.0})
    with TestClient(create_app(off), base_url="http://127.0.0.1:7117") as client:
        caller = Caller(client)
        run = a_run(caller)
        assert caller.get(f"/runs/{run}")["retires_at"] is None
        told = caller.get("/retention")
        assert (told["retention"]["on"], told["items"]) == (False, [])
