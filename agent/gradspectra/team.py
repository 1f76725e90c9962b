"""Finds the OpenMP runtime that torch's own operations run on, so that the compiled pass shares their threads."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

_RUNTIME = re.compile(r"lib(gomp|iomp5|omp)\b[^/]*\.so")
_MAPS = Path("/proc/self/maps")


def begin_of_torch() -> int:
    """Address of GOMP_parallel of the runtime that torch has loaded; 0 where there is none, or which it is is unclear.

    Another runtime would have threads of its own, which wait for the same processors. Every runtime that GCC's or
    Clang's code runs on has this function. Source: libgomp's manual, "Implementing PARALLEL construct".
    """
    if not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return 0
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return _begin(_of_torch({path for line in lines for path in line.split(maxsplit=5)[5:]}))


def _of_torch(loaded: set[str]) -> str | None:
    """The runtime among these files: that beside torch's libraries, else the only one."""
    runtimes = sorted(path for path in loaded if _RUNTIME.match(os.path.basename(path)))
    home = str(Path(torch.__file__).parent)
    beside = [path for path in runtimes if path.startswith((f"{home}/", f"{home}.libs/"))]
    found = beside or runtimes
    return found[0] if len(found) == 1 else None


def _begin(path: str | None) -> int:
    if path is None:
        return 0
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
