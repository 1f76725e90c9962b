"""Compiles fused.c on the machine it runs on, once for all processes, and loads it; a job never waits for that."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
from gradspectra_core.records import Float32

from gradspectra.settings import COMPILED

SOURCE = Path(__file__).with_name("fused.c")
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fno-signed-zeros", "-fassociative-math"]
"""Sums may be taken in any order; NaN and infinities stay what they are."""
CHOICES: tuple[tuple[str, ...], ...] = (("-DCLONES",), ())
"""Further flags to try in turn: code for several processors in one library, or for any of the kind."""
PATIENCE = 60.0
"""Seconds that a compiler may take."""

LAYER = np.dtype(
    [(name, np.uint64) for name in ("gradient", "weight", "first", "second")]
    + [(name, np.int64) for name in ("units", "per_unit", "rule")]
    + [(name, np.float64) for name in ("scale", "epsilon", "decay")]
)
"""A layer as fused.c takes it: addresses of float32 numbers, how many, and the rule of the update."""
ROW = (
    "grad_sq",
    "grad_max",
    "weight_sq",
    "update_sq",
    "grad_l1",
    "grad_zero_rows",
    "grad_dot_weight",
    "update_dot_grad",
    "first_sq",
    "second_sum",
    "grad_nonfinite",
    "whole_sq",
)
"""What fused.c gives for a layer, float64: of the finite entries of the gradient, but for whole_sq, of all of them."""
NO_UPDATE, ADAM, LINEAR = range(3)

VECTOR = np.dtype([("numbers", np.uint64), ("count", np.int64)])
"""A vector as fused.c takes it: the address of its float32 numbers, and how many."""
SAMPLE = np.dtype(
    [(name, np.uint64) for name in ("numbers", "start")] + [(name, np.int64) for name in ("blocks", "width", "stride")]
)
"""A sample as fused.c takes it: blocks of `width` float32 numbers, which begin `stride` numbers apart. start: where the
numbers lie one after another that it is compared with."""
MOST_BLOCKS = 4096
"""Of a sample that a median is taken of; further ones are left out."""

ArrayFunction = Callable[[int, int, int], None]
"""Takes the length of two arrays and their addresses: of what to read, and of what to write."""


class Compiled(NamedTuple):
    """The functions of fused.c; what they write is float64.

    measure: from LAYER to rows of ROW. squares: from VECTOR to sums of squares. extremes: from float32 numbers; raises
    the first of two numbers to their largest finite magnitude, and adds to the second how many are not finite.
    medians: from SAMPLE, one number a block, the lower of two; NaN where there is one. drift: from SAMPLE to pairs, the
    square of the distance from the start and the inner product with it.
    """

    measure: ArrayFunction
    squares: ArrayFunction
    extremes: ArrayFunction
    medians: ArrayFunction
    drift: ArrayFunction


class NotCompiled(Exception):
    """The fused pass cannot be had; the text says why."""


@cache
def compilation() -> Future[Compiled]:
    """The compiled pass, or NotCompiled as its exception; begun at the first call, in a thread of its own."""
    future: Future[Compiled] = Future()
    Thread(target=_compile, args=(future,), name="gradspectra-compile", daemon=True).start()
    return future


@cache
def switched_off() -> Future[Compiled]:
    """What stands in the place of `compilation` where it is not wanted."""
    future: Future[Compiled] = Future()
    future.set_exception(NotCompiled("GRADSPECTRA_FUSED is off"))
    return future


def _compile(future: Future[Compiled]) -> None:
    try:
        future.set_result(compiled(COMPILED.expanduser()))
    except Exception as error:
        future.set_exception(error if isinstance(error, NotCompiled) else NotCompiled(repr(error)))


def compiled(folder: Path) -> Compiled:
    """Load the pass from the folder, compile it there first where it is not; raises NotCompiled.

    Where the folder cannot be written, or others can write it, a temporary one takes its place.
    """
    compiler = _compiler()
    if _is_ours(folder):
        return _first_that_works(compiler, folder)
    with tempfile.TemporaryDirectory(prefix="gradspectra-") as temporary:
        return _first_that_works(compiler, Path(temporary))


def _compiler() -> list[str]:
    """The command of $CC, else of the first compiler that is there."""
    for text in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        command = shlex.split(text)
        if command and shutil.which(command[0]):
            return command
    raise NotCompiled("there is no C compiler (cc, gcc or clang; or name one in CC)")


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK)


def _first_that_works(compiler: Sequence[str], folder: Path) -> Compiled:
    reasons = []
    for choice in CHOICES:
        command = [*compiler, *FLAGS, *choice]
        made_of = [SOURCE.read_text(), platform.machine(), platform.platform(), *command]
        library = folder / f"fused-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:20]}.so"
        try:
            if not library.exists():
                _make(command, library)
            return _checked(_load(library))
        except NotCompiled as error:
            reasons.append(str(error))
    raise NotCompiled(reasons[0])


def _make(command: Sequence[str], library: Path) -> None:
    unfinished = library.with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run(
            [*command, "-o", str(unfinished), str(SOURCE), "-lm"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise NotCompiled(f"{command[0]} failed: {done.stderr.strip().splitlines()[:1]}")
        unfinished.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(f"{command[0]} could not compile it: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _load(library: Path) -> Compiled:
    try:
        loaded = ctypes.CDLL(str(library))
        functions = [getattr(loaded, f"gradspectra_{name}") for name in Compiled._fields]
    except (OSError, AttributeError) as error:
        raise NotCompiled(f"it cannot be loaded: {error}") from error
    for function in functions:
        function.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        function.restype = None
    return Compiled(*functions)


def _checked(found: Compiled) -> Compiled:
    """The same, once it has measured made-up numbers as numpy does; raises NotCompiled where it does not."""
    draw = np.random.default_rng(0)
    g, w, m = (draw.standard_normal((7, 601), np.float32) for _ in range(3))
    v = draw.random((7, 601), np.float32)
    g[2] = 0.0
    for measured, expected in (_of_a_layer(found, g, w, m, v), _of_vectors(found, g, w, m)):
        if not np.allclose(measured, expected, rtol=1e-4, atol=1e-2, equal_nan=True):
            raise NotCompiled(f"it measures {measured} where numpy has {expected}")
    return found


def _of_a_layer(found: Compiled, *arrays: Float32) -> tuple[list[float], list[float]]:
    """What `measure` finds, and what it should: of gradient, weights and Adam's moments, each (7, 601)."""
    layer, row = np.zeros(1, LAYER), np.zeros((1, len(ROW)))
    layer[0] = (*(array.ctypes.data for array in arrays), 7, 601, ADAM, 0.5, 1e-3, 0.25)
    found.measure(1, layer.ctypes.data, row.ctypes.data)
    g, w, m, v = (array.astype(np.float64) for array in arrays)
    d = m / (0.5 * np.sqrt(v) + 1e-3) + 0.25 * w
    grad_sq, grad_l1 = (g**2).sum(), np.abs(g)
    expected = [grad_sq, grad_l1.max(), (w**2).sum(), (d**2).sum(), grad_l1.sum(), 1.0, (g * w).sum()]
    expected += [(d * g).sum(), (m**2).sum(), v.sum(), 0.0, grad_sq]
    return row[0].tolist(), expected


def _of_vectors(found: Compiled, g: Float32, w: Float32, m: Float32) -> tuple[list[float], list[float]]:
    """What the other functions find, and what they should."""
    vectors, sums = np.zeros(2, VECTOR), np.zeros(2)
    vectors[0], vectors[1] = (w.ctypes.data, w.size), (m.ctypes.data, 1)
    found.squares(2, vectors.ctypes.data, sums.ctypes.data)
    broken, extremes = g.copy(), np.array([-1.0, 0.0])
    broken[3, :3] = np.nan, np.inf, -np.inf
    found.extremes(broken.size, broken.ctypes.data, extremes.ctypes.data)
    samples, medians, drift = np.zeros(2, SAMPLE), np.zeros(2), np.zeros((1, 2))
    samples[0], samples[1] = (w.ctypes.data, 0, 6, 1, 5), (broken.ctypes.data, 0, w.size, 1, 1)
    found.medians(2, samples.ctypes.data, medians.ctypes.data)
    samples[0] = w.ctypes.data, m.ctypes.data, 40, 16, 48
    found.drift(1, samples.ctypes.data, drift.ctypes.data)
    now = w.ravel()[: 40 * 48].reshape(40, 48)[:, :16].astype(np.float64)
    start = m.ravel()[:640].reshape(40, 16).astype(np.float64)
    finite = np.abs(broken[np.isfinite(broken)])
    expected = [(w.astype(np.float64) ** 2).sum(), float(m.flat[0]) ** 2, finite.max(), 3.0]
    expected += [np.sort(w.ravel()[:30:5])[2], np.nan, ((now - start) ** 2).sum(), (now * start).sum()]
    return [*sums.tolist(), *extremes.tolist(), *medians.tolist(), *drift[0].tolist()], expected
