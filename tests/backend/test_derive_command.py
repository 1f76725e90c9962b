"""`gradspectra derive`: beside a server that runs, and without one; what it says, and who hears of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from backend.callers import API, Caller
from backend.servers import command, serving
from gradspectra_store import Store
from gradspectra_worker.derive import derive
from worker.synthetic import batches, faulty, start, take_in


def derived_run(data: Path, most: int = 50) -> tuple[str, str]:
    """A run in a data folder of which so many batches are derived, and the database's URL."""
    url = f"sqlite:///{data / 'gradspectra.db'}"
    with closing(Store.open(url)) as store:
        started = start(store)
        stream = batches(faulty(), started.session)
        take_in(store, started, stream[:most])
        derive(store, started.run)
        take_in(store, started, stream[most:])
    return started.run, url


def spoil(data: Path) -> None:
    """Take from the database what was derived, as a disk does."""
    with closing(sqlite3.connect(data / "gradspectra.db")) as file, file:
        for table in ("derived_segments", "blocks WHERE derived", "alerts", "suggestions"):
            file.execute(f"DELETE FROM {table}" if "WHERE" in table else f"DELETE FROM {table} WHERE 1")


def test_all_of_a_run_again_beside_a_server_whose_page_hears_of_it(tmp_path: Path) -> None:
    run, _ = derived_run(tmp_path)
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        caller = Caller(client)
        path = f"{API}/runs/{run}/figures/layers"
        whole = client.get(path, params={"statistic": "noise_scale"})
        suggested = caller.get(f"/runs/{run}/suggestions")
        spoil(tmp_path)
        with client.stream("GET", f"{API}/live", params={"runs": run}) as live:
            lines = live.iter_lines()
            told = heard(lines)
            done = command("derive", run, "--again", "--json", "--data", str(tmp_path))
            assert done.returncode == 0, done.stderr
            said = {"run": run, "steps": 400, "derived_step": 400, "alerts": {"new": 3, "kept": 0, "gone": 0}}
            assert json.loads(done.stdout) == said
            changed = heard(lines)
        assert (told["batch"], changed["batch"], changed["step"], changed["derived_step"]) == (50, 51, 400, 400)
        assert changed["changed_at"] > 1e9
        again = client.get(path, params={"statistic": "noise_scale"}, headers={"If-None-Match": whole.headers["ETag"]})
        assert again.status_code == 304
        assert caller.get(f"/runs/{run}/suggestions") == suggested
        assert len(caller.get(f"/runs/{run}/alerts")["items"]) == 3
        assert caller.get("/ready")["status"] == "ok"


def heard(lines: Any) -> dict[str, Any]:
    """The next event of a run."""
    for line in lines:
        if line == "event: run":
            return dict(json.loads(next(lines).removeprefix("data: ")))
    raise AssertionError("the stream ended")


def test_a_figure_of_spoiled_numbers_is_not_served_after_it(tmp_path: Path) -> None:
    run, _ = derived_run(tmp_path)
    spoil(tmp_path)
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        path, asked = f"{API}/runs/{run}/layers/noise_scale", {"columns": 10}
        before = client.get(path, params=asked)
        assert before.json()["x"] == []
        assert command("derive", run, "--again", "--data", str(tmp_path)).returncode == 0
        after = client.get(path, params=asked, headers={"If-None-Match": before.headers["ETag"]})
        assert after.status_code == 200
        assert len(after.json()["x"]) > 5


def test_up_to_the_last_batch(tmp_path: Path) -> None:
    run, _ = derived_run(tmp_path, most=20)
    done = command("derive", run, "--data", str(tmp_path))
    assert done.stdout == f"30 batches derived; run {run} is derived up to step 400.\n"
    done = command("derive", run, "--json", "--data", str(tmp_path))
    assert json.loads(done.stdout) == {"run": run, "batches": 0, "derived_step": 400, "last_step": 400}


def test_what_again_did_is_said_in_words(tmp_path: Path) -> None:
    run, url = derived_run(tmp_path)
    done = command("derive", run, "--again", database_url=url, data=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    said = f"400 steps of run {run} are derived again; of alerts: 0 new, 3 that it had, 0 that come out no more.\n"
    assert done.stdout == said
    assert not list(tmp_path.glob("gradspectra-derive-*"))


@pytest.mark.parametrize("option", [[], ["--again"]])
def test_a_run_that_is_not_there_is_said_with_its_name(tmp_path: Path, option: list[str]) -> None:
    derived_run(tmp_path)
    done = command("derive", "nosuchrun", *option, "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("derive: there is no run 'nosuchrun'\n")
