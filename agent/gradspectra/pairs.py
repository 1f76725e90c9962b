"""What the agent's work costs a training beyond its own clock, from the steps with it and their neighbours without.

The clock does not see what the work pushes out of caches, whom it wakes, and what memory it keeps from others: that
shows as longer operations of the training, in the same step or, since most of the work is done when a step ends, in
the next. Blocks of BLOCK steps are fitted one by one: the time that the agent's clock does not explain against a level
and a trend of the block, and against whether there was work of each kind in a step or in the one before, times what
that kind usually costs. How long the work took at a step does not count: it, and the step, are both long while other
processes run. All is in shares of the block's usual step; weights by Huber (1964), and less weight for a noisy block,
keep slow steps out. The sums of the blocks are put together with a prior, by which the clock is right within PRIOR:
with few pairs, or noisy ones, the clock is believed, with many the pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from gradspectra_core.records import Float64

BLOCK = 64
MEMORY = 128
"""Blocks whose evidence counts, the older the less."""
PRIOR = np.array([0.35, 0.35, 0.35, 0.35, 1.0, 0.5])
"""Standard errors that are expected of what is hidden, as shares of what the clock sees: of layers in their own step
and in the next, of spectra alike, of what is beside the training, and of sending."""
KINDS = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]], np.float64)
"""Which of these are of which kind, in the order of Factors."""
LEAST, MOST = np.array([-0.5, -0.5, -0.75, -0.75]), np.array([3.0, 3.0, 7.0, 2.0])
"""What can be hidden of each kind at all, as a share of what the clock sees."""
HUBER = 1.5
QUIETEST = 1e-3
"""Noise of a block, as a share of its usual step, that is taken to be there at the least."""


class Work(NamedTuple):
    """Seconds of the agent in a step by kind, as its clock has them.

    layers, parts, second: what is measured of layers; spectra: on the training's thread; beside: what spectra beside it
    are taken to cost; sending: of the thread that sends.
    """

    layers: float = 0.0
    parts: float = 0.0
    second: float = 0.0
    spectra: float = 0.0
    beside: float = 0.0
    sending: float = 0.0


WORK, SPECTRA, ON_THREAD = 6, 3, 4
"""Kinds of work; which of them spectra are; and how many, the first, are done on the training's thread."""
NOTHING = (0.0,) * ON_THREAD
A_GOOD_PART = 0.25
LINE = np.column_stack([np.ones(BLOCK), np.linspace(-1.0, 1.0, BLOCK)])


class Factors(NamedTuple):
    """What a second of the clock costs the training, in seconds. layers: with parts and second tier."""

    layers: float = 1.0
    spectra: float = 1.0
    beside: float = 1.0
    sending: float = 1.0


class Pairs:
    """Takes the steps in as they come; `factors` says what each second of the clock costs."""

    def __init__(self) -> None:
        self.factors = Factors()
        self.compared = 0
        """Steps with layer numbers that were compared with their neighbours so far."""
        self._rows: list[tuple[float, ...]] = []
        self._before = NOTHING
        self._clocked = np.zeros(len(KINDS))
        self._squares = np.zeros((len(PRIOR), len(PRIOR)))
        self._products = np.zeros(len(PRIOR))
        self._tallies = np.full(3, float(BLOCK))
        """Squares of the weighted residuals, weights, and how many of these are 1, all added up."""
        self._hidden, self._covariance = np.zeros(len(PRIOR)), np.diag(PRIOR**2)

    def passed(self) -> None:
        """A step is over whose time is not known, or which was a pause: what it left behind is not known either."""
        self._before = NOTHING

    def add(self, seconds: float, bare: float, work: Work) -> bool:
        """Take a step in. bare: its seconds less those of the training's thread. Returns whether factors changed."""
        self._rows.append((*work, *self._before, seconds, bare))
        self._before = work[:ON_THREAD]
        if len(self._rows) < BLOCK:
            return False
        rows = np.array(self._rows)
        self._rows.clear()
        work_done, seconds_of, bare_of = usual_costs(rows[:, :-2]), rows[:, -2], rows[:, -1]
        bare_of -= work_done[:, -2:].sum(1)
        self._clocked += work_done.sum(0) @ KINDS.T / KINDS.sum(1)
        step = middle(bare_of)
        if step > 0:
            self.compared += int(np.count_nonzero(work_done[:, 0]))
            work_done[:, -1] -= seconds_of * (work_done[:, -1].sum() / seconds_of.sum())
            self._take(work_done / step, bare_of / step)
        return step > 0

    def hidden(self) -> tuple[float, float]:
        """Seconds so far that the clock does not see, and their standard error; negative where it sees too much."""
        unseen = np.array(self.factors) - 1.0
        each = self._clocked @ KINDS
        return float(unseen @ self._clocked), math.sqrt(float(each @ self._covariance @ each))

    def _take(self, work: Float64, bare: Float64) -> None:
        """Add a block, (BLOCK, len(PRIOR)) and (BLOCK,), in shares of a step, and take the factors anew."""
        left = bare - work @ self._hidden
        left -= middle(left)
        weights = huber(left)[0]
        weighted = LINE.T * weights
        left -= LINE @ np.linalg.solve(weighted @ LINE, weighted @ left)
        weights, noise = huber(left)
        all_of = np.column_stack([LINE, work, bare])
        sums = (all_of.T * (weights / noise**2)) @ all_of
        level, across = sums[:2, :2], sums[:2, 2:]
        within = sums[2:, 2:] - across.T @ np.linalg.solve(level, across)
        kept = 1.0 - 1.0 / MEMORY
        self._squares = kept * self._squares + within[:-1, :-1]
        self._products = kept * self._products + within[:-1, -1]
        found = np.square(weights * left / noise).sum(), weights.sum(), np.count_nonzero(weights == 1.0)
        self._tallies = kept * self._tallies + found
        self._solve()

    def _solve(self) -> None:
        """The most likely hidden costs under prior and evidence, their covariance, and the factors that follow."""
        residuals, weights, inside = self._tallies
        spread = residuals * weights / inside**2
        self._covariance = np.linalg.inv(self._squares / spread + np.diag(PRIOR**-2.0))
        self._hidden = self._covariance @ self._products / spread
        self.factors = Factors(*(1.0 + np.clip(KINDS @ self._hidden, LEAST, MOST)).tolist())


def middle(values: Float64) -> float:
    """The median, or of an even number the upper of the two in the middle."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


def huber(left: Float64) -> tuple[Float64, float]:
    """Weights of residuals (BLOCK,), and their usual size."""
    far = np.abs(left)
    noise = max(1.4826 * middle(far), QUIETEST)
    return 1.0 / np.maximum(far / (HUBER * noise), 1.0), noise


def usual_costs(rows: Float64) -> Float64:
    """What each step of a block usually costs by kind, (BLOCK, len(PRIOR)).

    rows: (BLOCK, WORK + ON_THREAD) the clock's seconds of each kind of Work in a step, and of those on the training's
    thread in the step before. Of a thread of its own a step has some where it took a good part of the usual.
    """
    seconds = np.ascontiguousarray(rows.T)
    there = seconds > 0
    counts = there.sum(1)
    usual = np.zeros((BLOCK, len(PRIOR)))
    for kind in np.flatnonzero(counts[:ON_THREAD]).tolist():
        both, first = [kind, WORK + kind], 2 * (kind == SPECTRA)
        usual[:, first : first + 2] += there[both].T * middle(seconds[both][there[both]])
    for kind in np.flatnonzero(counts[ON_THREAD:WORK]).tolist():
        own = seconds[ON_THREAD + kind]
        whole = own.sum()
        much = own > A_GOOD_PART * (own @ own) / whole
        usual[:, ON_THREAD + kind] = much * (whole / np.count_nonzero(much))
    return usual
