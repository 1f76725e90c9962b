"""Taking in batches: whole or not at all, once however often they are sent, in order."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Gap
from gradspectra_store import Store
from gradspectra_store.derived import pending
from gradspectra_store.errors import BadBatch, SequenceGap, UnknownRun, UnknownSession
from gradspectra_store.ingest import ingest
from gradspectra_store.read import layer_list, read_layers, read_series, read_spectra, series_names
from gradspectra_store.run_views import get_run, list_gaps
from gradspectra_store.schema import segments
from store.batches import TABLE, a_batch, columns, layer_block, spectrum_block, started, stored


def dump(store: Store) -> list[Any]:
    """Everything in the database, to see that nothing changed."""
    from gradspectra_store.schema import metadata

    with store.read() as conn:
        return [conn.execute(table.select().order_by(*table.primary_key)).all() for table in metadata.sorted_tables]


def wait_until_blocked(store: Store, thread: threading.Thread) -> None:
    """Return once what the thread does waits for another transaction of PostgreSQL."""
    blocked = "datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    count = 0
    while not count:
        assert thread.is_alive()
        with store.read() as conn:
            count = conn.execute(sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE {blocked}")).scalar_one()


def test_a_batch_is_stored_and_read_back(store: Store) -> None:
    run = started(store)
    result = stored(store, run.run, a_batch(run.session, 1, [1, 2, 4]))
    assert (result.status, result.batch, result.last_step) == ("stored", 1, 4)
    with store.read() as conn:
        series = read_series(conn, run.run, ["loss"])
        shown = get_run(conn, run.run)
    assert series.x.tolist() == [1, 2, 4]
    assert series.series["loss"].mean.tolist() == [1.0, 0.5, 0.25]
    assert shown is not None
    assert (shown["last_step"], shown["updated_at"], shown["last_loss"]) == (4, 1001.0, 0.25)


def test_when_a_run_was_heard_is_written_once_a_second(store: Store) -> None:
    run = started(store)
    heard = []
    for sequence, now in enumerate((1001.0, 1001.9, 1002.0, 1002.5, 999.0), 1):
        stored(store, run.run, a_batch(run.session, sequence, [sequence]), now)
        with store.read() as conn:
            shown = get_run(conn, run.run)
        assert shown is not None
        heard.append(shown["updated_at"])
        assert shown["last_step"] == sequence
    assert heard == [1001.0, 1001.0, 1002.0, 1002.0, 999.0]  # the last one after the clock was put back


def test_a_repeated_batch_changes_nothing(store: Store) -> None:
    run = started(store)
    batch = a_batch(run.session, 1, [1, 2])
    stored(store, run.run, batch)
    before = dump(store)
    result = stored(store, run.run, batch, now=5000.0)
    assert (result.status, result.batch, result.last_step) == ("repeated", 1, 2)
    assert dump(store) == before


def test_a_gap_in_the_sequence_names_the_number_expected_and_stores_nothing(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))
    before = dump(store)
    with pytest.raises(SequenceGap, match="batch 3 came where batch 2 was expected") as caught:
        stored(store, run.run, a_batch(run.session, 3, [2]))
    assert (caught.value.expected, caught.value.last_step) == (2, 1)
    assert dump(store) == before


def test_a_batch_for_an_unknown_run_or_session_is_refused(store: Store) -> None:
    run, other = started(store), started(store)
    with pytest.raises(UnknownRun):
        stored(store, "nosuchrun", a_batch(run.session, 1, [1]))
    with pytest.raises(UnknownSession):
        stored(store, other.run, a_batch(run.session, 1, [1]))


def test_steps_that_go_back_are_refused_and_what_was_there_stays(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [5, 6]))
    before = dump(store)
    with pytest.raises(BadBatch, match=r"steps: must lie above step 6, the last of this session, got 6") as caught:
        stored(store, run.run, a_batch(run.session, 2, [6, 7]))
    assert caught.value.field == "steps"
    assert dump(store) == before


def test_absent_nan_and_infinities_stay_what_they_are(store: Store) -> None:
    run = started(store)
    values = {"loss": [float("nan"), None, float("inf"), -0.0], "lr": [None, None, None, float("-inf")]}
    batch = a_batch(
        run.session,
        1,
        [1, 2, 3, 4],
        scalars=columns(values, 4),
        counts=columns({"tokens": [2**60 + 1, 5, None, -1]}, 4, np.int64),
    )
    stored(store, run.run, batch)
    with store.read() as conn:
        back = pending(conn, run.run, 0, 10, now=1001.0)[0].batch
        series = read_series(conn, run.run, ["loss", "lr", "tokens", "nosuch"])
    assert back.scalars.present.tolist() == [[True, False, True, True], [False, False, False, True]]
    np.testing.assert_array_equal(back.scalars.values[back.scalars.present], [np.nan, np.inf, -0.0, -np.inf])
    assert np.signbit(back.scalars.values[0, 3])
    assert back.counts.values[0, 0] == 2**60 + 1
    assert list(series.series) == ["loss", "lr", "tokens"]
    assert series.series["loss"].nonfinite.tolist() == [1, 0, 1, 0]
    assert series.series["loss"].present.tolist() == [True, False, True, True]
    assert series.series["lr"].min.tolist()[3] == -np.inf


def test_layers_of_a_model_that_changes_mid_run_are_told_apart(store: Store) -> None:
    run = started(store)
    grown = LayerTable.of([*TABLE.layers[1:], Layer("head.weight", "head", -1, (256, 8))])
    first = layer_block([1, 2], {"grad_sq": np.array([[1, 4, 9], [16, 25, 36]])})
    second = layer_block([3], {"grad_sq": np.array([[49, 64, 81]])}, grown)
    stored(store, run.run, a_batch(run.session, 1, [1, 2], layer_table=TABLE, layers=first))
    stored(store, run.run, a_batch(run.session, 2, [3], layer_table=grown, layers=second))
    with store.read() as conn:
        answer = read_layers(conn, run.run, "grad_norm")
        layers = layer_list(conn, run.run)
    assert answer.layers == ("embedding.weight", "layers.0.up.weight", "layers.0.norm.weight", "head.weight")
    assert answer.present.tolist() == [
        [True, True, False],
        [True, True, True],
        [True, True, True],
        [False, False, True],
    ]
    assert answer.mean[answer.present].tolist() == [1, 4, 2, 5, 7, 3, 6, 8, 9]
    assert [(layer["name"], layer["since_step"]) for layer in layers][2:] == [
        ("layers.0.norm.weight", 1),
        ("head.weight", 3),
    ]


def test_a_layer_table_is_sent_once_and_needed(store: Store) -> None:
    run = started(store)
    block = layer_block([1], {"grad_sq": np.array([[1, 2, 3]])})
    with pytest.raises(BadBatch, match="names no layer table of this run") as caught:
        stored(store, run.run, a_batch(run.session, 1, [1], layers=block))
    assert caught.value.field == "layers.digest"
    stored(store, run.run, a_batch(run.session, 1, [1], layers=block, layer_table=TABLE))
    later = dataclasses.replace(block, steps=np.array([2]))
    assert stored(store, run.run, a_batch(run.session, 2, [2], layers=later)).batch == 2
    with store.read() as conn:
        assert [found.batch.layer_table for found in pending(conn, run.run, 0, 10, now=1001.0)] == [TABLE, TABLE]


def test_a_block_of_another_size_than_its_table_is_refused(store: Store) -> None:
    run = started(store)
    block = dataclasses.replace(layer_block([1], {"grad_sq": np.ones((1, 3))}), digest="0" * 16)
    other = LayerTable.of(TABLE.layers[:2])
    block = dataclasses.replace(block, digest=other.digest)
    with pytest.raises(BadBatch, match=r"layers.values: must be of the 2 layers of the table, got 3"):
        stored(store, run.run, a_batch(run.session, 1, [1], layers=block, layer_table=other))
    spectra = dataclasses.replace(spectrum_block([(1, 2)]), digest=other.digest)
    with pytest.raises(BadBatch, match=r"spectra.layer: must be below 2"):
        stored(store, run.run, a_batch(run.session, 1, [1], spectra=spectra, layer_table=other))


def test_spectra_are_read_by_layer_and_come_late(store: Store) -> None:
    run = started(store)
    batch = a_batch(run.session, 1, [1, 2], layer_table=TABLE, spectra=spectrum_block([(1, 0), (2, 1)]))
    stored(store, run.run, batch)
    late = a_batch(run.session, 2, [], spectra=spectrum_block([(2, 0)]), complete_through=2)
    assert stored(store, run.run, late).last_step == 2
    with store.read() as conn:
        found = read_spectra(conn, run.run, "embedding.weight")
        layers = layer_list(conn, run.run)
        assert read_spectra(conn, run.run, "layers.0.norm.weight") == []
        assert read_spectra(conn, run.run, "embedding.weight", of="weight") == []
    assert [(spectrum.step, spectrum.singular_values.tolist()) for spectrum in found] == [
        (1, [1.0, 0.5, 0.25]),
        (2, [2.0, 1.0, 0.5]),
    ]
    assert (found[0].nuclear, found[0].k99, found[0].method) == (1.0, 7, "exact")
    assert [layer["spectra"] for layer in layers] == [True, True, False]


def test_gaps_are_kept_and_listed(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [], gaps=(Gap(1, 9, "all", "spool full"),)))
    with store.read() as conn:
        assert list_gaps(conn, run.run) == [
            {"attempt": 1, "session": run.session, "first": 1, "last": 9, "what": "all", "reason": "spool full"}
        ]


def test_names_are_known_without_opening_segments(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))
    more = {"loss": [1.0], "eval_loss": [2.0]}
    stored(store, run.run, a_batch(run.session, 2, [2], scalars=columns(more, 1)))
    with store.read() as conn:
        assert series_names(conn, run.run) == ["eval_loss", "loss"]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_session_that_waits_for_another_sees_what_that_one_stored(store: Store) -> None:
    run = started(store)
    other = started(store, resume=run.run, rank=1)
    with_all = {"layer_table": TABLE, "layers": layer_block([1], {"grad_sq": np.ones((1, 3))})}
    for sequence, of_first, of_second in ((1, 0, 0), (2, 1, 2)):  # the table is new, and then what has a spectrum
        first, second = (
            a_batch(one.session, sequence, [sequence], **with_all, spectra=spectrum_block([(sequence, layer)]))
            for one, layer in ((run, of_first), (other, of_second))
        )
        waiting = threading.Thread(target=stored, args=(store, run.run, second))
        with store.write() as conn:
            ingest(conn, run.run, first, 1001.0)
            waiting.start()
            wait_until_blocked(store, waiting)
        waiting.join(60)
    with store.read() as conn:
        ranks = conn.execute(sa.select(segments.c.rank).where(segments.c.kind == "spectra").order_by(segments.c.batch))
        assert ranks.scalars().all() == [0, 1, 0, 1]
        assert [layer["spectra"] for layer in layer_list(conn, run.run)] == [True, True, True]
