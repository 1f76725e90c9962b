"""update_norm_spike: the norm of the optimizer's update lies far above its band; seen before loss and gradient jump."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.band import Band, Judgement
from gradspectra_core.detectors.observation import Observation
from gradspectra_core.detectors.spike import Spike


class UpdateNormSpike:
    """Robust z of ln of the update norm over the last 50 recorded points: z > `z` and norm > `ratio` × median.

    Opens at once beyond `confirm_z`, else at the second such point among three. A jump that the learning rate
    explains, where the norm per learning rate stays within its own band, is none.
    """

    name = "update_norm_spike"
    DEFAULTS: Mapping[str, float] = {"z": 6.0, "ratio": 2.0, "confirm_z": 12.0}

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._z, self._ratio = thresholds["z"], thresholds["ratio"]
        confirm_z = thresholds["confirm_z"]
        self._spike = Spike(self.name, "update norm", self._z, self._ratio, self._severity, confirm_z)
        self._per_rate = Band()
        self._explained = False

    def _beyond(self, judged: Judgement) -> bool:
        return judged.z > self._z and judged.ratio > self._ratio

    def _severity(self, judged: Judgement) -> str | None:
        return "warning" if self._beyond(judged) and not self._explained else None

    def _judge_rate(self, step: int, norm: float, rate: float | None) -> None:
        self._explained = False
        if rate is None or not 0.0 < rate < math.inf or not 0.0 < norm / rate < math.inf:
            return
        judged = self._per_rate.judge(norm / rate)
        self._explained = judged is not None and not self._beyond(judged)
        self._per_rate.add(step, norm / rate)

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step; a skipped step has an update of zero, which says nothing."""
        norm = observation.update_norm
        if norm is None or not math.isfinite(norm) or norm <= 0.0:
            return []
        self._judge_rate(observation.step, norm, observation.learning_rate)
        return self._spike.observe(observation.step, norm)

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step."""
        self._spike.forget(opened)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {"spike": self._spike.state(), "per_rate": self._per_rate.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        if "spike" not in state:  # as it was before the learning rate was looked at
            self._spike.restore(state)
            return
        self._spike.restore(state["spike"])
        self._per_rate.restore(state["per_rate"])
