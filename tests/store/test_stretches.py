"""Stretches of steps: the same as sets of (attempt, step)."""

from itertools import pairwise

from gradspectra_store.stretches import Stretch, united, whole, within, without
from hypothesis import given
from hypothesis import strategies as st

stretches = st.lists(
    st.builds(
        lambda attempt, first, size: Stretch(attempt, first, first + size),
        *(st.integers(*bounds) for bounds in ((1, 2), (0, 20), (0, 9))),
    ),
    max_size=6,
)


def steps(found: list[Stretch]) -> set[tuple[int, int]]:
    return {(one.attempt, step) for one in found for step in range(one.first, one.stop)}


@given(stretches)
def test_united_stretches_hold_the_same_steps_and_never_touch(given_stretches: list[Stretch]):
    found = united(given_stretches)
    assert steps(found) == steps(given_stretches)
    assert all(one.first < one.stop for one in found)
    assert all(one.attempt < other.attempt or one.stop < other.first for one, other in pairwise(found))


@given(stretches, stretches)
def test_what_is_within_and_what_is_left_without(given_stretches: list[Stretch], gone: list[Stretch]):
    for one in given_stretches:
        left = without(one, united(gone))
        assert steps(left) == steps([one]) - steps(gone)
        assert steps(within(gone, one)) == steps([one]) & steps(gone)
        aligned = whole(one, 4)
        own = {*range(one.first, one.stop)}
        inside = {step // 4 for step in own if {*range(step // 4 * 4, step // 4 * 4 + 4)} <= own}
        assert {step // 4 for step in range(aligned.first, aligned.stop)} == inside
