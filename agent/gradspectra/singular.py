"""The singular values of one matrix, by a Gram matrix where that tells them apart, else by a float64 SVD.

Eigenvalues of the smaller Gram matrix in float64 cost about half of a float32 SVD. They are the squares of the singular
values with an error in proportion to the largest of them, in which values of 1e-8 of the largest and less drown. Where
those together would move the nuclear norm or the effective rank, an SVD takes its place, which squares nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor

GRAM = "gram-float64"
SVD = "svd-float64"
TOLERANCE = 1e-7
"""Relative error of the nuclear norm and the effective rank that a Gram matrix may bring."""
ROUNDING = float(np.finfo(np.float64).eps) / 2
BLOCKS = 4
ONE_BLOCK = 160
"""Only the lower triangle of a Gram matrix is made, in so many columns of blocks; as a whole up to so many rows."""
AT_ONCE = 1 << 20
"""Numbers of a matrix that are widened at a time: 8 MiB."""


def singular_values(matrix: Tensor) -> Float64:
    """All singular values of a real matrix, the largest first: (min(rows, columns),) float64; NaN if one is not finite.

    matrix: (rows, columns), any floating dtype and device. Nuclear norm and effective rank come within 1e-7.
    """
    return measured(matrix, GRAM)[0]


def measured(matrix: Tensor, method: str) -> tuple[Float64, str]:
    """The singular values as `singular_values` gives them, and the method that they came by.

    method: GRAM or SVD; by which one to begin.
    """
    if method == GRAM:
        values = singular_values_of_gram(gram_of(matrix))
        if resolved(values):
            return values, GRAM
    return _by_svd(matrix), SVD


def resolved(values: Float64) -> bool:
    """Whether singular values would come exactly enough from a Gram matrix; also where they say nothing.

    values: (m,), the largest first. Entries of a Gram matrix are rounded by ROUNDING Σσ²/m each, which moves its
    eigenvalues by √m times that; an error e of a value changes the sum Σσ by e, and the effective rank by a share of
    −e ln p, where p is the value over the sum.
    """
    if not values[0] > 0:
        return True
    relative = values / values[0]
    noise = ROUNDING * float(relative @ relative) / math.sqrt(len(values))
    above, total = np.maximum(relative, math.sqrt(noise)), float(relative.sum())
    change = noise * float(((math.log(total) - np.log(above)) / above).sum())
    return change <= TOLERANCE * total


def gram_of(matrix: Tensor) -> Tensor:
    """The lower triangle of the smaller Gram matrix, float64, of a matrix of any floating dtype, where that lies."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    side = wide.shape[0]
    if matrix.device.type != "cpu":
        wide = wide.double()
        return wide @ wide.t()
    width = side if side <= ONE_BLOCK else -(-side // BLOCKS)
    gram = wide.new_empty(side, side, dtype=torch.float64)
    for at, part in enumerate(torch.split(wide, max(AT_ONCE // side, 1), 1)):
        part = part.double()
        for first in range(0, side, width):
            last = first + width
            gram[first:, first:last].addmm_(part[first:], part[first:last].t(), beta=min(at, 1))
    return gram


def singular_values_of_gram(gram: Tensor) -> Float64:
    """Singular values of a matrix, the largest first: (m,) float64; NaN if a number is not finite.

    gram: its smaller Gram matrix, (m, m) float64, on any device; only its lower triangle is read. Values below 1e-8 of
    the largest are not resolved.
    """
    gram = gram.cpu()
    if not np.isfinite(gram.numpy().trace()):
        return np.full(gram.shape[0], np.nan)
    eigenvalues = torch.linalg.eigvalsh(gram.mT, UPLO="U").numpy()  # the order that LAPACK reads: no copy across
    values: Float64 = np.sqrt(np.maximum(eigenvalues, 0.0))[::-1]
    return values


def _by_svd(matrix: Tensor) -> Float64:
    """As `singular_values`; of a matrix that is not square from its triangle (QR), a few rows at a time."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.t()
    side = tall.shape[1]
    if len(tall) == side:
        triangle = tall.double()
    else:
        triangle = tall.new_empty(0, side, dtype=torch.float64)
        for part in torch.split(tall, max(AT_ONCE // side, 4 * side)):
            triangle = torch.linalg.qr(torch.cat([triangle, part.double()]), mode="r").R
    values: Float64 = torch.linalg.svdvals(triangle).cpu().numpy()
    return values
