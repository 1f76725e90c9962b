"""The gradient noise of a run as it is followed over batches: moving averages per layer and of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradspectra_core.layers import LayerTable
from gradspectra_core.noise import NoiseAverage, noise_scale, noise_terms_from_sums
from gradspectra_core.records import Batch, Bool, Columns, Float64, Int64, LayerBlock

from gradspectra_worker.observations import column

RUN_SERIES = ("noise_scale", "noise_scale_low", "noise_scale_high", "tr_sigma", "signal_sq")
EXAMPLES, BATCHES = "examples", "batches"
"""Units of a noise scale: examples, or multiples of the present batch where its size is unknown."""


class NoiseState:
    """Averages of tr_sigma and signal_sq per layer and summed over layers, from steps of several parts.

    Attributes: names, roles of the layers; unit, "examples" or "batches"; batch, size of the newest step (1 in
    batches); parts, of the newest step that said so; since_step, the first one in the averages; records, how many
    steps are in them. A change of unit starts the averages again; layers that change keep theirs by name.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.unit = BATCHES
        self.batch = 1.0
        self.parts = 0
        self.since_step = 0
        self.last_step = 0
        self.records = 0
        self.layers = NoiseAverage(0)
        self.run = NoiseAverage(1)

    def update(self, batch: Batch) -> tuple[tuple[Int64, Columns] | None, LayerBlock | None]:
        """Take a batch in; return the run's series and the layers' noise scales over the steps that counted."""
        self._see_parts(batch)
        block, table = batch.layers, batch.layer_table
        if block is None or table is None or not {"part_sq", "grad_sq"} <= set(block.statistics):
            return None, None
        self._align(table)
        examples, within, total = self._batch_sums(batch, np.searchsorted(batch.steps, block.steps))
        part, grad = (block.statistics.index(name) for name in ("part_sq", "grad_sq"))
        tr, signal = noise_terms_from_sums(block.values[part], block.values[grad], within[:, None], total[:, None])
        usable = block.present[part] & block.present[grad] & np.isfinite(tr) & np.isfinite(signal)
        rows = np.flatnonzero(usable.any(axis=1))
        if not len(rows):
            return None, None
        run = np.empty((len(RUN_SERIES), len(rows)))
        scales = np.empty((len(rows), len(table)))
        for i, row in enumerate(rows.tolist()):
            self._add(int(block.steps[row]), float(examples[row]), tr[row], signal[row], usable[row])
            run[:, i] = self._run_numbers()
            scales[i] = np.where(np.isfinite(self.layers.interval()[0]), self.layers.scale(), np.nan)
        steps = block.steps[rows]
        return (steps, Columns(RUN_SERIES, run, np.isfinite(run))), _layer_block(table.digest, steps, scales)

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

    def _add(self, step: int, examples: float, tr: Float64, signal: Float64, usable: Bool) -> None:
        unit = EXAMPLES if examples else BATCHES
        if unit != self.unit or not self.records:
            self.unit, self.since_step, self.records = unit, step, 0
            self.layers, self.run = NoiseAverage(len(self.names)), NoiseAverage(1)
        self.batch = examples or 1.0
        self.records += 1
        self.last_step = step
        self.layers.update(tr, signal, usable)
        self.run.update(tr[usable].sum(keepdims=True), signal[usable].sum(keepdims=True))

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

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "names": list(self.names),
            "unit": self.unit,
            "batch": self.batch,
            "parts": self.parts,
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
        restored.parts, restored.records = state["parts"], state["records"]
        restored.since_step, restored.last_step = state["since_step"], state["last_step"]
        restored.layers = NoiseAverage.from_state(state["layers"])
        restored.run = NoiseAverage.from_state(state["run"])
        return restored


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
