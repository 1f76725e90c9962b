"""States of the detectors that are kept for attempts that resume, and those that lie beside them."""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.beside import Beside
from gradspectra_store.kept_states import (
    checkpoint_state,
    delete_states,
    keys_beside,
    put_beside,
    state_before,
    state_keys,
    state_texts,
)
from gradspectra_store.rederivations import begin_again
from gradspectra_store.schema import cursors, derive_states
from gradspectra_store.swapping import Swap
from store.batches import started
from store.schemas import downgraded


def test_a_new_attempt_goes_on_from_the_last_state_before_it(store: Store) -> None:
    run = started(store)
    with store.write() as conn:
        for step in (1000, 2000, 3000):
            checkpoint_state(conn, run.run, 1, step, {"at": step})
        checkpoint_state(conn, run.run, 1, 2000, {"at": "2000, again"})
    started(store, resume=run.run, start_step=2500)
    with store.write() as conn:
        assert state_before(conn, run.run, 2501) == {"at": "2000, again"}
        checkpoint_state(conn, run.run, 2, 3000, {"at": "3000 of the second"})
    started(store, resume=run.run, start_step=3000)
    with store.read() as conn:
        assert state_before(conn, run.run, 3001) == {"at": "3000 of the second"}
        assert state_before(conn, run.run, 2501, attempt=2) == {"at": "2000, again"}
        assert state_before(conn, run.run, 2000) == {"at": 1000}
        assert state_before(conn, run.run, 1000) is None
    started(store, resume=run.run, start_step=1500)
    started(store, resume=run.run, start_step=5000)
    with store.read() as conn:
        assert state_before(conn, run.run, 5001) == {"at": 1000}  # what the attempt before hid is another trajectory


def test_states_beside_those_of_a_run_are_nobodys_until_they_are_exchanged(store: Store) -> None:
    run, other = started(store).run, started(store, name="other").run
    with store.write() as conn:
        for step in (1000, 2000):
            checkpoint_state(conn, run, 1, step, {"at": step})
        checkpoint_state(conn, other, 1, 1000, {"of": "other"})
        put_beside(conn, run, [(1, 1000, '{"new":0}'), (1, 1500, '{"new":1500}')])
        put_beside(conn, run, [(1, 1000, '{"new":1000}')])
    started(store, resume=run, start_step=3000)
    with store.write() as conn:
        assert state_before(conn, run, 3001) == {"at": 2000}
        assert state_keys(conn, run) == [(1, 1000), (1, 2000)]
        assert state_texts(conn, run, [(1, 2000)]) == [(1, 2000, '{"at":2000}')]
        assert sorted(keys_beside(conn, run, 9)) == [(-1, 1000), (-1, 1500)]
        conn.execute(sa.update(cursors).where(cursors.c.run == run).values(states_turned=True))
        assert state_before(conn, run, 3001) == {"new": 1500}
        assert state_before(conn, run, 1500) == {"new": 1000}
        assert state_keys(conn, run) == [(1, 1000), (1, 1500)]
        checkpoint_state(conn, run, 1, 1500, {"newest": 1500})
        assert state_texts(conn, run, [(1, 1500)]) == [(1, 1500, '{"newest":1500}')]
        assert len(keys_beside(conn, run, 1)) == 1
        delete_states(conn, run, keys_beside(conn, run, 9))
        assert keys_beside(conn, run, 9) == []
        assert state_before(conn, run, 3001) == {"newest": 1500}
        put_beside(conn, run, [(2, 3000, "{}")])
        assert keys_beside(conn, run, 9) == [(2, 3000)]
        assert state_keys(conn, other) == [(1, 1000)]


def test_an_older_schema_has_the_states_of_the_run_alone(store: Store, url: str) -> None:
    run, other = started(store).run, started(store, name="other").run
    with store.write() as conn:
        for of in (run, other):
            checkpoint_state(conn, of, 1, 1000, {"first": 1})
            put_beside(conn, of, [(1, 1000, '{"second":2}')])
        conn.execute(sa.update(cursors).where(cursors.c.run == run).values(states_turned=True))
    store.close()
    downgraded(url, "0012")
    again = Store.open(url)
    with again.read() as conn:
        found = {row.run: (row.attempt, row.step, row.state) for row in conn.execute(sa.select(derive_states))}
        assert found == {run: (1, 1000, {"second": 2}), other: (1, 1000, {"first": 1})}
        assert state_keys(conn, run) == [(1, 1000)]
    again.close()


def test_the_newest_state_is_brought_in_each_time(store: Store, tmp_path: Path) -> None:
    run = started(store).run
    with store.write() as conn:
        owner = begin_again(conn, run, time.time())
    beside = Beside.open(tmp_path / "beside", store, run)
    swap = Swap(store, beside.store, run, owner, lambda _: None)
    for states in ({1000: "a", 2000: "b"}, {2000: "c", 3000: "d"}):
        with beside.store.write() as conn:
            for step, name in states.items():
                checkpoint_state(conn, run, 1, step, {"name": name})
        swap.stage()
    with store.write() as conn:
        assert state_keys(conn, run) == []
        conn.execute(sa.update(cursors).where(cursors.c.run == run).values(states_turned=True))
        found = sorted(state_texts(conn, run, state_keys(conn, run)))
    assert [text for *_, text in found] == [f'{{"name":"{name}"}}' for name in "acd"]
    beside.store.close()
