"""The weights that a run started from: of a layer's sample every number in 20 bits, where that is enough."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional

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

    codes: (rows, bytes) uint8, a row for each block, or one for a short layer: the upper 16 bits of each of its
    numbers, then the lower 4, those of the second half of the row in the upper halves of the bytes. lost: what lies
    between the weights and these, as a sum of squares, 0-dimensional.
    """

    codes: Tensor
    step: float
    lost: Tensor


Start = Tensor | Coded
"""The sample of a layer: as it is, or coded."""


def half(width: int) -> int:
    """Bytes that the lower bits of a row of so many numbers take; even, so that each row begins at an even address."""
    return (width + 3) // 4 * 2


def is_of(start: Start | None, now: Tensor) -> bool:
    """Whether a start is that of a sample of this shape."""
    if start is None or isinstance(start, Tensor):
        return start is not None and start.shape == now.shape
    rows, width = (1, len(now)) if now.dim() == 1 else now.shape
    return start["codes"].shape == (rows, 2 * width + half(width))


def placed_on(start: Start, device: torch.device) -> Start:
    """The same on a device."""
    if isinstance(start, Tensor):
        return start.to(device)
    return {"codes": start["codes"].to(device), "step": start["step"], "lost": start["lost"].to(device)}


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
    rows = start.view(-1, start.shape[-1])
    width, most = rows.shape[1], max(chunk(start.device) // rows.shape[1], 1)
    codes = torch.empty(len(rows), 2 * width + half(width), dtype=torch.uint8, device=start.device)
    lost = torch.zeros((), dtype=widest(start.device), device=start.device)
    for first in range(0, len(rows), most):
        piece, into = rows[first : first + most], codes[first : first + most]
        into.copy_(_packed(piece, step))
        lost += (piece - _numbers(into, width, step, piece.dtype)).square_().sum(dtype=lost.dtype)
    return {"codes": codes, "step": step, "lost": lost.float()}


def before(start: Start, now: Tensor, first: int, last: int) -> Tensor:
    """What the entries [first, last) of a sample now were at the start, in float32 or wider.

    A short layer that is coded is given whole.
    """
    if isinstance(start, Tensor):
        return start[first:last].to(torch.promote_types(start.dtype, torch.float32))
    dtype = torch.promote_types(now.dtype, torch.float32)
    numbers = _numbers(start["codes"][first:last], now.shape[-1], start["step"], dtype)
    return numbers.view(-1) if now.dim() == 1 else numbers


def _packed(numbers: Tensor, step: float) -> Tensor:
    """Codes of rows of numbers, (rows, width)."""
    limit, width = 1 << (BITS - 1), numbers.shape[1]
    whole = (numbers / step).round_().clamp_(-limit, limit - 1).to(torch.int32)
    lower = functional.pad(whole & 15, (0, 2 * half(width) - width)).to(torch.uint8)
    first, second = lower[:, : half(width)], lower[:, half(width) :]
    return torch.cat([(whole >> 4).to(torch.int16).view(torch.uint8), first | second << 4], 1)


def _numbers(codes: Tensor, width: int, step: float, dtype: torch.dtype) -> Tensor:
    """The numbers that codes stand for, (rows, width); exact in float32."""
    upper, lower = codes[:, : 2 * width].view(torch.int16), codes[:, 2 * width :]
    lower = torch.cat([lower & 15, lower >> 4], 1)[:, :width]
    return upper.to(dtype).mul_(16).add_(lower).mul_(step)
