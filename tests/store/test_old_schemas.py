"""A database of every schema there was is brought to the present one with all that it holds."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from gradspectra_core.alerts import Finding
from gradspectra_core.catalogue import RULES
from gradspectra_store import Store
from gradspectra_store.alerts import apply_findings, list_alerts
from gradspectra_store.checking import check_blocks, check_segments
from gradspectra_store.read import layer_list, read_spectra
from gradspectra_store.run_views import get_run, list_attempts, list_gaps
from store.batches import TABLE, a_batch, spectrum_block, started, stored
from store.compacting import a_varied_run, answers, compacted, questions
from store.schemas import downgraded, emptied

VERSIONS = sorted(
    file.name[1:5] for file in (files("gradspectra_store") / "migrations" / "versions").iterdir() if file.name[0] == "v"
)


def everything(store: Store, runs: list[str], last: int) -> list[Any]:
    """What both runs answer, but for alerts."""
    members = "name", "state", "last_step", "attempt", "tags", "config", "derived_step"
    with store.read() as conn:
        shown = [get_run(conn, run) or {} for run in runs]
        about: list[Any] = [[one[name] for name in members] for one in shown]
        about += [[attempt["first_step"] for attempt in list_attempts(conn, run)] for run in runs]
        about += [list_gaps(conn, runs[0]), layer_list(conn, runs[0])]
        spectra = read_spectra(conn, runs[1], TABLE.names[1])
        about.append([(one.step, one.singular_values.tolist()) for one in spectra])
    return [*about, *answers(store, runs[0], questions(np.random.default_rng(1), last, 6))]


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_a_database_of_an_older_schema_holds_is_there_after_its_migration(url: str, version: str) -> None:
    store = Store.open(emptied(url))
    run, _, last = a_varied_run(store, np.random.default_rng(7), 150)
    other = started(store, name="other", tags=("a", "b"), config={"lr": 0.5})
    spectra = spectrum_block([(1, 1), (2, 1)])
    stored(store, other.run, a_batch(other.session, 1, [1, 2], layer_table=TABLE, spectra=spectra))
    with store.write() as conn:
        apply_findings(conn, run, 1, [(Finding("loss_spike", "open", "warning", 10, 12), 5000.0)], RULES)
    if version >= "0004":
        assert compacted(store, run) > 0
    before = everything(store, [run, other.run], last)
    with store.read() as conn:
        alerts, _ = list_alerts(conn)
    store.close()
    downgraded(url, version)
    store = Store.open(url)
    for turns in (0, 10**6):
        compacted(store, run, turns)
        np.testing.assert_equal(everything(store, [run, other.run], last), before)
    with store.read() as conn:
        assert list_alerts(conn)[0] == (alerts if version > "0001" else [])
    assert (check_blocks(store, 60.0).damaged, check_segments(store, 60.0).damaged) == ((), ())
    stored(store, other.run, a_batch(other.session, 2, [3]))
    store.close()
