"""Arithmetic of heatmaps: the order of rows, empty columns for holes, log colour ticks, names that fit."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from gradspectra_core.views import LayerSeries

from gradspectra_frontend.marks import Array, holes

MAX_COLUMNS = 1200
ORDERS = ("depth", "role", "name")
ROLE_ORDER = ("embedding", "norm", "q", "k", "v", "o", "up", "gate", "down", "conv", "linear", "bias", "other", "head")

_MODELS = 16
"""Of so many models, those drawn last, the order and the short names of their layers are kept."""


def row_order(data: LayerSeries, order: str) -> list[int]:
    """Rows of the data in the order drawn, top to bottom; raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    return list(_ordered(tuple(data.layers), tuple(data.roles), tuple(data.depths), order))


@lru_cache(_MODELS)
def _ordered(layers: tuple[str, ...], roles: tuple[str, ...], depths: tuple[int, ...], order: str) -> tuple[int, ...]:
    ranks = {role: i for i, role in enumerate(ROLE_ORDER)}
    last = max(depths, default=0) + 1

    def key(i: int) -> tuple[Any, ...]:
        depth, rank = depths[i], ranks.get(roles[i], len(ranks))
        if depth < 0 and roles[i] != "embedding":
            depth = last  # outside of any block and no embedding: the head and the last norm come after all blocks
        return {"depth": (depth, i), "role": (rank, depth, i), "name": (layers[i],)}[order]

    return tuple(sorted(range(len(layers)), key=key))


def packed(values: Array) -> dict[str, Any]:
    """Array in Plotly's own binary form (base64 of its bytes): a third of the size of JSON numbers, and NaN stays."""
    values = np.ascontiguousarray(values, np.float32)
    text = base64.b64encode(values.data).decode("ascii")
    return {"dtype": "f4", "bdata": text, "shape": ",".join(str(n) for n in values.shape)}


def short_names(names: Sequence[str]) -> list[str]:
    """Names without `.weight` (before a block too, as `qkv[q]`) and the first words that most share (such as `model.`).

    A word before a number (the `h` of `h.0.attn`) stays, and so does everything where two names would become alike.
    """
    return list(_shortened(tuple(names)))


@lru_cache(_MODELS)
def _shortened(names: tuple[str, ...]) -> tuple[str, ...]:
    parts = [name.removesuffix(".weight").replace(".weight[", "[").split(".") for name in names]
    while any(len(part) > 1 for part in parts):
        word, count = Counter(part[0] for part in parts if len(part) > 1).most_common(1)[0]
        shorter = [part[1:] if len(part) > 1 and part[0] == word else part for part in parts]
        numbered = any(part[0].isdigit() for part in shorter)
        if count * 2 <= len(parts) or numbered or len({tuple(part) for part in shorter}) < len(parts):
            break
        parts = shorter
    return tuple([".".join(part) for part in parts])


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells of a heatmap, all of one width. x: (N,) first step of each column; value, nonfinite, present: (L, N)."""

    x: Array
    value: Array
    nonfinite: Array
    present: Array


def gridded(x: Array, value: Array, nonfinite: Array, present: Array) -> Grid:
    """Put measurements at irregular steps into columns of equal width, each one holding until the next of its row.

    x: (N,) ascending; value, nonfinite, present: (L, N). A column is as wide as the smallest distance of x, or the
    whole span divided by MAX_COLUMNS; where it takes several entries it shows the largest value. Where
    all but the first are the same, that one does not count: a run's first bucket is named by the run's first step.
    """
    if not len(x):
        return Grid(np.asarray(x), value, nonfinite, present)
    distances = np.diff(x)
    regular = len(x) > 2 and distances[0] < distances[1] <= x[1] and bool((distances[1:] == distances[1]).all())
    begin = x[1] - distances[1] if regular else x[0]
    width = max(float(distances[1 if regular else 0 :].min()), 1.0) if len(x) > 1 else 1.0
    even = len(x) > 1 and (regular or bool((distances == distances[0]).all()))
    if even and len(x) <= MAX_COLUMNS and present.all():
        return Grid(begin + width * np.arange(len(x)), value, nonfinite, present)
    width = max(width, np.ceil(float(x[-1] - begin) / MAX_COLUMNS))
    cell = ((x - begin) // width).astype(np.int64)
    columns = begin + width * np.arange(cell[-1] + 1)
    first = np.flatnonzero(np.append(True, np.diff(cell) > 0))
    if len(first) == len(x) == len(columns) and present.all():
        return Grid(columns, value, nonfinite, present)
    shown = np.full((len(present), len(columns)), False)
    shown[:, cell[first]] = np.logical_or.reduceat(present, first, axis=1)
    measured = np.where(present, value, -np.inf)
    largest = np.maximum.reduceat(measured, first, axis=1)  # NaN wins, as it should
    full = np.full(shown.shape, np.nan)
    full[:, cell[first]] = largest
    counts = np.zeros(shown.shape)
    counts[:, cell[first]] = np.add.reduceat(np.where(present, nonfinite, 0), first, axis=1)
    source = held(shown, columns)
    at = np.maximum(source, 0)
    here = source >= 0
    return Grid(
        columns,
        np.where(here, np.take_along_axis(full, at, 1), np.nan),
        np.where(here, np.take_along_axis(counts, at, 1), 0),
        here,
    )


def edges(x: Array) -> dict[str, float]:
    """Say where the cells of columns x, (N,) with N > 0, begin and end, as options of an axis.

    A mark on the last column would widen the axis, and what lies beyond the cells look like missing steps.
    """
    half = float(x[1] - x[0]) / 2 if len(x) > 1 else 0.5
    return {"clipmin": float(x[0]) - half, "clipmax": float(x[-1]) + half}


def held(present: Array, x: Array) -> Array:
    """Index (L, N) of the column whose value each cell shows, −1 for none: a measurement holds until the next one.

    present: (L, N) bool; x: (N,) ascending. A row that is measured at each 8th step would else be seven eighths
    empty. Before a hole (as in `marks.holes`) and after the last measurement, a value holds for one and a half of the
    distance before it; the only one of a row holds to the end.
    """
    patterns, which = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    if len(patterns) < len(present):  # most rows are measured at the same steps
        alike = np.unpackbits(patterns, axis=1, count=len(x)).view(np.bool_)
        return held(alike, x)[which.reshape(-1)]
    columns = np.arange(len(x))
    last = np.maximum.accumulate(np.where(present, columns, -1), axis=1)
    for row, there in enumerate(present):
        at = x[there].astype(float)
        if len(at) < 2:
            continue
        before = np.diff(at, prepend=at[0])
        until = np.append(at[1:], np.inf)
        ends = np.append(holes(at), len(at) - 1)
        until[ends] = at[ends] + 1.5 * before[ends]
        shown = last[row] >= 0
        number = np.cumsum(there)[shown] - 1
        last[row, shown] = np.where((x[shown] < until[number]) | there[shown], last[row, shown], -1)
    return last


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Tick positions (log10) and texts for values from 10^low to 10^high: at most about 8, each a round number."""
    span = high - low
    if span > 2:
        step = max(1, math.ceil(span / 7))
        powers = range(math.ceil(low), math.floor(high) + 1)
        chosen = [power for power in powers if power % step == 0]
        return [float(power) for power in chosen], [_power(power) for power in chosen]
    digits = (1, 2, 5) if span > 0.6 else range(1, 10)
    values = [d * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for d in digits]
    inside = [value for value in values if value > 0 and low - 1e-9 <= math.log10(value) <= high + 1e-9]
    if len(inside) < 2:
        inside = [10**low, 10**high] if span > 0 else [10**low]
    return [math.log10(value) for value in inside], [f"{value:.3g}" for value in inside]


def _power(power: int) -> str:
    if -3 <= power <= 4:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
