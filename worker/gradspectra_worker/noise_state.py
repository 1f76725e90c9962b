"""The gradient noise of a run as it is followed over batches: moving averages per layer and of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradspectra_core.layers import LayerTable
from gradspectra_core.noise import (
    CONFIDENCE_SPANS,
    MOMENTS_BLOCKS,
    MOMENTS_INDEPENDENCE,
    NoiseAverage,
    confidence_of,
    noise_scale,
    noise_terms_from_sums,
)
from gradspectra_core.records import Batch, Bool, Columns, Float64, Int64, LayerBlock

from gradspectra_worker.moment_noise import MomentNoise
from gradspectra_worker.observations import column

RUN_SERIES = ("noise_scale", "noise_scale_low", "noise_scale_high", "tr_sigma", "signal_sq")
EXAMPLES, BATCHES = "examples", "batches"
"""Units of a noise scale: examples, or multiples of the present batch where its size is unknown."""


PARTS, MOMENTS = "parts", "adam moments"
"""Methods: from the parts of each step, or with one part a step from Adam's moments, until a step has several."""
_LOWEST = CONFIDENCE_SPANS[-1][0]

_Derived = tuple[tuple[Int64, Columns] | None, LayerBlock | None]


class NoiseState:
    """Averages of tr_sigma and signal_sq per layer and summed over layers.

    Attributes: names, roles of the layers; unit, "examples" or "batches"; batch, size of the newest step (1 in
    batches); parts, of the newest step that said so; since_step, the first one in the averages; records, how many
    steps are in them, or blocks of steps where the method is "adam moments". A change of unit or method starts the
    averages again; layers that change keep theirs by name. In batches, a step of more parts is a larger batch, of parts
    that are as large as before: the averages follow.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.unit = BATCHES
        self.method = PARTS
        self.moments = MomentNoise(0)
        self.batch = 1.0
        self.parts = 0
        self.batch_parts = 1
        self.since_step = 0
        self.last_step = 0
        self.records = 0
        self.layers = NoiseAverage(0)
        self.run = NoiseAverage(1)

    @property
    def waiting(self) -> str | None:
        """Why Adam's moments have said nothing yet, in words; None where they are not asked, or have."""
        return self.moments.waiting if not self.records else None

    def confidence(self, low: float, high: float) -> str | None:
        """Confidence of an interval of the noise scale: from Adam's moments at most low."""
        found = confidence_of(low, high)
        return _LOWEST if found and self.method == MOMENTS else found

    def update(self, batch: Batch, betas: tuple[float, float] | None = None) -> _Derived:
        """Take a batch in; return the run's series and the layers' noise scales over the steps that counted.

        betas: β₁, β₂ where all layers have the same, None where they differ or there are none.
        """
        self._see_parts(batch)
        found = self._from_parts(batch)
        if found[0] is None and betas is not None and (self.method == MOMENTS or not self.records):
            return self._from_moments(batch, betas)
        return found

    def _from_parts(self, batch: Batch) -> _Derived:
        block, table = batch.layers, batch.layer_table
        if block is None or table is None or not {"part_sq", "grad_sq"} <= set(block.statistics):
            return None, None
        self._align(table)
        if "parts" not in batch.counts.names and "noise_w" not in batch.scalars.names:
            return None, None
        examples, within, total = self._batch_sums(batch, np.searchsorted(batch.steps, block.steps))
        if not (within > 0).any():
            return None, None
        parts = column(batch.counts, "parts", len(batch.steps))[0][np.searchsorted(batch.steps, block.steps)]
        part, grad = (block.statistics.index(name) for name in ("part_sq", "grad_sq"))
        tr, signal = noise_terms_from_sums(block.values[part], block.values[grad], within[:, None], total[:, None])
        usable = block.present[part] & block.present[grad] & np.isfinite(tr) & np.isfinite(signal)
        rows = np.flatnonzero(usable.any(axis=1))
        if not len(rows):
            return None, None
        taken = (
            self._add(
                *(PARTS, int(block.steps[row]), float(examples[row]), tr[row], signal[row], usable[row]),
                parts=int(parts[row]),
            )
            for row in rows.tolist()
        )
        return _derived(table.digest, list(taken))

    def _from_moments(self, batch: Batch, betas: tuple[float, float]) -> _Derived:
        table = batch.layer_table
        if batch.layers is not None and table is not None:
            self._align(table)
            examples = self._batch_sums(batch, np.searchsorted(batch.steps, batch.layers.steps))[0]
        else:
            examples = np.zeros(0)
        taken = [
            self._add(MOMENTS, block.step, block.examples, block.tr_sigma, block.signal_sq, block.present)
            for block in self.moments.blocks(batch, betas, examples)
        ]
        return _derived(table.digest, taken) if taken and table is not None else (None, None)

    def _see_parts(self, batch: Batch) -> None:
        values, present = column(batch.counts, "parts", len(batch.steps))
        if present.any():
            self.parts = int(values[present][-1])

    def _batch_sums(self, batch: Batch, at: Int64) -> tuple[Float64, Float64, Float64]:
        """Examples (0: unknown) and the two sums over parts at the given rows of the batch, each (T,).

        The sums are those the agent sent, else of equal parts; NaN for a step of one part.
        """
        length = len(batch.steps)
        examples, known = column(batch.counts, "examples", length)
        examples, known = examples[at], known[at]
        size = np.where(known & (examples > 0), examples, 0).astype(np.float64)
        parts, several = column(batch.counts, "parts", length)
        parts, several = parts[at], several[at] & (parts[at] > 1)
        per = np.where(size > 0, size, 1.0)
        within = np.where(several, (parts - 1.0) / per, np.nan)
        total = np.where(several, 1.0 / per, np.nan)
        for name, sums in (("noise_w", within), ("noise_w2", total)):
            sent, present = column(batch.scalars, name, length)
            np.copyto(sums, sent[at], where=present[at])
        return size, within, total

    def _add(
        self, method: str, step: int, examples: float, tr: Float64, signal: Float64, usable: Bool, parts: int = 1
    ) -> tuple[int, Float64, Float64]:
        """Take a step (or block) in; returns it, the run's numbers and the layers' noise scales."""
        unit = EXAMPLES if examples else BATCHES
        if (unit, method) != (self.unit, self.method) or not self.records:
            self.unit, self.method, self.since_step, self.records = unit, method, step, 0
            self.layers, self.run = _average(method, len(self.names)), _average(method, 1)
        elif unit == BATCHES and parts != self.batch_parts and parts:
            for average in (self.layers, self.run):
                average.rescale(self.batch_parts / parts)
        self.batch, self.batch_parts = examples or 1.0, parts or self.batch_parts
        self.records += 1
        self.last_step = step
        self.layers.update(tr, signal, usable)
        self.run.update(tr[usable].sum(keepdims=True), signal[usable].sum(keepdims=True))
        scales = np.where(np.isfinite(self.layers.interval()[0]), self.layers.scale(), np.nan)
        return step, self._run_numbers(), scales

    def _run_numbers(self) -> Float64:
        tr, signal = self.run.averages()
        low, high = self.run.interval()
        scale = np.where(np.isfinite(low), noise_scale(tr, signal), np.nan)
        return np.concatenate((scale, low, high, tr, signal))

    def _align(self, table: LayerTable) -> None:
        if table.names == self.names:
            return
        position = {name: i for i, name in enumerate(self.names)}
        index = np.array([position.get(name, -1) for name in table.names], np.int64)
        self.names = table.names
        self.layers = _picked(self.layers, index)
        self.moments.resize(len(index))

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "names": list(self.names),
            "unit": self.unit,
            "method": self.method,
            "moments": self.moments.state(),
            "batch": self.batch,
            "parts": self.parts,
            "batch_parts": self.batch_parts,
            "since_step": self.since_step,
            "last_step": self.last_step,
            "records": self.records,
            "layers": self.layers.state(),
            "run": self.run.state(),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> NoiseState:
        """Go on where `state()` was taken."""
        restored = cls()
        restored.names = tuple(state["names"])
        restored.unit, restored.batch = state["unit"], state["batch"]
        if "moments" in state:
            restored.method, restored.moments = state["method"], MomentNoise.restore(state["moments"])
        else:
            restored.moments.resize(len(restored.names))
        restored.parts, restored.records = state["parts"], state["records"]
        restored.batch_parts = state.get("batch_parts", max(restored.parts, 1))
        restored.since_step, restored.last_step = state["since_step"], state["last_step"]
        restored.layers = NoiseAverage.from_state(state["layers"])
        restored.run = NoiseAverage.from_state(state["run"])
        return restored


def _average(method: str, layers: int) -> NoiseAverage:
    return NoiseAverage(layers, MOMENTS_BLOCKS, MOMENTS_INDEPENDENCE) if method == MOMENTS else NoiseAverage(layers)


def _derived(digest: str, taken: list[tuple[int, Float64, Float64]]) -> _Derived:
    steps = np.array([step for step, _, _ in taken], np.int64)
    run, scales = np.stack([run for _, run, _ in taken], axis=1), np.stack([scales for _, _, scales in taken])
    return (steps, Columns(RUN_SERIES, run, np.isfinite(run))), _layer_block(digest, steps, scales)


def _picked(average: NoiseAverage, index: Int64) -> NoiseAverage:
    """The same averages for other layers: index (L,) gives the old position of each, -1 for one without a past."""
    state = {
        key: [value[i] if i >= 0 else 0.0 for i in index.tolist()] if isinstance(value, list) else value
        for key, value in average.state().items()
    }
    return NoiseAverage.from_state(state)


def _layer_block(digest: str, steps: Int64, scales: Float64) -> LayerBlock:
    with np.errstate(over="ignore"):
        values = scales.astype(np.float32)[None]
    present = np.isfinite(values)
    nothing = (0, *scales.shape)
    counts, counts_present = np.zeros(nothing, np.int64), np.zeros(nothing, np.bool_)
    return LayerBlock(
        digest, steps, ("noise_scale",), np.where(present, values, 0), present, (), counts, counts_present
    )
