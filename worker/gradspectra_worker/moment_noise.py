"""The noise of steps with one part, from the moments that Adam keeps: means over blocks of steps, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gradspectra_core.noise import MOMENTS_MEMORY, adam_terms
from gradspectra_core.records import Batch, Bool, Float64

from gradspectra_worker.observations import column

NEEDED = ("moment_sq", "second_moment", "grad_sq")


@dataclass(frozen=True, slots=True)
class Block:
    """What a block of steps says. step: its last one; examples: of a step, 0 where unknown; the rest: (L,)."""

    step: int
    examples: float
    tr_sigma: Float64
    signal_sq: Float64
    present: Bool


class MomentNoise:
    """Collects blocks of at least 1/(1 − β₂) steps in which every layer with a gradient was measured.

    A step counts where the last 3/(1 − β₂) steps were neither clipped nor before the first one. Layers may be measured
    at different steps of a block. waiting: why there is no block yet, in words; None before anything is known.
    """

    def __init__(self, layers: int) -> None:
        self.clipped_at = 0
        self.waiting: str | None = None
        self._begin(layers)

    def _begin(self, layers: int) -> None:
        self._first = 0
        self._examples = 0.0
        self._count = np.zeros(layers)
        self._tr, self._signal = np.zeros(layers), np.zeros(layers)
        self._wanted = np.zeros(layers, np.bool_)

    def resize(self, layers: int) -> None:
        """Start the block again, for a table of other layers."""
        self._begin(layers)

    def blocks(self, batch: Batch, betas: tuple[float, float], examples: Float64) -> Iterator[Block]:
        """Take a batch in, whose layers are those of the table; yields the blocks that end in it.

        betas: β₁, β₂ of all layers. examples: (T,) of the steps with layers, 0 where unknown.
        """
        block, length = batch.layers, max(round(1 / (1 - betas[1])), 1)
        clipped = self._clipped(batch)
        if block is not None and set(NEEDED) <= set(block.statistics):
            moment, second, grad = (block.statistics.index(name) for name in NEEDED)
            present = block.present[moment] & block.present[second]
            for row in np.flatnonzero(present.any(axis=1) & self._one_part(batch)).tolist():
                step = int(block.steps[row])
                last = max(self.clipped_at, int(clipped[clipped <= step].max(initial=0)))
                if not self._remembers(step, last, MOMENTS_MEMORY * length):
                    continue
                terms = adam_terms(block.values[second, row], block.values[moment, row], examples[row] or 1.0, betas[0])
                self._add(step, float(examples[row]), *terms, present[row], block.present[grad, row])
                if self._complete(step, length):
                    yield self._end(step)
        self.clipped_at = max(self.clipped_at, int(clipped.max(initial=0)))

    @staticmethod
    def _clipped(batch: Batch) -> Any:
        coefficient, known = column(batch.scalars, "clip_coefficient", len(batch.steps))
        return batch.steps[known & ~(coefficient >= 1)]

    @staticmethod
    def _one_part(batch: Batch) -> Bool:
        assert batch.layers is not None
        parts, known = column(batch.counts, "parts", len(batch.steps))
        at = np.searchsorted(batch.steps, batch.layers.steps)
        one: Bool = known[at] & (parts[at] == 1)
        return one

    def _remembers(self, step: int, clipped_at: int, memory: float) -> bool:
        """Whether the moments know of steps alone that they may know of."""
        if step < memory:
            self.waiting = f"Adam's moments say nothing of the noise before step {memory:.0f}"
        elif clipped_at and step - clipped_at < memory:
            self.waiting = f"step {clipped_at} was clipped, of which Adam's moments know for {memory:.0f} steps"
        else:
            return True
        self._begin(len(self._count))
        return False

    def _add(self, step: int, examples: float, tr: Float64, signal: Float64, present: Bool, wanted: Bool) -> None:
        if not self._first or bool(examples) != bool(self._examples):
            self._begin(len(self._count))
            self._first = step
        self._examples = examples
        here = present & np.isfinite(tr) & np.isfinite(signal)
        self._count += here
        self._tr += np.where(here, tr, 0.0)
        self._signal += np.where(here, signal, 0.0)
        self._wanted |= wanted

    def _complete(self, step: int, length: float) -> bool:
        lacking = int((self._wanted & (self._count == 0)).sum())
        if lacking:
            self.waiting = f"Adam's moments of {lacking} layers of {int(self._wanted.sum())} are not known yet"
        else:
            self.waiting = f"a block of {length:.0f} steps of Adam's moments has not ended yet"
        return not lacking and step - self._first + 1 >= length

    def _end(self, step: int) -> Block:
        present = self._count > 0
        often = np.maximum(self._count, 1.0)
        ended = Block(step, self._examples, self._tr / often, self._signal / often, present)
        self._begin(len(self._count))
        return ended

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "clipped_at": self.clipped_at,
            "waiting": self.waiting,
            "first": self._first,
            "examples": self._examples,
            "count": self._count.tolist(),
            "tr": self._tr.tolist(),
            "signal": self._signal.tolist(),
            "wanted": self._wanted.tolist(),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> MomentNoise:
        """Go on where `state()` was taken."""
        restored = cls(len(state["count"]))
        restored.clipped_at, restored.waiting = state["clipped_at"], state["waiting"]
        restored._first, restored._examples = state["first"], state["examples"]
        restored._count, restored._wanted = np.array(state["count"], np.float64), np.array(state["wanted"], np.bool_)
        restored._tr, restored._signal = np.array(state["tr"], np.float64), np.array(state["signal"], np.float64)
        return restored
