"""divergence: the loss stays far above what it had come down to, or above where it started; slow rises too."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gradspectra_core.alerts import Finding
from gradspectra_core.detectors.band import Band
from gradspectra_core.detectors.observation import Observation

CURVE_EVERY, CURVE_POINTS = 10, 40
"""The evidence shows the level at every tenth point, so many of them: a slow rise is not seen in 20 losses."""

WORSE = 1.25
"""An open episode is reported again when its level is this many times the one reported last."""

RUNGS = 4
"""Learning rates within a quarter of an octave count as one: a loss in proportion to the rate differs by 19% there."""

LARGEST = 1e308
"""A limit that no loss is beyond, as a JSON number."""


class Reference(NamedTuple):
    """A level that the loss had, and the level beyond which it counts as left."""

    level: float
    limit: float


@dataclass(slots=True)
class _Episode:
    opened: int
    since: int
    kind: str
    reference: float
    limit: float
    peak: float
    peak_step: int
    reported: float
    points: int
    curve: list[list[float]]


class Divergence:
    """Follows the level of the loss, the median of the last 50 points, and compares it with two references.

    One is the lowest level that the run had at this learning rate or a higher one, or of all where the rate is the
    highest so far: a restart of the schedule raises the loss to what it was at that rate before, and that is none. The
    other is the level of its first 30 points, from `start_points` on. Opens when the level has been beyond `z`
    deviations and `ratio` times the first, or `start_z` and `start_ratio` of the second, for `stay_points` points in a
    row. Closes halfway back to the reference, or as settled after `patience` points; from then on it compares with that
    level alone. While not all of the points are positive there is no verdict: such a loss may rise while a run learns.
    """

    name = "divergence"
    DEFAULTS: Mapping[str, float] = {
        "z": 3.0,
        "ratio": 1.2,
        "start_z": 2.0,
        "start_ratio": 1.05,
        "start_points": 200,
        "stay_points": 50,
        "patience": 1000,
    }

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._limits = dict(thresholds)
        self._band = Band()
        self._seen = 0
        self._rung = 0
        self._here = 0
        self._lowest: dict[int, Reference] = {}
        self._start: Reference | None = None
        self._above = 0
        self._since = 0
        self._curve: deque[tuple[int, float]] = deque(maxlen=CURVE_POINTS)
        self._episode: _Episode | None = None

    def observe(self, observation: Observation) -> list[Finding]:
        """Judge one step; an absent loss or one that is not finite is no point."""
        loss, step = observation.loss, observation.step
        if loss is None or not math.isfinite(loss):
            return []
        self._band.add(step, loss)
        self._seen += 1
        self._see_rate(observation.learning_rate)
        level = self._band.centre()
        if level is None:
            return []
        if self._seen % CURVE_EVERY == 0:
            self._curve.append((step, level))
        if self._episode is not None:
            return self._follow(self._episode, step, level)
        return self._judge(step, level) if self._band.positive else self._calm()

    def _see_rate(self, rate: float | None) -> None:
        known = rate is not None and 0.0 < rate < math.inf
        rung = math.floor(RUNGS * math.log2(rate)) if known and rate is not None else self._rung
        self._here = self._here + 1 if rung == self._rung else 1
        self._rung = rung

    def _judge(self, step: int, level: float) -> list[Finding]:
        limits = self._limits
        if self._start is None:
            self._start = self._reference(level, limits["start_z"], limits["start_ratio"])
        kind, reference = "lowest", self._reached(level)
        if self._seen >= limits["start_points"] and self._start.limit < reference.limit:
            kind, reference = "start", self._start
        if level <= reference.limit:
            return self._calm()
        self._since = self._since if self._above else step
        self._above += 1
        if self._above < limits["stay_points"]:
            return []
        curve = [list(point) for point in (*self._curve, (step, level))]
        self._episode = _Episode(step, self._since, kind, *reference, level, step, level, 0, curve)
        self._above = 0
        return [self._finding(self._episode, "open", step)]

    def _calm(self) -> list[Finding]:
        self._above = 0
        return []

    def _reached(self, level: float) -> Reference:
        """The lowest level at this rung of the learning rate or above; it is taken in where all points are of it."""
        higher = [reference for rung, reference in self._lowest.items() if rung >= self._rung]
        if not higher and self._lowest:
            higher = [min(self._lowest.values())]
            self._lowest[self._rung] = higher[0]
        own = self._lowest.get(self._rung)
        if not higher or (self._here >= self._band.size and (own is None or level < own.level)):
            higher.append(self._reference(level, self._limits["z"], self._limits["ratio"]))
            self._lowest[self._rung] = higher[-1]
        return min(higher)

    def _reference(self, level: float, z: float, ratio: float) -> Reference:
        times = max(math.exp(min(z * self._band.log_spread(level), 700.0)), ratio)
        return Reference(level, min(level * times, LARGEST))

    def _follow(self, episode: _Episode, step: int, level: float) -> list[Finding]:
        episode.points += 1
        if level > episode.peak:
            episode.peak, episode.peak_step = level, step
        back = level <= math.sqrt(episode.reference) * math.sqrt(episode.limit)
        if back or episode.points >= self._limits["patience"]:
            if not back:
                self._lowest.clear()
                self._start = Reference(level, LARGEST)
            self._episode = None
            return [self._finding(episode, "close", step, settled=not back)]
        if level > WORSE * episode.reported:
            episode.reported = level
            return [self._finding(episode, "update", step)]
        return []

    def _finding(self, episode: _Episode, change: str, step: int, settled: bool = False) -> Finding:
        what = "it had come down to" if episode.kind == "lowest" else "it started from"
        ends = ("; it settled at this level" if settled else "; it came back") if change == "close" else ""
        message = (
            f"the median of 50 losses left the {episode.reference:.4g} {what} at step {episode.since} and reached "
            f"{episode.peak:.4g} at step {episode.peak_step}, limit {episode.limit:.4g}{ends}"
        )
        steps, values = (list(column) for column in zip(*episode.curve, strict=True))
        evidence: dict[str, Any] = {
            "series": "median of 50 losses",
            "since_step": episode.since,
            "reference": episode.reference,
            "reference_of": episode.kind,
            "ratio": min(episode.peak / episode.reference, 1e9),
            "peak": episode.peak,
            "peak_step": episode.peak_step,
            "window": {"steps": steps, "values": values},
        }
        if change == "close":
            evidence["settled"] = settled
        return Finding(
            *(self.name, change, "critical", episode.opened, step),
            value=episode.peak,
            threshold=episode.limit,
            message=message,
            evidence=evidence,
        )

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step: what comes is judged anew."""
        if self._episode is not None and self._episode.opened == opened:
            self._episode = None

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "band": self._band.state(),
            "seen": self._seen,
            "rung": [self._rung, self._here],
            "lowest": [[rung, *reference] for rung, reference in self._lowest.items()],
            "start": None if self._start is None else list(self._start),
            "above": [self._above, self._since],
            "curve": [list(point) for point in self._curve],
            "episode": None if self._episode is None else asdict(self._episode),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._band.restore(state["band"])
        self._seen = int(state["seen"])
        self._rung, self._here = state["rung"]
        self._lowest = {int(rung): Reference(*reference) for rung, *reference in state["lowest"]}
        self._start = None if state["start"] is None else Reference(*state["start"])
        self._above, self._since = state["above"]
        self._curve.extend((int(step), level) for step, level in state["curve"])
        self._episode = None if state["episode"] is None else _Episode(**state["episode"])
