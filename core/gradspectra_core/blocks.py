"""The payload of a block: one statistic (or series) over a range of steps, or of buckets of one level of its pyramid.

Four bytes of name, the CRC-32 of all that follows, then level, type, rows and columns, and the arrays as planes.py
codes them: row by row, contiguous in time, only what is there. Numbers come back bit for bit, NaN and ±inf too.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.planes import MAX_LENGTH, CodingError, decode, encode
from gradspectra_core.pyramid import Level, same_in_all
from gradspectra_core.records import Bool, Int64
from gradspectra_core.slots import in_each_row
from gradspectra_core.widths import width_of

_NAME = b"gsb1"
_HEAD = struct.Struct("<BcBII")
_DTYPES: dict[bytes, np.dtype[Any]] = {b"f": np.dtype(np.float32), b"d": np.dtype(np.float64), b"q": np.dtype(np.int64)}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LAST, _NAN, _UP, _DOWN, _PRESENT, _LOST, _ONE_ROW = 1, 2, 4, 8, 16, 32, 64
"""What a block has; _ONE_ROW: that its counts of finite values stand for one row, being the same in all."""
_SMALL, _FAST = 0.98, 0.5
"""When a plane is deflated: up to level 1, where the bytes are, and above, where reading counts."""
_COUNTS = (("nan", _NAN), ("up", _UP), ("down", _DOWN))


class DamagedBlock(ValueError):
    """A payload whose checksum is wrong, or that no block can have."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """R rows at S recorded steps. steps: (S,) strictly increasing; values: (R, S); present: (R, S), None for all."""

    steps: Int64
    values: NDArray[Any]
    present: Bool | None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.steps.nbytes + self.values.nbytes + (0 if self.present is None else self.present.nbytes)


def pack_recorded(block: Recorded) -> bytes:
    """Pack numbers as they were recorded, float32, float64 or int64."""
    rows, count = block.values.shape
    parts = [encode(block.steps)]
    values = np.ascontiguousarray(block.values).reshape(-1)
    if block.present is not None:
        parts.append(encode(np.packbits(block.present, bitorder="little")))
        values = values[block.present.reshape(-1)]
    flags = 0 if block.present is None else _PRESENT
    return _sealed(_HEAD.pack(0, _CODES[values.dtype], flags, rows, count), *parts, encode(values))


def unpack_recorded(payload: bytes) -> Recorded:
    """Read what `pack_recorded` packed; raises DamagedBlock."""
    body, (level, dtype, flags, rows, count) = _opened(payload)
    if level != 0:
        raise DamagedBlock(f"a block of level {level} stands where one of level 0 belongs")
    try:
        steps, at = decode(body, _HEAD.size, np.dtype(np.int64))
        present = None
        if flags & _PRESENT:
            bits, at = decode(body, at, np.dtype(np.uint8))
            present = np.unpackbits(np.ascontiguousarray(bits), count=rows * count, bitorder="little").view(np.bool_)
        values, at = decode(body, at, dtype)
    except CodingError as error:
        raise DamagedBlock(str(error)) from error
    if present is not None:
        whole = np.zeros(rows * count, dtype)
        _put(whole, present, values)
        return Recorded(steps, whole.reshape(rows, count), present.reshape(rows, count))
    return Recorded(steps, _shaped(values, rows, count), None)


def pack_level(number: int, level: Level) -> bytes:
    """Pack buckets of the pyramid's level `number`, 1 or more (widths.py)."""
    held = level.finite.reshape(-1) > 0
    kinds = [(bit, getattr(level, name)) for name, bit in _COUNTS]
    flags = sum(bit for bit, counts in kinds if counts is not None and counts.any())
    mean, low, high = (_held(array, held) for array in (level.mean, level.low, level.high))
    finite = same_in_all(_as_one_row(level.finite))
    flags |= _ONE_ROW if len(finite) < level.rows else 0
    parts = [encode(level.numbers), encode(level.first - level.numbers * width_of(number))]
    parts += [encode(finite.reshape(-1))]
    parts += [encode(counts.reshape(-1)) for bit, counts in kinds if flags & bit]
    worth = _SMALL if number == 1 else _FAST
    parts += [encode(mean, worth=worth), encode(low, mean, worth), encode(high, mean, worth)]
    if level.last is not None:
        flags |= _LAST
        parts.append(encode(_held(level.last, held), worth=worth))
    if level.lost is not None:
        flags |= _LOST
        parts.append(encode(level.lost.reshape(-1)))
    head = _HEAD.pack(number, _CODES[mean.dtype], flags, level.rows, len(level.numbers))
    return _sealed(head, *parts)


def unpack_level(payload: bytes) -> Level:
    """Read what `pack_level` packed; raises DamagedBlock."""
    body, (number, dtype, flags, rows, count) = _opened(payload)
    if number == 0:
        raise DamagedBlock("a block of level 0 stands where one of the pyramid belongs")
    whole = np.dtype(np.int64)
    try:
        width = width_of(number)
        numbers, at = decode(body, _HEAD.size, whole)
        offset, at = decode(body, at, whole)
        flat, at = decode(body, at, whole)
        finite = _as_one_row(_shaped(flat, 1 if flags & _ONE_ROW else rows, count))
        counts = {"finite": in_each_row(finite, rows)}
        for name in (name for name, bit in _COUNTS if flags & bit):
            flat, at = decode(body, at, whole)
            counts[name] = _as_one_row(_shaped(flat, rows, count))
        mean, at = decode(body, at, dtype)
        low, at = decode(body, at, dtype, mean)
        high, at = decode(body, at, dtype, mean)
        last, lost = None, None
        if flags & _LAST:
            last, at = decode(body, at, dtype)
        if flags & _LOST:
            lost, at = decode(body, at, whole)
            lost = _shaped(np.ascontiguousarray(lost), 2, len(lost) // 2)
    except ValueError as error:
        raise DamagedBlock(str(error)) from error
    if len(numbers) != count or len(offset) != count:
        raise DamagedBlock(f"the block names {len(numbers)} buckets and holds {count}")
    held = same_in_all(counts["finite"]) > 0
    there = None if held.all() else np.broadcast_to(held, (rows, count))
    arrays = [None if array is None else _spread(array, there, rows, count) for array in (mean, low, high, last)]
    first = offset + numbers * width
    level = Level(np.ascontiguousarray(numbers), first, *arrays, **counts)  # type: ignore[arg-type]
    return level if lost is None else replace(level, lost=lost)


def _sealed(*parts: bytes) -> bytes:
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    return b"".join((_NAME, struct.pack("<I", check), *parts))


def _opened(payload: object) -> tuple[memoryview, tuple[int, np.dtype[Any], int, int, int]]:
    """The checked body, and level, type, flags, rows and columns."""
    if not isinstance(payload, bytes):  # SQLite says of each value what it is, and a disk changes that as all else
        raise DamagedBlock(f"a block is bytes, got {type(payload).__name__}")
    body = memoryview(payload)[8:]
    if bytes(payload[:4]) != _NAME or len(body) < _HEAD.size:
        raise DamagedBlock("these bytes are not a block")
    if zlib.crc32(body) != struct.unpack_from("<I", payload, 4)[0]:
        raise DamagedBlock("the checksum of the block is wrong")
    level, code, flags, rows, count = _HEAD.unpack_from(body)
    if code not in _DTYPES or rows * count > MAX_LENGTH:
        raise DamagedBlock(f"no block has {rows} rows of {count} numbers of type {code!r}")
    return body, (level, _DTYPES[code], flags, rows, count)


def _held(array: NDArray[Any], held: Bool) -> NDArray[Any]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if held.all() else flat[held]


def _spread(values: NDArray[Any], held: Bool | None, rows: int, count: int) -> NDArray[Any]:
    """Put the numbers of the buckets that have any finite value into all, 0 elsewhere. held: which, None for all."""
    if held is None:
        return _shaped(values, rows, count)
    whole = np.zeros((rows, count), values.dtype)
    _put(whole, held, values)
    return whole


def _as_one_row(counts: Int64) -> Int64:
    """The same counts; where all rows have the same, as one row that is repeated."""
    if len(counts) > 1 and counts.strides[0] and (counts == counts[:1]).all():
        return in_each_row(counts[:1].copy(), len(counts))
    return counts


def _put(whole: NDArray[Any], there: Bool, values: NDArray[Any]) -> None:
    if np.count_nonzero(there) != len(values):
        raise DamagedBlock(f"the block holds {len(values)} numbers where {np.count_nonzero(there)} belong")
    whole[there] = values


def _shaped(flat: NDArray[Any], rows: int, count: int) -> NDArray[Any]:
    if len(flat) != rows * count:
        raise DamagedBlock(f"the block holds {len(flat)} numbers where {rows * count} belong")
    if flat.strides == (0,) and rows * count:
        return np.ndarray((rows, count), flat.dtype, flat[:1].tobytes(), strides=(0, 0))
    return flat.reshape(rows, count)
