"""Which steps have layer numbers at a cadence, and which of those are left out so that there are some to compare with.

Within a budget, at a cadence of every step or of every second, all steps are measured or follow one that is: what
measuring leaves to the next step cannot be told from what the step itself takes. So one in OFTEN is left out, drawn at
random, and one in SELDOM once the cost is known well. At coarser cadences there are such steps as it is; but what a
training does at each 8th step, to log or to load, would be taken for the agent's if the layers had their turn with it.
So each PHASE recorded steps the turns move one `every` ahead: no interval becomes longer by it.
"""

from __future__ import annotations

from random import Random

OFTEN, SELDOM = 16, 256
FEW = 2
"""Steps of a cadence that leaves none to compare with."""
PHASE = 12


class OffSteps:
    """Decides step by step, in the order of the steps. compared: whether steps are left out, and turns are moved."""

    def __init__(self, every: int, compared: bool) -> None:
        self._every = every
        self._compared = compared
        self._draw = Random(0)
        self._phase = self._next_phase = 0
        self._recorded = 0
        self._asked = (-1, False)

    def due(self, step: int, cadence: int, tight: bool) -> bool:
        """Whether this step has layer numbers, the same answer for a step that is asked for again.

        cadence: a multiple of `every`; tight: whether the cost is known well.
        """
        if step != self._asked[0]:
            self._phase = self._next_phase
            self._asked = step, self.turn(step, cadence) and not self._left_out(cadence, tight)
        return self._asked[1]

    def turn(self, step: int, cadence: int) -> bool:
        """Whether it is the turn of this step at this cadence, also of one that is left out."""
        return step % self._every == 0 and (step // self._every + self._phase) % (cadence // self._every) == 0

    def _left_out(self, cadence: int, tight: bool) -> bool:
        if not self._compared:
            return False
        self._recorded += 1
        if cadence <= FEW:
            return self._draw.randrange(SELDOM if tight else OFTEN) == 0
        if self._recorded % PHASE == 0:
            self._next_phase += 1
        return False
