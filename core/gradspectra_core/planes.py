"""Lossless coding of an array of numbers: differences, their bytes put plane by plane, each plane as is shortest.

The bits of the numbers are taken as integers; what is kept is the difference to the number before, or to that of
another array, with its sign in the lowest bit, unless all have one sign. Of floats that change slowly the upper planes
are then nearly constant (stored as that byte, and the places of the others) or worth deflating, and the lowest, which
no method shortens, are stored as they are. Figures: docs/decisions/014-deflated-planes.md.
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
_CONSTANT, _DIFFERENCES, _ABOVE, _BELOW = 0, 1, 2, 3
"""How an array is coded; the last two: as differences to another that all have one sign, which they then lack."""
_ALONE, _BASED = (_CONSTANT, _DIFFERENCES), (_CONSTANT, _DIFFERENCES, _ABOVE, _BELOW)
_SAME, _PLAIN, _DEFLATED, _SPARSE = 0, 1, 2, 3
_EMPTY = [(_PLANE.pack(_SAME, 1) + b"\0") * count for count in range(9)]
"""So many planes of zeros, as the upper ones of small numbers are."""
_PLACE = np.dtype("<u4")
_SPARSE_SHARE = 256
_SHORT = 6
"""So many bytes a plane with one place takes."""
_WORDS = {size: np.dtype(f"<u{size}") for size in (1, 4, 8)}
MAX_LENGTH = 1 << 30
"""A coded array never says to hold more numbers than this."""


class CodingError(ValueError):
    """Bytes that `decode` cannot have been given by `encode`."""


def encode(array: Numbers, base: Numbers | None = None, worth: float = 0.98) -> bytes:
    """Code a one-dimensional array of 1, 4 or 8 byte numbers.

    base: array of the same length and type that it is close to; None for an array close to itself shifted by one.
    worth: a plane is deflated where that leaves less than this share of it; others are read faster.
    """
    bits = _bits(array)
    size = bits.dtype.itemsize
    if len(bits) and (bits == bits[0]).all():
        return _HEAD.pack(_CONSTANT, size, len(bits)) + bits[:1].tobytes()
    kind, coded = _differences(bits, None if base is None else _bits(base))
    planes = np.ascontiguousarray(coded.view(np.uint8).reshape(-1, size).T)
    return b"".join((_HEAD.pack(kind, size, len(bits)), *(_plane(plane, worth) for plane in planes)))


def decode(payload: memoryview, at: int, dtype: np.dtype[Any], base: Numbers | None = None) -> tuple[Numbers, int]:
    """Read an array that `encode` coded; returns it and where it ends. Raises CodingError for anything else."""
    coding, size, length = _taken(_HEAD, payload, at)
    at += _HEAD.size
    known = _ALONE if base is None else _BASED
    if size != dtype.itemsize or size not in _WORDS or length > MAX_LENGTH or coding not in known:
        raise CodingError(f"no array of {dtype} begins here")
    if coding == _CONSTANT:
        if at + size > len(payload):
            raise CodingError("the array is cut off")
        return np.ndarray((length,), dtype, bytes(payload[at : at + size]), strides=(0,)), at + size
    same, planes, at = _planes(payload, at, size)
    if base is None and length and all(map(_of_first, planes)):
        return _evenly(same, planes, length, size).view(dtype), at
    coded: Numbers = np.empty(length, _WORDS[size])
    coded.fill(same)
    octets = coded.view(np.uint8).reshape(length, size)
    for number, kind, content in planes:
        _put(kind, content, octets[:, number])
    if coding == _DIFFERENCES:
        _unfold(coded)
    if base is None:
        np.add.accumulate(coded, out=coded)
    elif len(base) != length:
        raise CodingError(f"the array has {length} numbers and what it is based on {len(base)}")
    elif coding == _BELOW:
        np.subtract(_bits(base), coded, out=coded)
    else:
        coded += _bits(base)
    return coded.view(dtype), at


def _bits(array: Numbers) -> Numbers:
    return np.ascontiguousarray(array).view(_WORDS[array.dtype.itemsize])


def _differences(bits: Numbers, base: Numbers | None) -> tuple[int, Numbers]:
    """How an array is coded, and its differences to the other array, or to itself shifted by one."""
    coded = bits.copy()
    if base is None:
        coded[1:] -= bits[:-1]
    elif (bits >= base).all():
        coded -= base
        return _ABOVE, coded
    elif (bits <= base).all():
        return _BELOW, np.subtract(base, bits, out=coded)
    else:
        coded -= base
    _fold(coded)
    return _DIFFERENCES, coded


def _fold(differences: Numbers) -> None:
    """Put the sign of each difference into its lowest bit."""
    width = differences.dtype.type(differences.dtype.itemsize * 8 - 1)
    sign = np.negative(differences >> width)
    differences <<= differences.dtype.type(1)
    differences ^= sign


def _unfold(coded: Numbers) -> None:
    one = coded.dtype.type(1)
    sign = coded & one
    np.negative(sign, out=sign)
    coded >>= one
    coded ^= sign


def _of_first(plane: tuple[int, int, memoryview]) -> bool:
    """Whether a plane is the same byte everywhere but for the first number."""
    _, kind, content = plane
    return kind == _SPARSE and len(content) == 1 + _PLACE.itemsize + 1 and not any(content[1:-1])


def _evenly(same: int, planes: list[tuple[int, int, memoryview]], length: int, size: int) -> Numbers:
    """Numbers of one difference to each other, as steps mostly are. same, planes: as `_planes` gives them."""
    begin = same
    for number, _, content in planes:
        begin ^= (content[0] ^ content[-1]) << 8 * number
    first, apart = ((one >> 1) ^ -(one & 1) for one in (begin, same))
    bits = 8 * size - 1
    word = _WORDS[size].type
    found: Numbers = np.arange(length, dtype=word)
    found *= word(apart & (2 << bits) - 1)
    found += word(first & (2 << bits) - 1)
    return found


def _plane(plane: NDArray[np.uint8], worth: float) -> bytes:
    if len(plane) and (plane == plane[0]).all():
        return _PLANE.pack(_SAME, 1) + plane[:1].tobytes()
    if len(plane):
        most = np.bincount(plane, minlength=256).argmax().astype(np.uint8)
        places = np.flatnonzero(plane != most)
        if len(places) <= max(len(plane) // _SPARSE_SHARE, 1) and len(plane) > _SHORT:
            content = most.tobytes() + places.astype(_PLACE).tobytes() + plane[places].tobytes()
            return _PLANE.pack(_SPARSE, len(content)) + content
    plain = plane.tobytes()
    coder = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    deflated = coder.compress(plain) + coder.flush()
    if len(deflated) < len(plain) * worth:
        return _PLANE.pack(_DEFLATED, len(deflated)) + deflated
    return _PLANE.pack(_PLAIN, len(plain)) + plain


def _planes(payload: memoryview, at: int, size: int) -> tuple[int, list[tuple[int, int, memoryview]], int]:
    """The bits that most numbers have, the planes of which that is not all (place, kind, content), and their end."""
    same = 0
    planes: list[tuple[int, int, memoryview]] = []
    for number in range(size):
        kind, length = _taken(_PLANE, payload, at)
        rest = _EMPTY[size - number]
        if kind == _SAME and payload[at : at + len(rest)] == rest:
            return same, planes, at + len(rest)
        at += _PLANE.size
        end = at + length
        if end > len(payload) or kind not in (_SAME, _PLAIN, _DEFLATED, _SPARSE) or (kind == _SAME and length != 1):
            raise CodingError("a plane is cut off")
        if kind in (_SAME, _SPARSE) and length:
            same |= payload[at] << 8 * number
        if kind != _SAME:
            planes.append((number, kind, payload[at:end]))
        at = end
    return same, planes, at


def _put(kind: int, content: memoryview, plane: NDArray[np.uint8]) -> None:
    """Put a plane into the bytes of the numbers; of a sparse one those that are unlike most, which are there."""
    if kind == _SPARSE:
        _put_sparse(content, plane)
        return
    if kind == _DEFLATED:
        try:
            content = memoryview(zlib.decompressobj(-15).decompress(content, len(plane) + 1))
        except zlib.error as error:
            raise CodingError(f"a plane is not deflated: {error}") from error
    if len(content) != len(plane):
        raise CodingError(f"a plane has {len(content)} bytes instead of {len(plane)}")
    plane[:] = np.frombuffer(content, np.uint8)


def _put_sparse(content: memoryview, plane: NDArray[np.uint8]) -> None:
    """What follows the byte of most: places, and the bytes there."""
    count, rest = divmod(len(content) - 1, _PLACE.itemsize + 1)
    if rest:
        raise CodingError("a plane names places that it does not have")
    if count:
        places = np.frombuffer(content, _PLACE, count, 1)
        if places[-1] >= len(plane) or (count > 1 and (places[1:] <= places[:-1]).any()):
            raise CodingError("a plane names places that it does not have")
        plane[places] = np.frombuffer(content, np.uint8, count, 1 + places.nbytes)


def _taken(form: struct.Struct, payload: memoryview, at: int) -> tuple[int, ...]:
    if at + form.size > len(payload):
        raise CodingError("the array is cut off")
    return form.unpack_from(payload, at)
