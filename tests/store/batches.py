"""Batches to store in tests: small, exact, with every kind of number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock, SpectrumBlock
from gradspectra_store import Store
from gradspectra_store.ingest import Ingested, ingest
from gradspectra_store.runs import RunRequest, RunStarted, start_run

TABLE = LayerTable.of(
    [
        Layer("embedding.weight", "embedding", -1, (256, 8)),
        Layer("layers.0.up.weight", "up", 0, (32, 8)),
        Layer("layers.0.norm.weight", "norm", 0, (8,)),
    ]
)


def columns(values: Mapping[str, Sequence[float | None]], size: int, dtype: type = np.float64) -> Columns:
    """Columns from lists in which None is absent."""
    array, present = np.zeros((len(values), size), dtype), np.zeros((len(values), size), np.bool_)
    for row, own in enumerate(values.values()):
        for at, value in enumerate(own):
            if value is not None:
                array[row, at], present[row, at] = value, True
    return Columns(tuple(values), array, present)


def layer_block(steps: Sequence[int], values: Mapping[str, np.ndarray], table: LayerTable = TABLE) -> LayerBlock:
    """Layer statistics from (T, L) arrays, all present."""
    array = np.array(list(values.values()), np.float32).reshape(len(values), len(steps), len(table))
    none = np.zeros((0, len(steps), len(table)))
    return LayerBlock(
        table.digest,
        np.array(steps, np.int64),
        tuple(values),
        array,
        np.ones(array.shape, np.bool_),
        (),
        none.astype(np.int64),
        none.astype(np.bool_),
    )


def spectrum_block(places: Sequence[tuple[int, int]], table: LayerTable = TABLE, of: str = "gradient") -> SpectrumBlock:
    """One spectrum of three singular values (step, half, quarter of it) for each (step, layer)."""
    count = len(places)
    step, layer = np.array(places, np.int64).reshape(count, 2).T
    values = step[:, None] / np.array([1.0, 2.0, 4.0])
    aggregates = np.tile(np.arange(1.0, 8.0), (count, 1))
    whole = np.full(count, 8, np.int64)
    return SpectrumBlock(
        digest=table.digest,
        step=step,
        layer=layer,
        rows=whole,
        columns=whole,
        length=np.full(count, 3, np.int64),
        of=(of,) * count,
        method=("exact",) * count,
        aggregates=aggregates,
        index=np.tile(np.arange(3), (count, 1)),
        values=values.astype(np.float32),
    )


def a_batch(session: str, sequence: int, steps: Sequence[int], **more: object) -> Batch:
    """A batch whose loss is 1/step, unless `more` says otherwise."""
    array = np.array(steps, np.int64)
    fields: dict[str, object] = {
        "session": session,
        "sequence": sequence,
        "complete_through": int(array[-1]) if len(array) else 0,
        "steps": array,
        "times": 1.7e9 + array,
        "scalars": columns({"loss": [1 / step for step in steps]}, len(steps)),
        "counts": columns({}, len(steps), np.int64),
    }
    return Batch(**(fields | more))  # type: ignore[arg-type]


def started(store: Store, **request: object) -> RunStarted:
    """A run (or attempt) just started."""
    with store.write() as conn:
        return start_run(conn, RunRequest(**({"project": "p", "name": "n", "now": 1000.0} | request)))  # type: ignore[arg-type]


def stored(store: Store, run: str, batch: Batch, now: float = 1001.0) -> Ingested:
    """Store one batch in a transaction of its own."""
    with store.write() as conn:
        return ingest(conn, run, batch, now)
