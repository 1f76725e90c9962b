"""The threads of the compiled pass: torch's own are shared, and how many there are changes no number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gradspectra.compiling import ADAM, LAYER, LINEAR, NO_UPDATE, ROW, SAMPLE, VECTOR, Compiled, compilation
from gradspectra.flat import OneThread, given_threads
from gradspectra.team import _of_torch, begin_of_torch

SIZES = ((1, 1), (64, 2400), (3, 70_001), (1, 200_003), (65_536, 3), (1000, 65), (2, 65_536))
"""Units and numbers of each, of layers below, at and above what a thread takes at a time."""
HOME = str(Path(torch.__file__).parent)


@pytest.fixture(scope="module")
def measuring() -> Compiled:
    why_not = str(compilation().exception() or "")
    if "no C compiler" in why_not:
        pytest.skip(why_not)
    return compilation().result()


def layers(rule: int, spoil: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    draw = np.random.default_rng(3)
    table, kept = np.zeros(len(SIZES), LAYER), []
    for at, (units, each) in enumerate(SIZES):
        g, w, m = (draw.standard_normal((units, each), np.float32) for _ in range(3))
        v = draw.random((units, each), np.float32)
        g[units // 2] = 0.0
        if spoil:
            g[-1, -1], g[0, each // 2] = np.nan, np.inf
        kept += [g, w, m, v]
        table[at] = (*(array.ctypes.data for array in (g, w, m, v)), units, each, rule, 0.5, 1e-3, 0.25)
    return table, kept


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("rule", [ADAM, LINEAR, NO_UPDATE])
def test_threads_change_no_bit_of_a_row_and_none_is_missing(measuring: Compiled, rule: int, spoil: bool) -> None:
    table, kept = layers(rule, spoil)
    rows = np.full((3, len(SIZES), len(ROW)), -1.0)
    for row, threads in zip(rows, (1, 2, 3), strict=True):
        measuring.measure(len(table), table.ctypes.data, row.ctypes.data, threads)
    assert rows[0].tobytes() == rows[1].tobytes() == rows[2].tobytes()
    for found, g, w in zip(rows[1], kept[::4], kept[1::4], strict=True):
        finite = np.isfinite(g)
        expected = {
            "grad_sq": np.square(g[finite], dtype=np.float64).sum(),
            "weight_sq": np.square(w, dtype=np.float64).sum(),
            "grad_nonfinite": (~finite).sum(),
            "grad_zero_rows": (g == 0).all(1).sum(),
            "grad_max": np.abs(g[finite]).max(initial=0),
        }
        for name, value in expected.items():
            assert found[ROW.index(name)] == pytest.approx(value, rel=1e-6), name


def test_threads_change_neither_squares_nor_extremes_nor_medians_nor_drift(measuring: Compiled) -> None:
    draw = np.random.default_rng(4)
    arrays = [draw.standard_normal(units * each, np.float32) for units, each in SIZES] * 2
    arrays[3] = arrays[3].copy()
    arrays[3][[0, 65_536, -1]] = np.nan, np.inf, -np.inf
    vectors, samples = np.zeros(len(arrays), VECTOR), np.zeros(len(arrays), SAMPLE)
    for at, array in enumerate(arrays):
        vectors[at] = array.ctypes.data, array.size
        samples[at] = (array.ctypes.data, arrays[-1].ctypes.data, 0, 0, 0, min(array.size, 1000), 1, 1)
    long = np.concatenate(arrays)
    found = []
    for threads in (1, 2):
        sums, medians, drift, extremes = np.zeros(14), np.zeros(14), np.zeros((14, 2)), np.array([-1.0, 0.0])
        measuring.squares(14, vectors.ctypes.data, sums.ctypes.data, threads)
        measuring.medians(14, samples.ctypes.data, medians.ctypes.data, threads)
        samples["blocks"], samples["width"] = 1, np.minimum(vectors["count"], 1000)
        measuring.drift(14, samples.ctypes.data, drift.ctypes.data, threads)
        samples["blocks"], samples["width"] = samples["width"], 1
        measuring.extremes(long.size, long.ctypes.data, extremes.ctypes.data, threads)
        found.append([one.tobytes() for one in (sums, medians, drift, extremes)])
        assert extremes.tolist() == [np.abs(long[np.isfinite(long)]).max(), 3.0]
        assert sums[[0, -1]].tolist() == pytest.approx([arrays[0][0] ** 2, np.square(arrays[-1]).sum()], rel=1e-4)
    assert found[0] == found[1]


RUNS = """
import os, time, numpy as np, torch
from gradspectra.compiling import VECTOR, compilation
torch.set_num_threads(2)
numbers = torch.rand(1 << 22)
numbers.mul_(1.0)  # torch has its threads now
vector, sums = np.zeros(1, VECTOR), np.zeros(1)
vector[0] = numbers.data_ptr(), numbers.numel()
squares = compilation().result().squares
def others():  # nanoseconds that each other thread has run
    own = {int(name): open(f"/proc/self/task/{name}/schedstat").read() for name in os.listdir("/proc/self/task")}
    return {name: int(text.split()[0]) for name, text in own.items() if name != os.getpid()}
def run(threads):
    time.sleep(0.3)  # none of them waits busily any more
    before = others()
    squares(1, vector.ctypes.data, sums.ctypes.data, threads)
    time.sleep(0.3)
    after = others()
    assert after.keys() == before.keys(), "no thread is begun for it"
    return sum(after[name] > before[name] for name in after)
print(run(1), run(2), abs(sums[0] / float(numbers.double().square().sum()) - 1) < 1e-6)
"""


@pytest.mark.usefixtures("measuring")
@pytest.mark.skipif(not begin_of_torch(), reason="torch has no OpenMP runtime of its own here")
def test_the_second_thread_is_one_of_torchs_own() -> None:
    done = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["0", "1", "True"], done.stderr


def test_the_runtime_is_that_beside_torch_or_the_only_one() -> None:
    others = {"/usr/lib/libc.so.6", "/usr/lib/libgompish.so", "/x/libcompany.so"}
    beside, bundled = f"{HOME}/lib/libgomp.so.1", f"{HOME}.libs/libgomp-a34b3233.so.1.0.0"
    assert _of_torch(others) is None
    assert _of_torch(others | {"/usr/lib/libiomp5.so"}) == "/usr/lib/libiomp5.so"
    assert _of_torch(others | {"/usr/lib/libgomp.so.1", beside}) == beside
    assert _of_torch(others | {"/y/scikit_learn.libs/libgomp-b2.so.1", bundled}) == bundled
    assert _of_torch({"/usr/lib/libgomp.so.1", "/y/libomp.so"}) is None, "which of them is torch's is unclear"


def test_a_block_of_one_thread_knows_how_many_the_training_has() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with OneThread(), OneThread():
            assert torch.get_num_threads() == 1
            assert given_threads() == 3
        assert (torch.get_num_threads(), given_threads()) == (3, 3)
        torch.set_num_threads(1)
        with OneThread():
            assert given_threads() == 1
    finally:
        torch.set_num_threads(before)
