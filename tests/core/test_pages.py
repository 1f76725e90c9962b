"""Room for large arrays: where it begins, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra_core.pages import wide_array, wide_bytes


@pytest.mark.parametrize("shape", [(3, 0, 5), (20, 1000), (4, 200, 782), (4, 2000, 1000), (1 << 17,)])
def test_room_is_an_array_like_any_other(shape: tuple[int, ...]) -> None:
    found = wide_array(shape)
    found[...] = 7.0
    assert (found.shape, found.dtype, found.flags.c_contiguous) == (shape, np.float64, True)
    assert (found == 7.0).all()


def test_room_of_a_mebibyte_and_more_begins_a_large_page() -> None:
    arrays = [wide_array((size,)) for size in (1 << 17, 1 << 18, 3 << 18, 1 << 22)]
    assert [array.ctypes.data % (1 << 21) for array in arrays] == [0, 0, 0, 0]


@pytest.mark.parametrize(("size", "large"), [(400_000, True), (524_288, True), (700_000, True), (650_000, False)])
def test_a_last_page_that_is_half_used_lies_in_the_room_as_a_whole(size: int, large: bool) -> None:
    array = wide_array((size,))
    owner: np.ndarray = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    page = 1 << 21
    spare = owner.nbytes - array.nbytes - page
    assert spare == (-array.nbytes % page if large else 0)


@pytest.mark.parametrize("count", [0, 3, 40_000])
def test_bytes_and_arrays_are_put_one_behind_the_other(count: int) -> None:
    numbers = np.random.default_rng(1).normal(size=(4, count))
    parts = [b"before", numbers.data, b"", numbers[1].astype(np.float32).data, b"after"]
    found = wide_bytes(parts)
    assert memoryview(found).readonly
    assert bytes(found) == b"".join(parts)
    if count == 40_000:
        assert np.frombuffer(found, np.uint8).ctypes.data % (1 << 21) == 0
