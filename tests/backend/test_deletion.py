"""A run that is deleted while it is sent, derived, compacted, read and exported: gone for all, without a trace."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from fastapi.testclient import TestClient
from gradspectra_backend import export_tables
from gradspectra_store import Store
from gradspectra_store.block_schema import metadata
from gradspectra_worker.compact import compact

PATIENCE = 120.0
OF = table()
READS = (
    "",
    "/series",
    "/layers",
    "/layers/weight_sq",
    "/layers/grad_norm",
    "/attempts",
    "/alerts",
    "/incidents",
    "/gaps",
)
MORE = ("/suggestions", "/figures/loss", "/figures/layers", f"/spectra?layer={OF.names[0]}")


def numbered(run: dict[str, Any], sequence: int) -> Any:
    """A batch of 16 steps with everything in it, and an alert in the third."""
    steps = list(range(16 * sequence - 15, 16 * sequence + 1))
    losses = [float("nan") if sequence == 3 else 1.0] * len(steps)
    squares = [[float(step), 1.0] for step in steps]
    layers = layer_block(OF, steps, weight_sq=squares, grad_sq=squares)
    more = {"layers": layers, "spectra": spectrum_block(OF, steps[0], 0, [3.0, 1.0]), "loss": losses}
    return batch(run["session"], sequence, steps, layer_table=OF, **more)


def rows_left(store: Store, run: str) -> dict[str, int]:
    """Tables that have rows of a run, and how many."""
    found = {}
    with store.read() as conn:
        for of in metadata.sorted_tables:
            if "run" in of.c:
                count = conn.execute(sa.select(sa.func.count()).select_from(of).where(of.c.run == run)).scalar_one()
                found[of.name] = int(count)
    return {name: count for name, count in found.items() if count}


class Busy(threading.Thread):
    """Does one thing with a run over and over, until it is told three times that the run is gone."""

    def __init__(self, once: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.once = once
        self.began = threading.Event()
        self.statuses: list[int] = []

    def run(self) -> None:
        while self.statuses.count(404) < 3 and set(self.statuses) <= {200, 404}:
            self.statuses.append(self.once())
            self.began.set()


def test_a_run_is_deleted_while_everybody_is_at_it(anywhere: Caller):
    run, other = anywhere.start(), anywhere.start()
    for sequence in range(1, 21):
        anywhere.must_send(run["id"], numbered(run, sequence))
    anywhere.must_send(other["id"], numbered(other, 1))
    anywhere.derived(run["id"], 320)
    store = anywhere.client.app.state.context.store
    address = f"{API}/runs/{run['id']}"
    sequences, paths = itertools.count(21), itertools.cycle(READS + MORE)
    forms = itertools.cycle(itertools.product(("csv", "json"), ("series", "layers", "spectra")))

    def compacted() -> int:
        compact(store, run["id"])
        return int(anywhere.client.get(address).status_code)

    def exported() -> int:
        form, what = next(forms)
        return int(anywhere.client.get(f"{address}/export", params={"format": form, "what": what}).status_code)

    busy = [
        Busy(lambda: anywhere.send(run["id"], numbered(run, next(sequences))).status_code),
        Busy(lambda: anywhere.client.post(f"{address}/heartbeat", json={"session": run["session"]}).status_code),
        Busy(lambda: anywhere.client.patch(address, json={"tags": ["a", "b"]}).status_code),
        Busy(lambda: anywhere.client.get(address + next(paths)).status_code),
        Busy(compacted),
        Busy(exported),
    ]
    for one in busy:
        one.start()
    assert all(one.began.wait(PATIENCE) for one in busy)
    assert anywhere.client.delete(address).status_code == 204
    for one in busy:
        one.join(PATIENCE)
    assert [sorted(set(one.statuses)) for one in busy] == [[200, 404]] * len(busy)
    assert rows_left(store, run["id"]) == {}
    assert [entry["id"] for entry in anywhere.get("/runs")["items"]] == [other["id"]]
    assert anywhere.get("/alerts")["items"] == []
    assert anywhere.derived(other["id"], 16)["derived_step"] == 16
    assert rows_left(store, other["id"])["segments"] == 3


@pytest.mark.parametrize(
    ("what", "reads"), [("series", "read_times"), ("layers", "read_recorded_layers"), ("spectra", "find_spectra")]
)
def test_an_export_of_a_run_that_is_deleted_meanwhile_breaks_off(caller: Caller, what: str, reads: str, monkeypatch):
    run = caller.start()
    for sequence in (1, 2):
        caller.must_send(run["id"], numbered(run, sequence))
    caller.derived(run["id"], 32)
    monkeypatch.setattr(export_tables, "VALUES_AT_ONCE", 1)
    monkeypatch.setattr(export_tables, "MOST_GROWTH", 1)
    real, asked = getattr(export_tables.read, reads), []

    def read(*given: Any) -> Any:
        asked.append(given)
        if len(asked) == 3:
            caller.client.delete(f"{API}/runs/{run['id']}")
        return real(*given)

    monkeypatch.setattr(export_tables.read, reads, read)
    unguarded = TestClient(caller.client.app, base_url="http://127.0.0.1:7117")
    with pytest.raises(RuntimeError, match="response already started"):
        unguarded.get(f"{API}/runs/{run['id']}/export", params={"what": what})
    assert caller.client.get(f"{API}/runs/{run['id']}/export").status_code == 404
