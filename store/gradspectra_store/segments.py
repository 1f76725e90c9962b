"""What lies in the payload of a segment, and reading single parts of it without touching the rest.

A segment holds the blocks of one kind of one batch: `scalars` (steps, times, scalars and counts), `layers` or
`spectra`. Blocks are stored as the arrays are; where every value is present its bitmap is left out. Beside the payload
lies its checksum: a payload that comes from the database is read by `opened`, which compares the two.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from gradspectra_core.blocks import Recorded
from gradspectra_core.container import object_text, pack_alike
from gradspectra_core.limits import Limits
from gradspectra_core.records import Batch, Bool, Columns, Float64, Int64, LayerBlock, SpectrumBlock
from gradspectra_core.wire import pack, unpack
from numpy.typing import NDArray

from gradspectra_store.errors import StoreDamaged

_LIMITS = Limits(max_header=1 << 30)
_INTEGERS = ("step", "layer", "rows", "columns", "length")
Blocks = dict[str, NDArray[Any]]
ReadT = TypeVar("ReadT")


@dataclass(frozen=True, slots=True)
class ScalarPart:
    """All series of one segment.

    steps: (S,); rows: the row of each name, those of the counts after those of the scalars; values: (C, S) of the
    scalars; counts: (K, S); present: (C + K, S), None where every value is there.
    """

    steps: Int64
    rows: dict[str, int]
    values: Float64
    counts: Int64
    present: Bool | None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, and of the names about."""
        return _nbytes(self.steps, self.values, self.present) + self.counts.nbytes + 100 * len(self.rows)

    def recorded(self, name: str) -> Recorded:
        """Return one of the series at the steps that have it: float64, counts int64."""
        row = self.rows[name]
        at = row - len(self.values)
        own: NDArray[Any] = self.values[row : row + 1] if at < 0 else self.counts[at : at + 1]
        if self.present is None or self.present[row].all():
            return Recorded(self.steps, own, None)
        there = self.present[row]
        return Recorded(self.steps[there], own[:, there], None)


@dataclass(frozen=True, slots=True)
class LayerPart:
    """One statistic of one segment; a segment without it gives T = 0.

    steps: (T,); values: (T, L) float32 or int64; present: the same, None where every value is there.
    """

    steps: Int64
    values: NDArray[Any]
    present: Bool | None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return _nbytes(self.steps, self.values, self.present)


def pack_scalars(batch: Batch) -> bytes:
    """Pack steps, times, scalars and counts of a batch, and which other segments it has."""
    blocks: Blocks = {"steps": batch.steps, "times": batch.times}
    _put(blocks, "scalars", batch.scalars.values, batch.scalars.present)
    _put(blocks, "counts", batch.counts.values, batch.counts.present)
    text = _text(scalars=batch.scalars.names, counts=batch.counts.names, beside=kinds_beside(batch))
    return pack_alike(text, blocks)


def kinds_beside(batch: Batch) -> tuple[str, ...]:
    """Return the kinds of segments that a batch has beside its scalars."""
    layers = ("layers",) if batch.layers is not None and len(batch.layers.steps) else ()
    return (*layers, "spectra") if batch.spectra is not None and len(batch.spectra.step) else layers


def pack_columns(steps: Int64, columns: Columns) -> bytes:
    """Pack a derived run series: the form of `pack_scalars` without times and counts."""
    blocks: Blocks = {"steps": steps}
    _put(blocks, "scalars", columns.values, columns.present)
    return pack_alike(_text(scalars=columns.names), blocks)


def pack_layers(block: LayerBlock) -> bytes:
    """Pack the layer statistics of a batch."""
    blocks: Blocks = {"steps": block.steps}
    _put(blocks, "values", block.values, block.present)
    _put(blocks, "counts", block.counts, block.counts_present)
    text = _text(digest=block.digest, statistics=block.statistics, count_statistics=block.count_statistics)
    return pack_alike(text, blocks)


def pack_spectra(block: SpectrumBlock) -> bytes:
    """Pack the spectra of a batch."""
    blocks: Blocks = {name: getattr(block, name) for name in (*_INTEGERS, "aggregates", "index", "values")}
    return pack({"digest": block.digest, "of": block.of, "method": block.method}, blocks)


def checksum_of(payload: bytes) -> int:
    """Return the CRC-32 that is kept beside a payload."""
    return zlib.crc32(payload)


def opened(read: Callable[[bytes], ReadT], payload: object, checksum: int | None) -> ReadT:
    """Read a payload that comes from the database; raises StoreDamaged where it is not what was stored.

    read: a function of this module. checksum: what is kept beside it; None of a segment that was stored before there
    were checksums, of which only what makes no sense can be told.
    """
    if not isinstance(payload, bytes):  # SQLite says of each value what it is, and a disk changes that as all else
        raise StoreDamaged(f"a segment is bytes, got {type(payload).__name__}")
    if checksum is not None:
        if zlib.crc32(payload) != checksum:
            raise StoreDamaged("the checksum of a segment is wrong")
        return read(payload)
    try:
        return read(payload)
    except (LookupError, TypeError, ValueError) as error:
        raise StoreDamaged(f"a segment cannot be read back: {error}") from error


def unpack_scalars(payload: bytes) -> tuple[Int64, Float64, Columns, Columns]:
    """Return steps, times, scalars and counts."""
    meta, blocks = _read(payload)
    columns = [
        Columns(tuple(meta[kind]), blocks[kind], _present(blocks, kind, blocks[kind].shape))
        for kind in ("scalars", "counts")
    ]
    return blocks["steps"], blocks["times"], columns[0], columns[1]


def unpack_layers(payload: bytes) -> LayerBlock:
    """Return the layer statistics."""
    meta, blocks = _read(payload)
    return LayerBlock(
        digest=meta["digest"],
        steps=blocks["steps"],
        statistics=tuple(meta["statistics"]),
        values=blocks["values"],
        present=_present(blocks, "values", blocks["values"].shape),
        count_statistics=tuple(meta["count_statistics"]),
        counts=blocks["counts"],
        counts_present=_present(blocks, "counts", blocks["counts"].shape),
    )


def unpack_spectra(payload: bytes) -> SpectrumBlock:
    """Return the spectra."""
    meta, blocks = _read(payload)
    arrays = {name: blocks[name] for name in (*_INTEGERS, "aggregates", "index", "values")}
    return SpectrumBlock(digest=meta["digest"], of=tuple(meta["of"]), method=tuple(meta["method"]), **arrays)


def scalar_part(payload: bytes) -> ScalarPart:
    """Read all series of a segment of scalars, counts among them."""
    meta, blocks = _read(payload)
    kinds = [kind for kind in ("scalars", "counts") if kind in blocks]
    names = [name for kind in kinds for name in meta[kind]]
    present = None
    if any(f"{kind}.present" in blocks for kind in kinds):
        present = np.concatenate([_present(blocks, kind, blocks[kind].shape) for kind in kinds])
    counts = blocks["counts"].copy() if "counts" in blocks else np.empty((0, len(blocks["steps"])), np.int64)
    rows = {name: row for row, name in enumerate(names)}
    return ScalarPart(blocks["steps"].copy(), rows, blocks["scalars"].copy(), counts, present)


def times_of(payload: bytes) -> tuple[Int64, Float64]:
    """Return steps and their times, both (S,), of a segment of scalars of a batch."""
    _, blocks = _read(payload)
    return blocks["steps"], blocks["times"]


def told_beside(payload: bytes) -> tuple[str, ...]:
    """Return which other segments the batch of a segment of scalars has; none where it is too old to say so."""
    return tuple(_read(payload)[0].get("beside", ()))


def layer_parts(payload: bytes) -> dict[str, LayerPart]:
    """Return all statistics of a segment of layer statistics; they share its memory."""
    block = unpack_layers(payload)
    found = {}
    for names, values, present in (
        (block.statistics, block.values, block.present),
        (block.count_statistics, block.counts, block.counts_present),
    ):
        for at, name in enumerate(names):
            found[name] = LayerPart(block.steps, values[at], None if present[at].all() else present[at])
    return found


def layer_part(payload: bytes, statistic: str) -> LayerPart:
    """Copy one statistic out of a segment of layer statistics, so that the rest of the payload can go."""
    meta, blocks = _read(payload)
    for kind, block in (("statistics", "values"), ("count_statistics", "counts")):
        if statistic in meta[kind]:
            at = meta[kind].index(statistic)
            return LayerPart(blocks["steps"].copy(), blocks[block][at].copy(), _present_at(blocks, block, at))
    return LayerPart(np.empty(0, np.int64), np.empty((0, blocks["values"].shape[2]), np.float32), None)


def _read(payload: bytes) -> tuple[dict[str, Any], Blocks]:
    """Metadata and blocks."""
    return unpack(payload, limits=_LIMITS)


def _nbytes(steps: Int64, values: NDArray[Any], present: Bool | None) -> int:
    return steps.nbytes + values.nbytes + (0 if present is None else present.nbytes)


@lru_cache(maxsize=64)
def _text(**names: str | tuple[str, ...]) -> str:
    return object_text(names)


def _put(blocks: Blocks, name: str, values: NDArray[Any], present: Bool) -> None:
    blocks[name] = values
    if not present.all():
        blocks[f"{name}.present"] = np.packbits(present, bitorder="little")


def _present(blocks: Blocks, name: str, shape: tuple[int, ...]) -> Bool:
    bits = blocks.get(f"{name}.present")
    if bits is None:
        return np.ones(shape, np.bool_)
    return np.unpackbits(bits, count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)


def _present_at(blocks: Blocks, name: str, position: int) -> Bool | None:
    if f"{name}.present" not in blocks:
        return None
    present = _present(blocks, name, blocks[name].shape)[position]
    return None if present.all() else present.copy()


READERS: dict[str, Callable[[bytes], Any]] = {
    "scalars": scalar_part,
    "layers": unpack_layers,
    "spectra": unpack_spectra,
}
"""What reads all of a segment, by its kind."""
