"""What of each step's time was the agent's, told to the budget once it is known.

On a CPU that is so when the step ends. On CUDA what a stage took of the training's stream takes the place of what it
took of the thread, and the steps are timed by events too: the stream comes to the end of a step later than the thread.
What hooks, `log` and the sending take counts in the thread's time, whether the stream hides it or not. Of the time of
a processor that spectra beside the training take, the training is taken to lose a part (beside.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from gradspectra.beside import Beside
from gradspectra.budget import Budget
from gradspectra.device_time import DeviceTimes
from gradspectra.step import OpenStep

PAUSE = 5.0
"""A step that took this many times the usual is a pause (an evaluation, a checkpoint), not a step."""


class Accounts:
    """Keeps the books of the steps.

    background() tells the CPU seconds that the sending thread has taken so far; beside: what takes spectra beside the
    training, if there is any.
    """

    def __init__(self, budget: Budget, background: Callable[[], float], beside: Beside | None = None) -> None:
        self._budget = budget
        self._background = background
        self._beside = beside
        self._background_seen = self._beside_seen = 0.0
        self._ended: float | None = None
        self._before: DeviceTimes | None = None
        self._waiting: deque[tuple[OpenStep, float]] = deque()

    def close(self, step: OpenStep, now: float) -> None:
        """A step has ended at this time of the clock. Whatever the agent does from here on is the next step's."""
        step.seconds = None if self._ended is None else now - self._ended
        self._ended = now
        step.device.end(self._before)
        self._before = step.device
        step.beside_cost = self._lost_beside()
        step.own += step.beside_cost
        background = self._background()
        sent, self._background_seen = background - self._background_seen, background
        self._waiting.append((step, sent))
        self.settle()

    def _lost_beside(self) -> float:
        """Seconds that the training is taken to have lost by what was done beside it since this was last asked."""
        if self._beside is None:
            return 0.0
        spent = self._beside.seconds_spent
        taken, self._beside_seen = spent - self._beside_seen, spent
        return taken * self._beside.lost / torch.get_num_threads()

    def settle(self) -> None:
        """Tell the budget of the steps whose times are known by now; waits for nothing."""
        while self._waiting and self._waiting[0][0].device.done():
            self._tell(*self._waiting.popleft())

    def _tell(self, step: OpenStep, sent: float) -> None:
        host = {"layers": step.layers_cost, "second": step.second_cost, "spectra": step.spectra_cost}
        parts = step.parts_cost
        beside = step.beside_cost
        base = max(step.own - sum(host.values()) - (parts or 0.0) - beside, 0.0)
        found, whole = step.device.read()
        if found:
            step.own = base + (parts or 0.0) + beside + sum((host | found).values())
        cost = host | found
        seconds = step.seconds if whole is None else whole
        if seconds is not None and 0 < PAUSE * self._budget.step_seconds < seconds:
            seconds = None
        layers = cost["layers"] if step.measured else None
        self._budget.step_done(seconds, base, layers, cost["spectra"], sent, cost["second"], parts, beside)
