"""gradient_spike: the norm of the gradient before clipping lies far above its band of the last 50 points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.band import Band, Judgement
from gradspectra_core.detectors.observation import Observation
from gradspectra_core.detectors.spike import Spike


class GradientSpike:
    """Robust z of ln of the gradient norm: opens at z > `z` and norm > `ratio` times its median.

    Critical beyond `critical_ratio`, or beyond `joint_ratio` with the loss `loss_z` deviations above its own band.
    """

    name = "gradient_spike"
    DEFAULTS: Mapping[str, float] = {
        "z": 6.0,
        "ratio": 2.0,
        "critical_ratio": 5.0,
        "joint_ratio": 3.0,
        "loss_z": 3.0,
    }

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._limits = dict(thresholds)
        self._loss = Band()
        self._loss_above = False
        self._spike = Spike(self.name, "gradient norm", thresholds["z"], thresholds["ratio"], self._severity)

    def _severity(self, judged: Judgement) -> str | None:
        limits = self._limits
        if judged.z <= limits["z"] or judged.ratio <= limits["ratio"]:
            return None
        joint = self._loss_above and judged.ratio > limits["joint_ratio"]
        return "critical" if joint or judged.ratio > limits["critical_ratio"] else "warning"

    def _judge_loss(self, step: int, loss: float | None) -> None:
        self._loss_above = False
        if loss is None or not math.isfinite(loss):
            return
        judged = self._loss.judge(loss)
        self._loss_above = judged is not None and judged.z > self._limits["loss_z"]
        self._loss.add(step, loss)

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step; a norm of zero (nothing to learn from) or a non-finite one says nothing about spikes."""
        self._judge_loss(observation.step, observation.loss)
        norm = observation.gradient_norm
        if norm is None or observation.skipped or not math.isfinite(norm) or norm <= 0.0:
            return []
        return self._spike.observe(observation.step, norm)

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step."""
        self._spike.forget(opened)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {"spike": self._spike.state(), "loss": self._loss.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._spike.restore(state["spike"])
        self._loss.restore(state["loss"])
