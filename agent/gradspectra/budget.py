"""How often each tier is measured, so that the agent takes at most its share of the step time.

Layer numbers come at `every` or the nearest coarser cadence (twice, four times, … as far apart) that fits; what then
is left is saved up, and a spectrum is taken whenever the savings pay for it. Half of the share is kept for spectra
unless the layer numbers would then come more seldom than every 8th step. Curves coarser than that, or spectra more
seldom than every 200 steps, are of little use: to keep these two the share may be overdrawn by two fifths, no further.
What hooks and sending take at any step cannot be saved by measuring less: where the machine is so busy that they take
more than half of the share, the tiers keep the other half, and the overhead that is told shows the excess.
The second tier takes what is left after both, at most a tenth of the share; at the least what brings it round every 200
steps, as far as that is within the tenth.
All costs are kept as shares of the step they came in, so that a machine that is busy with other things changes nothing.
They are the clock's, times what a second of the clock was found to cost the training (pairs.py).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from gradspectra.off_steps import OffSteps
from gradspectra.pairs import Factors, Pairs, Work

SAFETY = 0.95
"""Part of the budget that is planned; the rest is for what neither the clock nor the pairs have seen yet."""
OVERDRAFT = 1.4
"""Of the budget, where FREQUENT and LONGEST_LAP could not be kept within it."""
KEPT_FOR_TIERS = 0.5
"""Of the budget, whatever else takes."""
RESERVED_FOR_SPECTRA = 0.5
FREQUENT = 8
RESERVED_FOR_PARTS = 0.75
"""The squares of parts get so much of what the layer numbers have, at most; they are measured at every second of them,
or more seldom."""
LONGEST_LAP = 170
"""Steps from a layer's spectrum to its next that are planned at most; somewhat less than the 200 that are promised."""
COARSEST = 1 << 10
COARSEST_UNSURE = 1 << 4
"""The coarsest cadence in multiples of `every`, and while the cost was seen fewer times than a window holds."""
SECOND_PART = 0.1
"""Of the budget, the most for the second tier."""
SECOND_LAP = 200
"""Steps from a layer's second tier to its next where nothing is left of the budget."""
LARGEST_PIECE = 0.05
"""A spectrum that would take a larger part of one step is not measured inside a step."""
REVIEW_STEPS = 16
WARMUP_STEPS = 3
"""First steps, whose costs are not typical: memory is taken, kernels are chosen."""
STEADY = 0.1
"""Factors that have changed by less than this share of them are not planned with, so that cadences keep still."""
SENDINGS = 256
"""Steps over which the mean of the sending is taken, which comes with few of them, and then costs much."""
LOOSE = 0.85
"""Of an allowance, what a finer cadence must fit into before it is taken up again."""
TIGHT = 0.1
"""Of the budget, the standard error with which the overhead is known well."""


class Window:
    """The last numbers. A cost is seen too large when other processes ran, never too small: trust the low ones."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self.full = False

    def add(self, value: float) -> None:
        """Add one number."""
        self._values.append(value)
        self.full = len(self._values) == self._values.maxlen

    def __len__(self) -> int:
        return len(self._values)

    def quantile(self, share: float) -> float:
        """The number below which this share of them lies; 0 before the first."""
        ordered = sorted(self._values)
        return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


class Budget:
    """Plans the cadences from what the steps and the tiers were seen to cost.

    share: of step time the agent may spend, or None for `every` exactly at any cost. every: as in watch. spectra:
    whether some of the share is to be kept for them.
    """

    def __init__(self, share: float | None, every: int, spectra: bool) -> None:
        self.share = share
        self.every = every
        self.cadence = every
        self.parts_cadence = 2 * every
        self.savings = 0.0
        self.step_seconds = 0.0
        """A typical step without the agent; 0 until known."""
        self.lap_seconds = 0.0
        """What the spectra of all layers together are expected to cost."""
        self.second_lap_seconds = 0.0
        """What the second tier of all layers together is expected to cost."""
        self._spectra = spectra
        self._steps = 0
        self._durations = Window(33)
        self._base = Window(33)
        self._layers = Window(7)
        self._parts = Window(7)
        self._background = self._base_share = self._tier_share = self._second_share = 0.0
        self._spent = self._wall = 0.0
        self.factors = Factors()
        """What a second of the clock is planned to cost the training."""
        self._pairs = Pairs()
        self._hidden, self._error = 0.0, math.inf
        self._off_steps = OffSteps(every, share is not None)

    def due(self, step: int) -> bool:
        """Whether the layer numbers of this step are to be measured; to be asked of the steps in their order."""
        tight = self.share is not None and self._error <= TIGHT * self.share * self._wall
        return self._off_steps.due(step, self.cadence, tight)

    def parts_due(self, step: int) -> bool:
        """Whether the parts of this step are to be measured, if its layer numbers are."""
        return self.share is None or self._off_steps.turn(step, self.parts_cadence)

    @property
    def overhead(self) -> float:
        """Share of the step time spent so far, everything included, also what the clock does not see."""
        return max(self._spent + self._hidden, 0.0) / self._wall if self._wall > 0 else 0.0

    def status(self) -> dict[str, Any]:
        """The budget and what was spent; what the clock alone says of it, and how sure it is by how many pairs."""
        known = self._wall > 0
        return {
            "budget": self.share,
            "overhead": self.overhead,
            "overhead_clocked": self._spent / self._wall if known else 0.0,
            "overhead_error": self._error / self._wall if known and self._error < math.inf else None,
            "steps_compared": self._pairs.compared,
            "step_seconds": self.step_seconds,
        }

    def step_done(
        self,
        seconds: float | None,
        base: float,
        layers: float | None,
        spectra: float,
        background: float,
        second: float = 0.0,
        parts: float | None = None,
        beside: float = 0.0,
    ) -> None:
        """Account for a step. seconds: its whole time (None: not known, the first or after a pause).

        base: what hooks and log cost at any step; layers: what the layer numbers cost, None where they were not
        measured; parts: what the squares of its parts cost, alike; spectra, second: what spectra and the second tier
        cost on the training's thread; background: what the sending thread took meanwhile; beside: what spectra beside
        the training are taken to have cost it.
        """
        self._steps += 1
        if seconds is None:
            self._pairs.passed()
            return
        own = base + (layers or 0.0) + (parts or 0.0) + spectra + second
        self._wall += seconds
        self._spent += own + background + beside
        if self._steps <= WARMUP_STEPS:
            return
        bare = max(seconds - own, 1e-9)
        self._durations.add(bare)
        self._base.add(base / bare)
        self._background += (background / bare - self._background) / min(self._steps - WARMUP_STEPS, SENDINGS)
        if layers is not None:
            self._layers.add(layers / bare)
        if parts is not None:
            self._parts.add(parts / bare)
        if self._pairs.add(seconds, bare, Work(layers or 0.0, parts or 0.0, second, spectra, beside, background)):
            self._trust()
        if layers is not None or self._steps % REVIEW_STEPS == 0:
            self._review()
        if self.share is not None:
            self._save((spectra * self.factors.spectra + beside * self.factors.beside) / bare)

    def _trust(self) -> None:
        """Take over what the pairs say by now."""
        self._hidden, self._error = self._pairs.hidden()
        pairs = zip(self._pairs.factors, self.factors, strict=True)
        self.factors = Factors(*(new if abs(new - old) > STEADY * old else old for new, old in pairs))

    def pays(self, cost: float) -> bool:
        """Whether a piece of spectral work of this many seconds may be done now."""
        if self.share is None:
            return True
        return self.step_seconds > 0 and self.savings >= cost / self.step_seconds and not self.too_large(cost)

    def too_large(self, cost: float) -> bool:
        """Whether the piece would make its step longer by more than its neighbours may differ."""
        return self.share is not None and cost > LARGEST_PIECE * self.step_seconds > 0

    def room(self, entries: int) -> float:
        """How many entries may be read at a step, where a budget allows so many: without one all."""
        return math.inf if self.share is None else entries

    def second_seconds(self) -> float:
        """What the second tier may cost at a recorded step; 0 until the costs are known."""
        return self._second_share * self.cadence * self.step_seconds / self.factors.layers

    def _save(self, spent: float) -> None:
        """Put aside the share of a step that is left for spectra, up to what a large piece costs."""
        assert self.share is not None
        layers = self._tier_share
        slowest = self._lap_share()
        left = self._allowance(SAFETY) - layers
        second = self._second_share = self._of_second(left - slowest)
        rest = left - second
        if rest < slowest <= self._allowance(OVERDRAFT) - layers - second:
            rest = slowest
        self.savings = max(min(self.savings + rest, LARGEST_PIECE) - spent, -LARGEST_PIECE)

    def _of_second(self, left: float) -> float:
        """Share of a step that the second tier may take of what is left."""
        assert self.share is not None
        if not self.step_seconds:
            return 0.0
        lap = self.second_lap_seconds * self.factors.layers / self.step_seconds
        return min(max(left, lap / SECOND_LAP), SECOND_PART * self.share, lap / self.cadence)

    def _allowance(self, part: float) -> float:
        """What this part of the budget leaves to the tiers."""
        assert self.share is not None
        return max(part * self.share - self._base_share, KEPT_FOR_TIERS * self.share)

    def _lap_share(self) -> float:
        """Share of a step that spectra need to come round in time."""
        if not self._spectra or not self.step_seconds:
            return 0.0
        return self.lap_seconds / self.step_seconds / LONGEST_LAP

    def _review(self) -> None:
        """Take the costs anew, and the finest cadence that they allow."""
        self.step_seconds = self._durations.quantile(0.5)
        self._base_share = self._base.quantile(0.5) + self._background * self.factors.sending
        cost, parts = (window.quantile(0.3) * self.factors.layers for window in (self._layers, self._parts))
        if self.share is not None and len(self._layers):
            self._choose(cost, parts)
        self._tier_share = cost / self.cadence + parts / self.parts_cadence

    def _choose(self, cost: float, parts: float) -> None:
        """Choose the cadences. cost, parts: of the layer numbers and of the squares of parts, in shares of a step."""
        allowance = self._allowance(SAFETY)
        tier = allowance * (1 - RESERVED_FOR_SPECTRA) if self._spectra else allowance
        self.parts_cadence = 2 * self.every
        while parts > RESERVED_FOR_PARTS * tier * self.parts_cadence and self.parts_cadence < COARSEST * self.every:
            self.parts_cadence *= 2
        of_parts = parts / self.parts_cadence
        frequent = FREQUENT * self.every
        cadence = self._finest(tier - of_parts, cost)
        if cadence > frequent:
            cadence = max(self._finest(allowance - of_parts, cost), frequent)
        most = (self._allowance(OVERDRAFT) - self._lap_share()) * (1.0 if self.cadence <= frequent else LOOSE)
        if cadence > frequent and cost / frequent + of_parts <= most:
            cadence = frequent
        finer_is_tight = (
            cadence < self.cadence and cost / cadence + of_parts > LOOSE * allowance and self.cadence <= frequent
        )
        if not finer_is_tight:
            self.cadence = cadence
        self.parts_cadence = max(self.parts_cadence, 2 * self.cadence)

    def _finest(self, allowance: float, cost: float) -> int:
        cadence = self.every
        coarsest = self.every * (COARSEST if self._layers.full else COARSEST_UNSURE)
        while cost > allowance * cadence and cadence < coarsest:
            cadence *= 2
        return cadence
