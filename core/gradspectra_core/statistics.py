"""Registry of every number with a name: what the agent measures, what is derived, in which unit it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.records import Float64

Scope = Literal["run", "layer"]
Dtype = Literal["float32", "float64", "int64"]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number that is measured. unit: "" for a pure number; `gradient` is the loss's unit per weight unit."""

    name: str
    scope: Scope
    dtype: Dtype
    unit: str
    description: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that is derived from statistics or spectra.

    inputs: statistics that `function` takes, in this order, as arrays of one shape; it is then computed on read.
    Without a function it is derived once and stored: of layers in float32, like what is measured of them.
    """

    name: str
    scope: Scope
    dtype: Dtype
    unit: str
    description: str
    source: str
    inputs: tuple[str, ...] = ()
    function: Callable[..., Float64] | None = None


def root(squared: NDArray[Any]) -> Float64:
    """√x in float64, any shape; NaN for a negative x."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.asarray(squared, np.float64))


def root_ratio(numerator_sq: NDArray[Any], denominator_sq: NDArray[Any]) -> Float64:
    """√(a/b) in float64, both of one shape: inf for a > 0 = b, NaN for 0/0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.asarray(numerator_sq, np.float64) / np.asarray(denominator_sq, np.float64))


START_RESOLVED = 1e-5
"""Of the squares it is the difference of: below, ‖W₀‖² from float32 sums is nothing but rounding."""


def rotation(drift_sq: NDArray[Any], weight_sq: NDArray[Any], weight_dot_init: NDArray[Any]) -> Float64:
    """1 − cos of the angle between W and W₀ in float64, all of one shape: from 0 to 2, NaN where W or W₀ is zero.

    ‖W₀‖² is drift_sq − weight_sq + 2⟨W, W₀⟩. Computed as (‖W − W₀‖² − (‖W‖ − ‖W₀‖)²)/(2‖W‖‖W₀‖), which keeps small
    angles that 1 − ⟨W, W₀⟩/(‖W‖‖W₀‖) would lose to rounding. Source: Carbonnelle & De Vleeschouwer 2019.
    """
    drift, now, product = (np.asarray(a, np.float64) for a in (drift_sq, weight_sq, weight_dot_init))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        start = drift - now + 2 * product
        norms = np.sqrt(now), np.sqrt(np.where(start > START_RESOLVED * (drift + now), start, np.nan))
        found = (drift - np.square(norms[0] - norms[1])) / (2 * norms[0] * norms[1])
        turned: Float64 = np.clip(found, 0.0, 2.0)
        return turned


def _statistics(scope: Scope, *rows: tuple[str, Dtype, str, str]) -> dict[str, Statistic]:
    return {name: Statistic(name, scope, dtype, unit, text) for name, dtype, unit, text in rows}


_ON_READ: dict[str, tuple[tuple[str, ...], Callable[..., Float64]]] = {
    "grad_norm": (("grad_sq",), root),
    "weight_norm": (("weight_sq",), root),
    "update_norm": (("update_sq",), root),
    "update_ratio": (("update_sq", "weight_sq"), root_ratio),
    "drift_norm": (("drift_sq",), root),
    "drift_ratio": (("drift_sq", "weight_sq"), root_ratio),
    "rotation": (("drift_sq", "weight_sq", "weight_dot_init"), rotation),
}


def _metrics(scope: Scope, *rows: tuple[str, str, str, str]) -> dict[str, Metric]:
    found = {}
    for name, unit, text, source in rows:
        on_read = _ON_READ.get(name, ()) if scope == "layer" else ()
        dtype: Dtype = "float64" if on_read or scope == "run" else "float32"
        found[name] = Metric(name, scope, dtype, unit, text, source, *on_read)
    return found


ROY, RUDELSON, GAO, MCCANDLISH, CARBONNELLE = (
    "Roy & Vetterli 2007",
    "Rudelson & Vershynin 2007",
    "Gao et al. 2017",
    "McCandlish et al. 2018",
    "Carbonnelle & De Vleeschouwer 2019",
)

SCALARS = _statistics(
    "run",
    ("loss", "float64", "loss", "Training loss of the step, averaged over its parts by tokens, else by examples."),
    ("eval_loss", "float64", "loss", "Loss on held-out data, as logged."),
    ("grad_norm", "float64", "gradient", "Norm of the whole gradient before clipping."),
    ("update_norm", "float64", "weight", "Norm of the step's whole intended update."),
    ("learning_rate", "float64", "", "Learning rate of the first parameter group."),
    ("clip_coefficient", "float64", "", "Factor that clipping applied to the gradient; 1 where it did nothing."),
    ("clip_threshold", "float64", "gradient", "Norm at which the gradient was to be clipped."),
    ("loss_scale", "float64", "", "Scale of the loss under mixed precision."),
    ("noise_w", "float64", "1/examples", "Sum over parts of w(1 − w)/b; in 1/batches where the batch is unknown."),
    ("noise_w2", "float64", "1/examples", "Sum over parts of w²/b; in 1/batches where the batch is unknown."),
    ("step_seconds", "float64", "s", "Time from the end of the step before to the end of this one."),
    ("data_seconds", "float64", "s", "Part of the step spent waiting for data: torch's `DataLoader`, or as logged."),
    ("agent_seconds", "float64", "s", "Part of the step spent by the agent itself."),
    ("max_attention_logit", "float64", "", "Largest attention logit, as logged."),
    ("log_z", "float64", "", "Logarithm of the softmax's normaliser at the output, as logged."),
    ("epoch", "float64", "epochs", "Epoch, as logged."),
    ("examples", "int64", "examples", "Examples of the step over all its parts."),
    ("parts", "int64", "parts", "Backward passes times ranks that made up the gradient."),
    ("tokens", "int64", "tokens", "Tokens of the step over all its parts."),
    ("skipped", "int64", "", "1 where mixed precision skipped the step, else 0."),
    ("device_memory_bytes", "int64", "bytes", "Tensors on the model's CUDA devices at the end of the step, added up."),
    ("device_memory_peak_bytes", "int64", "bytes", "Most that these devices held since torch's peak was reset."),
    ("process_memory_bytes", "int64", "bytes", "Resident memory of the process then, where no device is CUDA."),
    ("cadence_layers", "int64", "steps", "Steps from one measurement of the layer numbers to the next."),
    ("cadence_second", "int64", "steps", "Steps from one measurement of a layer's second tier to its next."),
    ("cadence_spectra", "int64", "steps", "Steps from one spectrum of a layer to its next."),
)
"""Measured once per step, by name; a run may hold more under names of the user's own."""

STATISTICS = _statistics(
    "layer",
    ("grad_sq", "float32", "gradient²", "Sum of squares of the gradient before clipping, finite entries only."),
    ("grad_max", "float32", "gradient", "Largest absolute entry of the gradient, finite entries only."),
    ("grad_nonfinite", "int64", "entries", "Entries of the gradient that are NaN or ±inf."),
    ("weight_sq", "float32", "weight²", "Sum of squares of the weights after the step; NaN if one is NaN."),
    ("part_sq", "float32", "gradient²", "Sum over parts of the part's squared norm divided by its weight."),
    ("update_sq", "float32", "weight²", "Sum of squares of the step's intended update."),
    ("drift_sq", "float32", "weight²", "Squared distance of the weights from where the run started."),
    ("weight_dot_init", "float32", "weight²", "Inner product of the weights with those the run started from."),
    ("grad_l1", "float32", "gradient", "Sum of the absolute entries of the gradient, finite ones only."),
    ("grad_zero_rows", "int64", "units", "Output units whose gradient is zero throughout."),
    ("grad_dot_weight", "float32", "gradient·weight", "Inner product of the gradient and the weights after the step."),
    ("update_dot_grad", "float32", "gradient·weight", "Inner product of the intended update and the gradient."),
    ("moment_sq", "float32", "gradient²", "Sum of squares of Adam's first moment, corrected for its start."),
    ("second_moment", "float32", "gradient²", "Sum of Adam's second moment, corrected for its start."),
    ("second_moment_median", "float32", "gradient", "Median root of Adam's second moment, over a sample of entries."),
    ("act_max", "float32", "activation", "Largest absolute finite entry of what the layer's module put out."),
    ("act_nonfinite", "int64", "entries", "Entries of what the layer's module put out that are NaN or ±inf."),
    ("rounding_lost", "float32", "", "Share of the intended update that rounding to the weights' type lost."),
)
"""Measured per layer and step, by name."""

METRICS = _metrics(
    "layer",
    ("grad_norm", "gradient", "Norm of the layer's gradient before clipping.", "√grad_sq"),
    ("weight_norm", "weight", "Norm of the layer's weights after the step.", "√weight_sq"),
    ("update_norm", "weight", "Norm of the layer's intended update.", "√update_sq"),
    ("update_ratio", "", "Norm of the update relative to that of the weights.", "√(update_sq/weight_sq)"),
    ("drift_norm", "weight", "Distance of the layer's weights from where the run started.", "√drift_sq"),
    ("drift_ratio", "", "Distance from the start relative to the norm of the weights.", "√(drift_sq/weight_sq)"),
    ("rotation", "", "1 − cos of the angle between the weights and those the run started from.", CARBONNELLE),
    ("effective_rank", "directions", "Exponential of the entropy of the gradient's singular values.", ROY),
    ("stable_rank", "directions", "Energy of the gradient relative to that of its first direction.", RUDELSON),
    ("participation_ratio", "directions", "Number of directions that share the gradient's energy.", GAO),
    ("noise_scale", "examples", "Batch at which the layer's gradient noise equals its signal.", MCCANDLISH),
)
"""Derived per layer, by name. A noise scale is in multiples of the present batch where the batch is unknown."""

RUN_METRICS = _metrics(
    "run",
    ("noise_scale", "examples", "Batch at which the whole gradient's noise equals its signal.", MCCANDLISH),
    ("noise_scale_low", "examples", "Lower end of the noise scale's 95% interval.", "delta method"),
    ("noise_scale_high", "examples", "Upper end of the noise scale's 95% interval.", "delta method"),
    ("tr_sigma", "gradient²·examples", "Trace of the covariance of one example's gradient, averaged.", MCCANDLISH),
    ("signal_sq", "gradient²", "Squared norm of the gradient without its noise, averaged.", MCCANDLISH),
)
"""Derived once per step, by name; stored beside the scalars. In batches, not examples, where the batch is unknown."""
