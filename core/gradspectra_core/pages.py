"""Room for large arrays in few pages: the first use of a page can take longer than all the arithmetic on it.

Linux gives 2 MiB pages to memory that asks for them, and numpy asks for arrays of 4 MiB and more (unless the variable
NUMPY_MADVISE_HUGEPAGE or the system forbids it), as far as these span whole such pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.records import Float64

_PAGE = 1 << 21
_ASKED_FOR = 1 << 22
_WORTH = 1 << 20


def wide_array(shape: tuple[int, ...]) -> Float64:
    """Return an array of float64 with any content, which begins a large page where it fills most of one.

    What lies around it is reserved alone and takes no memory, but for the rest of a last page of which half is used.
    """
    if math.prod(shape) * 8 < _WORTH:
        return np.empty(shape)
    return _room(math.prod(shape) * 8).view(np.float64).reshape(shape)


def wide_bytes(parts: Sequence[bytes | memoryview]) -> bytes | memoryview:
    """Put bytes, and memory of any items in C order, one behind the other; a mebibyte and more into such room."""
    plain = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    size = sum(map(len, plain))
    if size < _WORTH:
        return b"".join(plain)
    room: memoryview = _room(size).data
    at = 0
    for part in plain:
        room[at : at + len(part)] = part
        at += len(part)
    return room.toreadonly()


def _room(size: int) -> NDArray[Any]:
    """So many bytes. Where they fill half of their last page, that is a large one too, and takes memory as a whole."""
    rest = size % _PAGE
    whole = size + _PAGE - rest if rest >= _WORTH else size
    reserved = np.empty(max(whole + _PAGE, _ASKED_FOR), np.uint8)
    begin = -reserved.ctypes.data % _PAGE
    return reserved[begin : begin + size]
