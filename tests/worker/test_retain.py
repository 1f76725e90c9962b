"""Retiring runs that ended long ago: what goes, what is left of it, and what is never touched."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.checking import check_blocks
from gradspectra_store.freeing import bytes_of, to_be_freed
from gradspectra_store.read import read_series
from gradspectra_store.retention import DAY, Retention, adopt_retention, due_runs
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import update_run
from gradspectra_worker.retain import retain
from store.batches import TABLE, a_batch, layer_block, started, stored
from store.compacting import a_plain_run, a_varied_run, compacted, derived_through
from store.retaining import KEPT, LATER, asked, ended, is_left_of, old_run, same, shown

pytestmark = pytest.mark.usefixtures("small_blocks")
NAMES = ("grad_sq", "grad_nonfinite", "update_ratio", "effective_rank")


def eighths(store: Store, run: str, attempt: int | None = None) -> dict[str, object]:
    """Answers in buckets of eight steps."""
    found = {}
    for name in NAMES:
        fine = asked(store, run, name, columns=10_000, attempt=attempt)
        span = int(fine.x[-1] - fine.x[0]) + 1
        found[name] = asked(store, run, name, columns=span // 8 + 2, attempt=attempt)
    return found


def test_what_is_left_is_what_the_coarser_answer_was_and_says_so(store):
    run, _, _ = a_varied_run(store, np.random.default_rng(5), 300)
    ended(store, run)
    before = {a: {name: asked(store, run, name, columns=10_000, attempt=a) for name in NAMES} for a in (1, 2)}
    coarse = {a: eighths(store, run, a) for a in (1, 2)}
    with store.read() as conn:
        series = read_series(conn, run, ["loss", "eval_loss", "noise_scale"], columns=10_000)
    assert retain(store, run, KEPT, LATER) > 0
    assert retain(store, run, KEPT, LATER) == 0
    assert check_blocks(store, 60.0).damaged == ()
    for attempt in (1, 2):
        for name in NAMES:
            now = asked(store, run, name, columns=10_000, attempt=attempt)
            assert {width for _, _, width in now.retired} <= {8}
            if name == "grad_sq":
                assert is_left_of(before[attempt][name], coarse[attempt][name], now) > 10
            else:
                is_left_of(before[attempt][name], coarse[attempt][name], now)
            wide = asked(store, run, name, columns=20, attempt=attempt)
            assert wide.retired == ()
    with store.read() as conn:
        again = read_series(conn, run, ["loss", "eval_loss", "noise_scale"], columns=10_000)
    np.testing.assert_array_equal(again.x, series.x)
    for name, old in series.series.items():
        np.testing.assert_array_equal(again.series[name].mean, old.mean)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_coarse_questions_are_answered_as_before(store, monkeypatch):
    run = old_run(store)
    before = [asked(store, run, name, columns=n) for name in ("grad_sq", "grad_norm") for n in (3, 12, 80)]
    retain(store, run, KEPT, LATER)
    after = [asked(store, run, name, columns=n) for name in ("grad_sq", "grad_norm") for n in (3, 12, 80)]
    same(after, before)
    assert all(one.retired == () for one in after)
    whole = asked(store, run, "grad_norm", columns=10_000)
    monkeypatch.setattr("gradspectra_store.ranges.PIECE_VALUES", 3 * 20)
    same(asked(store, run, "grad_norm", columns=10_000), whole)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_spike_of_one_step_is_still_seen(store):
    run = started(store)
    values = np.ones((1000, 3))
    values[500, 1] = 1e6
    for sequence in range(1, 11):
        own = list(range(100 * sequence - 99, 100 * sequence + 1))
        layers = layer_block(own, {"grad_sq": values[own[0] - 1 : own[-1]]})
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=TABLE, layers=layers))
    ended(store, run.run)
    retain(store, run.run, KEPT, LATER)
    for question in ({"columns": 10_000}, {"columns": 50}, {"start": 499, "stop": 503}, {"start": 503, "stop": 504}):
        now = asked(store, run.run, "grad_norm", **question)
        assert now.max[1].max() == 1000.0
        assert now.max[0].max() == 1.0
    zoomed = asked(store, run.run, "grad_norm", start=499, stop=507)
    assert (zoomed.x.tolist(), zoomed.retired) == ([499, 504], ((499, 506, 8),))
    assert (zoomed.min[1].tolist(), zoomed.nonfinite.sum()) == ([1.0, 1.0], 0)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_bucket_that_a_newer_attempt_hides_a_part_of_is_left_out(store):
    one = started(store)
    for sequence, first in enumerate(range(1, 1001, 100), 1):
        own = list(range(first, first + 100))
        layers = layer_block(own, {"grad_sq": np.full((100, 3), 1.0)})
        stored(store, one.run, a_batch(one.session, sequence, own, layer_table=TABLE, layers=layers))
    ended(store, one.run)
    retain(store, one.run, KEPT, LATER)
    two = started(store, resume=one.run, start_step=403, now=LATER + 1)
    own = list(range(404, 604))
    layers = layer_block(own, {"grad_sq": np.full((200, 3), 4.0)})
    stored(store, one.run, a_batch(two.session, 1, own, layer_table=TABLE, layers=layers), now=LATER + 1)
    for _ in range(2):
        joined = asked(store, one.run, "grad_sq", start=390, stop=410, columns=100)
        assert joined.x.tolist() == [390, 392, *range(404, 410)]
        assert joined.max[0].tolist() == [1.0] * 2 + [4.0] * 6
        assert joined.retired == ((390, 403, 8),)
        derived_through(store, one.run)
        compacted(store, one.run)
    wide = asked(store, one.run, "grad_sq", columns=10)
    assert wide.max[0].tolist() == [1.0] * len([x for x in wide.x if x < 384]) + [4.0] * len(wide.x[wide.x >= 384])
    assert shown(store, one.run)["retires_at"] is None
    ended(store, one.run, LATER + 1)
    with store.read() as conn:
        assert due_runs(conn, KEPT, LATER + 31 * DAY) == [one.run]
    retain(store, one.run, KEPT, LATER + 31 * DAY)  # all of the second attempt lies in its newest block
    same(asked(store, one.run, "grad_sq", start=390, stop=410, columns=100), joined)
    assert shown(store, one.run)["retired_at"] == LATER + 31 * DAY


def test_it_is_told_when_a_run_comes_and_how_much_that_frees(store):
    run, pinned = old_run(store), a_plain_run(store, 64, size=64)
    ended(store, pinned, 5000.0)
    with store.write() as conn:
        update_run(conn, pinned, pinned=True)
        assert adopt_retention(conn, Retention(0.0), 10.0).days == 0.0
        assert get_run(conn, run)["retires_at"] is None
    with store.write() as conn:
        wanted = adopt_retention(conn, KEPT, 500.0)
        assert adopt_retention(conn, KEPT, 700.0) == wanted
    assert shown(store, run)["retires_at"] == 1000.0 + 30 * DAY
    assert (shown(store, pinned)["retires_at"], shown(store, run)["retired_at"]) == (None, None)
    with store.read() as conn:
        (item,), following = to_be_freed(conn, wanted)
        assert bytes_of(conn, run) == item.bytes
    assert (item.run, item.retires_at, following) == (run, 1000.0 + 30 * DAY, None)
    assert 0.4 * item.bytes < item.bytes_after < 0.9 * item.bytes
    retain(store, run, wanted, LATER)
    with store.read() as conn:
        assert bytes_of(conn, run) == item.bytes_after
        assert to_be_freed(conn, wanted) == ([], None)
    assert (shown(store, run)["retires_at"], shown(store, run)["retired_at"]) == (None, LATER)


def test_a_stricter_retention_goes_on_from_a_milder_one(store, monkeypatch):
    monkeypatch.setattr("gradspectra_store.block_rows.MOST_ENTRIES", 16)
    run = old_run(store)
    reference = asked(store, run, "grad_norm", columns=640 // 64 + 2)
    retain(store, run, KEPT, LATER)
    stricter = Retention(30.0, 2, 10)
    assert shown(store, run)["retired_at"] == LATER
    with store.read() as conn:
        assert due_runs(conn, KEPT, LATER) == []
        assert due_runs(conn, stricter, LATER) == [run]
    assert retain(store, run, stricter, LATER) > 0
    now = asked(store, run, "grad_norm", columns=10_000)
    assert now.retired[0][2] == 64
    wide = now.x < now.retired[0][1]
    assert wide.sum() >= 2
    np.testing.assert_array_equal(now.max[:, wide], reference.max[:, : wide.sum()])
    assert due_runs_of(store, stricter) == due_runs_of(store, KEPT) == []
    assert retain(store, run, KEPT, LATER) == 0


def due_runs_of(store: Store, wanted: Retention) -> list[str]:
    with store.read() as conn:
        return due_runs(conn, wanted, LATER)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_metric_of_what_goes_that_was_too_sparse_for_buckets_gets_them(store):
    run = started(store)
    for sequence, first in enumerate(range(1, 801, 40), 1):
        own, rare = list(range(first, first + 40)), np.full((40, 3), 4.0)
        layers = layer_block(own, {"weight_sq": np.outer(own, np.ones(3)), "update_sq": rare})
        layers.present[1, :-1] = False
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=TABLE, layers=layers))
    ended(store, run.run)
    before = {name: asked(store, run.run, name, columns=10_000) for name in ("update_ratio", "update_norm")}
    assert len(before["update_ratio"].x) == 20
    assert retain(store, run.run, KEPT, LATER) > 0
    with store.read() as conn:
        left = conn.execute(
            sa.select(blocks.c.name, sa.func.min(blocks.c.first))
            .where(blocks.c.kind == "layers", blocks.c.level == 0)
            .group_by(blocks.c.name)
        ).all()
    assert dict(map(tuple, left))["update_sq"] == 40
    assert dict(map(tuple, left))["weight_sq"] > 600
    for name, old in before.items():
        now = asked(store, run.run, name, columns=10_000)
        np.testing.assert_array_equal(now.x, old.x)
        np.testing.assert_allclose(now.mean, old.mean, rtol=1e-6)
    assert asked(store, run.run, "update_norm", columns=10_000).retired == ()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_numbers_that_come_too_late_change_nothing(store):
    run = started(store)
    for sequence, first in enumerate(range(1, 1201, 100), 1):
        own = list(range(first, first + 100))
        layers = layer_block(own, {"grad_sq": np.full((100, 3), float(sequence))})
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=TABLE, layers=layers))
    ended(store, run.run)
    retain(store, run.run, KEPT, LATER)
    before, coarse = (asked(store, run.run, "grad_norm", stop=1201, columns=columns) for columns in (10_000, 10))
    late = started(store, resume=run.run, rank=1, now=1002.0)
    with store.write() as conn:
        conn.execute(sa.text("UPDATE sessions SET rank = 0 WHERE id = :id"), {"id": late.session})
    for session, sequence, own in ((late.session, 1, range(10, 20)), (run.session, 13, range(1201, 1301))):
        layers = layer_block(own, {"grad_sq": np.full((len(own), 3), 1e9)})
        stored(store, run.run, a_batch(session, sequence, list(own), layer_table=TABLE, layers=layers))
        derived_through(store, run.run)
        same(asked(store, run.run, "grad_norm", stop=1201, columns=10_000), before)
        same(asked(store, run.run, "grad_norm", stop=1201, columns=10), coarse)
    assert compacted(store, run.run) > 0
    same(asked(store, run.run, "grad_norm", stop=1201, columns=10_000), before)
    same(asked(store, run.run, "grad_norm", stop=1201, columns=10), coarse)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_damaged_bucket_that_cannot_be_made_again_is_told(store):
    run = old_run(store)
    whole = asked(store, run, "grad_sq", columns=10_000)
    retain(store, run, KEPT, LATER)
    place = blocks.c.run == run, blocks.c.name == "grad_sq", blocks.c.level == 1, blocks.c.first == 0
    with store.write() as conn:
        identity, payload, stop = conn.execute(
            sa.select(blocks.c.id, blocks.c.payload, blocks.c.stop).where(*place)
        ).one()
        broken = {"id": identity + 1000, "payload": payload[:-1] + bytes([payload[-1] ^ 1])}
        conn.execute(sa.update(blocks).where(blocks.c.id == identity).values(broken))
    for columns in (10_000, 50):
        now = asked(store, run, "grad_sq", columns=columns)
        ((first, last),) = now.damaged
        assert (first, last) == (0, min(stop, now_retired(store, run)) - 1)
        assert now.x[now.x < stop].tolist() == []
        assert now.max[0][-1] == whole.max[0][-1]


def now_retired(store: Store, run: str) -> int:
    """The step below which a run is retired."""
    ((_, last, _),) = asked(store, run, "grad_norm", columns=10_000).retired
    return last + 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_was_recorded_too_seldom_for_buckets_stays_as_it_was(store, monkeypatch):
    monkeypatch.setattr("gradspectra_store.compaction.CHUNK_BYTES", 2_000)
    run = started(store)
    for sequence, first in enumerate(range(1, 961, 32), 1):
        own = list(range(first, first + 32))
        at = [step for step in own if step % 16 == 0 or step > 320]
        layers = layer_block(at, {"grad_sq": np.outer(at, np.ones(3))})
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=TABLE, layers=layers))
    ended(store, run.run)
    before = asked(store, run.run, "grad_sq", stop=320, columns=10_000)
    assert before.x.tolist() == list(range(16, 320, 16))
    assert retain(store, run.run, KEPT, LATER) > 0
    same(asked(store, run.run, "grad_sq", stop=320, columns=10_000), before)
    ((first, last, _),) = asked(store, run.run, "grad_sq", columns=10_000).retired
    assert 256 < first < 400 < last
