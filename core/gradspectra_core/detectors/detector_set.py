"""The rules together: one observation in, findings out, and one state that a restart goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.dead_layer import DeadLayer
from gradspectra_core.detectors.divergence import Divergence
from gradspectra_core.detectors.gradient_spike import GradientSpike
from gradspectra_core.detectors.loss_spike import LossSpike
from gradspectra_core.detectors.nonfinite import Nonfinite
from gradspectra_core.detectors.observation import Observation
from gradspectra_core.detectors.update_norm_spike import UpdateNormSpike

Thresholds = Mapping[str, Mapping[str, float]]
"""Rule name → threshold name → value; what is not named keeps its default."""


class Detector(Protocol):
    """A streaming rule. `state()` is plain JSON, and `restore` of it goes on exactly where it was taken."""

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step."""

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step, if it is open."""

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""


_RULES: dict[str, type[Nonfinite | Divergence | LossSpike | GradientSpike | UpdateNormSpike | DeadLayer]] = {
    rule.name: rule for rule in (Nonfinite, Divergence, LossSpike, GradientSpike, UpdateNormSpike, DeadLayer)
}
ALL_RULES = tuple(_RULES)
LOCAL_RULES = ("nonfinite", "loss_spike", "gradient_spike")
"""The rules that the agent runs in the training job as well."""


def default_thresholds(rule: str) -> dict[str, float]:
    """Return what a rule compares with unless told otherwise. Raises ValueError for a rule that does not exist."""
    _known("rule", rule, ALL_RULES)
    return dict(_RULES[rule].DEFAULTS)


class DetectorSet:
    """Runs rules over the steps of one attempt, in order; a step that is not after the last one is left out.

    thresholds: changes to the rules' defaults. Raises ValueError for a rule or threshold that does not exist.
    """

    def __init__(self, rules: Sequence[str] = ALL_RULES, thresholds: Thresholds | None = None) -> None:
        self.thresholds: dict[str, dict[str, float]] = {
            rule: dict(values) for rule, values in (thresholds or {}).items()
        }
        for rule in (*rules, *self.thresholds):
            _known("rule", rule, ALL_RULES)
        self._detectors: dict[str, Detector] = {}
        for rule in rules:
            defaults = _RULES[rule].DEFAULTS
            changed = self.thresholds.get(rule, {})
            for name in changed:
                _known(f"threshold of {rule}", name, tuple(defaults))
            self._detectors[rule] = _RULES[rule]({**defaults, **changed})
        self._step = 0
        self._names: tuple[str, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that run here."""
        return tuple(self._detectors)

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step with all rules; findings come in the order of the rules."""
        if observation.step <= self._step:
            return []
        self._step = observation.step
        layers = observation.layers
        if layers is not None and layers.names is not self._names:
            if layers.names != self._names:
                self._align(layers.names)
            self._names = layers.names
        return [finding for detector in self._detectors.values() for finding in detector.observe(observation)]

    def forget(self, rule: str, opened: int) -> None:
        """Be outside of a rule's episode that opened at a step: a fault that comes opens another one."""
        if rule in self._detectors:
            self._detectors[rule].forget(opened)

    def _align(self, names: tuple[str, ...]) -> None:
        old = {name: position for position, name in enumerate(self._names)}
        index: NDArray[np.int64] = np.array([old.get(name, -1) for name in names], dtype=np.int64)
        for detector in self._detectors.values():
            if isinstance(detector, Nonfinite | DeadLayer):
                detector.align(index)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "version": 1,
            "step": self._step,
            "names": list(self._names),
            "thresholds": self.thresholds,
            "rules": {rule: detector.state() for rule, detector in self._detectors.items()},
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], rules: Sequence[str] | None = None) -> DetectorSet:
        """Make a set that goes on where `state()` was taken. Raises ValueError for a state of another version.

        rules: None for those of the state; of others, one that the state does not know begins anew.
        """
        if state.get("version") != 1:
            raise ValueError(f"detector state must have version 1, got {state.get('version')!r}: derive the run again")
        restored = cls(tuple(state["rules"]) if rules is None else rules, state["thresholds"])
        restored._step = int(state["step"])
        restored._names = tuple(state["names"])
        for rule, detector in restored._detectors.items():
            if rule in state["rules"]:
                detector.restore(state["rules"][rule])
        return restored


def _known(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"no {what} is named {name!r}; there are {', '.join(names)}")
