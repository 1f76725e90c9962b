"""The all-reduce at a recorded step that puts together what each rank has measured of sharded layers.

The length of its vector is known to all ranks beforehand: a few flags of each rank, sums over the layers, and the
numbers of those spectra that the ranks have agreed on before. A rank whose measuring failed takes part with zeros.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor, distributed

from gradspectra.guard import Guard

log = logging.getLogger("gradspectra")

LAYERS, PARTS, DRIFT, SPECTRA, SECOND, FORWARD, READY, TURNS, ALARM, CADENCE, OF_PARTS = range(11)
"""Flags of a rank: how each of six stages went, whether it can pay for the next spectrum and for how many turns of the
second tier, whether its loss was not finite, the cadences it asks for."""
FLAGS = 11
STAGES = {
    LAYERS: "layers",
    PARTS: "parts",
    DRIFT: "drift",
    SPECTRA: "spectra",
    SECOND: "numbers of the second tier",
    FORWARD: "activations",
}
IDLE, DONE, ANEW, FAILED = 0.0, 1.0, 2.0, -1.0
"""How a stage went: not due, done, done for a drift that began anew here, failed."""
OWN, PART, MOVED, ROWS = 5, 5, 6, 8
"""Rows that are added up: so many of `FirstTier.share`, then that of parts, then two of drift; and their number."""


@dataclass(slots=True)
class Share:
    """What one rank brings. layers: (6, L) as `FirstTier.share`, parts: (L,), drift: (2, L), float64 on the host.

    second: (M,) float64 of the second tier, numbers: (N,) of the planned spectra, on their device. What failed or is
    not due is None; flags tell which.
    """

    flags: list[float] = field(default_factory=lambda: [IDLE] * FLAGS)
    layers: Tensor | None = None
    parts: Tensor | None = None
    drift: Tensor | None = None
    second: Tensor | None = None
    numbers: Tensor | None = None


@dataclass(slots=True)
class Whole:
    """What all ranks have. flags: (FLAGS, R). layers: (6, L), parts: (L,), drift: (2, L), each None unless all have it.

    second: (M,), numbers: (N,) on the device, each None unless all have them. seconds: that the all-reduce took for
    the latter.
    """

    flags: Float64
    layers: Float64 | None
    parts: Float64 | None
    drift: Float64 | None
    second: Float64 | None
    numbers: Tensor | None
    seconds: float


class Exchange:
    """The all-reduce at every `cadence`-th optimizer step, counted on its own: no failure elsewhere can put it off.

    room: numbers of the second tier and of spectra that one exchange carries at most; memory is taken here, not in a
    step.
    """

    def __init__(self, group: Any, layers: int, every: int, device: torch.device, guard: Guard, room: int = 0) -> None:
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.cadence = every
        self.parts_cadence = 2 * every
        self.room = room
        self.count = 0
        """Optimizer steps so far."""
        self.failed: dict[str, set[int]] = {}
        """Ranks that failed, by stage."""
        self.broken = False
        self._group = group
        self._layers = layers
        self._head = FLAGS * self.size + (ROWS + self.size) * layers
        self._buffer = torch.zeros(self._head + room, dtype=torch.float64, device=device)
        self._guard = guard

    @property
    def due(self) -> bool:
        """Whether the next optimizer step is a recorded one."""
        return not self.broken and (self.count + 1) % self.cadence == 0

    def step(
        self, share: Callable[[], Share], cadence: int, parts_cadence: int, second: int = 0, numbers: int = 0
    ) -> Whole | None:
        """An optimizer step was taken. Returns what all ranks have together; None where nothing was exchanged.

        share: makes what this rank brings. cadence, parts_cadence: those that its budget asks for; the coarsest are
        taken by all. second, numbers: how many the second tier and the planned spectra have, together at most `room`,
        the same on all ranks.
        """
        due = self.due
        self.count += 1
        if not due:
            return None
        head = self._head + second
        vector = self._buffer[: head + numbers].zero_()
        own = self._guard.run("layers", share)
        if own is None or self._guard.run("layers", self._fill, vector, own, head) is None:
            vector.zero_()
            vector[self.rank :: self.size][: len(STAGES)] = FAILED
        vector[CADENCE * self.size + self.rank] = cadence
        vector[OF_PARTS * self.size + self.rank] = parts_cadence
        began = time.perf_counter()
        try:
            distributed.all_reduce(vector, group=self._group)
            found = vector[:head].cpu().numpy().copy()
        except Exception as error:
            self.broken = True
            log.warning("gradspectra: the ranks cannot exchange (%r); layers are left out", error, exc_info=error)
            return None
        seconds = (time.perf_counter() - began) * numbers / len(vector)
        flags = found[: FLAGS * self.size].reshape(FLAGS, self.size)
        self.cadence, self.parts_cadence = (max(1, int(flags[asked].max())) for asked in (CADENCE, OF_PARTS))
        for stage, name in STAGES.items():
            if (flags[stage] == FAILED).any():
                self.failed.setdefault(name, set()).update(np.flatnonzero(flags[stage] == FAILED).tolist())
        rows = found[FLAGS * self.size : self._head].reshape(-1, self._layers)
        return self._whole(flags, rows, found[self._head :], vector[head:], seconds)

    def _fill(self, vector: Tensor, own: Share, head: int) -> bool:
        flags = vector[: FLAGS * self.size].view(FLAGS, self.size)
        flags[:, self.rank] = torch.tensor(own.flags, dtype=torch.float64)
        rows = vector[FLAGS * self.size : self._head].view(ROWS + self.size, self._layers)
        if own.layers is not None:
            rows[:OWN] = own.layers[:OWN]
            rows[ROWS + self.rank] = own.layers[OWN]
        if own.parts is not None:
            rows[PART] = own.parts
        if own.drift is not None:
            rows[MOVED:ROWS] = own.drift
        if own.second is not None:
            vector[self._head : head] = own.second
        if own.numbers is not None:
            vector[head:] = own.numbers
        return True

    def _whole(self, flags: Float64, rows: Float64, second: Float64, numbers: Tensor, seconds: float) -> Whole:
        done = {stage: bool((flags[stage] == DONE).all()) for stage in STAGES}
        anew = bool((flags[DRIFT] == ANEW).all())
        return Whole(
            flags,
            np.concatenate([rows[:OWN], rows[ROWS:].max(0, keepdims=True)]) if done[LAYERS] else None,
            rows[PART] if done[PARTS] else None,
            rows[MOVED:ROWS] if done[DRIFT] or anew else None,
            second if done[SECOND] and len(second) else None,
            numbers if done[SPECTRA] and len(numbers) else None,
            seconds,
        )

    def not_measured(self) -> list[str]:
        """Which ranks failed at what, in words."""
        reasons = []
        for stage, ranks in self.failed.items():
            names = ", ".join(map(str, sorted(ranks)))
            reasons.append(f"{stage} were left out at some steps: measuring failed on the ranks {names}")
        return reasons + (["layers: the ranks cannot exchange any more"] if self.broken else [])
