"""Where a NaN came from: what the layer numbers of the step say, and which layers grew most before it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.detectors.observation import LayerObservation, Numbers, Observation

MEMORY = 1 / 20
"""Weight of the newest record in each layer's usual level of ln ‖g‖²."""


class Origin(NamedTuple):
    """layers: those affected, the first affected first; empty where the evidence does not separate layers."""

    layers: tuple[str, ...]
    where: str


def bad_gradients(layers: LayerObservation) -> NDArray[np.bool_] | None:
    """(L,) layers with a non-finite gradient entry; None where nothing was measured that could tell."""
    if layers.grad_nonfinite is not None:
        bad = layers.grad_nonfinite > 0
        return bad if layers.grad_nonfinite_present is None else bad & layers.grad_nonfinite_present
    if layers.grad_sq is None:
        return None
    return _masked(np.isnan(layers.grad_sq), layers.grad_sq_present)


def bad_weights(layers: LayerObservation) -> NDArray[np.bool_] | None:
    """(L,) layers whose sum of squared weights is NaN; an infinite sum may only be out of range."""
    if layers.weight_sq is None:
        return None
    return _masked(np.isnan(layers.weight_sq), layers.weight_sq_present)


def _masked(bad: NDArray[np.bool_], present: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return bad if present is None else bad & present


def overflowed(layers: LayerObservation) -> tuple[str, ...]:
    """Layers whose output was not finite, after one whose output was; empty where nothing tells them apart."""
    if layers.act_nonfinite is None:
        return ()
    bad = _masked(layers.act_nonfinite > 0, layers.act_nonfinite_present)
    fine = _masked(layers.act_nonfinite == 0, layers.act_nonfinite_present)
    if not bad.any() or not fine[: int(bad.argmax())].any():
        return ()
    return tuple(layers.names[i] for i in np.flatnonzero(bad))


def locate(observation: Observation, gradients: NDArray[np.bool_] | None, weights: NDArray[np.bool_] | None) -> Origin:
    """Name the layers affected, first affected first.

    gradients, weights: (L,) which layers are non-finite. With a finite loss the trouble began in the backward
    pass, which runs from the last layer to the first: finite above and NaN below names the last NaN layer.
    A non-finite loss makes every gradient NaN at once and separates nothing; the outputs of the forward pass do, finite
    before and not from one layer on, and weights that are NaN in some layers only.
    """
    loss_is_bad = observation.loss is not None and not math.isfinite(observation.loss)
    layers = observation.layers
    if layers is not None and gradients is not None and not loss_is_bad and gradients.any():
        if not gradients.all():
            return Origin(tuple(layers.names[i] for i in np.flatnonzero(gradients)[::-1]), "in the backward pass")
        return Origin((), "in the backward pass, in all layers: at the loss or in the last layer")
    outputs = overflowed(layers) if layers is not None and loss_is_bad else ()
    if outputs:
        return Origin(outputs, "in the forward pass")
    if layers is not None and weights is not None and weights.any() and not weights.all():
        return Origin(tuple(layers.names[i] for i in np.flatnonzero(weights)), "in the weights")
    if loss_is_bad:
        return Origin((), "in the forward pass, layer unknown")
    return Origin((), "layer unknown")


class Growth:
    """Each layer's usual ln ‖g‖² and how far its newest record lies above it."""

    def __init__(self) -> None:
        self._usual: Numbers = np.empty(0)
        self._rise: Numbers = np.empty(0)

    def update(self, layers: LayerObservation) -> None:
        """Take a step on which everything was finite."""
        if layers.grad_sq is None:
            return
        count = len(layers.names)
        if len(self._usual) != count:
            self._usual, self._rise = np.full(count, np.nan), np.full(count, np.nan)
        usable = (layers.grad_sq > 0) & np.isfinite(layers.grad_sq)
        if layers.grad_sq_present is not None:
            usable &= layers.grad_sq_present
        level = np.log(layers.grad_sq, out=np.full(count, np.nan), where=usable)
        rise = level - self._usual
        np.copyto(self._rise, rise, where=usable)
        moved = np.where(np.isnan(rise), level, self._usual + MEMORY * rise)
        np.copyto(self._usual, moved, where=usable)

    def rising(self, layers: LayerObservation | None, most: int = 3) -> list[str]:
        """Return names of the layers whose last record before now lay highest above their usual level."""
        if layers is None or len(layers.names) != len(self._rise):
            return []
        order = np.argsort(-np.nan_to_num(self._rise, nan=-np.inf), kind="stable")[:most]
        return [layers.names[i] for i in order if self._rise[i] > 0.5]

    def align(self, index: NDArray[np.int64]) -> None:
        """Follow a change of the layers: `index` (L,) gives the old position of each, -1 for a new one."""
        self._usual, self._rise = (
            np.where(index >= 0, old[index], np.nan) if len(old) else old for old in (self._usual, self._rise)
        )

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {"usual": _to_json(self._usual), "rise": _to_json(self._rise)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._usual, self._rise = (np.array(state[key], dtype=np.float64) for key in ("usual", "rise"))


def _to_json(values: Numbers) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
