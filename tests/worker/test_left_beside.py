"""What a process that derives a run again leaves when it is killed goes by itself, with the sweeps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gradspectra_store import Store, lying_beside
from gradspectra_store.block_schema import rederivations
from gradspectra_store.missing import missing_rows
from gradspectra_store.rederivations import ABANDONED_SECONDS, HEARD_SECONDS, CannotDeriveAgain
from gradspectra_store.schema import derive_states
from gradspectra_store.swapping import Swap
from gradspectra_worker.derive_again import derive_again
from gradspectra_worker.sweep import sweep
from worker.again import derived_run, nothing_beside, without_batch
from worker.synthetic import outcome


class Nobody:
    """Takes no requests."""

    def request(self, run: str) -> None: ...


class Killed(BaseException):
    """What a kill does: nothing of the process goes on."""


def sweeps(store: Store, run: str, now: float) -> int:
    """Sweep until nothing lies beside the run any more; returns how often."""
    for count in range(1000):
        if nothing_beside(store, run):
            return count
        sweep(store, Nobody(), now, lambda _: None)  # type: ignore[arg-type]
    raise AssertionError("it stays")


def noted(store: Store) -> list[str]:
    with store.read() as conn:
        return list(conn.execute(sa.select(rederivations.c.state)).scalars())


def killed(store: Store, run: str, folder: Path, patch: pytest.MonkeyPatch, method: str) -> None:
    """Derive a run again, up to a call of a method of the swap; nobody clears up."""

    def dies(*_: Any) -> None:
        raise Killed

    with patch.context() as own:
        own.setattr("gradspectra_worker.derive_again.end_again", lambda *_: None)
        if method == "clean":  # the second time, after the swap
            make = Swap.make

            def made(swap: Swap, at: Any) -> Any:
                done = make(swap, at)
                own.setattr(Swap, "clean", dies)
                return done

            own.setattr(Swap, "make", made)
        else:
            own.setattr(Swap, method, dies)
        with pytest.raises(Killed):
            derive_again(store, run, folder)


def test_what_the_run_had_goes_where_the_process_was_killed_after_the_swap(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lying_beside, "AT_ONCE", 3)
    run = derived_run(store, 1100, compacted=True)
    before = without_batch(outcome(store, run))
    killed(store, run, tmp_path, monkeypatch, "clean")
    assert without_batch(outcome(store, run)) == before
    assert not nothing_beside(store, run)
    told: list[Any] = []
    for _ in range(2):
        sweep(store, Nobody(), time.time(), told.append)  # type: ignore[arg-type]
    assert [(one["run"], one["derived_step"]) for one in told if "derived_step" in one] == [(run, 1100)]
    assert noted(store) == ["told"]
    with store.read() as conn:
        assert lying_beside.left_runs(conn, time.time() + HEARD_SECONDS - 10) == []
    assert sweeps(store, run, time.time() + HEARD_SECONDS) > 2
    assert without_batch(outcome(store, run)) == before
    sweep(store, Nobody(), time.time() + HEARD_SECONDS, lambda _: None)  # type: ignore[arg-type]
    assert noted(store) == []


def test_what_the_run_was_to_have_goes_where_the_process_was_killed_before_the_swap(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = derived_run(store, 1100, compacted=True)
    before = outcome(store, run)
    assert [one["step"] for one in before["states"]] == [1000]
    killed(store, run, tmp_path, monkeypatch, "make")
    assert not nothing_beside(store, run)
    with store.read() as conn:
        assert missing_rows(conn) == []
    sweep(store, Nobody(), time.time() + ABANDONED_SECONDS - 10, lambda _: None)  # type: ignore[arg-type]
    assert noted(store) == ["working"]
    assert sweeps(store, run, time.time() + ABANDONED_SECONDS + 10) == 2
    assert outcome(store, run) == before
    assert noted(store) == ["left"]
    with store.write() as conn:
        conn.execute(sa.update(derive_states).values(state={"wrong": True}))
    derive_again(store, run, tmp_path)
    assert without_batch(outcome(store, run)) == without_batch(before)


def test_a_process_that_was_taken_for_dead_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = derived_run(store, 1100, compacted=True)
    before = outcome(store, run)
    stage = Swap.stage

    def staged(swap: Swap) -> None:
        stage(swap)
        sweep(store, Nobody(), time.time() + ABANDONED_SECONDS + 10, lambda _: None)  # type: ignore[arg-type]

    monkeypatch.setattr(Swap, "stage", staged)
    with pytest.raises(CannotDeriveAgain, match="or found this one dead"):
        derive_again(store, run, tmp_path)
    assert outcome(store, run) == before
    monkeypatch.undo()
    assert sweeps(store, run, time.time() + 2 * ABANDONED_SECONDS) == 1
    assert outcome(store, run) == before
