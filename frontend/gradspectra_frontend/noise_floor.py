"""What effective rank pure noise would have: the floor (or rather ceiling) to read a gradient's rank against."""

from __future__ import annotations

import numpy as np


def noise_effective_rank(rows: int, columns: int, points: int = 4096) -> float:
    """Effective rank of a large matrix of independent Gaussian entries, of the given shape.

    Singular values follow the Marchenko–Pastur law with ratio β = m/n ≤ 1: σ² between (1 − √β)² and (1 + √β)².
    With H the entropy of σ/Σσ, exp(H) = m · E[σ] · exp(−E[σ ln σ]/E[σ]). Returns a number between 1 and m.
    Source: Marchenko & Pastur 1967; effective rank: Roy & Vetterli 2007.
    """
    m, n = min(rows, columns), max(rows, columns)
    if m < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
    beta = m / n
    angle = (np.arange(points) + 0.5) * np.pi / points
    eigenvalue = 1 + beta + 2 * np.sqrt(beta) * np.cos(angle)
    weight = np.sin(angle) ** 2 / eigenvalue  # density dλ, up to a constant, with λ = 1 + β + 2√β cos(angle)
    weight /= weight.sum()
    sigma = np.sqrt(eigenvalue)
    mean = float((weight * sigma).sum())
    return max(1.0, m * mean * float(np.exp(-(weight * sigma * np.log(sigma)).sum() / mean)))
