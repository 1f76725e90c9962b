"""The container of the binary form: a JSON header and raw little-endian blocks, in the safetensors layout."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.limits import DEFAULT_LIMITS, Limits, WireError, shown

FORMAT = "gradspectra/1"
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
MAX_BLOCKS = 256
MAX_DIMENSIONS = 8
MAX_EXTENT = 1 << 40
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_META = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_HEADER = json.JSONEncoder(separators=(",", ":"))
_OPENING = f'{{"__metadata__":{{"format":"{FORMAT}","gradspectra":'.encode()
_LONGEST_KNOWN = 1 << 14
"""Headers that say so much of their blocks, in characters, are not kept to be recognized."""
_WHERE = re.compile(
    r'\{"session":"([0-9A-Za-z_-]{1,64})","sequence":([1-9][0-9]{0,17}),"complete_through":(0|[1-9][0-9]{0,17}),(?=")'
)
"""How the object of a batch begins: with what alone is another in the next batch of its session."""

_Entry = tuple[str, np.dtype[Any], tuple[int, ...], int, int]
"""Name, dtype and shape of a block, and where its bytes begin and end."""
_Entries = tuple[_Entry, ...]
_Shapes = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of the blocks of a body, in the order of their bytes."""


def pack(meta: dict[str, Any], blocks: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack arrays and a JSON object into one body.

    blocks: float32, float64, int64 or uint8 arrays of any shape. The wide ones are placed first, so that each
    starts at a multiple of its item size. Raises WireError for another dtype, ValueError for NaN inside `meta`.
    Source of the layout: the safetensors format.
    """
    return b"".join(pack_parts(meta, blocks))


def pack_parts(meta: dict[str, Any], blocks: Mapping[str, NDArray[Any]]) -> list[bytes | memoryview]:
    """As `pack`, in parts that follow each other: arrays that lie in memory as they are sent are not copied."""
    arrays = _arranged(blocks)
    return [_head(object_text(meta), _shapes(arrays)), *[array.data for _, array in arrays]]


def pack_alike(text: str, blocks: Mapping[str, NDArray[Any]]) -> bytes:
    """As `pack`, of an object that many bodies have: the header of such a body is made once.

    text: what `object_text` gives for the object.
    """
    arrays = _arranged(blocks)
    return b"".join([_kept_head(text, _shapes(arrays)), *[array.data for _, array in arrays]])


def object_text(meta: dict[str, Any]) -> str:
    """The JSON object of a body as text. Raises ValueError for NaN inside `meta`."""
    return _META.encode(meta)


def _arranged(blocks: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    return sorted([(name, _little_endian(name, block)) for name, block in blocks.items()], key=_by_item_size)


def _shapes(arrays: list[tuple[str, NDArray[Any]]]) -> _Shapes:
    return tuple([(name, _CODES[array.dtype], array.shape) for name, array in arrays])


def _head(text: str, shapes: _Shapes) -> bytes:
    """All of a body before its blocks."""
    head = _OPENING + f"{_HEADER.encode(text)}}}{_layout_text(shapes)}".encode()
    head += b" " * (-len(head) % 8)
    return _LENGTH.pack(len(head)) + head


_kept_head = lru_cache(maxsize=64)(_head)


@lru_cache(maxsize=256)
def _layout_text(blocks: _Shapes) -> str:
    """The header after its metadata, for blocks of these names, dtypes and shapes; most batches have the same."""
    entries: dict[str, Any] = {}
    end = 0
    for name, code, shape in blocks:
        begin, end = end, end + math.prod(shape) * DTYPES[code].itemsize
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    text = _HEADER.encode(entries)
    return f",{text[1:]}" if blocks else text[1:]


def unpack(
    buf: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `pack` (or any writer of the layout) wrote: the JSON object and the blocks by name.

    The blocks are views of `buf`, read-only where it is. Raises WireError for anything that is not such a body.
    """
    view = memoryview(buf)
    if len(view) < _LENGTH.size:
        raise WireError("body", f"must be at least {_LENGTH.size} bytes long, got {len(view)}")
    (length,) = _LENGTH.unpack_from(view)
    start = _LENGTH.size + length
    if length > limits.max_header:
        raise WireError("header", f"must be at most {limits.max_header} bytes long, its length field says {length}")
    if start > len(view):
        raise WireError("header", f"is cut off: {length} bytes announced, {len(view) - _LENGTH.size} there")
    text, entries = _read_header(bytes(view[_LENGTH.size : start]))
    return _read_object(text), _read_blocks(entries, view[start:])


def _read_header(head: bytes) -> tuple[str, _Entries]:
    """The JSON object as text, and the blocks in order, checked but for where the body ends."""
    known = _read_known(head) if head.startswith(_OPENING) else None
    if known is not None:
        return known
    header = json_object(head, "header")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise WireError("header.__metadata__", f'must be an object with "format": "{FORMAT}"')
    text = metadata.get("gradspectra")
    if not isinstance(text, str):
        raise WireError("header.__metadata__.gradspectra", "must be a string that holds JSON")
    return text, _in_order(header)


def _read_known(head: bytes) -> tuple[str, _Entries] | None:
    """As `_read_header`, of a header whose blocks are most likely those of another; None where all must be read."""
    try:
        opened = head.decode()
        text, end = _STRICT.raw_decode(opened, len(_OPENING))
        entries = _layout(opened[end:]) if len(opened) - end <= _LONGEST_KNOWN else None
    except (ValueError, RecursionError):  # said in full where all is read
        return None
    return (text, entries) if isinstance(text, str) and entries is not None else None


@lru_cache(maxsize=256)
def _layout(rest: str) -> _Entries | None:
    """The blocks by the header after the text of its metadata; None where it says more of these."""
    header = json_object(f'{_OPENING.decode()}""{rest}', "header")
    plain = header.pop("__metadata__", None) == {"format": FORMAT, "gradspectra": ""}
    return _in_order(header) if plain else None


def _read_object(text: str) -> dict[str, Any]:
    """The JSON object of a body; of what batches of a session have in common the members are parsed once."""
    field = "header.__metadata__.gradspectra"
    begin = _WHERE.match(text) if len(text) <= _LONGEST_KNOWN else None
    if begin is None:
        return json_object(text, field)
    try:
        common = _common("{" + text[begin.end() :])
    except WireError:  # said of the whole
        return json_object(text, field)
    session, sequence, complete_through = begin.groups()
    return {"session": session, "sequence": int(sequence), "complete_through": int(complete_through), **common}


@lru_cache(maxsize=64)
def _common(text: str) -> dict[str, Any]:
    """Shared by all batches that have it: nobody writes into what is read."""
    return json_object(text, "header.__metadata__.gradspectra")


def json_object(text: bytes | str, field: str) -> dict[str, Any]:
    """Parse strict JSON (UTF-8, no NaN literals) that must be an object. Raises WireError naming `field`."""
    try:
        found = _STRICT.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(field, f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise WireError(field, f"must be a JSON object, got {type(found).__name__}")
    return found


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not a JSON number")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def _by_item_size(entry: tuple[str, NDArray[Any]]) -> int:
    return -entry[1].dtype.itemsize


def _little_endian(name: str, block: NDArray[Any]) -> NDArray[Any]:
    if block.dtype in _CODES and block.flags.c_contiguous:
        return block
    dtype = block.dtype.newbyteorder("<")
    if dtype not in _CODES:
        raise WireError(name, f"dtype must be float32, float64, int64 or uint8, got {block.dtype}")
    return np.ascontiguousarray(block, dtype) if block.ndim else np.asarray(block, dtype)


def _in_order(header: dict[str, Any]) -> _Entries:
    """The entries of a header in the order of their bytes, which must follow each other."""
    if len(header) > MAX_BLOCKS:
        raise WireError("header", f"must name at most {MAX_BLOCKS} blocks, got {len(header)}")
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda entry: entry[3:])
    position = 0
    for name, _, _, begin, end in entries:
        if begin != position:
            raise WireError(name, f"must begin where the block before it ends ({position}), begins at {begin}")
        position = end
    return tuple(entries)


def _read_blocks(entries: _Entries, data: memoryview) -> dict[str, NDArray[Any]]:
    blocks: dict[str, NDArray[Any]] = {}
    position = 0
    for name, dtype, shape, begin, end in entries:
        if end > len(data):
            raise WireError(name, f"is cut off: ends at {end}, the body has {len(data)} bytes of data")
        blocks[name] = np.ndarray(shape, dtype, data, begin)
        position = end
    if position != len(data):
        raise WireError("body", f"has {len(data) - position} bytes that belong to no block")
    return blocks


def _entry(name: str, value: object) -> _Entry:
    if not isinstance(value, dict):
        raise WireError(name, "must be an object with dtype, shape and data_offsets")
    code, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise WireError(f"{name}.dtype", f"must be one of {', '.join(DTYPES)}, got {shown(code)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_extent, shape)):
        raise WireError(f"{name}.shape", f"must be a list of at most {MAX_DIMENSIONS} whole numbers ≥ 0")
    count = math.prod(shape)
    if max(count, math.prod(max(extent, 1) for extent in shape) if 0 in shape else 0) > MAX_EXTENT:
        raise WireError(f"{name}.shape", "is too large")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_extent, offsets)):
        raise WireError(f"{name}.data_offsets", "must be two whole numbers ≥ 0")
    begin, end = offsets
    dtype = DTYPES[code]
    size = count * dtype.itemsize
    if end - begin != size:
        raise WireError(f"{name}.data_offsets", f"must span the {size} bytes of the shape, span {end - begin}")
    return name, dtype, tuple(shape), begin, end


def _is_extent(value: object) -> bool:
    return type(value) is int and value >= 0
