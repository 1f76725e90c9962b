"""Whatever happens to a run, answers are those of a plain model of it: attempts that cut each other, late spools,
compaction at any time, steps up to the largest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gradspectra_core.buckets import bucket
from gradspectra_core.records import Columns
from gradspectra_store import Store
from gradspectra_store.ingest import MAX_STEP
from gradspectra_store.read import read_layers, read_recorded, read_series
from gradspectra_store.runs import RunStarted
from store.batches import TABLE, a_batch, layer_block, started, stored
from store.compacting import compacted, derived_through, values

EDGE = MAX_STEP - 1200


@dataclass
class Attempt:
    """One attempt: its session, the first step that it speaks for, and its numbers by step."""

    begun: RunStarted
    first: int
    last: int
    sequence: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    norms: dict[int, np.ndarray] = field(default_factory=dict)


class Model:
    """A run in the store, and the same numbers as plain dictionaries."""

    def __init__(self, store: Store, rng: np.random.Generator, base: int) -> None:
        self.store, self.rng, self.base = store, rng, base
        begun = started(store, start_step=base)
        self.run = begun.run
        self.attempts = [Attempt(begun, base + 1, base)]

    def batch(self, attempt: Attempt) -> None:
        """Some more steps of an attempt, with holes, and with layer values at some of them."""
        size = int(self.rng.integers(1, 60))
        steps = np.arange(attempt.last + 1, min(attempt.last + 1 + size, MAX_STEP + 1))
        steps = steps[self.rng.random(len(steps)) < 0.9]
        if not len(steps):
            return
        attempt.sequence += 1
        attempt.last = int(steps[-1])
        loss = values(self.rng, len(steps)).astype(np.float64)
        at = steps[steps % int(self.rng.choice([1, 1, 8])) == 0]
        norms = values(self.rng, len(at), len(TABLE))
        attempt.losses.update(zip(steps.tolist(), loss.tolist(), strict=True))
        attempt.norms.update(zip(at.tolist(), norms, strict=True))
        scalars = Columns(("loss",), loss[None], np.ones((1, len(steps)), np.bool_))
        layers = layer_block(at.tolist(), {"grad_sq": norms}) if len(at) else None
        made = a_batch(
            attempt.begun.session, attempt.sequence, steps.tolist(), scalars=scalars, layer_table=TABLE, layers=layers
        )
        stored(self.store, self.run, made)

    def resume(self) -> None:
        """A new attempt, more often than not at the border of a bucket."""
        last = max(one.last for one in self.attempts)
        start = int(self.rng.integers(self.base, last + 1))
        border = int(self.rng.choice([1, 8, 64, 128, 512]))
        start = max(start // border * border - int(self.rng.integers(0, 2)), self.base)
        self.attempts.append(Attempt(started(self.store, resume=self.run, start_step=start), start + 1, start))

    def compact(self) -> None:
        """Derive all there is, and compact some rounds."""
        derived_through(self.store, self.run)
        compacted(self.store, self.run, int(self.rng.integers(1, 4)))

    def spans(self, number: int | None) -> list[tuple[Attempt, int, int]]:
        """Each attempt that is asked for, with the steps that it speaks for."""
        if number is not None:
            return [(self.attempts[number - 1], 0, 2**62)]
        found, stop = [], 2**62
        for one in reversed(self.attempts):
            if one.first < stop:
                found.append((one, one.first, stop))
                stop = one.first
        return found


def expected(model: Model, kind: str, start: int, stop: int, columns: int, number: int | None) -> tuple[Any, ...]:
    """Buckets of the plain numbers: x, mean, min, max, last and the count of those that are not finite."""
    every: dict[int, Any] = {}
    reach: list[int] = []
    for attempt, first, end in model.spans(number):
        own: dict[int, Any] = getattr(attempt, kind)
        first, end = max(first, start), min(end, stop)
        every.update({step: own[step] for step in own if first <= step < end})
        if own and (low := max(min(own), first)) <= (high := min(max(own), end - 1)):
            reach += [low, high]
    steps = np.array(sorted(every), np.int64)
    if not len(steps):
        return (steps,)
    width = 1
    while max(reach) // width - min(reach) // width >= columns:
        width *= 2
    alone = len(np.unique(steps // width)) == len(steps)
    while width > 1 and not alone and 2 * len(np.unique(steps // width)) < columns:  # holes take no columns
        width //= 2
    numbers = np.array([every[step] for step in steps.tolist()]).reshape(len(steps), -1).T
    x, mean, low, high, last, nonfinite, _ = bucket(steps, numbers, np.ones(numbers.shape, np.bool_), width)
    return x, mean, low, high, last, nonfinite


def compare(model: Model, asked: dict[str, Any]) -> None:
    """A question about losses and one about layers."""
    start, stop, columns, number = (asked[name] for name in ("start", "stop", "columns", "attempt"))
    with model.store.read() as conn:
        series = read_series(conn, model.run, ["loss"], **asked)
        layers = read_layers(conn, model.run, "grad_sq", **asked)
        recorded = read_recorded(conn, model.run, ["loss"], start, stop, number).parts.get("loss")
    x, *rest = expected(model, "losses", start, stop, columns, number)
    np.testing.assert_array_equal(series.x, x)
    loss = series.series["loss"]
    for got, wanted in zip((loss.mean, loss.min, loss.max, loss.last, loss.nonfinite), rest, strict=bool(rest)):
        np.testing.assert_allclose(got, wanted[0], rtol=1e-12)
    x, *rest = expected(model, "norms", start, stop, columns, number)
    np.testing.assert_array_equal(layers.x, x)
    for got, wanted in zip((layers.mean, layers.min, layers.max), rest, strict=False):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    if rest:
        np.testing.assert_array_equal(layers.nonfinite, rest[4])
    plain = {s: v for one, low, end in model.spans(number) for s, v in one.losses.items() if low <= s < end}
    wanted_steps = sorted(step for step in plain if start <= step < stop)
    assert recorded is not None
    assert recorded.steps.tolist() == wanted_steps
    np.testing.assert_array_equal(recorded.values[0], [plain[step] for step in wanted_steps])


@pytest.mark.parametrize(("seed", "base"), [(1, 0), (2, 0), (3, 0), (4, EDGE), (5, EDGE)])
def test_any_run_answers_as_a_plain_model_of_it(
    store: Store, seed: int, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradspectra_store.compaction.UNIT", 8)
    monkeypatch.setattr("gradspectra_store.block_rows.MOST_ENTRIES", 32)
    monkeypatch.setattr("gradspectra_store.compaction.CHUNK_BYTES", 12_000)
    rng = np.random.default_rng(seed)
    model = Model(store, rng, base)
    for turn in range(60):
        happens = rng.random()
        if happens < 0.7:
            model.batch(model.attempts[-1])
        elif happens < 0.8:
            model.batch(model.attempts[int(rng.integers(0, len(model.attempts)))])  # a spool of an older attempt
        elif happens < 0.88:
            model.resume()
        else:
            model.compact()
        if turn % 6 == 5:
            last = max(one.last for one in model.attempts)
            start, stop = sorted((base + rng.integers(0, last - base + 20, 2)).tolist())
            number = None if rng.random() < 0.7 else int(rng.integers(1, len(model.attempts) + 1))
            compare(model, {"start": start, "stop": stop, "columns": int(rng.integers(1, 90)), "attempt": number})
            compare(model, {"start": 0, "stop": 2**62, "columns": int(rng.choice([1, 7, 1000])), "attempt": None})
