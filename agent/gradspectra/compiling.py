"""Compiles fused.c, samples.c and team.c for the machine they run on, once for all processes; no job waits for it."""

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
from gradspectra.team import begin_of_torch

SOURCES = tuple(Path(__file__).with_name(name) for name in ("fused.c", "samples.c", "team.c"))
SHARED = Path(__file__).with_name("fused.h")
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
    [(name, np.uint64) for name in ("numbers", "start", "lower")]
    + [("half", np.int64), ("step", np.float64)]
    + [(name, np.int64) for name in ("blocks", "width", "stride")]
)
"""A sample as samples.c takes it: blocks of `width` float32 numbers, which begin `stride` numbers apart. start: where
the numbers lie one after another that it is compared with, in float32 where step is 0. Else they are whole numbers of
so many steps, as `starts.Coded` has them: start is where their upper bits lie, lower where the other 4 do, those of the
first `half` of them in the lower half of each byte."""
MOST_BLOCKS = 4096
"""Of a sample that a median is taken of; further ones are left out."""

ArrayFunction = Callable[[int, int, int, int], None]
"""Takes the length of two arrays, their addresses, of what to read and of what to write, and by how many threads at
most that is done, of those that torch has (`flat.given_threads`). Their number changes no result."""


class Compiled(NamedTuple):
    """The functions of fused.c and samples.c; what they write is float64.

    measure: from LAYER to rows of ROW. squares: from VECTOR to sums of squares. extremes: from float32 numbers; raises
    the first of two numbers to their largest finite magnitude, and adds to the second how many are not finite.
    medians: from SAMPLE, one number a block, the lower of two; NaN where there is one. drift: from SAMPLE to pairs, the
    square of the distance from the start and the inner product with it; of blocks of 16 numbers, or of one row.
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
        texts = [source.read_text() for source in (SHARED, *SOURCES)]
        made_of = [*texts, platform.machine(), platform.platform(), *command]
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
            [*command, "-o", str(unfinished), *map(str, SOURCES), "-lm"],
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
        function.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        function.restype = None
    loaded.gradspectra_team.argtypes, loaded.gradspectra_team.restype = (ctypes.c_void_p,), None
    loaded.gradspectra_team(begin_of_torch())
    return Compiled(*functions)


def _checked(found: Compiled) -> Compiled:
    """The same, once it has measured made-up numbers as numpy does; raises NotCompiled where it does not."""
    draw = np.random.default_rng(0)
    g, w, m = (draw.standard_normal((7, 601), np.float32) for _ in range(3))
    v = draw.random((7, 601), np.float32)
    g[2] = 0.0
    for measured, expected in (_of_a_layer(found, g, w, m, v), _of_vectors(found, g, w), _of_starts(found, w, m)):
        if not np.allclose(measured, expected, rtol=1e-4, atol=1e-2, equal_nan=True):
            raise NotCompiled(f"it measures {measured} where numpy has {expected}")
    return found


def _of_a_layer(found: Compiled, *arrays: Float32) -> tuple[list[float], list[float]]:
    """What `measure` finds, and what it should: of gradient, weights and Adam's moments, each (7, 601)."""
    layer, row = np.zeros(1, LAYER), np.zeros((1, len(ROW)))
    layer[0] = (*(array.ctypes.data for array in arrays), 7, 601, ADAM, 0.5, 1e-3, 0.25)
    found.measure(1, layer.ctypes.data, row.ctypes.data, 1)
    g, w, m, v = (array.astype(np.float64) for array in arrays)
    d = m / (0.5 * np.sqrt(v) + 1e-3) + 0.25 * w
    grad_sq, grad_l1 = (g**2).sum(), np.abs(g)
    expected = [grad_sq, grad_l1.max(), (w**2).sum(), (d**2).sum(), grad_l1.sum(), 1.0, (g * w).sum()]
    expected += [(d * g).sum(), (m**2).sum(), v.sum(), 0.0, grad_sq]
    return row[0].tolist(), expected


def _of_vectors(found: Compiled, g: Float32, w: Float32) -> tuple[list[float], list[float]]:
    """What `squares`, `extremes` and `medians` find, and what they should."""
    vectors, sums = np.zeros(2, VECTOR), np.zeros(2)
    vectors[0], vectors[1] = (w.ctypes.data, w.size), (g.ctypes.data, 1)
    found.squares(2, vectors.ctypes.data, sums.ctypes.data, 1)
    broken, extremes = g.copy(), np.array([-1.0, 0.0])
    broken[3, :3] = np.nan, np.inf, -np.inf
    found.extremes(broken.size, broken.ctypes.data, extremes.ctypes.data, 1)
    samples, medians = np.zeros(2, SAMPLE), np.zeros(2)
    samples[0], samples[1] = (w.ctypes.data, 0, 0, 0, 0, 6, 1, 5), (broken.ctypes.data, 0, 0, 0, 0, w.size, 1, 1)
    found.medians(2, samples.ctypes.data, medians.ctypes.data, 1)
    finite = np.abs(broken[np.isfinite(broken)])
    expected = [(w.astype(np.float64) ** 2).sum(), float(g.flat[0]) ** 2, finite.max(), 3.0]
    expected += [np.sort(w.ravel()[:30:5])[2], np.nan]
    return [*sums.tolist(), *extremes.tolist(), *medians.tolist()], expected


def _of_starts(found: Compiled, w: Float32, m: Float32) -> tuple[list[float], list[float]]:
    """What `drift` finds, and what it should: of blocks and of one long row, from float32 numbers and from codes."""
    draw = np.random.default_rng(1)
    upper, lower = draw.integers(-(1 << 15), 1 << 15, 640, np.int16), draw.integers(0, 256, 320, np.uint8)
    samples, drift, expected = np.zeros(4, SAMPLE), np.zeros((4, 2)), []
    places = [w.copy() for _ in samples]
    for row, (blocks, width, stride, step) in enumerate(
        (*shape, step) for shape in ((40, 16, 48), (1, 637, 637)) for step in (0.0, 0.0625)
    ):
        count, half = blocks * width, (blocks + 1) // 2 * 16 if blocks > 1 else (width + 1) // 2
        whole = 16.0 * upper[:count] + np.concatenate([lower[:half] & 15, lower[: count - half] >> 4])
        start = (step * whole if step else m.ravel()[:count].astype(np.float64)).reshape(blocks, width)
        now = places[row].ravel()[: blocks * stride].reshape(blocks, stride)[:, :width]
        now += start.astype(np.float32)
        at = (upper if step else m).ctypes.data
        samples[row] = (now.ctypes.data, at, lower.ctypes.data, half, step, blocks, width, stride)
        expected += [((now - start) ** 2).sum(), (now * start).sum()]
    found.drift(len(samples), samples.ctypes.data, drift.ctypes.data, 1)
    return drift.ravel().tolist(), expected
