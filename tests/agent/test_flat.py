"""What the host's own operations take of a tensor, against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from gradspectra.flat import extremes, extremes_into

OF_COMPLEX = torch.complex(torch.zeros(3), torch.tensor([1.0, -2.0, 5.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", [[3.0], [-1.0, 2.5, 0.0], [math.inf, 1.0], [-math.inf, math.nan, 2.0], [-0.0, 0.0]])
def test_extremes_are_those_of_torch(numbers: list[float], dtype: torch.dtype) -> None:
    given = torch.tensor(numbers, dtype=dtype, requires_grad=True)
    low, high = torch.empty(()), torch.empty(())
    with torch.no_grad():
        extremes_into(low, high, given)
        wanted = torch.aminmax(given)
    for found in (extremes(given), (low.item(), high.item())):
        assert found == pytest.approx((wanted.min.item(), wanted.max.item()), rel=0, nan_ok=True)


def test_extremes_of_a_view_of_whatever_kind() -> None:
    assert extremes(torch.arange(12.0).reshape(3, 4).T[1:, ::2]) == (1.0, 11.0)
    assert OF_COMPLEX.conj().imag.is_neg()
    assert extremes(OF_COMPLEX.conj().imag) == (-5.0, 2.0)


def test_extremes_beyond_float32_are_infinite_in_a_slot_of_it() -> None:
    low, high = torch.empty(()), torch.empty(())
    extremes_into(low, high, torch.tensor([-1e300, 1e300], dtype=torch.float64))
    assert (low.item(), high.item()) == (-math.inf, math.inf)
