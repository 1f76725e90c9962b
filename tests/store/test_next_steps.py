"""Where an attempt goes on: exactly in segments, no later than that in blocks, of its own kind alone."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra_store import Store
from gradspectra_store.derived import DerivedBatch, save_derived
from gradspectra_store.next_steps import next_step
from store.batches import TABLE, a_batch, layer_block, spectrum_block, started, stored
from store.compacting import compacted, derived_through
from store.spoiling import spoil

FAR = 2**52


def test_steps_far_apart_are_found_in_the_middle_of_a_segment_and_between_two(store: Store) -> None:
    run = started(store)
    layers = layer_block([3, 900], {"grad_sq": np.ones((2, 3))})
    stored(store, run.run, a_batch(run.session, 1, [3, 900, FAR], layer_table=TABLE, layers=layers))
    stored(store, run.run, a_batch(run.session, 2, [FAR + 7], spectra=spectrum_block([(FAR + 7, 0)])))
    other = started(store, resume=run.run, rank=1)
    stored(store, run.run, a_batch(other.session, 1, [5, 6]))
    with store.write() as conn:
        late = layer_block([1000], {"effective_rank": np.ones((1, 3))})
        save_derived(conn, run.run, [DerivedBatch(1, 1, None, [late])])

    def following(kind: str, *after: int) -> list[int | None]:
        with store.read() as conn:
            return [next_step(conn, run.run, kind, 1, step) for step in after]

    assert following("scalars", 0, 3, 4, 901, FAR, FAR + 1, FAR + 8) == [3, 3, 900, FAR, FAR, FAR + 7, None]
    assert following("layers", 0, 4, 901, 1001) == [3, 900, 1000, None]
    assert following("spectra", 0, FAR + 8) == [FAR + 7, None]
    with store.read() as conn:
        assert next_step(conn, run.run, "scalars", 2, 0) is None
    spoil(store, run.run, kind="scalars", batch=1, rank=0)
    assert following("scalars", 4) == [FAR + 7]


@pytest.mark.parametrize("after", [0, 1, 500, 10**6, 10**9 + 5, 10**9 + 1700])
def test_in_blocks_it_is_no_later_than_the_next_step(store: Store, after: int) -> None:
    run = started(store)
    steps = [*range(1, 801), *range(10**9, 10**9 + 801)]
    for sequence, first in enumerate(range(0, len(steps), 100), 1):
        stored(store, run.run, a_batch(run.session, sequence, steps[first : first + 100]))
    derived_through(store, run.run)
    assert compacted(store, run.run)
    expected = min((step for step in steps if step >= after), default=None)
    with store.read() as conn:
        found = next_step(conn, run.run, "scalars", 1, after)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert after <= found <= expected
        assert expected - found < 2**18
