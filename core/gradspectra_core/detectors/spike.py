"""The episode of a spike: opens beyond the band, is followed while it gets worse, closes when it is calm again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gradspectra_core.alerts import SEVERITIES, Finding
from gradspectra_core.detectors.band import Band, Judgement

CALM_POINTS = 5
"""An episode closes after this many points in a row inside the band."""

PATIENCE = 200
"""After this many points outside, the new level counts as the series' level and the episode closes."""

WORSE = 1.25
"""An open episode is reported again when its deviation is this many times the one reported last."""

CLOSE_SHARE = 0.5
"""A point is calm again below this share of the deviation that opens an episode (hysteresis)."""


@dataclass(slots=True)
class _Episode:
    opened: int
    severity: str
    reported_z: float
    peak: float
    peak_step: int
    peak_ratio: float
    threshold: float
    outside: int
    calm: int
    evidence: dict[str, Any]


class Spike:
    """Follows one series. `severity(judgement)` says how bad a point is, None where it is not a spike.

    confirm_z: below this deviation a single point only counts together with another one among the next two.
    """

    def __init__(
        self,
        rule: str,
        series: str,
        z: float,
        ratio: float,
        severity: Callable[[Judgement], str | None],
        confirm_z: float = 0.0,
        minimum: int = 30,
    ) -> None:
        self.rule = rule
        self.series = series
        self.z = z
        self.ratio = ratio
        self.band = Band(minimum=minimum)
        self._severity = severity
        self._confirm_z = confirm_z
        self._suspects: list[tuple[int, int]] = []
        self._seen = 0
        self._held: list[tuple[int, float]] = []
        self._episode: _Episode | None = None

    def observe(self, step: int, value: float) -> list[Finding]:
        """Take the series' next finite value; return what there is to say about it (at most one finding)."""
        self._seen += 1
        judged = self.band.judge(value)
        if judged is None:
            self.band.add(step, value)
            return []
        severity = self._severity(judged)
        if self._episode is not None:
            return self._follow(self._episode, step, value, judged, severity)
        opened = None if severity is None else self._opened_step(step, judged)
        if opened is None or severity is None:
            self.band.add(step, value)
            return []
        return [self._open(opened, severity, step, value, judged)]

    def _opened_step(self, step: int, judged: Judgement) -> int | None:
        self._suspects = [(s, seen) for s, seen in self._suspects if self._seen - seen <= 2]
        self._suspects.append((step, self._seen))
        if judged.z < self._confirm_z and len(self._suspects) < 2:
            return None
        return self._suspects[0][0]

    def _open(self, opened: int, severity: str, step: int, value: float, judged: Judgement) -> Finding:
        window = self.band.window()
        window["steps"].append(step)
        window["values"].append(value)
        evidence = {
            "series": self.series,
            "median": judged.centre,
            "spread": judged.spread,
            "scale": "logarithmic" if judged.logarithmic else "linear",
            "window": window,
        }
        limit = judged.limit(self.z, self.ratio)
        self._episode = _Episode(opened, severity, judged.z, value, step, judged.ratio, limit, 1, 0, evidence)
        self._held = [(step, value)]
        self._suspects = []
        return self._finding(self._episode, "open", step, judged.z)

    def _follow(
        self, episode: _Episode, step: int, value: float, judged: Judgement, severity: str | None
    ) -> list[Finding]:
        if judged.z < CLOSE_SHARE * self.z or judged.ratio < 1.0 + CLOSE_SHARE * (self.ratio - 1.0):
            episode.calm += 1
            self.band.add(step, value)
        else:
            episode.calm = 0
            episode.outside += 1
            self._held = [*self._held[1 - self.band.size :], (step, value)]
        if value > episode.peak:
            episode.peak, episode.peak_step, episode.peak_ratio = value, step, judged.ratio
        if episode.calm >= CALM_POINTS or episode.outside >= PATIENCE:
            return [self._close(episode, step, judged.z)]
        more_severe = severity is not None and SEVERITIES.index(severity) > SEVERITIES.index(episode.severity)
        if more_severe or (severity is not None and judged.z > WORSE * episode.reported_z):
            episode.severity = severity if more_severe and severity is not None else episode.severity
            episode.reported_z = judged.z
            return [self._finding(episode, "update", step, judged.z)]
        return []

    def _close(self, episode: _Episode, step: int, z: float) -> Finding:
        settled = episode.outside >= PATIENCE
        if settled:
            self.band.replace(self._held)
        self._episode, self._held = None, []
        return self._finding(episode, "close", step, z, settled=settled)

    def _finding(self, episode: _Episode, change: str, step: int, z: float, settled: bool = False) -> Finding:
        ends = {
            "open": "",
            "update": "",
            "close": "; it settled at this new level" if settled else "; it came back into its band",
        }
        median = episode.evidence["median"]
        message = (
            f"{self.series} {episode.peak:.4g} at step {episode.peak_step}: {_times(episode)} its recent median "
            f"{median:.4g}, limit {episode.threshold:.4g}{ends[change]}"
        )
        evidence = {
            **episode.evidence,
            "z": episode.reported_z if change == "close" else z,
            "ratio": episode.peak_ratio,
            "peak": episode.peak,
            "peak_step": episode.peak_step,
        }
        if change == "close":
            evidence["settled"] = settled
        return Finding(
            self.rule,
            change,
            episode.severity,
            episode.opened,
            step,
            value=episode.peak,
            threshold=episode.threshold,
            message=message,
            evidence=evidence,
        )

    def forget(self, opened: int) -> None:
        """Be outside of the episode that opened at a step: what comes is judged anew."""
        if self._episode is not None and self._episode.opened == opened:
            self._episode = None
            self._held = []

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "band": self.band.state(),
            "suspects": [[step, self._seen - seen] for step, seen in self._suspects],
            "held": [[step, value] for step, value in self._held],
            "episode": None if self._episode is None else asdict(self._episode),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._seen = 0
        self.band.restore(state["band"])
        self._suspects = [(int(step), -int(ago)) for step, ago in state["suspects"]]
        self._held = [(int(step), float(value)) for step, value in state["held"]]
        self._episode = None if state["episode"] is None else _Episode(**state["episode"])


def _times(episode: _Episode) -> str:
    if episode.evidence["scale"] == "linear":
        return "far above"
    return f"{episode.peak_ratio:.3g} times"
