"""The weights that a run started from: of a layer's sample every number in 20 bits, where that is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from gradspectra_core.records import Float32
from torch import Tensor

from gradspectra.flat import chunk, widest

BITS = 20
"""Of a whole number that stands for a weight, with its sign: 16 upper and 4 lower ones."""
RESOLVED = 4e-7
"""The step between two such numbers is at most this part of the sample's norm.

What is lost is spread evenly over a step, so ‖W − W₀‖² is wrong by 2⟨W − W₀, lost⟩, whose standard deviation is
‖W − W₀‖ step/√3: of a drift of 1e-4 of the norm 0.23%, four of them less than 1%; of a larger drift less in proportion.
"""
SMALLEST = 2.0**-126
"""The smallest step, a normal number in float32."""


class Coded(TypedDict):
    """A sample as whole numbers of so many steps, a power of 2. A plain dictionary, for checkpoints.

    upper: their upper 16 bits, int16 in the shape of the sample. lower: the other 4, uint8: those of its first half, by
    the first index, in the lower half of each byte, and those of the second in the upper. lost: what lies between the
    weights and these numbers, as a sum of squares, 0-dimensional.
    """

    upper: Tensor
    lower: Tensor
    step: float
    lost: Tensor


Start = Tensor | Coded
"""The sample of a layer: as it is, or coded."""


def is_of(start: Start | None, now: Tensor) -> bool:
    """Whether a start is that of a sample of this shape."""
    numbers = start if start is None or isinstance(start, Tensor) else start["upper"]
    return numbers is not None and numbers.shape == now.shape


def placed_on(start: Start, device: torch.device) -> Start:
    """The same on a device."""
    if isinstance(start, Tensor):
        return start.to(device)
    upper, lower, lost = (start[name].to(device) for name in ("upper", "lower", "lost"))
    return {"upper": upper, "lower": lower, "step": start["step"], "lost": lost}


def copy_of(now: Tensor) -> Tensor:
    """A sample as it is: types of fewer bits stay what they are, others become float32 or wider."""
    narrow = torch.finfo(now.dtype).bits < torch.finfo(torch.float32).bits
    return now.to(now.dtype if narrow else torch.promote_types(now.dtype, torch.float32), copy=True)


def may_be_coded(start: Tensor) -> bool:
    """Whether coding would make it smaller."""
    return start.numel() > 0 and torch.finfo(start.dtype).bits > BITS


def extent(start: Tensor) -> Tensor:
    """Largest magnitude and norm of a sample, (2,), there where it lies."""
    return torch.stack([torch.linalg.vector_norm(start, math.inf), torch.linalg.vector_norm(start)])


def in_steps(start: Tensor, largest: float, norm: float) -> Start:
    """A sample of this extent coded; as it is where that would not be exact enough.

    That is where one number is a large part of the norm, as in very short layers or beside an outlier, where one is not
    finite, and where the squares are out of range.
    """
    step = math.ldexp(1.0, math.frexp(largest)[1] - BITS + 1)
    enough = largest == 0 or SMALLEST <= step <= RESOLVED * norm < math.inf
    return coded(start, step) if enough else start


def coded(start: Tensor, step: float) -> Coded:
    """Code a sample, in pieces."""
    half, limit = _half(start), 1 << (BITS - 1)
    upper = torch.empty(start.shape, dtype=torch.int16, device=start.device)
    lower = torch.zeros((half, *start.shape[1:]), dtype=torch.uint8, device=start.device)
    lost = torch.zeros((), dtype=widest(start.device), device=start.device)
    found: Coded = {"upper": upper, "lower": lower, "step": step, "lost": lost}
    most = max(chunk(start.device) * len(start) // start.numel(), 1)
    for first in range(0, len(start), most):
        piece = start[first : first + most]
        last, middle = first + len(piece), max(first, half)
        whole = (piece / step).round_().clamp_(-limit, limit - 1).to(torch.int32)
        upper[first:last] = whole >> 4
        low = (whole & 15).to(torch.uint8)
        lower[first : min(last, half)] |= low[: max(half - first, 0)]
        lower[middle - half : max(last, half) - half] |= low[middle - first :] << 4
        lost += (piece - before(found, first, last, piece.dtype)).square_().sum(dtype=lost.dtype)
    found["lost"] = lost.float()
    return found


def before(start: Start, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """What the entries [first, last) of a sample were at the start; coded ones in this type, exact in float32."""
    if isinstance(start, Tensor):
        return start[first:last].to(torch.promote_types(start.dtype, torch.float32))
    half, step = _half(start["upper"]), start["step"]
    ends = start["lower"][first : min(last, half)], start["lower"][max(first, half) - half : max(last, half) - half]
    return (
        start["upper"][first:last].to(dtype).mul_(16 * step).add_(torch.cat([ends[0] & 15, ends[1] >> 4]), alpha=step)
    )


def decoded(starts: Sequence[Coded]) -> Float32:
    """What samples on the host were at the start, one after another, (N,): by numpy, all of them in a few calls."""
    upper = np.concatenate([start["upper"].view(-1).numpy() for start in starts])
    lower = np.concatenate([start["lower"].view(-1).numpy() for start in starts])
    low, high = lower & 15, lower >> 4
    codes, first = [], 0
    for start in starts:
        half, count = start["lower"].numel(), start["upper"].numel()
        codes += [low[first : first + half], high[first : first + count - half]]
        first += half
    found: Float32 = np.multiply(upper, 16, dtype=np.float32)
    found += np.concatenate(codes)
    steps = np.array([start["step"] for start in starts], np.float32)
    found *= np.repeat(steps, [start["upper"].numel() for start in starts])
    return found


def _half(numbers: Tensor) -> int:
    return (len(numbers) + 1) // 2
