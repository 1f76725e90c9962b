"""From the records of steps to batches: columns over the steps, one layer table per batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gradspectra_core.layers import LayerTable
from gradspectra_core.limits import DEFAULT_LIMITS
from gradspectra_core.records import Batch, Bool, Columns, Gap, LayerBlock, SpectrumBlock
from gradspectra_core.statistics import SCALARS
from numpy.typing import NDArray

from gradspectra.record import SpectrumRecord, StepRecord

log = logging.getLogger("gradspectra")

MAX_STEPS = 64
MAX_BYTES = 768 << 10
"""With names, presence and the table of a few thousand layers below 1 MiB, which is what nginx lets pass by default."""
NOT_PACKED = "its record could not be packed"
RATES = "learning_rate/"
"""Begins the names of the rates of parameter groups, of which there may be as many as tensors."""


def record_bytes(record: StepRecord) -> int:
    """Return about how many bytes a record takes in memory and on the wire."""
    size = 64 + 32 * (len(record.scalars) + len(record.counts)) + 1000 * len(record.spectra)
    for array in (record.values, record.counts_values):
        if array is not None:
            size += array.nbytes
    return size


class Packer:
    """Packs records into batches of at most 64 steps and about 768 KiB; their session and sequence are filled in later.

    start_step: the last step taken before the first record. A record whose step does not go up is left out, and
    `out_of_order` counts it. A record that cannot be packed becomes a gap; that is said once, and `failed` counts it.
    Of more numbers of a step than a batch can name, the rates of parameter groups are left out first, said once too.
    """

    def __init__(self, start_step: int = 0) -> None:
        self._complete_through = start_step
        self._tables: set[str] = set()
        self.out_of_order = 0
        self.failed = 0
        self._said = False

    def pack(self, records: Iterable[StepRecord], gaps: Sequence[Gap] = ()) -> list[Batch]:
        """Return the batches of these records in order; the gaps, which lie after them, go with the last."""
        parts = list(_parts(self._in_order(records)))
        if gaps and not parts:
            parts.append([])
        last = len(parts) - 1
        return [batch for i, part in enumerate(parts) for batch in self._batches(part, gaps if i == last else ())]

    def _batches(self, records: list[StepRecord], gaps: Sequence[Gap]) -> list[Batch]:
        """One batch; where that fails one for each record, with a gap in the place of those that are at fault."""
        try:
            return [self._batch(records, gaps)]
        except Exception as error:
            if len(records) > 1:
                alone = [batch for record in records for batch in self._batches([record], ())]
                return alone + ([self._batch([], gaps)] if gaps else [])
            if not records:
                raise
            self.failed += 1
            if self.failed == 1:
                step = records[0].step
                log.warning("gradspectra: step %d cannot be packed (%r); it is a gap", step, error, exc_info=error)
            return [self._batch([], (Gap(records[0].step, records[0].step, "all", NOT_PACKED), *gaps))]

    def _in_order(self, records: Iterable[StepRecord]) -> Iterator[StepRecord]:
        last = self._complete_through
        for record in records:
            if record.step > last:
                last = record.step
                self._leave_out(record)
                yield record
            else:
                self.out_of_order += 1

    def _leave_out(self, record: StepRecord) -> None:
        most = DEFAULT_LIMITS.max_scalars
        if len(record.scalars) <= most:
            return
        names = sorted(record.scalars, key=lambda name: 0 if name in SCALARS else 2 if name.startswith(RATES) else 1)
        record.scalars = {name: record.scalars[name] for name in names[:most]}
        if not self._said:
            self._said = True
            step, count, first = record.step, len(names), names[most]
            text = "gradspectra: step %d has %d numbers beside those of its layers, and %d are recorded; %r is left out"
            log.warning(text, step, count, most, first)

    def _batch(self, records: list[StepRecord], gaps: Sequence[Gap]) -> Batch:
        steps = [record.step for record in records]
        complete = max([self._complete_through, *steps, *(gap.last for gap in gaps)])
        table = next((record.table for record in records if _has_layers(record)), None)
        new = table is not None and table.digest not in self._tables
        batch = Batch(
            session="unset",
            sequence=1,
            complete_through=complete,
            steps=np.array(steps, np.int64),
            times=np.array([record.time for record in records], np.float64),
            scalars=_columns([record.scalars for record in records], np.float64),
            counts=_columns([record.counts for record in records], np.int64),
            layer_table=table if new else None,
            layers=_layer_block(records, table) if table is not None else None,
            spectra=_spectrum_block(records, table) if table is not None else None,
            gaps=tuple(gaps),
        )
        self._complete_through = complete
        if table is not None:
            self._tables.add(table.digest)
        return batch


def _has_layers(record: StepRecord) -> bool:
    return record.table is not None and bool(
        record.values is not None or record.counts_values is not None or record.spectra
    )


def _parts(records: Iterable[StepRecord]) -> Iterator[list[StepRecord]]:
    """Split where a batch is full, has too many names, or the layer table changes."""
    part: list[StepRecord] = []
    names: set[str] = set()
    size, digest = 0, None
    for record in records:
        own = record.table.digest if record.table is not None and _has_layers(record) else digest
        names |= record.scalars.keys()
        size += record_bytes(record)
        full = len(part) >= MAX_STEPS or size > MAX_BYTES or len(names) > DEFAULT_LIMITS.max_scalars
        if part and (full or (digest is not None and own != digest)):
            yield part
            part, size, names = [], record_bytes(record), set(record.scalars)
        part.append(record)
        digest = own
    if part:
        yield part


def _columns(rows: Sequence[dict[str, Any]], dtype: type[np.float64] | type[np.int64]) -> Columns:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values: NDArray[Any] = np.zeros((len(names), len(rows)), dtype)
    present = np.zeros(values.shape, np.bool_)
    place = {name: index for index, name in enumerate(names)}
    for column, row in enumerate(rows):
        for name, value in row.items():
            values[place[name], column] = value
            present[place[name], column] = True
    return Columns(names, values, present)


def _stacked(
    entries: Sequence[tuple[tuple[str, ...], NDArray[Any] | None, Bool | None]], layers: int, dtype: type[Any]
) -> tuple[tuple[str, ...], NDArray[Any], Bool]:
    """Stack per-step (K, L) arrays to (K, T, L) for the union of their names; what a step lacks is not present."""
    names = tuple(dict.fromkeys(name for own, _, _ in entries for name in own))
    values: NDArray[Any] = np.zeros((len(names), len(entries), layers), dtype)
    present = np.zeros(values.shape, np.bool_)
    for at, (own, array, mask) in enumerate(entries):
        if array is None:
            continue
        rows: Any = slice(None) if own == names else [names.index(name) for name in own]
        values[rows, at] = array
        present[rows, at] = True if mask is None else mask
    return names, values, present


def _layer_block(records: Sequence[StepRecord], table: LayerTable) -> LayerBlock | None:
    measured = [record for record in records if record.values is not None or record.counts_values is not None]
    if not measured:
        return None
    names, values, present = _stacked(
        [(record.statistics, record.values, record.present) for record in measured], len(table), np.float32
    )
    count_names, counts, counts_present = _stacked(
        [(record.count_statistics, record.counts_values, record.counts_present) for record in measured],
        len(table),
        np.int64,
    )
    steps = np.array([record.step for record in measured], np.int64)
    return LayerBlock(table.digest, steps, names, values, present, count_names, counts, counts_present)


def _spectrum_block(records: Sequence[StepRecord], table: LayerTable) -> SpectrumBlock | None:
    found: list[tuple[int, SpectrumRecord]] = [
        (record.step if spectrum.step is None else spectrum.step, spectrum)
        for record in records
        for spectrum in record.spectra
    ]
    if not found:
        return None
    spectra = [spectrum for _, spectrum in found]
    length = np.array([len(spectrum.values) for spectrum in spectra], np.int64)
    index = np.zeros((len(found), int(length.max())), np.int64)
    values = np.zeros(index.shape, np.float32)
    for at, spectrum in enumerate(spectra):
        index[at, : length[at]] = spectrum.index
        values[at, : length[at]] = spectrum.values
    return SpectrumBlock(
        digest=table.digest,
        step=np.array([step for step, _ in found], np.int64),
        layer=np.array([spectrum.layer for spectrum in spectra], np.int64),
        rows=np.array([spectrum.rows for spectrum in spectra], np.int64),
        columns=np.array([spectrum.columns for spectrum in spectra], np.int64),
        length=length,
        of=tuple(spectrum.of for spectrum in spectra),
        method=tuple(spectrum.method for spectrum in spectra),
        aggregates=np.array([spectrum.aggregates for spectrum in spectra], np.float64),
        index=index,
        values=values,
    )
