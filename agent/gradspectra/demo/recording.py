"""The bundled recording of the demo's training job: the batches it sent, in one compressed file."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

from gradspectra_core.records import Batch
from gradspectra_core.wire import decode_batch

from gradspectra.record import SpectrumRecord, StepRecord

NAME = "recording.bin.gz"


def packed(bodies: Iterable[bytes]) -> bytes:
    """Bodies of POSTs as one file: each after its length in eight bytes, little-endian, all of it in gzip."""
    return gzip.compress(b"".join(struct.pack("<Q", len(body)) + body for body in bodies), 9, mtime=0)


def unpacked(content: bytes) -> Iterator[Batch]:
    """Read what `packed` wrote. Raises WireError for a body that is no batch."""
    content = gzip.decompress(content)
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield decode_batch(content[at + 8 : at + 8 + length])
        at += 8 + length


def bundled() -> Iterator[Batch]:
    """Read the batches of the recording that comes with the package."""
    return unpacked((files("gradspectra.demo") / NAME).read_bytes())


def step_records(batches: Iterable[Batch]) -> Iterator[StepRecord]:
    """Take batches of one session apart into the steps they were made of, in order."""
    table = None
    for batch in batches:
        table = batch.layer_table or table
        spectra = _spectra(batch)
        before = 0
        for at, step in enumerate(batch.steps.tolist()):
            record = StepRecord(step=step, time=float(batch.times[at]), table=table)
            record.scalars = _row(batch.scalars.names, batch.scalars.values, batch.scalars.present, at)
            record.counts = _row(batch.counts.names, batch.counts.values, batch.counts.present, at)
            _add_layers(record, batch)
            record.spectra = [spectrum for spectrum in spectra if before < (spectrum.step or step) <= step]
            before = step
            yield record


def _row(names: tuple[str, ...], values: Any, present: Any, at: int) -> dict[str, Any]:
    return {name: values[row, at].item() for row, name in enumerate(names) if present[row, at]}


def _add_layers(record: StepRecord, batch: Batch) -> None:
    block = batch.layers
    if block is None or record.step not in block.steps:
        return
    at = int(block.steps.searchsorted(record.step))
    record.statistics, record.count_statistics = block.statistics, block.count_statistics
    record.values, record.present = block.values[:, at], block.present[:, at]
    record.counts_values, record.counts_present = block.counts[:, at], block.counts_present[:, at]


def _spectra(batch: Batch) -> list[SpectrumRecord]:
    block = batch.spectra
    if block is None:
        return []
    return [
        SpectrumRecord(
            layer=int(block.layer[at]),
            of=block.of[at],
            method=block.method[at],
            rows=int(block.rows[at]),
            columns=int(block.columns[at]),
            aggregates=block.aggregates[at],
            index=block.index[at, : block.length[at]],
            values=block.values[at, : block.length[at]],
            step=int(block.step[at]),
        )
        for at in range(len(block.step))
    ]
