"""Arithmetic on singular values: ranks that count directions, energy ranks, and what is kept of a spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradspectra_core.records import DRAWN_SINGULAR_VALUES, Float64, Int64

LARGEST_DRAWN = 32
_ROUNDING = 1e-12


def effective_rank(singular_values: ArrayLike) -> Float64:
    """Effective rank exp(−Σ p ln p), p = σ/Σσ, over the last axis.

    singular_values: (..., m), non-negative, any order. Returns (...,), between 1 and m; NaN where all are zero or
    one is not finite. Source: Roy & Vetterli 2007.
    """
    with np.errstate(invalid="ignore"):
        return np.exp(_entropy(_relative(singular_values)))


def stable_rank(singular_values: ArrayLike) -> Float64:
    """Stable rank Σσ²/σ₁² over the last axis.

    singular_values: (..., m), non-negative, any order. Returns (...,), between 1 and m; NaN where all are zero or
    one is not finite. Source: Rudelson & Vershynin 2007.
    """
    return _sum(np.square(_relative(singular_values)))


def participation_ratio(singular_values: ArrayLike) -> Float64:
    """Participation ratio (Σσ²)²/Σσ⁴ over the last axis: how many directions share the energy.

    singular_values: (..., m), non-negative, any order. Returns (...,), between 1 and m; NaN where all are zero or
    one is not finite. Source: Gao et al. 2017 (of the covariance's eigenvalues σ²).
    """
    energy = np.square(_relative(singular_values))
    return np.square(_sum(energy)) / _sum(np.square(energy))


def energy_rank(singular_values: ArrayLike, share: float) -> Int64:
    """Smallest r with Σ_{i≤r} σᵢ² ≥ share · Σσ², the largest σ first, over the last axis.

    singular_values: (..., m), non-negative, any order. share: in (0, 1]; met within 1e-12 of rounding. Returns
    (...,) int64 between 1 and m; 0 where all are zero or one is not finite. Raises ValueError for another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    relative = -np.sort(-_relative(singular_values), axis=-1)
    energy = np.cumsum(np.square(relative), axis=-1)
    if not energy.shape[-1]:
        return np.zeros(energy.shape[:-1], np.int64)
    enough = share * energy[..., -1:] * (1 - _ROUNDING)
    rank = 1 + np.sum(energy < enough, axis=-1, dtype=np.int64)
    return np.where(np.isnan(energy[..., -1]), 0, rank)


def aggregates(singular_values: ArrayLike) -> Float64:
    """Everything that is stored of a spectrum, in the order of AGGREGATES.

    singular_values: (..., m), all of them, non-negative, any order. Returns (..., 7) float64: Σσ, Σσ², σ₁, Σσ⁴,
    −Σ p ln p with p = σ/Σσ, and the energy ranks at 0.9 and 0.99. Where all σ are zero the entropy is NaN and the
    energy ranks are 0; where one is not finite, the entropy is NaN, the energy ranks 0 and the rest follow it. A sum
    past the range of float64 is inf.
    """
    values = np.asarray(singular_values, np.float64)
    with np.errstate(over="ignore"):
        energy = np.square(values)
        fourth = np.square(energy)
    largest = values.max(-1, initial=0.0)
    columns: list[NDArray[Any]] = [
        _sum(values),
        _sum(energy),
        largest,
        _sum(fourth),
        _entropy(_relative(values)),
        energy_rank(values, 0.9),
        energy_rank(values, 0.99),
    ]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=-1)


def effective_rank_from(entropy: ArrayLike) -> Float64:
    """Effective rank from the stored entropy; any shape. Source: Roy & Vetterli 2007."""
    return np.exp(np.asarray(entropy, np.float64))


def stable_rank_from(frobenius_sq: ArrayLike, operator: ArrayLike) -> Float64:
    """Stable rank from the stored Σσ² and σ₁; any shape; NaN where σ₁ is 0. Source: Rudelson & Vershynin 2007."""
    return _ratio(frobenius_sq, np.square(np.asarray(operator, np.float64)))


def participation_ratio_from(frobenius_sq: ArrayLike, fourth: ArrayLike) -> Float64:
    """Participation ratio from the stored Σσ² and Σσ⁴; any shape; NaN where they are 0. Source: Gao et al. 2017."""
    return _ratio(np.square(np.asarray(frobenius_sq, np.float64)), fourth)


def drawn_indices(count: int) -> Int64:
    """Which of `count` singular values, the largest being 0, are kept for drawing; increasing.

    Returns all of them up to 96, else 96: the 32 largest and 64 evenly spaced among the rest, the last included.
    Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if count <= DRAWN_SINGULAR_VALUES:
        return np.arange(count, dtype=np.int64)
    spread = DRAWN_SINGULAR_VALUES - LARGEST_DRAWN
    rest = LARGEST_DRAWN + np.arange(spread, dtype=np.int64) * (count - 1 - LARGEST_DRAWN) // (spread - 1)
    return np.concatenate((np.arange(LARGEST_DRAWN, dtype=np.int64), rest))


def _relative(singular_values: ArrayLike) -> Float64:
    """σ/σ₁ in float64, so that no power of it overflows; NaN throughout where σ₁ is 0 or not finite."""
    values = np.asarray(singular_values, np.float64)
    largest = values.max(-1, keepdims=True, initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return values / np.where(np.isfinite(largest) & (largest > 0), largest, np.nan)


def _entropy(relative: Float64) -> Float64:
    share = relative / _sum(relative)[..., None]
    logs = np.log(share, out=np.zeros_like(share), where=share != 0)
    return np.asarray(np.abs(_sum(share * logs)))


def _sum(values: Float64) -> Float64:
    """Sum over the last axis, where a sum past the range of float64 is inf; NaN over no values at all."""
    with np.errstate(over="ignore"):
        return np.asarray(values.sum(-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan))


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Float64:
    below = np.asarray(denominator, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator, np.float64) / np.where(below > 0, below, np.nan)
