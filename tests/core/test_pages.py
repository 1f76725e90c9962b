"""Room for large arrays: where it begins, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra_core.pages import wide_array


@pytest.mark.parametrize("shape", [(3, 0, 5), (20, 1000), (4, 200, 782), (4, 2000, 1000), (1 << 17,)])
def test_room_is_an_array_like_any_other(shape: tuple[int, ...]) -> None:
    found = wide_array(shape)
    found[...] = 7.0
    assert (found.shape, found.dtype, found.flags.c_contiguous) == (shape, np.float64, True)
    assert (found == 7.0).all()


def test_room_of_a_mebibyte_and_more_begins_a_large_page() -> None:
    arrays = [wide_array((size,)) for size in (1 << 17, 1 << 18, 3 << 18, 1 << 22)]
    assert [array.ctypes.data % (1 << 21) for array in arrays] == [0, 0, 0, 0]
