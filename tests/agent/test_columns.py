"""Where numbers of many layers are written at once."""

import numpy as np
import pytest
from gradspectra.columns import Columns
from gradspectra.readout import summed
from gradspectra.turns import Turns


@pytest.mark.parametrize("columns", [[2, 3, 4], [0], [4, 2, 3], [0, 2, 4], [2, 4, 4]])
def test_numbers_come_to_the_layers_they_are_of(columns: list[int]) -> None:
    place, asked = Columns(), np.array(columns)
    found = np.zeros(6)
    found[place(asked)] = np.arange(1, len(columns) + 1)
    expected = np.zeros(6)
    expected[asked] = np.arange(1, len(columns) + 1)
    np.testing.assert_array_equal(found, expected)


def test_layers_in_a_row_are_a_slice_and_those_asked_for_last_are_not_looked_at_anew() -> None:
    place, row, gaps = Columns(), np.arange(3, 7), np.array([1, 3])
    assert [place(row), place(row)] == [slice(3, 7)] * 2
    assert place(gaps) is gaps
    assert place(row) == slice(3, 7)


def test_where_all_have_room_all_have_their_turn_each_time() -> None:
    turns = Turns([5, 5, 5], float("inf"))
    assert [sorted(turns.take([2, 0, 1])) for _ in range(3)] == [[0, 1, 2]] * 3
    assert turns.take([]) == []


def test_the_sum_of_one_device_is_that_of_several_with_nothing_elsewhere() -> None:
    alone = np.array([[1.5, -0.0, np.inf]])
    together = summed([alone, np.zeros((1, 3))])
    np.testing.assert_array_equal(summed([alone]), together)
    assert not np.signbit(summed([alone]))[0, 1]
    assert not np.signbit(together)[0, 1]
