"""loss_spike: the loss lies far above its band of the last 50 points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.band import Judgement
from gradspectra_core.detectors.observation import Observation
from gradspectra_core.detectors.spike import Spike


class LossSpike:
    """Robust z of ln loss (of the loss itself where it may be zero or negative) over the last 50 points.

    Opens at z > `z` with the loss above `ratio` times its median: at once beyond `confirm_z`, else at the second
    such point among three, since the loss of a single small batch has heavy tails. Non-finite losses are the
    business of the rule nonfinite.
    """

    name = "loss_spike"
    DEFAULTS: Mapping[str, float] = {"z": 6.0, "ratio": 1.2, "confirm_z": 12.0}

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._z, self._ratio = thresholds["z"], thresholds["ratio"]
        self._spike = Spike(self.name, "loss", self._z, self._ratio, self._severity, thresholds["confirm_z"])

    def _severity(self, judged: Judgement) -> str | None:
        return "warning" if judged.z > self._z and judged.ratio > self._ratio else None

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step."""
        loss = observation.loss
        if loss is None or not math.isfinite(loss):
            return []
        return self._spike.observe(observation.step, loss)

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step."""
        self._spike.forget(opened)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return self._spike.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._spike.restore(state)
