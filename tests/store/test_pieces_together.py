"""Small pieces of what was recorded are computed with together, large ones by themselves."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra_core.blocks import Recorded
from gradspectra_store.quantities import Quantity


def pieces(sizes: list[int], rows: int) -> list[Recorded]:
    values = np.random.default_rng(0).lognormal(size=(rows, sum(sizes))).astype(np.float32)
    ends = np.cumsum(sizes).tolist()
    starts = [0, *ends[:-1]]
    return [Recorded(np.arange(a, b), values[:, a:b], None) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([163] * 3 + [1] * 40, [163, 163, 163, 40]),
        ([1] * 300, [163, 137]),
        ([64, 64, 64, 500, 2], [128, 64, 500, 2]),
        ([7], [7]),
    ],
)
def test_pieces_are_put_together_up_to_so_many_numbers(sizes: list[int], expected: list[int]) -> None:
    own = pieces(sizes, 200)
    quantity = Quantity("ratio", ("one", "other"), 200, last=False, function=np.divide)
    found = list(quantity.apart([own, own]))
    assert [[len(part.steps) for part in parts] for parts in found] == [[size, size] for size in expected]
    for parts in zip(*found, strict=True):
        assert np.concatenate([part.steps for part in parts]).tolist() == list(range(sum(sizes)))
        whole = np.concatenate([part.values for part in parts], axis=1)
        np.testing.assert_array_equal(whole, np.concatenate([part.values for part in own], axis=1))


def test_pieces_of_which_one_lacks_something_are_laid_over_each_other() -> None:
    quantity = Quantity("one", ("one",), 3, last=False)
    first, second = pieces([5, 5], 3)
    hole = Recorded(second.steps, second.values, np.arange(15).reshape(3, 5) != 4)
    assert [len(one.steps) for (one,) in quantity.apart([[first, second]])] == [10]
    for bad in ([first, hole], [second, first], [first, Recorded(second.steps, second.values[:2], None)]):
        assert list(quantity.apart([bad])) == []
