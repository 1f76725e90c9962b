"""How fast the store takes in batches and reads them back; prints one JSON object.

python benchmarks/store_ingest.py [--url URL] [--steps 16] [--layers 200] [--statistics 14] [--batches 250]
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock
from gradspectra_store import Store
from gradspectra_store.ingest import ingest
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.runs import RunRequest, start_run

SCALARS = ("loss", "grad_norm", "learning_rate", "step_seconds", "data_seconds", "agent_seconds")
COUNTS = ("examples", "parts", "tokens")


def make_batches(options: argparse.Namespace, session: str) -> list[Batch]:
    random = np.random.default_rng(0)
    table = LayerTable.of(Layer(f"layers.{at}.weight", "linear", at, (512, 512)) for at in range(options.layers))
    statistics = tuple(f"statistic_{at}" for at in range(options.statistics - 1))
    batches = []
    for sequence in range(1, options.batches + 1):
        size = options.steps
        steps = np.arange(size * (sequence - 1) + 1, size * sequence + 1)
        values = random.lognormal(size=(len(statistics), size, options.layers)).astype(np.float32)
        counts = np.zeros((1, size, options.layers), np.int64)
        names = ("grad_sq", *statistics[1:])
        block = LayerBlock(
            table.digest, steps, names, values, np.ones(values.shape, bool), ("grad_nonfinite",), counts, counts == 0
        )
        batches.append(
            Batch(
                session=session,
                sequence=sequence,
                complete_through=int(steps[-1]),
                steps=steps,
                times=1.7e9 + steps,
                scalars=Columns(SCALARS, random.random((len(SCALARS), size)), np.ones((len(SCALARS), size), bool)),
                counts=Columns(COUNTS, np.ones((len(COUNTS), size), np.int64), np.ones((len(COUNTS), size), bool)),
                layer_table=table if sequence == 1 else None,
                layers=block,
            )
        )
    return batches


def percentiles(seconds: list[float]) -> dict[str, float]:
    array = np.array(seconds) * 1e3
    return {f"p{q}_ms": round(float(np.percentile(array, q)), 3) for q in (50, 95, 99)} | {
        "mean_ms": round(float(array.mean()), 3)
    }


def timed(action: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def run(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    with store.write() as conn:
        started = start_run(conn, RunRequest("benchmark", "ingest"))
    batches = make_batches(options, started.session)
    stop = threading.Event()

    def sweep() -> None:
        while not stop.wait(options.checkpoint):
            store.checkpoint()

    thread = threading.Thread(target=sweep)
    thread.start()

    def take(batch: Batch) -> None:
        with store.write() as conn:
            ingest(conn, started.run, batch, time.time())

    begin, cpu = time.perf_counter(), time.thread_time()
    seconds = [timed(lambda batch=batch: take(batch)) for batch in batches]
    wall, cpu = time.perf_counter() - begin, time.thread_time() - cpu
    stop.set()
    thread.join()
    steps = options.steps * options.batches
    rate = steps / wall
    reads = {}
    questions: dict[str, Callable[[Any], Any]] = {
        "series_2000": lambda conn: read_series(conn, started.run, ["loss"], 1, 2001),
        "layers_2000": lambda conn: read_layers(conn, started.run, "grad_sq", 1, 2001),
    }
    for name, question in questions.items():
        times = []
        for _ in range(20):
            with store.read() as conn:
                times.append(timed(lambda conn=conn, question=question: question(conn)))
        reads[name] = {"cold_ms": round(times[0] * 1e3, 2), "warm_ms": round(float(np.median(times[1:])) * 1e3, 2)}
    return {
        "ingest": percentiles(seconds) | {"cpu_ms": round(cpu / options.batches * 1e3, 3)},
        "steps_per_second": round(rate),
        "million_values_per_second": round(rate * options.layers * options.statistics / 1e6, 2),
        "read": reads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="database; a fresh SQLite file if left out")
    parser.add_argument("--synchronous", default="NORMAL")
    parser.add_argument("--checkpoint", type=float, default=1.0, help="seconds between WAL checkpoints")
    for name, value in (("steps", 16), ("layers", 200), ("statistics", 14), ("batches", 250)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "store.db"
        store = Store.open(options.url or f"sqlite:///{file}", synchronous=options.synchronous)
        result = run(store, options)
        if file.exists():
            result["megabytes"] = round(file.stat().st_size / 2**20, 1)
            result["wal_megabytes"] = round(Path(f"{file}-wal").stat().st_size / 2**20, 1)
        store.close()
    settings = {name: getattr(options, name) for name in ("steps", "layers", "statistics", "batches", "synchronous")}
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "dialect": store.dialect}
    print(json.dumps({"settings": settings | versions, **result}, indent=2))


if __name__ == "__main__":
    main()
