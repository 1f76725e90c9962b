"""How long after its commit a record is derived, embedded: metrics, alerts and suggestions; prints one JSON object.

python benchmarks/derive_latency.py [--rate 20] [--seconds 30] [--layers 60] [--steps 2] [--runs 10] [--database URL]

A store (on SQLite, if no other is named) and the inline dispatcher in one process, as in `gradspectra serve`. First one
run is fed at `--rate` steps per second for `--seconds`: `each_batch` is from a batch's commit to the announcement
that it is derived. Then `--runs` short runs are fed at the same rate: `last_record` is from the commit of a run's last
batch to everything of it being derived, read from the database. No layer of HTTP is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from fresh_database import add_option, fresh_store, told
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock, SpectrumBlock
from gradspectra_core.spectrum import aggregates, drawn_indices
from gradspectra_store import Store
from gradspectra_store.ingest import ingest
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import RunRequest, RunStarted, start_run
from gradspectra_worker.dispatch import InlineDispatcher

STATISTICS = ("grad_sq", "grad_max", "weight_sq", "part_sq", "update_sq")
PACKAGES = ("numpy", "sqlalchemy")


class Job:
    """A run that sends batches of `steps` steps with all layers' numbers and one spectrum each."""

    def __init__(self, store: Store, layers: int, steps: int) -> None:
        self.store, self.steps, self.sequence, self.last_step = store, steps, 0, 0
        self.table = LayerTable.of(Layer(f"layers.{at}.weight", "up", at, (512, 512)) for at in range(layers))
        self.rng = np.random.default_rng(0)
        with store.write() as conn:
            self.started: RunStarted = start_run(conn, RunRequest("benchmark", "derive"))

    def send(self) -> None:
        """Commit the next batch."""
        batch = self._batch()
        with self.store.write() as conn:
            ingest(conn, self.started.run, batch, time.time())

    def _batch(self) -> Batch:
        self.sequence += 1
        steps = np.arange(self.last_step + 1, self.last_step + 1 + self.steps)
        self.last_step += self.steps
        shape = (len(STATISTICS), self.steps, len(self.table))
        values = self.rng.lognormal(sigma=0.1, size=shape).astype(np.float32)
        values[STATISTICS.index("part_sq")] *= 3.0
        one = np.ones(self.steps, np.int64)
        block = LayerBlock(
            *(self.table.digest, steps, STATISTICS, values, np.ones(shape, np.bool_), ("grad_nonfinite",)),
            *(np.zeros((1, *shape[1:]), np.int64), np.ones((1, *shape[1:]), np.bool_)),
        )
        return Batch(
            session=self.started.session,
            sequence=self.sequence,
            complete_through=self.last_step,
            steps=steps,
            times=np.full(self.steps, time.time()),
            scalars=Columns(
                ("loss", "grad_norm", "update_norm"),
                self.rng.lognormal(sigma=0.02, size=(3, self.steps)),
                np.ones((3, self.steps), np.bool_),
            ),
            counts=Columns(("parts", "examples"), np.stack([4 * one, 64 * one]), np.ones((2, self.steps), np.bool_)),
            layer_table=self.table if self.sequence == 1 else None,
            layers=block,
            spectra=self._spectrum(int(steps[-1])),
        )

    def _spectrum(self, step: int) -> SpectrumBlock:
        sigma = 1.0 / np.arange(1.0, 513.0)
        index = drawn_indices(512)[None]
        whole, layer = np.array([512]), np.array([self.sequence % len(self.table)])
        return SpectrumBlock(
            *(self.table.digest, np.array([step]), layer, whole, whole, np.array([index.shape[1]])),
            *(("gradient",), ("exact",), aggregates(sigma)[None], index, sigma[index].astype(np.float32)),
        )


def steady(job: Job, dispatcher: InlineDispatcher, heard: dict[int, float], options: argparse.Namespace) -> list[float]:
    """Seconds from each batch's commit to its announcement, at `rate` steps per second."""
    committed: list[tuple[int, float]] = []
    begin = time.perf_counter()
    for at in range(int(options.seconds * options.rate / options.steps)):
        time.sleep(max(0.0, begin + at * options.steps / options.rate - time.perf_counter()))
        job.send()
        committed.append((job.last_step, time.perf_counter()))
        dispatcher.request(job.started.run)
    wait_for(lambda: job.last_step in heard)
    steps = sorted(heard)
    return [heard[next(s for s in steps if s >= step)] - at for step, at in committed]


def last_record(store: Store, dispatcher: InlineDispatcher, options: argparse.Namespace) -> float:
    """Seconds from the commit of a short run's last batch to its last step being derived in the database."""
    job = Job(store, options.layers, options.steps)
    batches = max(2, int(2 * options.rate / options.steps))
    for at in range(batches):
        if at:
            time.sleep(options.steps / options.rate)
        job.send()
        committed = time.perf_counter()
        dispatcher.request(job.started.run)
    wait_for(lambda: derived_step(store, job.started.run) == job.last_step)
    return time.perf_counter() - committed


def derived_step(store: Store, run: str) -> int:
    with store.read() as conn:
        shown: Any = get_run(conn, run)
    return int(shown["derived_step"])


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    until = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > until:
            raise SystemExit(f"nothing was derived within {seconds:g} s")
        time.sleep(0.001)


def quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p95, most = np.quantile(seconds, [0.5, 0.95, 1.0]) * 1000
    return {"count": len(seconds), "p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "max_ms": round(most, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20.0, help="steps per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2, help="steps per batch")
    parser.add_argument("--runs", type=int, default=10, help="short runs for last_record")
    add_option(parser)
    options = parser.parse_args()
    heard: dict[int, float] = {}

    def announce(announcement: dict[str, Any]) -> None:
        if announcement["type"] == "run":
            heard.setdefault(announcement["derived_step"], time.perf_counter())

    with fresh_store(options.database) as store:
        dispatcher = InlineDispatcher(store, announce)
        dispatcher.start()
        each = steady(Job(store, options.layers, options.steps), dispatcher, heard, options)
        last = [last_record(store, dispatcher, options) for _ in range(options.runs)]
        dispatcher.stop()
    print(
        json.dumps(
            {
                "settings": told(options),
                "each_batch": quantiles(each),
                "last_record": quantiles(last),
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
                "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            }
        )
    )


if __name__ == "__main__":
    main()
