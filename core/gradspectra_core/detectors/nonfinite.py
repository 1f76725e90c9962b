"""nonfinite: a NaN or an infinity in loss, gradient or weights, and the layer it came from where evidence tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.observation import LayerObservation, Observation
from gradspectra_core.detectors.origin import Growth, Origin, bad_gradients, bad_weights, locate


@dataclass(slots=True)
class _Episode:
    opened: int
    kinds: list[str]
    layers: list[str]
    where: str
    values: dict[str, str]
    rising: list[str]
    calm: int = 0
    layers_bad: bool = False


class Nonfinite:
    """Opens at once and is always critical; closes after `calm_points` finite points in a row.

    Overflow on a step that the loss scaler skipped is how loss scaling works: such gradients count only after
    `skipped_points` skipped steps in a row. A norm beyond the range of its type with no non-finite entry in any
    layer is reported as out of range, not as NaN.
    """

    name = "nonfinite"
    DEFAULTS: Mapping[str, float] = {"calm_points": 10, "skipped_points": 20}

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._calm_points = int(thresholds["calm_points"])
        self._skipped_points = int(thresholds["skipped_points"])
        self._skipped = 0
        self._growth = Growth()
        self._episode: _Episode | None = None

    def align(self, index: NDArray[np.int64]) -> None:
        """Follow a change of the layers: `index` (L,) gives the old position of each layer, -1 for a new one."""
        self._growth.align(index)

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step."""
        self._skipped = self._skipped + 1 if observation.skipped else 0
        overflow_expected = 0 < self._skipped < self._skipped_points
        gradients, weights = self._bad_layers(observation.layers)
        values = _bad_numbers(observation, overflow_expected)
        if gradients is not None and gradients.any() and not overflow_expected:
            values.setdefault("gradient", "NaN or infinite")
        if weights is not None and weights.any():
            values["weights"] = "NaN or infinite"
        if values:
            origin = locate(observation, None if overflow_expected else gradients, weights)
            return self._bad(observation, values, origin)
        if observation.layers is not None and not observation.skipped:
            self._growth.update(observation.layers)
        return [] if self._episode is None else self._calm(self._episode, observation)

    @staticmethod
    def _bad_layers(layers: LayerObservation | None) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
        return (None, None) if layers is None else (bad_gradients(layers), bad_weights(layers))

    def _bad(self, observation: Observation, values: dict[str, str], origin: Origin) -> list[Finding]:
        kinds = list(values)
        episode = self._episode
        if episode is None:
            rising = self._growth.rising(observation.layers) if not origin.layers else []
            self._episode = episode = _Episode(
                observation.step, kinds, list(origin.layers), origin.where, values, rising
            )
            change = "open"
        else:
            new_kinds = [kind for kind in kinds if kind not in episode.kinds]
            located = bool(origin.layers) and not episode.layers
            change = "update" if new_kinds or located else ""
            episode.kinds += new_kinds
            episode.values = {**values, **episode.values}
            if located:
                episode.layers, episode.where = list(origin.layers), origin.where
            if not episode.layers and not episode.rising:  # it began at a step without layer numbers
                episode.rising = self._growth.rising(observation.layers)
                change = "update" if episode.rising else change
        episode.calm = 0
        if observation.layers is not None:
            episode.layers_bad = "gradient" in values or "weights" in values
        return [self._finding(episode, change, observation.step)] if change else []

    def _calm(self, episode: _Episode, observation: Observation) -> list[Finding]:
        if observation.layers is not None:
            episode.layers_bad = False
        measured = observation.loss is not None or observation.gradient_norm is not None
        if episode.layers_bad or observation.skipped or not measured:
            return []
        episode.calm += 1
        if episode.calm < self._calm_points:
            return []
        self._episode = None
        return [self._finding(episode, "close", observation.step)]

    def _finding(self, episode: _Episode, change: str, step: int) -> Finding:
        what = " and ".join(f"{kind} {episode.values[kind]}" for kind in episode.kinds)
        where = f"first in {episode.layers[0]} ({episode.where})" if episode.layers else episode.where
        if episode.rising and not episode.layers:
            where += f"; grew most before: {', '.join(episode.rising)}"
        evidence: dict[str, Any] = {
            "kinds": list(episode.kinds),
            "values": dict(episode.values),
            "where": episode.where,
            "grew_most_before": list(episode.rising),
        }
        return Finding(
            self.name,
            change,
            "critical",
            episode.opened,
            step,
            layers=tuple(episode.layers),
            message=f"{what} at step {episode.opened}: {where}",
            evidence=evidence,
        )

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step: what comes is judged anew."""
        if self._episode is not None and self._episode.opened == opened:
            self._episode = None

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        episode = None if self._episode is None else asdict(self._episode)
        return {"skipped": self._skipped, "growth": self._growth.state(), "episode": episode}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._skipped = int(state["skipped"])
        self._growth.restore(state["growth"])
        self._episode = None if state["episode"] is None else _Episode(**state["episode"])


def _bad_numbers(observation: Observation, overflow_expected: bool) -> dict[str, str]:
    bad: dict[str, str] = {}
    if observation.loss is not None and not math.isfinite(observation.loss):
        bad["loss"] = _word(observation.loss)
    norm = observation.gradient_norm
    if norm is not None and not math.isfinite(norm) and not overflow_expected:
        counts = None if observation.layers is None else observation.layers.grad_nonfinite
        in_range = counts is None or math.isnan(norm) or bool(counts.any())
        bad["gradient"] = _word(norm) if in_range else "out of range (no entry is NaN or infinite)"
    return bad


def _word(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
