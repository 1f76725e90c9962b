"""Slow, obvious float64 twins of core's arithmetic: one loop per sum, written from the formulas alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Vector = Sequence[float]


def entropy(sigma: Vector) -> float:
    total = math.fsum(sigma)
    return -math.fsum(s / total * math.log(s / total) for s in sigma if s > 0)


def effective_rank(sigma: Vector) -> float:
    return math.exp(entropy(sigma))


def stable_rank(sigma: Vector) -> float:
    return math.fsum(s * s for s in sigma) / max(sigma) ** 2


def participation_ratio(sigma: Vector) -> float:
    return math.fsum(s * s for s in sigma) ** 2 / math.fsum(s**4 for s in sigma)


def energy_rank(sigma: Vector, share: float) -> int:
    ordered = sorted(sigma, reverse=True)
    total = math.fsum(s * s for s in ordered)
    for rank in range(1, len(ordered) + 1):
        if math.fsum(s * s for s in ordered[:rank]) >= share * total:
            return rank
    return len(ordered)


def part_sq(parts: Sequence[np.ndarray], weights: Vector) -> float:
    """Σ ‖hⱼ‖²/wⱼ with hⱼ = wⱼ gⱼ, from the parts' own mean gradients gⱼ."""
    return math.fsum(w * math.fsum(float(g) ** 2 for g in part) for part, w in zip(parts, weights, strict=True))


def noise_terms(parts: Sequence[np.ndarray], weights: Vector, examples: Vector) -> tuple[float, float]:
    """tr_sigma and signal_sq of one step, from the parts' own mean gradients, entry by entry."""
    gradient = [math.fsum(w * float(g[i]) for w, g in zip(weights, parts, strict=True)) for i in range(len(parts[0]))]
    grad_sq = math.fsum(entry**2 for entry in gradient)
    between = math.fsum(w * (1 - w) / b for w, b in zip(weights, examples, strict=True))
    left = math.fsum(w * w / b for w, b in zip(weights, examples, strict=True))
    tr_sigma = (part_sq(parts, weights) - grad_sq) / between
    return tr_sigma, grad_sq - tr_sigma * left


def student_95(freedom: float) -> float:
    """Quantile of Student's t that leaves 2.5% above, by the expansion of Abramowitz & Stegun 26.7.5."""
    powers = {
        1: ({3: 1, 1: 1}, 4),
        2: ({5: 5, 3: 16, 1: 3}, 96),
        3: ({7: 3, 5: 19, 3: 17, 1: -15}, 384),
        4: ({9: 79, 7: 776, 5: 1482, 3: -1920, 1: -945}, 92160),
    }
    terms = [
        sum(factor * 1.959964**power for power, factor in polynomial.items()) / below / freedom**order
        for order, (polynomial, below) in powers.items()
    ]
    return 1.959964 + math.fsum(terms)


def noise_average(
    tr: Vector, signal: Vector, time_constant: float, independence: float = 1.0
) -> tuple[float, float, float, float, float]:
    """(tr, signal, scale, low, high) of one layer, from its whole history at once."""
    age = range(len(tr) - 1, -1, -1)
    weights = [math.exp(-a / time_constant) for a in age]
    total = math.fsum(weights)
    mean_tr = math.fsum(w * t for w, t in zip(weights, tr, strict=True)) / total
    mean_signal = math.fsum(w * s for w, s in zip(weights, signal, strict=True)) / total
    variance = (
        math.fsum(w * (t / mean_tr - s / mean_signal) ** 2 for w, t, s in zip(weights, tr, signal, strict=True)) / total
    )
    independent = independence * total**2 / math.fsum(w * w for w in weights)
    freedom = max(independent - 1, 1)
    factor = math.exp(student_95(freedom) * math.sqrt(variance / freedom))
    scale = mean_tr / mean_signal
    return mean_tr, mean_signal, scale, scale / factor, scale * factor


def layer_multipliers(layers: Vector, run: float, batch: float, alpha: float, clip: tuple[float, float]) -> list[float]:
    return [min(max(((1 + run / batch) / (1 + b / batch)) ** alpha, clip[0]), clip[1]) for b in layers]


def one_step_optimum(curvature: float, distance: float, variance: float, batch: float) -> float:
    """Rate that minimises the expected loss ½λx² after one SGD step from x with gradient noise of variance/batch."""
    gradient_sq = (curvature * distance) ** 2
    return gradient_sq / (curvature * (gradient_sq + variance / batch))


def rotation(now: Vector, start: Vector) -> float:
    """1 − cos of the angle between two vectors."""
    product = math.fsum(a * b for a, b in zip(now, start, strict=True))
    return 1 - product / math.sqrt(math.fsum(a * a for a in now) * math.fsum(b * b for b in start))


def buckets(steps: Sequence[int], values: Vector, present: Sequence[bool], width: int) -> dict[int, dict[str, float]]:
    """One series in buckets, by the first recorded step of each; a bucket without values has only `x`."""
    groups: dict[int, list[int]] = {}
    for position, step in enumerate(steps):
        groups.setdefault(step // width, []).append(position)
    return {steps[group[0]]: _summary([values[i] for i in group if present[i]]) for group in groups.values()}


def _summary(values: Vector) -> dict[str, float]:
    if not values:
        return {}
    finite = [v for v in values if math.isfinite(v)]
    lost = len(values) - len(finite)
    if finite:
        mean = math.fsum(v / len(finite) for v in finite)
        return {"mean": mean, "min": min(finite), "max": max(finite), "last": finite[-1], "nonfinite": lost}
    if any(math.isnan(v) for v in values):
        low = high = middle = math.nan
    else:
        low, high = min(values), max(values)
        middle = low if low == high else math.nan
    return {"mean": middle, "min": low, "max": high, "last": middle, "nonfinite": lost}
