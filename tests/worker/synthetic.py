"""Runs whose noise is known, with faults where wanted, cut into batches as an agent sends them."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock, SpectrumBlock
from gradspectra_core.spectrum import aggregates
from gradspectra_store import Store
from gradspectra_store.ingest import ingest
from gradspectra_store.kept_states import state_keys, state_texts
from gradspectra_store.names import known_names
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.runs import RunRequest, RunStarted, start_run
from gradspectra_store.schema import alerts, cursors, deliveries, runs, suggestions

TABLE = LayerTable.of(
    [
        Layer("embedding.weight", "embedding", -1, (256, 8)),
        Layer("layers.0.up.weight", "up", 0, (32, 8)),
        Layer("layers.0.down.weight", "down", 0, (8, 32)),
        Layer("head.weight", "head", -1, (256, 8)),
    ]
)
SIGNAL = np.array([0.05, 0.2, 0.4, 1.0])
"""‖true gradient‖² per layer."""
TR_SIGMA = np.array([100.0, 40.0, 20.0, 30.0])
"""Trace of one example's noise per layer; the noise scales are 2000, 200, 50 and 30 examples."""
DIMENSIONS = 400
LAYER_STATISTICS = ("grad_sq", "grad_max", "weight_sq", "part_sq")
SIGMA = np.array([[3.0, 1.0]])


def numbers(
    steps: int, seed: int = 0, parts: int = 4, examples: int = 64, first: int = 1, table: LayerTable = TABLE
) -> dict[str, Any]:
    """The numbers of `steps` steps from `first` on, for the four layers of the table; 0-based arrays."""
    drawn = _drawn(steps, seed, parts, examples, len(table))
    run = {name: array.copy() for name, array in drawn.items()} | {"steps": np.arange(first, first + steps)}
    return run | {"parts": parts, "examples": examples, "table": table}


@cache
def _drawn(steps: int, seed: int, parts: int, examples: int, count: int) -> dict[str, np.ndarray]:
    """What is the same for each run of so many steps, drawn once."""
    rng = np.random.default_rng(seed)
    size = examples / parts
    direction = np.sqrt(SIGNAL[:count] / DIMENSIONS)[:, None]
    spread = np.sqrt(TR_SIGMA[:count] / DIMENSIONS / size)[:, None]
    part = direction + spread * rng.normal(size=(steps, parts, count, DIMENSIONS))
    whole = part.mean(1)
    return {
        "loss": 2.0 * np.exp(0.02 * rng.normal(size=steps)),
        "update_norm": 1e-3 * np.exp(0.05 * rng.normal(size=steps)),
        "grad_sq": np.square(whole).sum(-1),
        "part_sq": np.square(part).sum(-1).mean(1),
        "grad_max": np.abs(whole).max(-1),
        "weight_sq": np.ones((steps, count)),
    }


def batches(run: dict[str, Any], session: str, per_batch: int = 8, every: int = 2, sequence: int = 1) -> list[Batch]:
    """Cut numbers into batches; layer numbers at each `every`-th step, a spectrum at each tenth."""
    found = []
    for start in range(0, len(run["steps"]), per_batch):
        found.append(_batch(run, slice(start, start + per_batch), session, sequence, every))
        sequence += 1
    return found


def _batch(run: dict[str, Any], part: slice, session: str, sequence: int, every: int) -> Batch:
    steps = run["steps"][part].astype(np.int64)
    scalars = np.stack([run["loss"][part], np.sqrt(run["grad_sq"].sum(1))[part], run["update_norm"][part]])
    counts = np.array([[run["parts"]], [run["examples"]]]) * np.ones(len(steps), np.int64)
    everywhere = np.ones((3, len(steps)), np.bool_)
    known = np.array([[True], [run["examples"] > 0]]) & everywhere[:2]
    table: LayerTable = run["table"]
    rows = np.flatnonzero(steps % every == 0)
    layers = np.stack([run[name][part][rows] for name in LAYER_STATISTICS]).astype(np.float32)
    block = LayerBlock(
        table.digest,
        steps[rows],
        LAYER_STATISTICS,
        layers,
        np.ones(layers.shape, np.bool_),
        ("grad_nonfinite",),
        np.zeros((1, *layers.shape[1:]), np.int64),
        np.ones((1, *layers.shape[1:]), np.bool_),
    )
    return Batch(
        session=session,
        sequence=sequence,
        complete_through=int(steps[-1]),
        steps=steps,
        times=1.7e9 + steps,
        scalars=Columns(("loss", "grad_norm", "update_norm"), scalars, everywhere),
        counts=Columns(("parts", "examples"), counts, known),
        layer_table=table,
        layers=block if len(rows) else None,
        spectra=spectra(steps[steps % 10 == 0], table),
    )


def spectra(steps: np.ndarray, table: LayerTable = TABLE, sigma: np.ndarray = SIGMA) -> SpectrumBlock | None:
    """One gradient spectrum per step, of the layers in turn."""
    if not len(steps):
        return None
    count, length = len(steps), sigma.shape[1]
    whole = np.full(count, 8, np.int64)
    return SpectrumBlock(
        table.digest,
        steps,
        steps // 10 % len(table),
        whole,
        whole,
        np.full(count, length, np.int64),
        ("gradient",) * count,
        ("exact",) * count,
        np.repeat(aggregates(sigma), count, 0),
        np.tile(np.arange(length), (count, 1)),
        np.repeat(sigma, count, 0).astype(np.float32),
    )


def faulty(steps: int = 400, seed: int = 0, first: int = 1) -> dict[str, Any]:
    """A run with a loss and gradient spike at three quarters and a layer that dies at a tenth."""
    run = numbers(steps, seed, first=first)
    at = 3 * steps // 4
    run["loss"][at : at + 4] *= 4.0
    for name in ("grad_sq", "part_sq"):
        run[name][at : at + 4] *= 100.0
    run["grad_max"][steps // 10 : steps // 10 + 100, 1] = 0.0
    return run


def start(store: Store, **request: Any) -> RunStarted:
    """A run (or attempt) just started."""
    with store.write() as conn:
        return start_run(conn, RunRequest(**({"project": "p", "name": "n"} | request)))


def take_in(store: Store, started: RunStarted, stream: list[Batch], now: float = 1.0) -> None:
    """Ingest batches, each in a transaction; `now` far in the past makes the session a silent one."""
    for batch in stream:
        with store.write() as conn:
            ingest(conn, started.run, dataclasses.replace(batch, session=started.session), now)


def outcome(store: Store, run: str) -> dict[str, Any]:
    """All that was derived of a run, with what names the run itself replaced, for comparison with another run."""
    with store.read() as conn:
        found = {name: _rows(conn, table, order, run) for name, (table, order) in _TABLES.items()}
        states = sorted(state_texts(conn, run, state_keys(conn, run)))
        found["states"] = [{"attempt": attempt, "step": step, "state": state} for attempt, step, state in states]
        found["numbers"] = _numbers(conn, run)
        found["deliveries"] = [
            tuple(row)
            for row in conn.execute(
                sa.select(alerts.c.rule, alerts.c.opened_step, deliveries.c.severity)
                .join(deliveries, deliveries.c.alert == alerts.c.id)
                .where(alerts.c.run == run)
                .order_by(alerts.c.opened_step, alerts.c.rule, deliveries.c.severity)
            )
        ]
        health = conn.execute(sa.select(runs.c.health, runs.c.open_alerts).where(runs.c.id == run)).one()
    names = {row["id"]: (row["attempt"], row["rule"], row["opened_step"]) for row in found["alerts"]}
    for row in found["alerts"]:
        row["incident"] = names[row["incident"]]
    for name in (*_TABLES, "deliveries"):
        for row in found[name]:
            if isinstance(row, dict):
                row.pop("run", None)
                row.pop("id", None)
    return {**found, "health": tuple(health)}


_TABLES = {
    "alerts": (alerts, ("attempt", "opened_step", "rule")),
    "suggestions": (suggestions, ("position",)),
    "cursor": (cursors, ()),
}


def _numbers(conn: sa.Connection, run: str) -> dict[str, tuple[bytes, ...]]:
    """What was derived at each step and how it looks from afar, bit for bit, whether in segments or in blocks."""
    found = {}
    for columns in (100_000, 10):
        for name in (name for name, derived in known_names(conn, run, "run").items() if derived):
            series = read_series(conn, run, [name], columns=columns)
            own = series.series[name]
            found[f"{name} {columns}"] = _bits(series.x, own.mean, own.min, own.max, own.last, own.nonfinite)
        for name in (name for name, derived in known_names(conn, run, "layer").items() if derived):
            layers = read_layers(conn, run, name, columns=columns)
            found[f"layers {name} {columns}"] = _bits(layers.x, layers.mean, layers.min, layers.max, layers.present)
    return found


def _bits(*arrays: np.ndarray) -> tuple[bytes, ...]:
    return tuple(np.ascontiguousarray(array).tobytes() for array in arrays)


def _rows(conn: sa.Connection, table: sa.Table, order: tuple[str, ...], run: str) -> list[dict[str, Any]]:
    query = sa.select(table).where(table.c.run == run).order_by(*(table.c[name] for name in order))
    return [dict(row) for row in conn.execute(query).mappings()]
