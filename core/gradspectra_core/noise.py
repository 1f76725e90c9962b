"""Gradient noise: the variance of one example's gradient and the noise scale, from the parts of each step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradspectra_core.records import Bool, Float64

TIME_CONSTANT = 100.0
"""Recorded steps over which the moving averages forget by a factor e."""

FEWEST_STEPS = 8
"""An interval is given from this many recorded steps on."""

CONFIDENCE_SPANS = (("high", 1.5), ("medium", 2.0), ("low", 4.0))
"""Confidence while the interval's high/low is at most this."""

MOMENTS_MEMORY = 3.0
"""Adam's moments speak of the noise after this many times 1/(1 − β₂) steps."""
MOMENTS_BLOCKS = 16.0
"""Time constant in blocks of 1/(1 − β₂) steps, where the noise comes from Adam's moments."""
MOMENTS_INDEPENDENCE = float(np.exp(-1))
"""What such a block counts for. Its mean is of a process that forgets by e over one block: adjacent means agree, and
the variance of their average is e times that of as many independent ones."""

_NORMAL_95 = 1.959964
_SUMS = ("steps", "weight", "weight_sq", "tr", "signal", "tr_tr", "tr_signal", "signal_signal")


def weight_sums(weights: ArrayLike, examples: ArrayLike) -> tuple[float, float]:
    """The two sums over the parts of a step that the noise needs: Σ wⱼ(1 − wⱼ)/bⱼ and Σ wⱼ²/bⱼ, in 1/examples.

    weights: (K,), the parts' weights in the step's loss; they sum to 1. examples: (K,), at least 1 each.
    Raises ValueError where they do not.
    """
    w, b = np.asarray(weights, np.float64), np.asarray(examples, np.float64)
    if w.ndim != 1 or w.shape != b.shape or not len(w):
        raise ValueError(f"weights and examples must be two lists of one length, got shapes {w.shape} and {b.shape}")
    if not abs(float(w.sum()) - 1) < 1e-6 or (w < 0).any():
        raise ValueError(f"weights must be at least 0 and sum to 1, got {w.tolist()!r:.200}")
    if not (b > 0).all():
        raise ValueError(f"examples of each part must be above 0, got {b.tolist()!r:.200}")
    return float(np.sum(w * (1 - w) / b)), float(np.sum(w * w / b))


def noise_terms(
    part_sq: ArrayLike, grad_sq: ArrayLike, parts_weights: ArrayLike, parts_examples: ArrayLike
) -> tuple[Float64, Float64]:
    """Trace of the noise covariance of one example's gradient, and squared norm of the true gradient.

    part_sq: Σⱼ ‖hⱼ‖²/wⱼ; grad_sq: ‖ḡ‖² before clipping; both of any one shape (layers, steps × layers).
    parts_weights, parts_examples: (K,), as in `weight_sums`. Returns (tr_sigma, signal_sq), each an unbiased
    estimate of one step (signal_sq may be negative); NaN with a single part. Source: McCandlish et al. 2018, with
    unequal parts.
    """
    return noise_terms_from_sums(part_sq, grad_sq, *weight_sums(parts_weights, parts_examples))


def noise_terms_from_sums(
    part_sq: ArrayLike, grad_sq: ArrayLike, noise_w: ArrayLike, noise_w2: ArrayLike
) -> tuple[Float64, Float64]:
    """As `noise_terms`, from the two sums of `weight_sums`, which must broadcast against part_sq.

    NaN where noise_w is not above 0 (a single part).
    """
    between = np.asarray(noise_w, np.float64)
    total = np.asarray(grad_sq, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        tr_sigma = (np.asarray(part_sq, np.float64) - total) / np.where(between > 0, between, np.nan)
        return tr_sigma, total - tr_sigma * np.asarray(noise_w2, np.float64)


def equal_parts(
    part_sq: ArrayLike, grad_sq: ArrayLike, parts: ArrayLike, batch: ArrayLike = 1.0
) -> tuple[Float64, Float64]:
    """As `noise_terms` for K parts of equal weight and size that hold B examples together.

    parts: K; batch: B in examples, or 1 to have tr_sigma in multiples of the present batch. Both broadcast.
    """
    count, size = np.asarray(parts, np.float64), np.asarray(batch, np.float64)
    return noise_terms_from_sums(part_sq, grad_sq, (count - 1) / size, 1 / size)


def adam_terms(
    second_moment: ArrayLike, moment_sq: ArrayLike, batch: ArrayLike, beta1: float
) -> tuple[Float64, Float64]:
    """(tr_sigma, signal_sq) of a step with one part, from the moments that Adam keeps.

    second_moment: Σv̂; moment_sq: Σm̂², of any one shape. batch: B in examples, or 1 for multiples of the present
    batch. Holds only after 3/(1 − β₂) steps and without clipping. Raises ValueError where beta1 is not in (0, 1).
    """
    if not 0 < beta1 < 1:
        raise ValueError(f"beta1 must be between 0 and 1, exclusive, got {beta1}")
    total, size = np.asarray(second_moment, np.float64), np.asarray(batch, np.float64)
    spread = (total - np.asarray(moment_sq, np.float64)) * (1 + beta1) / (2 * beta1)
    return spread * size, total - spread


def noise_scale(tr_sigma: ArrayLike, signal_sq: ArrayLike) -> Float64:
    """Noise scale tr_sigma/signal_sq of averages (never of single steps); NaN where signal_sq is not above 0."""
    below = np.asarray(signal_sq, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(tr_sigma, np.float64) / np.where(below > 0, below, np.nan)


def student_95(freedom: ArrayLike) -> Float64:
    """Quantile of Student's t that leaves 2.5% above; freedom: at least 1, any shape. Within 0.02% from 5 on, 11% at 1.

    Source: Abramowitz & Stegun 26.7.5, four terms.
    """
    x, n = _NORMAL_95, np.asarray(freedom, np.float64)
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    third = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    fourth = (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160
    return np.asarray(x + first / n + second / n**2 + third / n**3 + fourth / n**4)


def confidence_of(low: float, high: float) -> str | None:
    """Confidence of an interval by the factor it spans: high, medium, low; None for 'not enough evidence'."""
    if not 0 < low <= high:
        return None
    return next((name for name, span in CONFIDENCE_SPANS if high / low <= span), None)


class NoiseAverage:
    """Moving averages of tr_sigma and signal_sq of L layers (or of the run: L = 1), and the ratio's interval.

    Exponential with a time constant of 100 recorded steps; a step that a layer has no finite pair for leaves that
    layer as it was. independence: how many independent ones a step counts for, where steps are correlated in time.
    """

    def __init__(self, layers: int, time_constant: float = TIME_CONSTANT, independence: float = 1.0) -> None:
        if layers < 0 or not time_constant > 0:
            raise ValueError(f"layers must be at least 0 and time_constant above 0, got {layers} and {time_constant}")
        if not 0 < independence <= 1:
            raise ValueError(f"independence must be above 0 and at most 1, got {independence}")
        self.independence = independence
        self.layers = layers
        self.time_constant = time_constant
        self._sums = np.zeros((len(_SUMS), layers))

    def update(self, tr_sigma: ArrayLike, signal_sq: ArrayLike, present: Bool | None = None) -> None:
        """Add one recorded step. tr_sigma, signal_sq: (L,); present: (L,) bool, None for all."""
        tr, signal = np.asarray(tr_sigma, np.float64), np.asarray(signal_sq, np.float64)
        for name, given in (("tr_sigma", tr), ("signal_sq", signal)):
            if given.shape != (self.layers,):
                raise ValueError(f"{name} must have shape ({self.layers},), got {given.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            ones = np.ones_like(tr)
            terms = np.stack((ones, ones, ones, tr, signal, tr * tr, tr * signal, signal * signal))
        here = np.isfinite(terms).all(0)
        if present is not None:
            here &= present
        keep = np.full(len(_SUMS), np.exp(-1 / self.time_constant))
        keep[_SUMS.index("steps")] = 1.0
        keep[_SUMS.index("weight_sq")] **= 2
        self._sums = np.where(here, self._sums * keep[:, None] + terms, self._sums)

    def rescale(self, factor: float) -> None:
        """Go on in another unit of tr_sigma: what was taken in so far counts `factor` times, as if it had come so."""
        power = np.array([name.split("_").count("tr") for name in _SUMS])
        self._sums *= np.float64(factor) ** power[:, None]

    def averages(self) -> tuple[Float64, Float64]:
        """Averages of tr_sigma and signal_sq, each (L,); NaN before a layer's first step."""
        _, weight, _, tr, signal, *_ = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            return tr / weight, signal / weight

    def scale(self) -> Float64:
        """Noise scale per layer, (L,); NaN without steps or where the signal is lost in the noise."""
        return noise_scale(*self.averages())

    def interval(self) -> tuple[Float64, Float64]:
        """95% interval (low, high) of the noise scale per layer, each (L,), by the delta method on its logarithm.

        The spread is known from the same few steps: it counts with Student's quantile, not the normal one.
        NaN where there are fewer than 8 recorded steps, or an average is not above 0.
        """
        steps, weight, weight_sq, _, _, tr_tr, tr_signal, signal_signal = self._sums
        tr, signal = self.averages()
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            independent = weight * weight / weight_sq * self.independence
            usable = (steps >= FEWEST_STEPS) & (tr > 0) & (signal > 0)
            spread = (
                tr_tr / weight / (tr * tr)
                + signal_signal / weight / (signal * signal)
                - 2 * tr_signal / weight / (tr * signal)
            )
            freedom = np.maximum(independent - 1, 1)
            error = np.sqrt(np.maximum(spread, 0) / freedom)
            factor = np.exp(np.where(usable, student_95(freedom) * error, np.nan))
            scale = np.where(usable, tr / signal, np.nan)
            return scale / factor, scale * factor

    def confidence(self) -> list[str | None]:
        """Confidence per layer (L entries): high, medium, low, or None for 'not enough evidence'."""
        low, high = self.interval()
        return [confidence_of(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values; `from_state` continues from it without any difference."""
        sums = {name: row.tolist() for name, row in zip(_SUMS, self._sums, strict=True)}
        return {"time_constant": self.time_constant, "independence": self.independence, **sums}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> NoiseAverage:
        """Continue from what `state` returned."""
        average = cls(len(state["weight"]), state["time_constant"], state.get("independence", 1.0))
        sums: NDArray[np.float64] = np.array([state[name] for name in _SUMS], np.float64)
        average._sums = sums.reshape(len(_SUMS), average.layers)
        return average
