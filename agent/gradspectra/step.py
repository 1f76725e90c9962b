"""One optimizer step while it is open, and the record it becomes once its numbers are on the host."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from gradspectra_core.layers import LayerTable
from gradspectra_core.noise import weight_sums
from gradspectra_core.records import Float64
from torch import Tensor

from gradspectra.clipping import StepClips
from gradspectra.device_time import DeviceTimes
from gradspectra.drift import DriftSums
from gradspectra.layer_marks import LayerMarks
from gradspectra.layer_rows import LayerRows, layer_rows
from gradspectra.measure import COUNT_STATISTICS, STATISTICS, UPDATE, FirstTier
from gradspectra.parts import astray
from gradspectra.readout import Readout, summed
from gradspectra.record import GRADIENT, SpectrumRecord, StepRecord, unclipped
from gradspectra.scalars import SUMMED, Number, StepLog
from gradspectra.second_numbers import OF_GRADIENT, WITH_GRADIENT
from gradspectra.second_rows import CLIPPED, add_second
from gradspectra.second_tier import SecondResults
from gradspectra.spectra import PendingSpectrum, SpectrumBeside

DISAGREEMENT = 0.01
"""Layer norms must give the total norm within this, or clipping was not seen as it was."""
NOISE = ("noise_w", "noise_w2")
IN_PROPORTION = frozenset(("grad_sq", "grad_max", "part_sq", *CLIPPED))
"""What depends on how large the gradient was: not known then."""

Unfinished = tuple[SpectrumBeside, LayerTable, float]
"""A spectrum that is taken beside the training, the table of its layer, and what clipping multiplied the layer by."""


@dataclass(frozen=True, slots=True)
class WholeParts:
    """part_sq of sharded layers over all ranks. sums: (L,); weights: how many this rank had logged by then."""

    sums: Float64
    weights: int


@dataclass(slots=True)
class OpenStep:
    """What is known of step `number` so far.

    due: its layer numbers are to be measured; measured: they were; stale: its table lacks some that is trained by now.
    scale: of the loss; found_inf: not 0 where a fused optimizer skipped. examples: of each part, where batch_size gave
    them. own: seconds the agent took, of which for layers, the second tier and spectra, and by those beside the
    training. parts: backward passes of this rank. parts_unclear: they are not the parts of one batch. dropped: those
    before them were dropped. share: of their sum that the gradient was before a clip. ranks: how many average theirs.
    clipping_unseen: the gradient was clipped, and how is not known: nothing is said of it. replayed: its backward
    passes were those of a CUDA graph, which no hook sees. device: what of it the stages of the agent took of CUDA
    streams. grams: of spectra to come. beside: spectra whose singular values are taken beside the training; unfinished:
    those of steps before, one list for all steps of a session.
    """

    number: int
    due: bool
    log: StepLog = field(default_factory=StepLog)
    clips: StepClips = field(default_factory=StepClips)
    own: float = 0.0
    layers_cost: float = 0.0
    parts_cost: float | None = None
    second_cost: float = 0.0
    spectra_cost: float = 0.0
    beside_cost: float = 0.0
    seconds: float | None = None
    measured: bool = False
    stale: bool = False
    skipped: bool = False
    found_inf: Tensor | None = None
    scale: Number | None = None
    parts: int = 0
    parts_unclear: bool = False
    dropped: bool = False
    share: Tensor | None = None
    ranks: int = 1
    clipping_unseen: bool = False
    replayed: bool = False
    device: DeviceTimes = field(default_factory=DeviceTimes)
    grams: list[PendingSpectrum] = field(default_factory=list)
    beside: list[SpectrumBeside] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    drift: DriftSums | None = None
    second: SecondResults | None = None
    whole_parts: WholeParts | None = None
    examples: list[float] = field(default_factory=list)
    spectra: list[SpectrumRecord] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def take_in(self, spectrum: SpectrumRecord | PendingSpectrum | SpectrumBeside | None) -> None:
        """Add a spectrum, made or to come."""
        if isinstance(spectrum, PendingSpectrum):
            self.grams.append(spectrum)
        elif isinstance(spectrum, SpectrumBeside):
            self.beside.append(spectrum)
        elif spectrum is not None:
            self.spectra.append(spectrum)


class ClosedStep:
    """A step that has ended. Its log may still grow until `record` is asked for."""

    def __init__(self, step: OpenStep, tier: FirstTier, parts: list[Tensor] | None) -> None:
        self.step = step
        self.disagreement: float | None = None
        self._time = time.time()
        self._tier = tier
        self._marks: LayerMarks | None = tier.finish() if step.measured else None
        if step.clipping_unseen:
            step.spectra.clear()
            step.grams.clear()
            step.beside.clear()
            if self._marks is not None:
                self._marks.gradient[:] = False
            if step.second is not None:
                step.second.present[WITH_GRADIENT] = False
        self._results = tier.results() if step.measured else []
        self._parts = parts
        self._needed = step.clips.needed(tier.inventory)
        self._whole = tier.inventory.complete and not step.stale and not step.clips.beyond(tier.inventory)
        flags = [value for value in (step.found_inf, step.scale, step.share) if isinstance(value, Tensor)]
        if step.drift is not None:
            flags += step.drift.results
        if step.second is not None:
            flags += step.second.results
        flags += [pending.gram for pending in step.grams]
        tensors = [*self._results, *(parts or []), *step.log.tensors(), *step.clips.totals(), *flags]
        self._readouts = [Readout(tensors)] if tensors else []

    def add(self, values: dict[str, Number]) -> None:
        """Add a late call of log."""
        self.step.log.add(values)
        tensors = [value for value in values.values() if isinstance(value, Tensor)]
        if tensors:
            self._readouts.append(Readout(tensors))

    @property
    def record_bytes(self) -> int:
        """About how large the record will be in memory."""
        each = 40 if self.step.second is None else 110
        measured = each * len(self._tier.inventory.table) if self.step.measured else 0
        return 500 + measured + 1000 * (len(self.step.spectra) + len(self.step.grams) + len(self.step.beside))

    def ready(self) -> bool:
        """Whether all numbers have arrived on the host."""
        return all(readout.ready() for readout in self._readouts)

    def record(self) -> StepRecord:
        """Make the record; waits for what has not arrived."""
        self._host = {key: array for readout in self._readouts for key, array in readout.arrays().items()}
        step = self.step
        scalars, counts = step.log.resolve(self._read)
        totals = [self._read(total) for total in step.clips.totals()]
        self._describe(scalars, counts, totals)
        record = StepRecord(step.number, self._time, scalars, counts)
        norm = step.clips.grad_norm(totals, self._needed)
        foreign = scalars.get("grad_norm") if self._whole else None
        untold = step.stale and "grad_norm" in scalars and not step.clips.clips
        if norm is not None:
            scalars.setdefault("grad_norm", norm)
        found = [pending.record(self._host[id(pending.gram)]) for pending in step.grams]
        step.spectra += [spectrum for spectrum in found if spectrum is not None]
        step.grams.clear()
        if step.measured or step.spectra or step.beside or step.unfinished:
            table = record.table = self._tier.inventory.table
            after = step.clips.factors(self._tier.inventory, totals, after=True)
            if step.measured:
                factors = step.clips.factors(self._tier.inventory, totals)
                self._put(record, self._rows(factors, foreign), after, norm)
            if self.disagrees or untold:
                record.withhold(IN_PROPORTION)
                step.spectra = [spectrum for spectrum in step.spectra if spectrum.of != GRADIENT]
                step.beside = [own for own in step.beside if own.candidate.of != GRADIENT]
            record.spectra = [unclipped(spectrum, after[spectrum.layer]) for spectrum in step.spectra]
            step.unfinished += [(own, table, after[own.candidate.layer]) for own in step.beside]
            record.spectra += self._finished(table)
        return record

    @property
    def disagrees(self) -> bool:
        """Whether the layers' norms do not give the total norm: what was done to the gradient is not known."""
        return self.disagreement is not None and self.disagreement > DISAGREEMENT

    def _finished(self, table: LayerTable) -> list[SpectrumRecord]:
        """Spectra that were taken beside the training, of this step and those before, as far as they are done by now.

        Those of layers that the run no longer has are left out: a batch speaks of one table.
        """
        unfinished = self.step.unfinished
        done = [entry for entry in unfinished if entry[0].work.done]
        unfinished[:] = [entry for entry in unfinished if not entry[0].work.done]
        made = [(own.step, own.record(), factor) for own, of, factor in done if of.digest == table.digest]
        return [replace(unclipped(spectrum, by), step=step) for step, spectrum, by in made if spectrum is not None]

    def _read(self, number: Number) -> float:
        return float(self._host[id(number)]) if isinstance(number, Tensor) else number

    def _describe(self, scalars: dict[str, float], counts: dict[str, int], totals: list[float]) -> None:
        """Add what the agent itself knows of the step."""
        step = self.step
        if step.found_inf is not None and self._read(step.found_inf) > 0:
            step.skipped = True
        counts.update(step.counts)
        counts["skipped"] = int(step.skipped)
        if step.examples:
            counts["examples"] = round(sum(step.examples))
        for name in SUMMED:
            if name in counts:
                counts[name] *= step.ranks
        if step.parts:
            counts["parts"] = step.parts * step.ranks
            weights = self._weights()
            if counts["parts"] > 1 and weights is not None:
                scalars["noise_w"], scalars["noise_w2"] = self._noise_weights(weights, counts.get("examples"))
        coefficient = step.clips.coefficient(totals)
        if coefficient is not None:
            scalars["clip_coefficient"] = coefficient
            scalars["clip_threshold"] = min(clip.limit for clip in step.clips.clips)
        if step.scale is not None:
            scalars["loss_scale"] = self._read(step.scale)
        if step.seconds is not None:
            scalars["step_seconds"] = step.seconds
        scalars["agent_seconds"] = step.own

    def _weights(self) -> list[float] | None:
        """Weights of this rank's parts in its loss, summing to 1: equal, or as logged; None where that is unclear."""
        parts = self.step.parts
        given = [self._read(number) for number in self.step.log.part_weights]
        given = given[-parts * self.step.dropped :]  # of dropped ones, which came before, nothing counts
        if not given:
            return [1 / parts] * parts
        total = math.fsum(given)
        if len(given) != parts or not min(given) > 0 or not total < math.inf:
            return None
        return [weight / total for weight in given]

    def _noise_weights(self, weights: list[float], examples: int | None) -> tuple[float, float]:
        """Σ w(1−w)/b and Σ w²/b over all parts, in 1/examples, or in 1/batches where B is not known.

        The other ranks' parts are taken to be like this one's.
        """
        ranks = self.step.ranks
        sizes = self.step.examples or [self._read(number) for number in self.step.log.sums.get("examples", [])]
        sizes = sizes[-len(weights) * self.step.dropped :]
        if len(sizes) != len(weights) or not min(sizes) > 0:
            sizes = [(examples or 1.0) / ranks * weight for weight in weights]
        return _weight_sums(tuple(weights), tuple(sizes), ranks)

    def _rows(self, factors: Float64, foreign: float | None) -> LayerRows:
        assert self._marks is not None
        rows = self._tier.rows([self._host[id(results)] for results in self._results], self._marks)
        if self.step.skipped:
            rows[UPDATE] = 0.0  # a fused optimizer is called, but found_inf keeps it from doing anything
            self._marks.update |= self._marks.gradient
        part_sq = None
        weights = self._weights() if self._parts is not None else None
        if self._parts is not None and weights is not None:
            scale = 1.0 if self.step.scale is None else self._read(self.step.scale)
            squares = summed([self._host[id(parts)] for parts in self._parts])
            part_sq = (squares / np.array(weights)[:, None]).sum(0) / scale**2
        if self.step.whole_parts is not None:
            part_sq = self._whole_parts(self.step.whole_parts)
        drift = None
        if self.step.drift is not None:
            drift = self.step.drift.on_host([self._host[id(sums)] for sums in self.step.drift.results])
        return layer_rows(rows, self._marks, factors, part_sq, drift, foreign)

    def _whole_parts(self, whole: WholeParts) -> Float64 | None:
        """part_sq of sharded layers, unless weights were logged after it was put together."""
        if len(self.step.log.part_weights) != whole.weights:
            return None
        scale = 1.0 if self.step.scale is None else self._read(self.step.scale)
        return whole.sums / scale**2

    def _put(self, record: StepRecord, rows: LayerRows, after: Float64, total: float | None) -> None:
        record.statistics, record.values, record.present = STATISTICS[: len(rows.values)], rows.values, rows.present
        record.count_statistics, record.counts_values = COUNT_STATISTICS, rows.counts
        record.counts_present = rows.counts_present
        second, share = self.step.second, self.step.share
        scale = 1.0 if self.step.scale is None else self._read(self.step.scale)
        if share is not None and astray(self._read(share), (1.0, 1 / scale, rows.foreign, rows.foreign / scale)):
            record.withhold(("part_sq",))
            record.scalars = {name: number for name, number in record.scalars.items() if name not in NOISE}
        if second is not None:
            sums = summed([self._host[id(results)] for results in second.results])
            assert self._marks is not None
            for layer, left in self._marks.repaired.items():
                second.present[OF_GRADIENT, layer] &= left.any_finite
            add_second(record, sums, second.present, after * rows.foreign, self.step.skipped)
        if rows.update_norm is not None and not self.step.stale:
            record.scalars["update_norm"] = rows.update_norm
        if rows.norm is not None and not self.step.stale:
            record.scalars.setdefault("grad_norm", rows.norm)
            if total is not None and 0 < total < math.inf and self._whole:
                self.disagreement = abs(rows.norm - total) / total


@lru_cache(maxsize=64)
def _weight_sums(weights: tuple[float, ...], sizes: tuple[float, ...], ranks: int) -> tuple[float, float]:
    return weight_sums([weight / ranks for weight in weights] * ranks, sizes * ranks)
