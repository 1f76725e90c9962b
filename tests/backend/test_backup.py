"""Backup and restore by the commands that docs/operating.md gives, on both databases."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from databases import postgres
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.doctor import examine
from gradspectra_backend.settings import Settings
from gradspectra_worker.compact import compact
from store.spoiling import spoil

DOCS = Path(__file__).parents[2] / "docs" / "operating.md"
OF = table()


def documented() -> dict[str, str]:
    """The commands: to back up and to restore on each database, and to bring single segments back on SQLite."""
    text = DOCS.read_text().partition("### Backup and restore")[2].partition("\n### ")[0]
    found = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    names = ("sqlite backup", "sqlite restore", "sqlite mending", "postgresql backup", "postgresql restore")
    return dict(zip(names, found, strict=True))


class Place:
    """A database, and how a person at a shell gets to it. name: of a PostgreSQL database, None of SQLite."""

    def __init__(self, settings: Settings, name: str | None, shell: dict[str, str]) -> None:
        self.settings, self.name, self.shell = settings, name, shell

    def do(self, what: str) -> subprocess.CompletedProcess[str]:
        """Run the documented commands; the database has another name here than in the docs."""
        commands = documented()[f"{'sqlite' if self.name is None else 'postgresql'} {what}"]
        if self.name is not None:
            commands = re.sub(r"gradspectra(?= >)", self.name, commands)
        shell, limit = ["sh", "-e", "-c", commands], 120
        return subprocess.run(
            shell, cwd=self.settings.data, env=self.shell, capture_output=True, text=True, timeout=limit
        )


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Place]:
    """Each database, where the commands for it are installed."""
    if request.param == "sqlite":
        if shutil.which("sqlite3") is None:
            pytest.skip("the command sqlite3 is not installed")
        yield Place(settings, None, dict(os.environ))
        return
    folders = [*glob.glob("/usr/lib/postgresql/*/bin"), *os.environ["PATH"].split(os.pathsep)]
    if shutil.which("pg_dump", path=os.pathsep.join(folders)) is None:
        pytest.skip("the command pg_dump is not installed")
    with postgres() as text:
        url = sa.make_url(text)
        given = {"PGHOST": url.query.get("host", url.host), "PGPORT": url.port, "PGUSER": url.username}
        given |= {"PGPASSWORD": url.password, "PATH": os.pathsep.join(folders)}
        shell = {**os.environ, **{key: str(value) for key, value in given.items() if value is not None}}
        assert url.database is not None
        yield Place(settings.model_copy(update={"database_url": text}), url.database, shell)


@contextmanager
def served(place: Place) -> Iterator[Caller]:
    with TestClient(create_app(place.settings), base_url="http://127.0.0.1:7117") as client:
        yield Caller(client)


def a_batch(run: dict[str, Any], sequence: int) -> Any:
    """64 steps with all kinds of numbers, and an alert in the second."""
    steps = list(range(64 * sequence - 63, 64 * sequence + 1))
    losses = [float("nan") if sequence == 2 else 1.0 / step for step in steps]
    layers = layer_block(OF, steps, grad_sq=[[float(step), 0.1] for step in steps])
    more = {"layers": layers, "spectra": spectrum_block(OF, steps[0], 0, [3.0, 1.0]), "loss": losses}
    return batch(run["session"], sequence, steps, layer_table=OF, **more)


def all_answers(caller: Caller, run: str) -> dict[str, Any]:
    of_run = ("", "/series", "/layers", "/layers/grad_norm", "/layers/effective_rank", "/alerts", "/attempts")
    found = {path: caller.get(f"/runs/{run}{path}") for path in of_run}
    found["/spectra"] = caller.get(f"/runs/{run}/spectra", layer=OF.names[0])
    return found | {"/runs": caller.get("/runs"), "/channels": caller.get("/channels")}


def test_what_was_backed_up_is_there_again_and_goes_on(place: Place) -> None:
    with served(place) as caller:
        run = caller.start(tags=["kept"], config={"lr": 0.1})
        hook = {"kind": "webhook", "name": "kept", "url": "https://example.org/hook"}
        assert caller.client.post(f"{API}/channels", json=hook).status_code == 201
        for sequence in range(1, 11):
            caller.must_send(run["id"], a_batch(run, sequence))
        caller.derived(run["id"], 640)
        compact(caller.client.app.state.context.store, run["id"])
        before = all_answers(caller, run["id"])
        made = place.do("backup")
        assert (made.returncode, made.stderr) == (0, "")
        lost = caller.start()["id"]
        caller.must_send(run["id"], a_batch(run, 11))
        if place.name is not None:
            refused = place.do("restore")
            assert (refused.returncode, "is being accessed by other users" in refused.stderr) == (1, True)
        caller.derived(run["id"], 704)
    restored = place.do("restore")
    assert (restored.returncode, restored.stderr) == (0, "")
    found = {entry["name"]: entry["status"] for entry in examine(lambda: place.settings)}
    assert [found[name] for name in ("database", "runs", "segments", "blocks")] == ["ok"] * 4
    with served(place) as caller:
        assert all_answers(caller, run["id"]) == before
        assert caller.client.get(f"{API}/runs/{lost}").status_code == 404
        refused_batch = caller.send(run["id"], a_batch(run, 12))
        assert (refused_batch.status_code, refused_batch.json()["expected"]) == (409, 11)
        caller.must_send(run["id"], a_batch(run, 11))
        assert caller.start()["id"] not in (run["id"], lost)
        assert caller.derived(run["id"], 704)["last_step"] == 704


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_segments_that_were_damaged_since_come_back_from_a_copy(place: Place) -> None:
    with served(place) as caller:
        run, store = caller.start(), caller.client.app.state.context.store
        for sequence in (1, 2):
            caller.must_send(run["id"], a_batch(run, sequence))
        caller.derived(run["id"], 128)
        before = caller.get(f"/runs/{run['id']}/spectra", layer=OF.names[0])
        assert place.do("backup").returncode == 0
        spoil(store, run["id"], kind="spectra", batch=1)
        assert caller.get(f"/runs/{run['id']}/spectra", layer=OF.names[0])["damaged"] == [[1, 1]]
        mended = place.do("mending")
        assert (mended.returncode, mended.stderr) == (0, "")
        assert caller.get(f"/runs/{run['id']}/spectra", layer=OF.names[0]) == before
        (found,) = [entry["detail"] for entry in examine(lambda: place.settings) if entry["name"] == "segments"]
        assert found.endswith("none is damaged")
