"""Lossless coding of an array of numbers: differences, their bytes put plane by plane, each plane deflated or as it is.

The bits of the numbers are taken as integers; what is kept is the difference to the number before, or to that of
another array, with its sign in the lowest bit. Of floats that change slowly the upper planes are then nearly constant,
and the lowest, which no method shortens, are stored as they are. Figures: docs/decisions/014-deflated-planes.md.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
_HEAD = struct.Struct("<BBI")
_PLANE = struct.Struct("<BI")
_CONSTANT, _DIFFERENCES = 0, 1
_SAME, _PLAIN, _DEFLATED = 0, 1, 2
_SIZES = (1, 4, 8)
MAX_LENGTH = 1 << 30
"""A coded array never says to hold more numbers than this."""


class CodingError(ValueError):
    """Bytes that `decode` cannot have been given by `encode`."""


def encode(array: Numbers, base: Numbers | None = None) -> bytes:
    """Code a one-dimensional array of 1, 4 or 8 byte numbers.

    base: array of the same length and type that it is close to; None for an array close to itself shifted by one.
    """
    bits = _bits(array)
    size = bits.dtype.itemsize
    if len(bits) and (bits == bits[0]).all():
        return _HEAD.pack(_CONSTANT, size, len(bits)) + bits[:1].tobytes()
    coded = bits.copy()
    if base is None:
        coded[1:] -= bits[:-1]
    else:
        coded -= _bits(base)
    _fold(coded)
    planes = np.ascontiguousarray(coded.view(np.uint8).reshape(-1, size).T)
    return b"".join((_HEAD.pack(_DIFFERENCES, size, len(bits)), *(_plane(plane) for plane in planes)))


def decode(payload: memoryview, at: int, dtype: np.dtype[Any], base: Numbers | None = None) -> tuple[Numbers, int]:
    """Read an array that `encode` coded; returns it and where it ends. Raises CodingError for anything else."""
    kind, size, length = _taken(_HEAD, payload, at)
    at += _HEAD.size
    if size != dtype.itemsize or size not in _SIZES or length > MAX_LENGTH or kind not in (_CONSTANT, _DIFFERENCES):
        raise CodingError(f"no array of {dtype} begins here")
    if kind == _CONSTANT:
        if at + size > len(payload):
            raise CodingError("the array is cut off")
        one: Numbers = np.frombuffer(payload, dtype, 1, at)
        return np.broadcast_to(one[0], (length,)), at + size
    planes = np.empty((length, size), np.uint8)
    for number in range(size):
        at = _read_plane(payload, at, planes[:, number])
    coded = planes.reshape(-1).view(f"<u{size}")
    _unfold(coded)
    if base is None:
        np.add.accumulate(coded, out=coded)
    elif len(base) != length:
        raise CodingError(f"the array has {length} numbers and what it is based on {len(base)}")
    else:
        coded += _bits(base)
    return coded.view(dtype), at


def _bits(array: Numbers) -> Numbers:
    return np.ascontiguousarray(array).view(f"<u{array.dtype.itemsize}")


def _fold(differences: Numbers) -> None:
    """Put the sign of each difference into its lowest bit."""
    width = differences.dtype.type(differences.dtype.itemsize * 8 - 1)
    sign = np.negative(differences >> width)
    differences <<= differences.dtype.type(1)
    differences ^= sign


def _unfold(coded: Numbers) -> None:
    one = coded.dtype.type(1)
    sign = np.negative(coded & one)
    coded >>= one
    coded ^= sign


def _plane(plane: NDArray[np.uint8]) -> bytes:
    if len(plane) and (plane == plane[0]).all():
        return _PLANE.pack(_SAME, 1) + plane[:1].tobytes()
    plain = plane.tobytes()
    coder = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    deflated = coder.compress(plain) + coder.flush()
    if len(deflated) < len(plain) * 0.98:
        return _PLANE.pack(_DEFLATED, len(deflated)) + deflated
    return _PLANE.pack(_PLAIN, len(plain)) + plain


def _read_plane(payload: memoryview, at: int, into: NDArray[np.uint8]) -> int:
    kind, size = _taken(_PLANE, payload, at)
    at += _PLANE.size
    content = payload[at : at + size]
    if len(content) < size or kind not in (_SAME, _PLAIN, _DEFLATED) or (kind == _SAME and size != 1):
        raise CodingError("a plane is cut off")
    if kind == _SAME:
        into[:] = content[0]
        return int(at + size)
    if kind == _DEFLATED:
        try:
            content = memoryview(zlib.decompressobj(-15).decompress(content, len(into) + 1))
        except zlib.error as error:
            raise CodingError(f"a plane is not deflated: {error}") from error
    if len(content) != len(into):
        raise CodingError(f"a plane has {len(content)} bytes instead of {len(into)}")
    into[:] = np.frombuffer(content, np.uint8)
    return int(at + size)


def _taken(form: struct.Struct, payload: memoryview, at: int) -> tuple[int, ...]:
    if at + form.size > len(payload):
        raise CodingError("the array is cut off")
    return form.unpack_from(payload, at)
