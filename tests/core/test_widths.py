"""The widths of buckets that are kept: every power of two from 64 on, each made of one level below it."""

import numpy as np
import pytest
from gradspectra_core.buckets import bucket
from gradspectra_core.pyramid import coarser, leaves
from gradspectra_core.widths import below, finer_than, halfway, ladder, level_at, width_of

KEPT = [0, 1, 2, 34, 66, 3, 35, 67, 4, 36, 68, 5]


def test_the_levels_in_order_of_width():
    assert [width_of(level) for level in KEPT] == [1, 8, *(1 << bits for bits in range(6, 16))]


@pytest.mark.parametrize(
    ("width", "level"), [(1, 0), (4, 0), (8, 1), (32, 1), (64, 2), (128, 34), (256, 66), (512, 3), (16_384, 68)]
)
def test_the_level_is_the_coarsest_that_fits(width: int, level: int):
    assert level_at(width) == level


@pytest.mark.parametrize("level", KEPT[1:])
def test_a_level_is_made_of_the_one_below_it_and_by_way_of_its_ladder(level: int):
    assert width_of(level) % width_of(below(level)) == 0
    assert ladder(level)[-1] == level
    reached = 0
    for step in ladder(level):
        assert below(step) == reached
        reached = step


def test_halfway_levels_lie_between_whole_ones():
    assert [halfway(level) for level in (0, 1, 2, 3)] == [(), (), (34, 66), (35, 67)]
    assert ladder(0) == ()
    assert ladder(67) == (1, 2, 3, 67)


@pytest.mark.parametrize("level", [-1, 21, 31, 32, 33, 65, 96, 98, 255])
def test_other_numbers_are_no_level(level: int):
    with pytest.raises(ValueError, match=f"no level has the number {level}"):
        width_of(level)


def test_the_finer_levels_are_those_of_narrower_buckets():
    assert [width_of(level) for level in finer_than(3)] == [1, 8, 64, 128, 256]
    assert finer_than(66) == (0, 1, 2, 34)
    assert finer_than(0) == ()


def test_no_width_is_below_one():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        level_at(0)


def test_buckets_from_64_steps_on_are_as_kept():
    values = np.random.default_rng(0).lognormal(size=(2, 512)).astype(np.float32)
    single = np.dtype(np.float32)
    level = coarser(coarser(leaves(np.arange(512), values, None, last=False), dtype=single), dtype=single)
    _, mean, low, *_ = bucket(np.arange(512), values, np.ones(values.shape, np.bool_), 128)
    kept = coarser(level, 2, single)
    assert kept.mean.dtype == single
    np.testing.assert_array_equal(mean, kept.mean)
    np.testing.assert_array_equal(low, kept.low)
