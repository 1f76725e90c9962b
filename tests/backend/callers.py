"""A caller of the service: makes runs, sends batches, reads back, and waits until all is derived."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import numpy as np
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, Gap, LayerBlock, SpectrumBlock
from gradspectra_core.spectrum import aggregates
from gradspectra_core.wire import CONTENT_TYPE, encode_batch

API = "/api/v1"
BINARY = {"Content-Type": CONTENT_TYPE}


class Caller:
    """client: an httpx2 client at the server's root."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = self.client.get(API + path, params=params or None)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def start(self, project: str = "p", name: str = "r", **more: Any) -> dict[str, Any]:
        """Make a run; its id, session and so on."""
        answer = self.client.post(f"{API}/runs", json={"project": project, "name": name, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def send(self, run: str, batch: Batch) -> httpx2.Response:
        """Post a batch in the binary form."""
        return self.client.post(f"{API}/runs/{run}/records", content=encode_batch(batch), headers=BINARY)

    def must_send(self, run: str, batch: Batch) -> dict[str, Any]:
        """Post a batch that must be taken."""
        answer = self.send(run, batch)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def derived(self, run: str, step: int, seconds: float = 180.0) -> dict[str, Any]:
        """Wait until all up to `step` is derived; the run."""
        deadline = time.monotonic() + seconds
        while (found := self.get(f"/runs/{run}"))["derived_step"] < step:
            assert time.monotonic() < deadline, f"derived to {found['derived_step']} of {step}"
            time.sleep(0.01)
        return found


def columns(size: int, dtype: type, **rows: Sequence[float | None]) -> Columns:
    """Columns of `size` steps; None is absent."""
    present = np.array([[entry is not None for entry in row] for row in rows.values()], np.bool_).reshape(-1, size)
    values = np.array([[0 if entry is None else entry for entry in row] for row in rows.values()], dtype)
    return Columns(tuple(rows), values.reshape(-1, size), present)


def table(names: Sequence[str] = ("layers.0.up.weight", "layers.1.up.weight")) -> LayerTable:
    """A layer table of matrices 8 × 4."""
    return LayerTable.of(Layer(name, "up", index, (8, 4)) for index, name in enumerate(names))


def layer_block(
    of: LayerTable, steps: Sequence[int], counts: Mapping[str, Any] | None = None, **rows: Any
) -> LayerBlock:
    """Layer statistics, all present. rows, counts: (T, L) numbers by statistic."""
    values = np.array(list(rows.values()), np.float32).reshape(len(rows), len(steps), len(of))
    own = counts or {}
    wholes = np.array(list(own.values()), np.int64).reshape(len(own), len(steps), len(of))
    return LayerBlock(
        of.digest,
        np.array(steps, np.int64),
        tuple(rows),
        values,
        np.ones(values.shape, np.bool_),
        tuple(own),
        wholes,
        np.ones(wholes.shape, np.bool_),
    )


def spectrum_block(of: LayerTable, step: int, layer: int, values: Sequence[float]) -> SpectrumBlock:
    """One spectrum of an 8 × 4 gradient."""
    count = len(values)

    def whole(*numbers: int) -> Any:
        return np.array(numbers, np.int64)

    return SpectrumBlock(
        digest=of.digest,
        step=whole(step),
        layer=whole(layer),
        rows=whole(8),
        columns=whole(4),
        length=whole(count),
        of=("gradient",),
        method=("gram_float64",),
        aggregates=aggregates(np.array(values)).reshape(1, 7),
        index=np.arange(count, dtype=np.int64).reshape(1, count),
        values=np.array([values], np.float32),
    )


def batch(
    session: str,
    sequence: int,
    steps: Sequence[int],
    *,
    times: Sequence[float] | None = None,
    layer_table: LayerTable | None = None,
    layers: LayerBlock | None = None,
    spectra: SpectrumBlock | None = None,
    gaps: tuple[Gap, ...] = (),
    counts: Columns | None = None,
    **scalars: Sequence[float | None],
) -> Batch:
    """A batch of some steps; scalars by name, the loss 1.0 where nothing is given."""
    size = len(steps)
    return Batch(
        session=session,
        sequence=sequence,
        complete_through=max(steps, default=0),
        steps=np.array(steps, np.int64),
        times=np.array(times if times is not None else [1e9 + step for step in steps], np.float64),
        scalars=columns(size, np.float64, **(scalars or {"loss": [1.0] * size})),
        counts=counts or columns(size, np.int64),
        layer_table=layer_table,
        layers=layers,
        spectra=spectra,
        gaps=gaps,
    )
