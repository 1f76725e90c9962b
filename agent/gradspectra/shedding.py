"""What a full spool gives up, oldest first: spectra, then layer statistics, then whole batches; each leaves a gap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from gradspectra_core.records import Batch, Columns, Gap

from gradspectra.frames import LAYERS, SPECTRA, Frame, step_range

REASON = "the spool was full"
Sized = tuple[int, int, Batch]
"""Flags and size of an encoded batch, and the batch."""


def without_spectra(batch: Batch) -> Batch:
    """Return the batch without its spectra, with a gap that says so."""
    if batch.spectra is None or not len(batch.spectra.step):
        return batch
    gap = Gap(int(batch.spectra.step.min()), int(batch.spectra.step.max()), "spectra", REASON)
    return replace(batch, spectra=None, gaps=(*batch.gaps, gap))


def without_layers(batch: Batch) -> Batch:
    """Return the batch without its layer statistics, with a gap that says so."""
    if batch.layers is None or not len(batch.layers.steps):
        return batch
    gap = Gap(int(batch.layers.steps[0]), int(batch.layers.steps[-1]), "layers", REASON)
    return replace(batch, layers=None, gaps=(*batch.gaps, gap))


def without_steps(batch: Batch, reason: str = REASON) -> Batch:
    """Return what is left of a batch whose steps are given up: a gap over its range, and its layer table."""
    first, last = step_range(batch)
    gaps = (Gap(first, last, "all", reason[:500]),) if last else ()
    return replace(
        EMPTY,
        session=batch.session,
        sequence=batch.sequence,
        complete_through=batch.complete_through,
        layer_table=batch.layer_table,
        gaps=gaps,
    )


def beyond_reading(frame: Frame, session: str, reason: str) -> Batch:
    """Return a gap in the place of a batch that cannot be decoded, and of which no more than its frame is known."""
    steps = np.array([frame.first_step, frame.last_step])
    known = replace(EMPTY, session=session, sequence=frame.sequence, complete_through=frame.last_step, steps=steps)
    return without_steps(known, reason)


def _empty() -> Batch:
    nothing, absent = np.zeros((0, 0)), np.zeros((0, 0), np.bool_)
    counts = Columns((), nothing.astype(np.int64), absent)
    return Batch("unset", 1, 0, np.zeros(0, np.int64), np.zeros(0), Columns((), nothing, absent), counts)


EMPTY = _empty()
"""A batch without steps."""


@dataclass
class Excess:
    """How many bytes are still to be given up."""

    size: int


def shed_flagged(batches: Iterable[Sized], flag: int, excess: Excess) -> Iterator[Batch]:
    """Take spectra (flag SPECTRA) or layers (flag LAYERS) from the oldest batches until the excess is gone."""
    shed = {SPECTRA: without_spectra, LAYERS: without_layers}[flag]
    for flags, size, batch in batches:
        if excess.size > 0 and flags & flag:
            thin = shed(batch)
            excess.size -= size - _small(thin, size)
            yield thin
        else:
            yield batch


def shed_steps(batches: Iterable[Sized], excess: Excess) -> Iterator[Batch]:
    """Give up the oldest batches until the excess is gone; neighbours given up become one gap."""
    lost: Batch | None = None
    for _, size, batch in batches:
        if excess.size > 0:
            excess.size -= size
            gone = without_steps(batch)
            if lost is not None and (gone.layer_table is not None and lost.layer_table is not None):
                yield lost
                lost = None
            lost = gone if lost is None else _joined(lost, gone)
            continue
        if lost is not None:
            yield lost
            lost = None
        yield batch
    if lost is not None:
        yield lost


def _joined(older: Batch, newer: Batch) -> Batch:
    """One batch that gives up the ranges of both."""
    gaps = (*older.gaps, *newer.gaps)
    if gaps:
        gaps = (Gap(min(gap.first for gap in gaps), max(gap.last for gap in gaps), "all", REASON),)
    return replace(newer, layer_table=older.layer_table or newer.layer_table, gaps=gaps)


def _small(batch: Batch, size: int) -> int:
    """Estimate the encoded size of what is left of a batch of `size` bytes."""
    left = batch.steps.nbytes + batch.times.nbytes + batch.scalars.values.nbytes + batch.counts.values.nbytes
    for part in (batch.layers, batch.spectra):
        if part is not None:
            left += part.values.nbytes
    return min(size, left + 1000)
