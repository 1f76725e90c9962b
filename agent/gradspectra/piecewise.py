"""All sums of float32 layers on a CPU where there is no compiler: by torch and numpy, in pieces that stay in cache.

What fused.c reads once is here read from memory once and from the cache ten times. Small layers lie one after another
in one vector, since an operation on a few numbers takes as long as on ten thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from gradspectra_core.records import Float32, Float64, Int64
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from gradspectra.compiling import ADAM, MOST_BLOCKS, NO_UPDATE, ROW
from gradspectra.flat import OneThread
from gradspectra.shards import local
from gradspectra.updates import Coefficients

PIECE = 3 << 15
"""Elements that are measured at a time: 384 KiB of each of gradient, weights and moments. In fewer the calls weigh more
than a faster cache saves."""
TOGETHER = 1 << 14
"""Elements of layers that are measured together at most."""
SMALL = TOGETHER >> 1
"""Elements of a layer that is measured together with others at most."""
SQUARE, LARGEST, WEIGHT, MOVED, SUM, IDLE, DOT, ALONG, FIRST, SECOND, LOST, WHOLE = range(len(ROW))
"""Columns of ROW."""
AT_MOST = np.finfo(np.float32).max


class Numbers(NamedTuple):
    """A layer on the host: n ≥ 1 numbers in float32 and in order, in any shape, and how its update was made.

    per_unit: how many numbers an output unit has. first, second: as `Coefficients` has them; what its rule does not
    take may be any n numbers.
    """

    gradient: Tensor
    weight: Tensor
    first: Tensor
    second: Tensor
    per_unit: int
    update: Coefficients


def layers_of(
    tensors: Sequence[Sequence[Tensor]], updates: Sequence[Coefficients], pieces: Sequence[tuple[int, int, int, int]]
) -> list[Numbers]:
    """The layers of tensors, each from the first four of Numbers in any shape and its update.

    pieces: of each layer the index of its tensor, its numbers [start, stop) of that, and those of an output unit.
    """
    found = []
    for at, start, stop, per_unit in pieces:
        g, w, m, v = (local(numbers) for numbers in tensors[at])
        if not stop - start == g.numel() == w.numel() == m.numel() == v.numel():
            g, w, m, v = (numbers.detach().view(-1)[start:stop] for numbers in (g, w, m, v))
        found.append(Numbers(g, w, m, v, per_unit, updates[at]))
    return found


@np.errstate(all="ignore")
def measure_in_pieces(layers: Sequence[Numbers]) -> tuple[Float64, Float64]:
    """What fused.c finds of n layers, (n, len(ROW)); and the medians of `second`, (n,), NaN where it is not Adam's v.

    Medians are of the sample that `FusedPass.medians` takes, the lower of two; NaN where the sample has one. One thread
    takes all: on busy cores, hundreds of operations that each wait for a second one take twenty times as long.
    """
    rows, medians = np.zeros((len(layers), len(ROW))), np.full(len(layers), np.nan)
    sizes = [layer.gradient.numel() for layer in layers]
    with OneThread(), torch.no_grad():
        most = min(max(sizes), PIECE)
        scratch = torch.empty(max(most, TOGETHER), dtype=torch.float32, device="cpu")
        for together in _batches(layers, sizes):
            if len(together) == 1:
                medians[together] = _measure_alone(layers[together[0]], rows[together[0]], scratch, most)
            else:
                chosen = [layers[at] for at in together]
                rows[together], medians[together] = _measure_together(chosen, [sizes[at] for at in together], scratch)
    rows[:, WHOLE] = rows[:, SQUARE]
    for at in np.flatnonzero(~(rows[:, LARGEST] <= AT_MOST)).tolist():
        _without_nonfinite(layers[at], rows[at])
    return rows, medians


def _batches(layers: Sequence[Numbers], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Which layers are measured together: small ones of one kind of update, and each other alone."""
    open_ones: dict[Coefficients, tuple[list[int], int]] = {}
    for at, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
        if size > SMALL:
            yield [at]
            continue
        batch, filled = open_ones.get(layer.update, ([], 0))
        if filled + size > TOGETHER:
            yield batch
            batch, filled = [], 0
        batch.append(at)
        open_ones[layer.update] = batch, filled + size
    yield from (batch for batch, _ in open_ones.values())


def _measure_alone(layer: Numbers, row: Float64, scratch: Tensor, most: int) -> float:
    """Add up what the pieces of one layer have, of `most` elements each. Returns its median."""
    g, w, m, v = (numbers.view(-1) for numbers in layer[:4])
    update, second, size = layer.update, v.numpy(), len(v)
    stride = _stride(size)
    sample = np.empty(-(-size // stride), np.float32)
    for at in range(0, size, most):
        stop = min(at + most, size)
        piece = g[at:stop], w[at:stop], m[at:stop], v[at:stop]
        found = _sums(update, *piece, scratch[: stop - at], None)[:, 0]
        largest = np.maximum(row[LARGEST], found[LARGEST])
        row += found
        row[LARGEST] = largest
        if update.rule == ADAM:  # as long as these numbers are in the cache
            first, last = -(-at // stride), -(-stop // stride)
            sample[first:last] = second[first * stride : stop : stride]
    row[IDLE] = _idle_units(g.numpy(), layer.per_unit)
    return _median(sample, row[SECOND]) if update.rule == ADAM else np.nan


def _measure_together(layers: Sequence[Numbers], sizes: Sequence[int], scratch: Tensor) -> tuple[Float64, list[float]]:
    """Rows and medians of layers of these sizes with one kind of update."""
    stops = list(accumulate(sizes))
    starts = [0, *stops[:-1]]
    kinds = list(zip(*layers, strict=True))[:4]
    g, w, m, v = (_flatten_dense_tensors(kind) for kind in kinds)  # type: ignore[no-untyped-call]
    update = layers[0].update
    rows = _sums(update, g, w, m, v, scratch[: len(g)], np.array(starts)).T
    gradient, second, medians = g.numpy(), v.numpy(), [np.nan] * len(layers)
    if not gradient.all():
        pairs = zip(layers, starts, stops, strict=True)
        rows[:, IDLE] = [_idle_units(gradient[start:stop], layer.per_unit) for layer, start, stop in pairs]
    if update.rule == ADAM:
        spans = zip(starts, stops, rows[:, SECOND].tolist(), strict=True)
        medians = [_median(second[start : stop : _stride(stop - start)].copy(), whole) for start, stop, whole in spans]
    return rows, medians


def _sums(
    update: Coefficients, g: Tensor, w: Tensor, m: Tensor, v: Tensor, scratch: Tensor, starts: Int64 | None
) -> Float64:
    """Sums over vectors, and the largest magnitude of the gradient: (len(ROW), 1), or of each layer that starts there.

    What takes a closer look (IDLE, LOST, WHOLE) is 0.
    """
    add = _Whole() if starts is None else _Layers(starts, torch.empty_like(g))
    found = np.zeros((len(ROW), 1 if starts is None else len(starts)))
    torch.abs(g, out=scratch)
    found[SUM], found[LARGEST] = add.sum(scratch), add.largest(scratch)
    if update.rule != NO_UPDATE:
        d, scale = _direction(update, g, w, m, v, scratch)
        found[MOVED], found[ALONG] = add.dot(d, d) * (scale * scale), add.dot(d, g) * scale
    found[SQUARE], found[DOT], found[WEIGHT] = add.dot(g, g), add.dot(g, w), add.dot(w, w)
    if update.rule == ADAM:
        found[FIRST], found[SECOND] = add.dot(m, m), add.sum(v)
    return found


def _direction(update: Coefficients, g: Tensor, w: Tensor, m: Tensor, v: Tensor, out: Tensor) -> tuple[Tensor, float]:
    """A vector, and what it is to be multiplied by to be the direction d of the update. out: a temporary."""
    if update.rule == ADAM:
        epsilon = update.epsilon / update.scale
        root = np.sqrt(v.numpy(), out=out.numpy())  # torch's take up to twice as long on some processors
        np.add(root, epsilon, out=root)
        if update.decay:
            return torch.addcdiv(w, m, out, value=1 / (update.decay * update.scale), out=out), update.decay
        return torch.div(m, out, out=out), 1 / update.scale
    torch.mul(g, update.scale, out=out)
    if update.epsilon:
        out.add_(m, alpha=update.epsilon)
    if update.decay:
        out.add_(w, alpha=update.decay)
    return out, 1.0


class _Whole:
    """Sums over whole vectors."""

    def dot(self, a: Tensor, b: Tensor) -> float:
        return torch.dot(a, b).item()

    def sum(self, a: Tensor) -> float:
        return a.sum().item()

    def largest(self, a: Tensor) -> float:
        return a.amax().item()


class _Layers:
    """Sums over the layers that lie in a vector one after another, (n,). products: a temporary of its size."""

    def __init__(self, starts: Int64, products: Tensor) -> None:
        self._starts = starts
        self._products: Float32 = products.numpy()

    def dot(self, a: Tensor, b: Tensor) -> Float32:
        return np.add.reduceat(np.multiply(a.numpy(), b.numpy(), out=self._products), self._starts)

    def sum(self, a: Tensor) -> Float32:
        return np.add.reduceat(a.numpy(), self._starts)

    def largest(self, a: Tensor) -> Float32:
        return np.maximum.reduceat(a.numpy(), self._starts)


def _idle_units(gradient: Float32, per_unit: int) -> int:
    """How many output units, of so many numbers each, have a gradient of zeros alone."""
    if gradient[::per_unit].all():  # their first numbers; as a rule there is no more to see
        return 0
    units = gradient.reshape(-1, per_unit)
    suspects = np.flatnonzero(units[:, 0] == 0)
    at_once = max(PIECE // per_unit, 1)
    found = 0
    for at in range(0, len(suspects), at_once):
        chosen = units[suspects[at : at + at_once]]
        found += len(chosen) - int(np.count_nonzero(chosen.any(1)))
    return found


def _stride(size: int) -> int:
    """Of a layer of so many numbers one in so many is in the sample of its median."""
    return -(-size // MOST_BLOCKS) | 1


def _median(sample: Float32, whole: float) -> float:
    """The lower median of a sample, which is written to; NaN where it has one. whole: the sum of the layer."""
    middle = (len(sample) - 1) // 2
    sample.partition(middle)  # a NaN comes last
    broken = math.isnan(whole) and math.isnan(sample[middle:].max())
    return math.nan if broken else float(sample[middle])


def _without_nonfinite(layer: Numbers, row: Float64) -> None:
    """The numbers of the gradient anew, of its finite entries alone."""
    gradient, weight = (numbers.detach().view(-1).numpy() for numbers in layer[:2])
    row[[SQUARE, LARGEST, SUM, DOT]] = 0.0
    for at in range(0, len(gradient), PIECE):
        finite = np.isfinite(gradient[at : at + PIECE])
        g = gradient[at : at + PIECE][finite].astype(np.float64)
        row[LOST] += len(finite) - len(g)
        if len(g):
            row[SQUARE] += np.square(g).sum()
            row[LARGEST] = max(row[LARGEST], np.abs(g).max())
            row[SUM] += np.abs(g).sum()
            row[DOT] += (g * weight[at : at + PIECE][finite]).sum()
