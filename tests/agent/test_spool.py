import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent.records import TABLE, layer_record, scalar_record
from gradspectra.claims import Claim, held_claims
from gradspectra.journal import Journal
from gradspectra.packing import Packer
from gradspectra.record import StepRecord
from gradspectra.spool import PATIENCE, Spool
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.limits import DEFAULT_LIMITS
from gradspectra_core.records import Batch
from gradspectra_core.wire import decode_batch, encode_batch
from hypothesis import given, settings
from hypothesis import strategies as st

OPEN: list[Spool] = []


@pytest.fixture(autouse=True)
def _closed_afterwards() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def opened(folder: Path | None, limit: int = 1 << 30) -> Spool:
    spool = Spool(folder, limit)
    OPEN.append(spool)
    return spool


def filled(folder: Path | None, batches: int, packer: Packer | None = None, limit: int = 1 << 30) -> Spool:
    """A spool with one step per batch, steps 1 to `batches`, of session "s"."""
    spool = opened(folder, limit)
    spool.set_session("s")
    packer = packer or Packer()
    for step in range(1, batches + 1):
        (batch,) = packer.pack([layer_record(step)])
        spool.append(batch)
    return spool


def drained(spool: Spool) -> Iterator[Batch]:
    while (found := spool.peek()) is not None:
        frame, payload = found
        yield decode_batch(payload)
        spool.acknowledge(frame.sequence)


def steps_of(batches: list[Batch]) -> list[int]:
    return [int(step) for batch in batches for step in batch.steps]


def test_batches_come_back_in_order_with_session_and_number(tmp_path: Path) -> None:
    spool = filled(tmp_path, 3)
    assert spool.waiting_steps == 3
    batches = list(drained(spool))
    assert [(batch.session, batch.sequence, batch.steps.tolist()) for batch in batches] == [
        ("s", 1, [1]),
        ("s", 2, [2]),
        ("s", 3, [3]),
    ]
    assert (spool.waiting_steps, spool.waiting_bytes, spool.acknowledged) == (0, 0, 3)


def test_a_session_named_later_is_written_into_what_waits(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    (batch,) = Packer().pack([scalar_record(1)])
    spool.append(batch)
    spool.set_session("named")
    assert [batch.session for batch in drained(spool)] == ["named"]


def test_a_spool_opened_again_goes_on_behind_what_was_acknowledged(tmp_path: Path) -> None:
    spool = filled(tmp_path, 5)
    spool.acknowledge(2)
    spool.close()
    again = opened(tmp_path)
    assert again.waiting_steps == 3
    assert again.next_sequence == 6
    assert steps_of(list(drained(again))) == [3, 4, 5]


def test_a_damaged_marker_only_means_that_more_is_sent_again(tmp_path: Path) -> None:
    spool = filled(tmp_path, 3)
    spool.acknowledge(2)
    spool.close()
    (tmp_path / "acknowledged").write_bytes(b"\x07" * 12)
    assert steps_of(list(drained(opened(tmp_path)))) == [1, 2, 3]


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """The file of a spool with ten batches, and the ends of its frames."""
    folder = tmp_path_factory.mktemp("ten")
    spool = filled(folder, 10)
    ends = [frame.end for frame in spool.journal.frames()]
    spool.close()
    return (folder / "batches").read_bytes(), ends


@settings(max_examples=200)
@given(data=st.data())
def test_a_file_cut_at_any_byte_keeps_exactly_its_whole_batches(
    ten: tuple[bytes, list[int]], data: st.DataObject
) -> None:
    content, ends = ten
    cut = data.draw(st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "batches").write_bytes(content[:cut])
        spool = opened(Path(folder))
        whole = sum(end <= cut for end in ends)
        assert spool.next_sequence == whole + 1
        (batch,) = Packer(100).pack([scalar_record(101)])
        spool.set_session("s")
        spool.append(batch)
        assert steps_of(list(drained(spool))) == [*range(1, whole + 1), 101]
        spool.close()


@settings(max_examples=100)
@given(data=st.data())
def test_a_flipped_byte_never_gives_a_wrong_batch(ten: tuple[bytes, list[int]], data: st.DataObject) -> None:
    content, ends = ten
    at = data.draw(st.integers(0, len(content) - 1))
    broken = bytearray(content)
    broken[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "batches").write_bytes(broken)
        spool = opened(Path(folder))
        assert steps_of(list(drained(spool))) == list(range(1, sum(end <= at for end in ends) + 1))
        spool.close()


@settings(max_examples=60)
@given(actions=st.lists(st.sampled_from(["append", "acknowledge", "kill", "forget"]), max_size=40))
def test_whatever_happens_nothing_is_lost_and_nothing_doubles(actions: list[str]) -> None:
    """A model server that stores in order, against a spool that is killed and opened again at any moment."""
    stored: list[Batch] = []
    packer, step = Packer(), 0
    with tempfile.TemporaryDirectory() as name:
        spool = opened(Path(name))
        spool.set_session("s")
        for action in [*actions, "send all"]:
            if action == "append":
                step += 1
                (batch,) = packer.pack([scalar_record(step)])
                spool.append(batch)
            elif action == "acknowledge" and (found := spool.peek()):
                stored.append(decode_batch(found[1]))
                spool.acknowledge(found[0].sequence)
            elif action == "kill":
                spool.close()
                spool = opened(Path(name))
                spool.set_session("s")
            elif action == "forget" and stored:
                stored.pop()
                spool.go_to(len(stored) + 1, stored[-1].complete_through if stored else 0)
            elif action == "send all":
                stored.extend(drained(spool))
        spool.close()
    assert steps_of(stored) == list(range(1, step + 1))
    assert [batch.sequence for batch in stored] == list(range(1, len(stored) + 1))


def test_acknowledged_batches_are_forgotten_in_time_but_the_last_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradspectra.spool.KEEP_ACKNOWLEDGED", 10_000)
    spool = filled(tmp_path, 200)
    for sequence in range(1, 201):
        spool.acknowledge(sequence)
    kept = [frame.sequence for frame in spool.journal.frames()]
    assert kept[-1] == 200
    assert 5 < len(kept) < 60
    assert (tmp_path / "batches").stat().st_size == spool.journal.end
    spool.go_to(kept[3], 0)
    assert steps_of(list(drained(spool))) == list(range(kept[3], 201))


def with_spectrum(step: int) -> StepRecord:
    return layer_record(step, spectra=True)


def test_a_full_spool_gives_up_the_oldest_spectra_first(tmp_path: Path) -> None:
    packer = Packer()
    spool = opened(tmp_path, limit=40_000)
    spool.set_session("s")
    while not spool.times_thinned:
        (batch,) = packer.pack([with_spectrum(spool.next_sequence)])
        spool.append(batch)
    last = spool.next_sequence - 1
    batches = list(drained(spool))
    assert steps_of(batches) == list(range(1, last + 1)), "no step is lost"
    assert all(batch.layers is not None for batch in batches)
    without = [batch.steps[0] for batch in batches if batch.spectra is None]
    assert without == list(range(1, len(without) + 1)), "the oldest lost theirs"
    assert 0 < len(without) < last
    assert [(gap.first, gap.last, gap.what) for batch in batches for gap in batch.gaps] == [
        (step, step, "spectra") for step in without
    ]


def test_a_full_spool_forgets_what_a_sync_has_brought_to_the_server_before_it_gives_anything_up(tmp_path: Path) -> None:
    packer, limit = Packer(), 40_000
    spool = filled(tmp_path, 10, packer, limit)
    each = spool.waiting_bytes / 10
    with held_claims(tmp_path) as claims:
        claims.write(Claim(copied=10, stored=8))
    while spool.next_sequence * each <= limit + 2 * each:
        (batch,) = packer.pack([layer_record(spool.next_sequence)])
        spool.append(batch)
    assert (spool.acknowledged, spool.times_thinned) == (8, 0)
    batches = list(drained(spool))
    assert [batch.sequence for batch in batches] == list(range(9, spool.next_sequence))
    assert all(batch.layers is not None and not batch.gaps for batch in batches)


def test_what_a_sync_has_copied_keeps_its_number_and_content(tmp_path: Path) -> None:
    packer = Packer()
    spool = filled(tmp_path, 5, packer, limit=30_000)
    before = [decode_batch(payload) for frame in spool.journal.frames() if (payload := spool.journal.payload(frame))]
    with held_claims(tmp_path) as claims:
        claims.write(Claim(copied=5))
    for step in range(6, 301):
        (batch,) = packer.pack([layer_record(step)])
        spool.append(batch)
    assert spool.times_thinned
    after = list(drained(spool))
    assert [encode_batch(batch) for batch in after[:5]] == [encode_batch(batch) for batch in before]
    assert [batch.sequence for batch in after] == list(range(1, len(after) + 1))


@pytest.mark.parametrize(("locked", "grows"), [(False, True), (None, False)])
def test_a_full_spool_waits_for_a_sync_that_copies_it_but_not_for_ever(
    locked: bool | None, grows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradspectra.claims._locked", lambda _: locked)
    packer, limit, largest = Packer(), 30_000, 0
    spool = opened(tmp_path, limit)
    for step in range(1, 301):
        (batch,) = packer.pack([layer_record(step)])
        spool.append(batch)
        largest = max(largest, spool.waiting_bytes)
    assert (largest > limit, spool.times_thinned > 0) == (grows, True)
    assert largest <= PATIENCE * limit


@given(st.binary(max_size=24))
@settings(max_examples=30, deadline=None)
def test_a_damaged_claim_is_none(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "claimed").write_bytes(raw)
        with held_claims(Path(folder)) as claims:
            assert claims.read() == Claim()


def test_a_spool_that_stays_full_gives_up_layers_then_steps_each_with_a_gap(tmp_path: Path) -> None:
    packer = Packer()
    spool = opened(tmp_path, limit=30_000)
    spool.set_session("s")
    for step in range(1, 501):
        (batch,) = packer.pack([layer_record(step)])
        spool.append(batch)
    assert spool.waiting_bytes <= 30_000
    batches = list(drained(spool))
    steps = set(steps_of(batches))
    gone = {step for b in batches for gap in b.gaps if gap.what == "all" for step in range(gap.first, gap.last + 1)}
    bare = {step for b in batches for gap in b.gaps if gap.what == "layers" for step in range(gap.first, gap.last + 1)}
    assert steps | gone == set(range(1, 501)), "each step is there or in a gap"
    assert not steps & gone
    assert bare
    assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1)), "and the numbers have no hole"
    assert batches[0].layer_table == TABLE, "the layer table outlives the batch that carried it"
    assert all(b.layers is not None or {int(step) for step in b.steps} <= bare for b in batches if len(b.steps))


def test_a_batch_that_may_have_been_sent_keeps_its_number_and_content(tmp_path: Path) -> None:
    packer = Packer()
    spool = opened(tmp_path, limit=20_000)
    spool.set_session("s")
    (batch,) = packer.pack([with_spectrum(1)])
    spool.append(batch)
    found = spool.peek()
    assert found is not None
    for step in range(2, 300):
        (batch,) = packer.pack([with_spectrum(step)])
        spool.append(batch)
    again = spool.peek()
    assert again is not None
    assert again[1] == found[1]


def test_a_spool_in_memory_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradspectra.spool.MEMORY_LIMIT", 20_000)
    spool = filled(None, 300)
    assert spool.waiting_bytes <= 20_000
    assert steps_of(list(drained(spool)))[-1] == 300


def test_a_disk_that_fails_while_the_file_is_replaced_keeps_what_was_there(tmp_path: Path) -> None:
    spool = filled(tmp_path, 5)
    (tmp_path / "batches.new").mkdir()
    assert spool.journal.replace([b"lost"]) is False
    assert spool.journal.in_memory
    assert steps_of(list(drained(spool))) == [1, 2, 3, 4, 5]


def test_a_replacement_that_was_killed_half_way_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    shutil.copy(tmp_path / "batches", tmp_path / "batches.new")
    (tmp_path / "batches.new").write_bytes((tmp_path / "batches").read_bytes()[:50])
    assert steps_of(list(drained(opened(tmp_path)))) == [1, 2, 3]


def test_garbage_in_place_of_a_spool_is_an_empty_spool(tmp_path: Path) -> None:
    (tmp_path / "batches").write_bytes(b"not a spool" * 100)
    journal = Journal(tmp_path / "batches")
    assert (journal.end, (tmp_path / "batches").stat().st_size) == (0, 0)
    journal.close()


def test_packing_splits_at_64_steps_and_at_another_layer_table() -> None:
    other = LayerTable.of([*TABLE.layers, Layer("c.weight", "linear", 2, (2, 2))])
    records = [layer_record(step) for step in range(1, 71)]
    records += [layer_record(step, other) for step in range(71, 74)] + [layer_record(74)]
    batches = Packer().pack(records)
    assert [len(batch.steps) for batch in batches] == [64, 6, 3, 1]
    assert [batch.layer_table for batch in batches] == [TABLE, None, other, None]
    assert [batch.layers.digest for batch in batches if batch.layers] == [TABLE.digest] * 2 + [
        other.digest,
        TABLE.digest,
    ]
    assert [batch.complete_through for batch in batches] == [64, 70, 73, 74]


def test_packing_marks_what_single_steps_lack() -> None:
    first, second, third = layer_record(1), scalar_record(2), layer_record(3, spectra=True)
    second.scalars["eval_loss"] = float("nan")
    third.statistics, third.values, third.present = ("weight_sq",), np.array([[5.0, np.inf]], np.float32), None
    (batch,) = Packer().pack([first, second, third])
    assert batch.scalars.names == ("loss", "eval_loss")
    assert batch.scalars.present.tolist() == [[True, True, True], [False, True, False]]
    assert np.isnan(batch.scalars.values[1, 1])
    layers = batch.layers
    assert layers is not None
    assert layers.steps.tolist() == [1, 3]
    assert layers.statistics == ("grad_sq", "update_sq", "weight_sq")
    assert layers.present.tolist() == [
        [[True, True], [False, False]],
        [[True, False], [False, False]],
        [[False, False], [True, True]],
    ]
    assert layers.values[2, 1].tolist() == [5.0, np.inf]
    assert batch.spectra is not None
    assert (batch.spectra.step.tolist(), batch.spectra.length.tolist()) == ([3], [3])


def test_a_step_that_does_not_go_up_is_left_out_and_counted() -> None:
    packer = Packer(start_step=5)
    batches = packer.pack([scalar_record(step) for step in (5, 6, 6, 8, 7)])
    assert steps_of(batches) == [6, 8]
    assert packer.out_of_order == 3


def test_a_batch_stays_below_the_mebibyte_that_proxies_let_pass() -> None:
    def packed(layers: int) -> list[Batch]:
        table = LayerTable.of(Layer(f"l{index}", "linear", 0, (2, 2)) for index in range(layers))
        return Packer().pack(layer_record(step, table) for step in range(1, 31))

    assert [len(batch.steps) for batch in packed(10_000)] == [4, 4, 4, 4, 4, 4, 4, 2]
    assert max(len(encode_batch(batch)) for batch in packed(3_000)) < 1 << 20
    assert [len(batch.steps) for batch in packed(60_000)] == [1] * 30


def test_of_more_numbers_than_a_batch_can_name_the_rates_of_groups_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = [scalar_record(step) for step in (1, 2)]
    for record in records:
        record.scalars = {f"learning_rate/{group}": 0.1 for group in range(300)} | {"mine": 2.0} | record.scalars
    (batch,) = Packer().pack(records)
    assert len(batch.scalars.names) == DEFAULT_LIMITS.max_scalars
    assert {"loss", "mine", "learning_rate/0", "learning_rate/253"} <= set(batch.scalars.names)
    assert batch.scalars.present.all()
    assert decode_batch(encode_batch(batch)).steps.tolist() == [1, 2]
    assert [m for m in caplog.messages if "is left out" in m] == [
        "gradspectra: step 1 has 302 numbers beside those of its layers, and 256 are recorded; "
        "'learning_rate/254' is left out"
    ]


def test_packing_splits_before_a_batch_has_too_many_names() -> None:
    records = [scalar_record(step) for step in range(1, 61)]
    for record in records:
        record.scalars |= {f"sample/{record.step}/{index}": 1.0 for index in range(30)}
    batches = Packer().pack(records)
    assert steps_of(batches) == list(range(1, 61))
    assert {len(batch.steps) for batch in batches[:-1]} == {8}
    for batch in batches:
        assert decode_batch(encode_batch(batch)).scalars.names == batch.scalars.names


def test_a_batch_that_cannot_be_read_again_is_a_gap_once_the_session_has_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = scalar_record(2)
    bad.scalars["a name\nof two lines"] = 1.0
    packer, spool = Packer(), opened(tmp_path)
    for record in (scalar_record(1), bad, scalar_record(3)):
        spool.append(*packer.pack([record]))
    spool.set_session("s")
    spool.peek()
    found = list(drained(spool))
    assert sum("steps 2 to 2 cannot be read" in message for message in caplog.messages) == 1
    assert [(batch.session, batch.sequence, batch.complete_through) for batch in found] == [
        ("s", 1, 1),
        ("s", 2, 2),
        ("s", 3, 3),
    ]
    assert [(gap.first, gap.last, gap.what) for gap in found[1].gaps] == [(2, 2, "all")]
    assert "printable" in found[1].gaps[0].reason
    assert steps_of(found) == [1, 3]
