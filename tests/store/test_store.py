"""Opening a store and its transactions: what is refused, what is undone, what a full or locked database says."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from gradspectra_store import Store, StoreError
from gradspectra_store.engines import set_up_sqlite
from gradspectra_store.errors import BadRequest, SequenceGap, StoreBusy, StoreFull, StoreUnavailable
from gradspectra_store.ingest import ingest
from gradspectra_store.read import read_series
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import RunRequest, delete_run, start_run
from store.batches import a_batch, started, stored


def test_an_exception_undoes_the_whole_transaction(store: Store) -> None:
    run = ""

    def fail() -> None:
        nonlocal run
        with store.write() as conn:
            run = start_run(conn, RunRequest("p", "n")).run
            raise KeyError(run)

    with pytest.raises(KeyError):
        fail()
    with store.read() as conn:
        assert get_run(conn, run) is None


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # PostgreSQL has many writers
def test_writers_share_one_connection_until_one_of_them_fails(store: Store) -> None:
    def writer() -> object:
        with store.write() as conn:
            return conn.connection.dbapi_connection

    def failing() -> None:
        with store.write() as conn:
            conn.execute(sa.text("CREATE TEMP TABLE left_behind (x)"))
            raise KeyError

    opened = store._engine.pool.checkedout  # type: ignore[attr-defined]
    assert writer() is writer()
    assert opened() == 1
    with pytest.raises(KeyError):
        failing()
    assert opened() == 0
    with store.write() as conn:
        assert not sa.inspect(conn).get_temp_table_names()
    store.close()
    assert opened() == 0


def test_writers_in_many_threads_lose_no_update(store: Store) -> None:
    runs = [started(store) for _ in range(4)]

    def send(at: int) -> None:
        for sequence in range(1, 11):
            stored(store, runs[0].run if at < 2 else runs[at].run, a_batch(sessions[at], sequence, [sequence]))

    sessions = [runs[0].session, started(store, resume=runs[0].run, rank=1).session, runs[2].session, runs[3].session]
    threads = [threading.Thread(target=send, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as conn:
        numbers = conn.execute(sa.text("SELECT batch FROM segments WHERE run = :run ORDER BY 1"), {"run": runs[0].run})
        assert list(numbers.scalars()) == list(range(1, 21))


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "mysql://localhost/x", "nonsense"]
)
def test_a_url_that_cannot_be_a_store_is_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(BadRequest, match=r"sqlite"):
        Store.open(url)


def test_an_unknown_synchronous_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="must be NORMAL or FULL, got 'OFF'"):
        Store.open(f"sqlite:///{tmp_path}/a.db", synchronous="OFF")


@pytest.mark.parametrize(("synchronous", "value"), [("NORMAL", 1), ("FULL", 2)])
def test_sqlite_runs_in_wal_with_the_synchronous_asked_for(tmp_path: Path, synchronous: str, value: int) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db", synchronous=synchronous)
    with store.read() as conn:
        pragmas = [conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    store.close()
    assert pragmas == ["wal", value]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"cannot make the folder of .*/file/sub/a\.db"):
        Store.open(f"sqlite:///{tmp_path}/file/sub/a.db")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to: /proc")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StoreUnavailable, match=r"sqlite:////proc/a\.db is not available: unable to open database file"):
        Store.open("sqlite:////proc/a.db")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("this is not a database, and long enough to be seen as none" * 100)
    with pytest.raises(StoreError, match=r"a\.db is not available: file is not a database"):
        Store.open(f"sqlite:///{tmp_path}/a.db")


def test_a_place_without_a_write_ahead_log_is_refused() -> None:
    with sqlite3.connect(":memory:") as conn, pytest.raises(StoreUnavailable, match="use a local disk"):
        set_up_sqlite(conn, ["journal_mode=WAL"])
    conn.close()


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"postgresql://u:\*\*\*@127\.0\.0\.1:1/x is not available"):
        Store.open("postgresql://u:hidden@127.0.0.1:1/x")


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    run = started(store)
    with store.write() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count={pages + 20}")
    sequence = 0

    def fill() -> None:
        nonlocal sequence
        while True:
            first = sequence * 1000
            stored(store, run.run, a_batch(run.session, sequence + 1, range(first + 1, first + 1001)))
            sequence += 1

    with pytest.raises(StoreFull, match="disk of the database is full"):
        fill()
    assert sequence > 1
    with store.write() as conn:
        conn.exec_driver_sql("PRAGMA max_page_count=1000000")
    with store.read() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM segments").scalar() == sequence
    first = sequence * 1000
    assert stored(store, run.run, a_batch(run.session, sequence + 1, [first + 1])).batch == sequence + 1
    store.close()


def test_a_database_locked_by_another_process_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    monkeypatch.setattr("gradspectra_store.database.WRITE_WAIT", 0.01)
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="database is locked"):
        started(store)
    other.execute("ROLLBACK")
    other.close()
    assert started(store).next_sequence == 1
    store.close()


def test_a_writer_waits_until_another_process_has_ended_its_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    looked = []

    def pause(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            other.execute("COMMIT")

    monkeypatch.setattr("gradspectra_store.database.time.sleep", pause)
    assert started(store).next_sequence == 1
    assert len(looked) == 3
    other.close()
    store.close()


def test_who_does_not_wait_writes_only_where_nobody_else_does(store: Store) -> None:
    def at_once() -> str:
        with store.write_at_once() as conn:
            return start_run(conn, RunRequest("p", "n")).run

    if store.dialect == "postgresql":
        with pytest.raises(StoreBusy):
            at_once()
        return
    with store.read() as conn:
        assert get_run(conn, at_once()) is not None
    with store.write(), ThreadPoolExecutor(1) as other, pytest.raises(StoreBusy):
        other.submit(at_once).result(60)
    process = sqlite3.connect(sa.make_url(store.url).database or "", isolation_level=None)
    process.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        at_once()
    process.execute("ROLLBACK")
    process.close()
    assert at_once()
    assert started(store).next_sequence == 1


@pytest.mark.parametrize(("state", "error"), [("53100", StoreFull), ("53200", StoreUnavailable)])
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_full_disk_and_memory_that_is_used_up_are_told_apart(store: Store, state: str, error: type) -> None:
    with pytest.raises(error, match="as PostgreSQL says it"), store.write() as conn:
        conn.execute(sa.text(f"DO $$ BEGIN RAISE 'as PostgreSQL says it' USING ERRCODE = '{state}'; END $$"))


def in_file(folder: Path) -> int:
    """Segments in the file itself, whatever the log has."""
    with closing(sqlite3.connect(f"file:{folder}/a.db?mode=ro&immutable=1", uri=True)) as conn:
        (count,) = conn.execute("SELECT count(*) FROM segments").fetchone()
    return int(count)


def test_a_log_that_has_grown_is_written_from_its_beginning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, range(1, 4001)))
    log = tmp_path / "a.db-wal"
    grown = log.stat().st_size
    assert grown > 100_000
    with store.read() as reading:  # has begun before, so that the log cannot begin anew
        assert get_run(reading, run.run) is not None
        stored(store, run.run, a_batch(run.session, 2, range(4001, 4100)))
        grown = log.stat().st_size
        monkeypatch.setattr("gradspectra_store.database.WAL_BOUND", 1000)
        store.checkpoint()
        stored(store, run.run, a_batch(run.session, 3, range(4100, 4200)))
        assert log.stat().st_size > grown
    grown = log.stat().st_size
    store.checkpoint()
    assert in_file(tmp_path) == 3
    for sequence in (4, 5, 6):
        stored(store, run.run, a_batch(run.session, sequence, [4200 + sequence]))
    assert log.stat().st_size == grown
    with store.read() as reading:
        assert read_series(reading, run.run, ["loss"], 4202).x.tolist() == [4204, 4205, 4206]
    store.close()


@pytest.mark.parametrize(("made_with", "found"), [(None, 8_192), (16_384, 16_384)])
def test_a_file_keeps_its_pages_and_its_log_the_same_bound(tmp_path: Path, made_with: int | None, found: int) -> None:
    if made_with is not None:
        with closing(sqlite3.connect(tmp_path / "a.db")) as conn:
            conn.execute(f"PRAGMA page_size={made_with}")
            conn.execute("VACUUM")
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    with store.read() as conn:
        page, pages = (
            conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_size", "wal_autocheckpoint")
        )
    store.close()
    assert (page, page * pages) == (found, 128 * 2**20)


def test_a_checkpoint_waits_for_as_many_commits_as_it_is_told(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    store.checkpoint()
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))
    store.checkpoint(least=3)
    assert in_file(tmp_path) == 0
    stored(store, run.run, a_batch(run.session, 2, [2]))
    store.checkpoint(least=3)
    assert in_file(tmp_path) == 2
    stored(store, run.run, a_batch(run.session, 3, [3]))
    store.checkpoint(least=3)
    assert in_file(tmp_path) == 2
    store.checkpoint()
    assert in_file(tmp_path) == 3
    store.close()


def test_a_reader_sees_one_moment(store: Store) -> None:
    run = started(store)
    with store.read() as conn:
        assert get_run(conn, run.run) is not None
        with store.write() as writing:
            delete_run(writing, run.run)
        assert get_run(conn, run.run) is not None
    with store.read() as conn:
        assert get_run(conn, run.run) is None


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/a.db")
    run = started(store)
    with store.write() as writing:
        writing.exec_driver_sql("UPDATE runs SET name = 'other'")
        with store.read() as conn:
            shown = get_run(conn, run.run)
    assert shown is not None
    assert shown["name"] == "n"
    store.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_copy_made_while_a_batch_is_written_is_a_whole_database(store: Store, tmp_path: Path) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1, 2]))
    with store.write() as conn:
        ingest(conn, run.run, a_batch(run.session, 2, [3]), 1002.0)
        copying = sqlite3.connect(tmp_path / "store.db")
        copying.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
        copying.close()
    copy = Store.open(f"sqlite:///{tmp_path}/copy.db")
    with copy.read() as conn:
        assert read_series(conn, run.run, ["loss"]).x.tolist() == [1, 2]
    with pytest.raises(SequenceGap, match="batch 3 came where batch 2 was expected"):
        stored(copy, run.run, a_batch(run.session, 3, [4]))
    assert stored(copy, run.run, a_batch(run.session, 2, [3])).status == "stored"
    copy.close()
