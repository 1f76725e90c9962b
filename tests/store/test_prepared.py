"""Statements that the driver runs: the rows and the errors are those that the same statement gives elsewhere."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.errors import StoreUnavailable
from gradspectra_store.prepared import Prepared, PreparedAmong
from gradspectra_store.schema import run_tags, runs
from store.batches import started

_of_run = Prepared(sa.select(runs.c.id, runs.c.last_step + 7).where(runs.c.id == sa.bindparam("of_run")))
_of_runs = PreparedAmong(lambda ids: sa.select(runs.c.id).where(runs.c.id.in_(ids), runs.c.state == sa.bindparam("is")))
_insert = Prepared(sa.insert(run_tags).values(run=sa.bindparam("run"), tag=sa.bindparam("tag")).inline())


def test_values_go_by_name_and_numbers_of_the_statement_itself_stay(store: Store) -> None:
    one, other = started(store), started(store)
    with store.read() as conn:
        assert _of_run.rows(conn, {"of_run": one.run}) == [(one.run, 7)]
        assert _of_run.rows(conn, {"of_run": other.run}) == [(other.run, 7)]
        assert _of_run.rows(conn, {"of_run": "nowhere"}) == []


def test_it_is_part_of_the_transaction(store: Store) -> None:
    run = started(store)
    undone = {"run": run.run, "tag": "undone"}
    with pytest.raises(sa.exc.IntegrityError):
        insert(store, undone, undone)
    insert(store, {"run": run.run, "tag": "kept"})
    with store.read() as conn:
        assert conn.execute(sa.select(run_tags.c.tag).where(run_tags.c.run == run.run)).scalars().all() == ["kept"]


def insert(store: Store, *rows: dict[str, str]) -> None:
    with store.write() as conn:
        for row in rows:
            _insert.run(conn, row)


def test_what_it_reads_first_fixes_what_the_transaction_sees(store: Store) -> None:
    run = started(store)
    tags = Prepared(sa.select(run_tags.c.tag))
    with store.read() as conn:
        assert tags.rows(conn, {}) == []
        insert(store, {"run": run.run, "tag": "later"})
        assert tags.rows(conn, {}) == []
        assert conn.execute(sa.select(run_tags.c.tag)).all() == []
    with store.read() as conn:
        assert tags.rows(conn, {}) == [("later",)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8])
def test_a_statement_finds_any_of_as_many_values_as_there_are(store: Store, count: int) -> None:
    ids = [started(store).run for _ in range(9)][:count]
    with store.read() as conn:
        assert sorted(_of_runs.each(conn, ids, {"is": "running"})) == sorted((one,) for one in ids)
        assert list(_of_runs.each(conn, ids, {"is": "finished"})) == []


def test_an_error_in_a_later_row_comes_as_everywhere_in_the_store(store: Store) -> None:
    if store.dialect != "sqlite":
        pytest.skip("PostgreSQL gives all rows of a statement at once")
    numbers = sa.func.json_each(sa.literal_column(f"'[1, 2, 3, -{1 << 63}]'"))
    broken = Prepared(sa.select(sa.func.abs(sa.literal_column("value"))).select_from(numbers))
    found: list[object] = []
    with pytest.raises(StoreUnavailable, match="overflow"), store.read() as conn:
        found.extend(broken.each(conn, {}))
    assert found[0] == (1,)


def test_an_error_of_the_driver_comes_as_everywhere_in_the_store(store: Store) -> None:
    broken = Prepared(sa.select(sa.literal_column("1")).select_from(sa.table("no_such_table")))
    kind = StoreUnavailable if store.dialect == "sqlite" else sa.exc.ProgrammingError
    with pytest.raises(kind), store.read() as conn:
        broken.rows(conn, {})
