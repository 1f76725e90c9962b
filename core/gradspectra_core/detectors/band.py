"""The robust band of a series: how far a number lies from the median of the last points, in robust deviations."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

NORMAL_CONSISTENT = 1.4826
"""Median absolute deviation times this is the standard deviation, for normal noise."""

LOG_FLOOR = 0.01
"""The spread of a series is never taken as less than 1%: a flat stretch must not turn a ripple into an alert."""

TINY = 1e-6
"""Smallest spread of a series of which the logarithm cannot be taken (zeros)."""

USUAL_WEIGHT = 0.01
"""Weight of the newest spread in the usual one, an average over about 100 points."""

LARGEST_SPREAD = 1e300

LARGEST = 1e9
"""Deviations and ratios beyond this are given as this, so that evidence stays a JSON number."""


class Judgement(NamedTuple):
    """Where a value lies. z: robust deviations above the centre; ratio: value over centre (1 + relative rise)."""

    z: float
    ratio: float
    centre: float
    spread: float
    logarithmic: bool

    def limit(self, z: float, ratio: float) -> float:
        """Return the smallest value that lies beyond both z deviations and the ratio; it is finite."""
        if self.logarithmic:
            limit = self.centre * max(math.exp(min(z * self.spread, 700.0)), ratio)
        else:
            limit = self.centre + max(z * self.spread, (ratio - 1.0) * abs(self.centre))
        return min(limit, sys.float_info.max)


class Band:
    """Median and median absolute deviation of the last `size` values, kept sorted so that a judgement is cheap.

    Deviations are those of the logarithm while all values are positive, else of the values themselves (a loss may
    be zero or negative). The spread is at least its usual size over some hundred points: of 50 points alone it
    comes out a third too small now and then, and every such stretch would raise an alarm. No judgement is given
    before `minimum` values.
    """

    def __init__(self, size: int = 50, minimum: int = 30) -> None:
        self.size = size
        self.minimum = minimum
        self._points: deque[tuple[int, float]] = deque()
        self._ordered: list[float] = []
        self._usual: float | None = None
        self._logarithmic = True

    def add(self, step: int, value: float) -> None:
        """Take a finite value into the band; the oldest leaves once `size` are held."""
        self._points.append((step, value))
        insort(self._ordered, value)
        if len(self._points) > self.size:
            _, oldest = self._points.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]

    def centre(self) -> float | None:
        """Return the median of the values held; None while there are fewer than `minimum`."""
        ordered = self._ordered
        return ordered[len(ordered) // 2] if len(ordered) >= self.minimum else None

    @property
    def positive(self) -> bool:
        """Whether there are values and all are above zero, so that they have logarithms."""
        return bool(self._ordered) and self._ordered[0] > 0.0

    def log_spread(self, centre: float) -> float:
        """Return the robust deviation of the logarithms of the values held, all positive, from that of `centre`."""
        deviations = sorted([v / centre if v > centre else centre / v for v in self._ordered])
        return min(max(NORMAL_CONSISTENT * math.log(deviations[len(deviations) // 2]), LOG_FLOOR), LARGEST_SPREAD)

    def judge(self, value: float) -> Judgement | None:
        """Say where the series' next finite value lies; None while the band has fewer than `minimum` values."""
        centre = self.centre()
        if centre is None:
            return None
        if self.positive and value > 0.0:
            spread = self._spread(self.log_spread(centre), logarithmic=True)
            z, ratio = (math.log(value) - math.log(centre)) / spread, value / centre
            return Judgement(_bounded(z), _bounded(ratio), centre, spread, True)
        deviations = sorted([abs(v - centre) for v in self._ordered])
        floor = max(LOG_FLOOR * abs(centre), TINY)
        now = min(max(NORMAL_CONSISTENT * deviations[len(deviations) // 2], floor), LARGEST_SPREAD)
        spread = self._spread(now, logarithmic=False)
        rise = value - centre
        ratio = 1.0 + rise / max(abs(centre), TINY)
        return Judgement(_bounded(rise / spread), _bounded(ratio), centre, spread, False)

    def _spread(self, now: float, logarithmic: bool) -> float:
        if self._usual is None or logarithmic != self._logarithmic:
            self._usual, self._logarithmic = now, logarithmic
        self._usual += USUAL_WEIGHT * (now - self._usual)
        return max(now, self._usual)

    def window(self, points: int = 20) -> dict[str, list[float]]:
        """Return the last points as evidence: {"steps": [...], "values": [...]}."""
        last = list(self._points)[-points:]
        return {"steps": [step for step, _ in last], "values": [value for _, value in last]}

    def replace(self, points: Iterable[tuple[int, float]]) -> None:
        """Forget all values and take these instead."""
        self._points = deque(points)
        while len(self._points) > self.size:
            self._points.popleft()
        self._ordered = sorted(value for _, value in self._points)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        points = [[step, value] for step, value in self._points]
        return {"points": points, "usual": self._usual, "logarithmic": self._logarithmic}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self.replace((int(step), float(value)) for step, value in state["points"])
        self._usual, self._logarithmic = state["usual"], bool(state["logarithmic"])


def _bounded(value: float) -> float:
    return max(-LARGEST, min(value, LARGEST))
