"""Suggestions as a pure function of the noise state: each with its rule, its evidence and its confidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradspectra_core.alerts import Suggestion
from gradspectra_core.multipliers import ALPHA, batch_for_norm_test, layer_multipliers
from gradspectra_core.noise import FEWEST_STEPS

from gradspectra_worker.noise_state import EXAMPLES, MOMENTS, NoiseState

CONFIDENCES = ("low", "medium", "high")
THETA = 0.5
VARIANCE_SOURCE = "one-step optimum of a noisy quadratic; noise scale after McCandlish et al. 2018"
CRITICAL_SOURCE = "McCandlish et al. 2018, An Empirical Model of Large-Batch Training"
NORM_TEST_SOURCE = "Lau et al. 2024, AdAdaGrad (norm test)"


def suggestions(noise: NoiseState, family: str) -> list[Suggestion]:
    """Advice from the noise: two batch sizes for the run, then a learning-rate multiplier per layer.

    family: of the optimizer, "sgd" or "adam". Where the noise cannot be told, one entry per quantity says
    'not enough evidence' and why.
    """
    low, high = (float(bound[0]) for bound in noise.run.interval())
    reason = _missing(noise, low, high)
    evidence = _run_evidence(noise, low, high)
    run = [_batch_size(noise, rule, evidence, low, high, reason) for rule in ("critical_batch", "norm_test")]
    if reason is not None:
        return [*run, _nothing("variance", None, "learning_rate_multiplier", reason, evidence, VARIANCE_SOURCE, noise)]
    return run + _multipliers(noise, family, evidence, low, high)


def _missing(noise: NoiseState, low: float, high: float) -> str | None:
    """Say why the noise of the run cannot be told; None where it can."""
    if not noise.records:
        if noise.parts == 1:
            waiting = f"; {noise.waiting}" if noise.waiting else ""
            return f"one part per step (accumulate gradients over several backward passes to have more){waiting}"
        return "no step with several parts and layer numbers yet"
    if noise.records < FEWEST_STEPS:
        what = "blocks of Adam's moments" if noise.method == MOMENTS else "recorded steps"
        return f"{noise.records} {what}, {FEWEST_STEPS} are needed"
    if not np.isfinite(low):
        return "the gradient's signal is lost in its noise"
    if noise.confidence(low, high) is None:
        return f"the interval of the noise scale {_span(low, high)}, at most 4 is usable"
    return None


def _span(low: float, high: float) -> str:
    """How wide an interval is, in words; its low end may have been rounded to 0."""
    return f"spans a factor of {high / low:.3g}" if low > 0 else f"goes from 0 to {high:.3g}, without a bounded factor"


def _run_evidence(noise: NoiseState, low: float, high: float) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "method": noise.method,
        "unit": noise.unit,
        "records": noise.records,
        "last_step": noise.last_step,
    }
    if noise.parts:
        evidence["parts"] = noise.parts
    if noise.unit == EXAMPLES:
        evidence["batch"] = noise.batch
    if noise.records:
        tr, signal = (float(average[0]) for average in noise.run.averages())
        evidence |= {"tr_sigma": tr, "signal_sq": signal}
    if np.isfinite(low):
        evidence |= {"noise_scale": float(noise.run.scale()[0]), "noise_scale_low": low, "noise_scale_high": high}
    return evidence


def _batch_size(
    noise: NoiseState, rule: str, evidence: dict[str, Any], low: float, high: float, reason: str | None
) -> Suggestion:
    source = CRITICAL_SOURCE if rule == "critical_batch" else NORM_TEST_SOURCE
    if reason is not None:
        return _nothing(rule, None, "batch_size", reason, evidence, source, noise)
    if rule == "critical_batch":
        factor, value = 1.0, float(noise.run.scale()[0])
        why = "where a run takes twice the steps of a very large batch and twice the examples of a very small one"
    else:
        factor, value = THETA**-2, float(batch_for_norm_test(*noise.run.averages(), THETA)[0])
        why = f"from which the noise of a step is at most {THETA:g} of its signal"
        evidence = {**evidence, "theta": THETA}
    size = f"{value:.3g} examples" if noise.unit == EXAMPLES else f"{value:.3g} times the present batch"
    now = f"; the present batch is {noise.batch:g}" if noise.unit == EXAMPLES else ""
    now += "; a rough figure, from Adam's moments" if noise.method == MOMENTS else ""
    return Suggestion(
        rule=rule,
        scope="run",
        layer=None,
        quantity="batch_size",
        value=value,
        low=low * factor,
        high=high * factor,
        confidence=noise.confidence(low, high),
        enough_evidence=True,
        experimental=False,
        since_step=noise.since_step,
        evidence=evidence,
        text=f"A batch of {size} is {why}{now}.",
        source=source,
    )


def _multipliers(
    noise: NoiseState, family: str, evidence: dict[str, Any], run_low: float, run_high: float
) -> list[Suggestion]:
    """One entry per layer. The interval is a cautious one: both ends of the layer's against those of the run's."""
    run, alpha = evidence["noise_scale"], ALPHA[family]
    scale, (low, high) = noise.layers.scale(), noise.layers.interval()
    columns = [
        layer_multipliers(scale, run, noise.batch, alpha),
        layer_multipliers(high, run_low, noise.batch, alpha),
        layer_multipliers(low, run_high, noise.batch, alpha),
        scale,
        low,
        high,
    ]
    common = {
        "method": noise.method,
        "unit": noise.unit,
        "batch": noise.batch,
        "run_noise_scale": run,
        "alpha": alpha,
        "family": family,
    }
    of_run = noise.confidence(run_low, run_high)
    rows = zip(noise.names, *(column.tolist() for column in columns), strict=True)
    return [_multiplier(noise, common, of_run, *row) for row in rows]


def _multiplier(
    noise: NoiseState,
    common: dict[str, Any],
    of_run: str | None,
    name: str,
    value: float,
    lower: float,
    upper: float,
    scale: float,
    scale_low: float,
    scale_high: float,
) -> Suggestion:
    confidence = _lower(noise.confidence(scale_low, scale_high), of_run)
    if confidence is None:
        reason = _layer_reason(scale_low, scale_high)
        return _nothing("variance", name, "learning_rate_multiplier", reason, common, VARIANCE_SOURCE, noise)
    own = {"noise_scale": scale, "noise_scale_low": scale_low, "noise_scale_high": scale_high}
    times = _compared(scale, common["run_noise_scale"])
    return Suggestion(
        rule="variance",
        scope="layer",
        layer=name,
        quantity="learning_rate_multiplier",
        value=value,
        low=lower,
        high=upper,
        confidence=confidence,
        enough_evidence=True,
        experimental=False,
        since_step=noise.since_step,
        evidence={**common, **own},
        text=f"{name}: {value:.3g} times the run's learning rate, its noise scale being {times}.",
        source=VARIANCE_SOURCE,
    )


def _layer_reason(low: float, high: float) -> str:
    if not np.isfinite(low):
        return "too few recorded steps, or the layer's signal is lost in its noise"
    return f"the interval of the layer's noise scale {_span(low, high)}, at most 4 is usable"


def _compared(layer: float, run: float) -> str:
    return f"{layer / run:.3g} times the run's" if run > 0 else f"{layer:.3g}"


def _lower(one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return None
    return min(one, other, key=CONFIDENCES.index)


def _nothing(
    rule: str, layer: str | None, quantity: str, reason: str, evidence: dict[str, Any], source: str, noise: NoiseState
) -> Suggestion:
    subject = f"{layer}: not" if layer else "Not"
    return Suggestion(
        rule=rule,
        scope="layer" if layer else "run",
        layer=layer,
        quantity=quantity,
        value=None,
        low=None,
        high=None,
        confidence=None,
        enough_evidence=False,
        experimental=False,
        since_step=noise.since_step,
        evidence=evidence,
        text=f"{subject} enough evidence: {reason}.",
        source=source,
    )
