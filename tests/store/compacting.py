"""Runs with everything that can happen to them, derived and compacted by hand, and questions to compare answers of."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.compaction import write_round
from gradspectra_store.derived import DerivedBatch, advance, claim, save_derived
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.rounds import next_round
from gradspectra_store.run_views import get_run
from store.batches import TABLE, a_batch, columns, layer_block, started, stored

OTHER = LayerTable.of([TABLE.layers[2], Layer("layers.1.up.weight", "up", 1, (32, 8)), TABLE.layers[0]])
STATISTICS = ("grad_sq", "weight_sq", "update_sq")
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1e-45], np.float32)


def values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Positive numbers, one in sixteen of them special."""
    found = rng.lognormal(size=shape).astype(np.float32)
    odd = rng.random(shape) < 1 / 16
    found[odd] = rng.choice(SPECIAL, int(odd.sum()))
    return found


def block(rng: np.random.Generator, steps: np.ndarray, table: LayerTable, names: tuple[str, ...]) -> LayerBlock:
    """Statistics, some of them absent, with one count."""
    shape = len(names), len(steps), len(table)
    present = rng.random(shape) < 0.9 if rng.random() < 0.5 else np.ones(shape, np.bool_)
    counts = rng.integers(0, 5, (1, *shape[1:]))
    there = np.ones(counts.shape, np.bool_)
    return LayerBlock(table.digest, steps, names, values(rng, *shape), present, ("grad_nonfinite",), counts, there)


def batch(rng: np.random.Generator, session: str, sequence: int, steps: np.ndarray, table: LayerTable) -> Batch:
    """Scalars at every step, a rare one, and layers at every step or, for a hundred steps in turn, each eighth."""
    loss = values(rng, 1, len(steps)).astype(np.float64)
    rare = rng.random((1, len(steps))) < 0.05
    scalars = Columns(("loss", "eval_loss"), np.concatenate([loss, loss]), np.concatenate([rare | True, rare]))
    every = 8 if len(steps) and steps[0] // 100 % 2 else 1
    at = steps[steps % every == 0]
    layers = block(rng, at, table, STATISTICS) if len(at) else None
    tokens = Columns(("tokens",), steps[None] * 7, np.ones((1, len(steps)), np.bool_))
    made = a_batch(session, sequence, steps.tolist(), layer_table=table, layers=layers, scalars=scalars)
    return dataclasses.replace(made, counts=tokens)


def grown(store: Store, rng: np.random.Generator, run: str, session: str, attempt: int, first: int, steps: int) -> int:
    """Take in so many steps of a session; ranks and noise are derived of each batch, some of them late."""
    sequence, at, change = 0, first, first + steps // 2
    while at < first + steps:
        size = int(rng.integers(1, 40))
        own = np.arange(at, at + size)[rng.random(size) < 0.95]
        at += size
        sequence += 1
        table = TABLE if at < change else OTHER
        number = stored(store, run, batch(rng, session, sequence, own, table)).batch
        derived = own[rng.random(len(own)) < 0.2] - int(rng.integers(0, 2)) * 30
        derived = derived[derived >= first]
        noise = Columns(("noise_scale",), values(rng, 1, len(own)).astype(np.float64), np.ones((1, len(own)), np.bool_))
        blocks = [block(rng, derived, table, ("effective_rank",))] if len(derived) else []
        with store.write() as conn:
            save_derived(conn, run, [DerivedBatch(attempt, number, (own, noise) if len(own) else None, blocks)])
    return at - 1


def derived_through(store: Store, run: str) -> None:
    """Move the watermark to the newest batch."""
    with store.write() as conn:
        cursor, shown = claim(conn, run), get_run(conn, run)
        assert cursor is not None
        assert shown is not None
        cursor.batch, cursor.attempt, cursor.derived_step = 10**6, shown["attempt"], shown["last_step"]
        advance(conn, run, cursor)


def compacted(store: Store, run: str, turns: int = 10**6) -> int:
    """Compact by hand; returns how many rounds there were."""
    for turn in range(turns):
        with store.read() as conn:
            made = next_round(conn, run)
        if made is None:
            return turn
        with store.write() as conn:
            assert write_round(conn, made)
    return turns


def a_varied_run(store: Store, rng: np.random.Generator, steps: int) -> tuple[str, str, int]:
    """Two attempts of which the second hides the end of the first, and a second rank; the newest session and step."""
    one = started(store)
    last = grown(store, rng, one.run, one.session, 1, 1, steps)
    other = started(store, resume=one.run, rank=1)
    stored(store, one.run, batch(rng, other.session, 1, np.arange(1, steps // 2), TABLE))
    cut = int(rng.integers(1, last + 1))
    two = started(store, resume=one.run, start_step=cut)
    last = grown(store, rng, one.run, two.session, 2, cut + 1, steps)
    derived_through(store, one.run)
    return one.run, two.session, last


def questions(rng: np.random.Generator, last: int, count: int) -> list[dict[str, Any]]:
    """Ranges at many zooms, of either attempt or both joined."""
    found: list[dict[str, Any]] = [{"columns": columns} for columns in (3, 40, 10_000)]
    for _ in range(count):
        start, stop = sorted(rng.integers(0, last + 20, 2).tolist())
        attempt = [None, None, 1, 2][int(rng.integers(0, 4))]
        found.append({"start": start, "stop": stop, "columns": int(rng.integers(1, 200)), "attempt": attempt})
    return found


def answers(store: Store, run: str, asked: list[dict[str, Any]]) -> list[Any]:
    """What the store answers, as plain arrays."""
    found: list[Any] = []
    some = [OTHER.names[1], TABLE.names[0]]
    with store.read() as conn:
        for question in asked:
            series = read_series(conn, run, ["loss", "eval_loss", "tokens", "noise_scale"], **question)
            found.append((series.x, series.damaged, {name: _arrays(own) for name, own in series.series.items()}))
            for name in ("grad_sq", "update_ratio", "grad_nonfinite", "effective_rank"):
                for layers in (None, some):
                    own = read_layers(conn, run, name, layers=layers, **question)
                    found.append((name, question, own.layers, own.x, own.damaged, _arrays(own)))
    return found


def _arrays(one: Any) -> dict[str, np.ndarray]:
    return {name: getattr(one, name) for name in ("mean", "min", "max", "nonfinite", "present")}


def a_plain_run(store: Store, steps: int, every: int = 1, size: int = 16) -> str:
    """A run whose loss is the step and whose grad_sq is its square at each `every`-th step, for all layers."""
    run = started(store)
    for sequence, first in enumerate(range(1, steps + 1, size), 1):
        own = list(range(first, min(first + size, steps + 1)))
        at = [step for step in own if step % every == 0]
        layers = layer_block(at, {"grad_sq": np.outer(np.square(at), np.ones(3))}) if at else None
        losses = columns({"loss": [float(step) for step in own]}, len(own))
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=TABLE, layers=layers, scalars=losses))
    derived_through(store, run.run)
    return run.run


def rows_of(store: Store, run: str, *names: str, **place: Any) -> list[tuple[Any, ...]]:
    """Columns of the run's blocks, those of one place, by step."""
    where = [blocks.c[name] == value for name, value in place.items()]
    query = sa.select(*(blocks.c[name] for name in names)).where(blocks.c.run == run, *where)
    with store.read() as conn:
        return [tuple(row) for row in conn.execute(query.order_by(blocks.c.level, blocks.c.first))]
