"""Arrow arrays over memory that is there already: null is missing. Needs the extra `export`.

They are made of their buffers. `pyarrow.array` would copy, and import pandas, where that is installed, to ask whether
the values are its: 30 MB that a server never uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from gradspectra_core.records import Bool, Int64
from numpy.typing import NDArray


def numbers(values: NDArray[Any], present: Bool | None = None) -> Any:
    """Numbers of one type; entries that are not present become null. values, present: (N,)."""
    there = None
    if present is not None and not present.all():
        there = pa.py_buffer(np.packbits(present, bitorder="little"))
    own = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(own.dtype), len(own), [there, pa.py_buffer(own)])


def text(entries: Sequence[str]) -> Any:
    """Texts, of at most 2 GiB together."""
    encoded = [entry.encode() for entry in entries]
    buffers = [None, pa.py_buffer(_offsets(encoded)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def lists(entries: Sequence[NDArray[Any]], dtype: type) -> Any:
    """Lists of numbers of one type."""
    together: NDArray[Any] = np.concatenate([np.empty(0, dtype), *entries]).astype(
        dtype, casting="same_kind", copy=False
    )
    return pa.ListArray.from_arrays(numbers(_offsets(entries)), numbers(together))


def _offsets(entries: Sequence[Any]) -> NDArray[np.int32]:
    """Where each entry begins, and where the last one ends."""
    ends: Int64 = np.cumsum([0, *map(len, entries)])
    return ends.astype(np.int32)
