"""Advice from gradient noise: relative learning rates per layer, and the batch that the norm test asks for."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gradspectra_core.noise import noise_scale
from gradspectra_core.records import Float64

ALPHA = {"sgd": 1.0, "adam": 0.5}
"""Exponent by the optimizer's family."""

DEFAULT_CLIP = (0.25, 4.0)


def layer_multipliers(
    noise_scale_layers: ArrayLike,
    noise_scale_run: ArrayLike,
    batch: ArrayLike,
    alpha: float,
    clip: tuple[float, float] = DEFAULT_CLIP,
) -> Float64:
    """Relative learning rate per layer, ((1 + B̄/B)/(1 + B_l/B))^α, by the variance of the layer's gradient.

    noise_scale_layers: B_l, any shape; noise_scale_run: B̄; batch: B; all in one unit (examples, or multiples of
    the present batch with B = 1), and broadcast. alpha: 1 for SGD, ½ for the Adam family. Returns the multipliers
    within `clip`; NaN where a noise scale is NaN or negative. Raises ValueError for a batch, alpha or clip that
    is not above 0. Source: one-step optima of a noisy quadratic.
    """
    size = np.asarray(batch, np.float64)
    if not (size > 0).all():
        raise ValueError(f"batch must be above 0, got {size}")
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0 (1 for SGD, 0.5 for the Adam family), got {alpha}")
    if not 0 < clip[0] <= clip[1]:
        raise ValueError(f"clip must be two numbers above 0 in order, got {clip}")
    layers, run = (np.asarray(scale, np.float64) for scale in (noise_scale_layers, noise_scale_run))
    known = (layers >= 0) & (run >= 0)
    with np.errstate(invalid="ignore"):
        ratio = np.where(known, 1 + run / size, np.nan) / np.where(known, 1 + layers / size, np.nan)
        return np.clip(ratio**alpha, *clip)


def batch_for_norm_test(tr_sigma: ArrayLike, signal_sq: ArrayLike, theta: float = 0.5) -> Float64:
    """Smallest batch B with tr_sigma/B ≤ θ² signal_sq, not rounded; any shape.

    tr_sigma, signal_sq: averages, as for the noise scale, whose unit the result has. NaN where signal_sq is not
    above 0. Raises ValueError where theta is not above 0. Source: AdAdaGrad.
    """
    if not theta > 0:
        raise ValueError(f"theta must be above 0, got {theta}")
    return noise_scale(tr_sigma, signal_sq) / theta**2
