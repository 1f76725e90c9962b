"""Large payloads are decoded by helpers, each once, and what goes wrong there is told as anywhere else."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gradspectra_core.widths import FACTOR
from gradspectra_store import beside_each_other
from gradspectra_store.beside_each_other import LARGE, decoded
from gradspectra_store.block_rows import SPAN, most_entries, portions

MANY = {key: bytes(LARGE + key) for key in range(12)}


@pytest.fixture(autouse=True)
def helpers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two, however many processors there are."""
    pools: dict[int, Any] = {}
    monkeypatch.setattr(beside_each_other, "HELPERS", 2)
    monkeypatch.setattr(beside_each_other, "_pools", pools)
    yield
    for pool in pools.values():
        pool.shutdown()


def test_each_payload_is_decoded_once_and_two_at_a_time() -> None:
    met = threading.Barrier(2, timeout=30)
    asked: list[int] = []

    def decode(key: int, payload: bytes) -> int:
        asked.append(key)
        if key in (0, 1):
            met.wait()  # until another thread is here too
        return len(payload)

    assert dict(decoded(MANY.items(), decode)) == {key: len(payload) for key, payload in MANY.items()}
    assert sorted(asked) == list(MANY)


def test_what_is_small_or_no_bytes_at_all_is_decoded_by_who_asks() -> None:
    payloads: list[tuple[int, Any]] = [(1, bytes(LARGE - 1)), (2, None), (3, "x" * LARGE), (4, bytes(LARGE))]
    by = dict(decoded(payloads, lambda _, payload: (threading.current_thread().name, payload)))
    mine = threading.current_thread().name
    assert [by[key][0] == mine for key in (1, 2, 3)] == [True] * 3
    assert {key: payload for key, (_, payload) in by.items()} == dict(payloads)


def test_what_decoding_raises_is_raised_where_it_was_asked() -> None:
    def decode(key: int, _: bytes) -> int:
        if key == 7:
            raise ValueError("the seventh")
        return key

    with pytest.raises(ValueError, match="the seventh"):
        list(decoded(MANY.items(), decode))


def test_without_helpers_and_when_they_have_ended_the_asking_thread_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    list(decoded(MANY.items(), len_of))
    for pool in beside_each_other._pools.values():
        pool.shutdown()
    assert dict(decoded(MANY.items(), len_of)) == {key: (key, mine()) for key in MANY}
    monkeypatch.setattr(beside_each_other, "HELPERS", 0)
    assert dict(decoded(MANY.items(), len_of)) == {key: (key, mine()) for key in MANY}


def mine() -> str:
    return threading.current_thread().name


def len_of(_: int, payload: bytes) -> tuple[int, str]:
    return len(payload) - LARGE, mine()


def _in_child(found: Any) -> None:
    found.send(sorted(length for _, (length, _) in decoded(MANY.items(), len_of)))


def test_a_process_that_was_forked_has_helpers_of_its_own() -> None:
    list(decoded(MANY.items(), len_of))
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_in_child, args=(there,))
    child.start()
    assert here.poll(30), "the child waits for threads that only its parent has"
    assert here.recv() == list(MANY)
    child.join()


@pytest.mark.parametrize(("rows", "first"), [(200, 1), (200, 8), (3, 5), (100_000, 3)])
def test_blocks_are_cut_between_wider_buckets(rows: int, first: int) -> None:
    numbers = np.arange(first, first + 1500)
    cuts = list(portions(numbers, rows))
    assert [one.start for one in cuts[1:]] == [one.stop for one in cuts[:-1]]
    assert (cuts[0].start, cuts[-1].stop) == (0, 1500)
    assert all(numbers[one.start] % FACTOR == 0 for one in cuts[1:])
    most = most_entries(rows)
    assert all(one.stop - one.start <= most for one in cuts)
    assert all(one.stop - one.start > most - FACTOR for one in cuts[1:-1])


def test_far_apart_numbers_and_wider_buckets_than_a_block_holds_are_cut_where_they_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart = np.arange(1, 2000, 1) * (SPAN // 4)
    assert {one.stop - one.start for one in portions(apart, 1)} == {4, 3}
    monkeypatch.setattr("gradspectra_store.block_rows.most_entries", lambda _: 3)
    assert [one.stop for one in portions(np.arange(8, 16), 1)] == [3, 6, 8]
