"""dead_layer: a layer that is trained gets no gradient at all over a window of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.observation import LayerObservation, Observation
from gradspectra_core.records import Bool


@dataclass(slots=True)
class _Episode:
    """calm: records with a gradient in a row, per layer of the episode."""

    opened: int
    since: int
    absent: list[str]
    calm: dict[str, int]


class DeadLayer:
    """Opens when layers had grad_max == 0 and grad_nonfinite == 0, or no gradient, for `window` records in a row.

    A frozen layer, which never had a gradient, opens nothing. A layer whose gradient exists but was exactly zero
    from the first record on opens after `window_from_start` records (a gate that starts at zero opens earlier).
    Never judged from grad_sq, which is zero for small gradients too. All layers that die at one step share one
    alert; it closes when each had a gradient for `calm_records` records in a row or left the model.
    """

    name = "dead_layer"
    DEFAULTS: Mapping[str, float] = {"window": 30, "window_from_start": 100, "calm_records": 3}

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._window = int(thresholds["window"])
        self._window_from_start = int(thresholds["window_from_start"])
        self._calm_records = int(thresholds["calm_records"])
        self._streak = np.zeros(0, np.int64)
        self._since = np.zeros(0, np.int64)
        self._trained = np.zeros(0, np.int64)
        self._episodes: list[_Episode] = []

    def align(self, index: NDArray[np.int64]) -> None:
        """Follow a change of the layers: `index` (L,) gives the old position of each layer, -1 for a new one."""
        self._streak, self._since, self._trained = (
            np.where(index >= 0, old[index], 0) if len(old) else np.zeros(len(index), np.int64)
            for old in (self._streak, self._since, self._trained)
        )

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step that has layer numbers; a skipped step says nothing about layers."""
        layers = observation.layers
        if layers is None or layers.grad_max is None or observation.skipped:
            return []
        if len(self._streak) != len(layers.names):
            self.align(np.full(len(layers.names), -1))
        here = layers.grad_max_present
        present = np.ones(len(layers.names), np.bool_) if here is None else here
        if not present.any():
            return []
        finite = np.ones_like(present) if layers.grad_nonfinite is None else layers.grad_nonfinite == 0
        alive = present & (layers.grad_max != 0)
        without = finite & ~alive & ~_withheld(layers, present)
        if without.any():
            self._since[without & (self._streak == 0)] = observation.step
            self._streak[without] += 1
        self._streak[alive | ~finite] = 0
        self._trained[alive] = 1
        closed = [self._closed(episode, layers, alive, observation.step) for episode in list(self._episodes)]
        opened = self._opened(layers, present, observation.step) if without.any() else []
        return [finding for finding in closed if finding is not None] + opened

    def _opened(self, layers: LayerObservation, present: NDArray[np.bool_], step: int) -> list[Finding]:
        died = (self._trained == 1) & (self._streak >= self._window)
        died |= (self._trained == 0) & present & (self._streak >= self._window_from_start)
        if not died.any():
            return []
        known = {name for episode in self._episodes for name in episode.calm}
        new = [i for i in np.flatnonzero(died).tolist() if layers.names[i] not in known]
        if not new:
            return []
        names = [layers.names[i] for i in new]
        absent = [layers.names[i] for i in new if not present[i]]
        episode = _Episode(step, int(self._since[new].min()), absent, dict.fromkeys(names, 0))
        self._episodes.append(episode)
        return [self._finding(episode, "open", step)]

    def _closed(
        self, episode: _Episode, layers: LayerObservation, alive: NDArray[np.bool_], step: int
    ) -> Finding | None:
        position = {name: i for i, name in enumerate(layers.names)}
        for name, calm in episode.calm.items():
            gone = name not in position
            episode.calm[name] = calm + 1 if gone or alive[position[name]] else 0
        if min(episode.calm.values()) < self._calm_records:
            return None
        self._episodes.remove(episode)
        return self._finding(episode, "close", step)

    def _finding(self, episode: _Episode, change: str, step: int) -> Finding:
        names = tuple(episode.calm)
        more = len(names) - 1
        several = f"{names[0]} and {more} more layer{'s' * (more > 1)}" if more else names[0]
        zero = ["exactly zero"] if len(episode.absent) < len(names) else []
        how = " or ".join([*zero, "absent"] if episode.absent else zero)
        ends = "; it has one again" if change == "close" else ""
        return Finding(
            self.name,
            change,
            "warning",
            episode.opened,
            step,
            layers=names,
            value=0.0,
            message=f"the gradient of {several} is {how} since step {episode.since}{ends}",
            evidence={"since_step": episode.since, "absent": list(episode.absent), "records": self._window},
        )

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step: layers that are dead still open another one."""
        self._episodes = [episode for episode in self._episodes if episode.opened != opened]

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "streak": self._streak.tolist(),
            "since": self._since.tolist(),
            "trained": self._trained.tolist(),
            "episodes": [asdict(episode) for episode in self._episodes],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._streak, self._since, self._trained = (
            np.array(state[key], dtype=np.int64) for key in ("streak", "since", "trained")
        )
        self._episodes = [_Episode(**episode) for episode in state["episodes"]]


def _withheld(layers: LayerObservation, present: Bool) -> Bool:
    """(L,) layers that had a gradient whose size is not told: its entries were counted, and no more."""
    if layers.grad_nonfinite_present is None:
        return np.zeros(len(layers.names), np.bool_)
    return layers.grad_nonfinite_present & ~present
