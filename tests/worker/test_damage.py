"""What the disk has lost is derived and compacted around, and said."""

import logging

import sqlalchemy as sa
from gradspectra_store.damaged import damaged
from gradspectra_store.derived import behind
from gradspectra_store.layer_tables import lost_tables
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.repairing import take_back_notes
from gradspectra_store.schema import segments
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive
from gradspectra_worker.ranks import rank_metrics
from store.spoiling import spoil
from worker.synthetic import batches, faulty, start, take_in


def noise_steps(store, run: str) -> list[int]:
    with store.read() as conn:
        return read_series(conn, run, ["noise_scale"], columns=10_000).x.tolist()


def test_what_is_damaged_is_passed_over_and_the_rest_is_derived(store, caplog):
    whole, spoiled = start(store), start(store)
    for one in (whole, spoiled):
        take_in(store, one, batches(faulty(), one.session))
    for kind, batch in (("scalars", 5), ("layers", 9), ("spectra", 10)):
        spoil(store, spoiled.run, kind=kind, batch=batch)
    with caplog.at_level(logging.ERROR):
        assert [derive(store, one.run) for one in (whole, spoiled)] == [50, 50]
    assert [record.getMessage() for record in caplog.records] == [
        f"run {spoiled.run}: a segment of {kind} of steps {first} to {last} of attempt 1 is damaged; "
        "nothing is derived of it"
        for kind, first, last in (("scalars", 33, 40), ("layers", 66, 72), ("spectra", 80, 80))
    ]
    lost = {*range(33, 41), *range(65, 73)}
    assert noise_steps(store, spoiled.run) == [step for step in noise_steps(store, whole.run) if step not in lost]
    with store.read() as conn:
        assert not behind(conn, spoiled.run)
        ranks = read_layers(conn, spoiled.run, "effective_rank", columns=10_000)
        noted = conn.execute(sa.select(damaged.c.kind, damaged.c.first_step).order_by(damaged.c.first_step)).all()
    assert ranks.x.tolist() == [step for step in range(10, 401, 10) if step != 80]
    assert [tuple(row) for row in noted] == [("scalars", 33), ("layers", 66), ("spectra", 80)]


def test_ranks_of_spectra_that_can_be_read_again_are_derived_then(store):
    whole, spoiled = start(store), start(store)
    for one in (whole, spoiled):
        take_in(store, one, batches(faulty(), one.session))
    kept = {
        place: spoil(store, spoiled.run, kind=place[0], batch=place[1]) for place in (("spectra", 10), ("layers", 9))
    }
    for one in (whole, spoiled):
        derive(store, one.run)
        compact(store, one.run)
    for (kind, batch), payload in kept.items():
        place = segments.c.run == spoiled.run, segments.c.kind == kind, segments.c.batch == batch
        with store.write() as conn:
            conn.execute(sa.update(segments).where(*place).values(payload=payload))

    def ranks(run: str) -> tuple[list[int], bytes]:
        with store.read() as conn:
            found = read_layers(conn, run, "effective_rank", columns=10_000)
        return found.x.tolist(), found.mean.tobytes()

    assert ranks(spoiled.run) != ranks(whole.run)
    assert sorted(note.kind for note in take_back_notes(store, rank_metrics)) == ["layers", "spectra"]
    assert ranks(spoiled.run) == ranks(whole.run)
    assert take_back_notes(store, rank_metrics) == []
    assert compact(store, spoiled.run) > 0
    assert ranks(spoiled.run) == ranks(whole.run)
    with store.read() as conn:
        assert lost_tables(conn) == []


def test_what_is_found_damaged_while_compacting_is_said_once(store, caplog):
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    derive(store, started.run)
    spoil(store, started.run, kind="layers", batch=9)
    with caplog.at_level(logging.ERROR):
        assert compact(store, started.run) == 4
        assert compact(store, started.run) == 0
    (record,) = caplog.records
    assert "a segment of layers of steps 66 to 72 of attempt 1 is damaged and stays as it is" in record.getMessage()
