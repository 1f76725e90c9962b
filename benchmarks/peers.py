"""The same numbers taken in by other trackers, as far as they are installed, and by this one; part of storage.py.

The numbers are those of a training run: 14 statistics of 200 layers at each step. Each tracker gets them by its own
call for many numbers at once, where it has one, and is timed until they are in its database. The trackers that make a
row of each number are given fewer steps: their rate does not depend on it. None of them is needed by gradspectra.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ingest import Job, encode_batch, measure, peak_megabytes, serving

LAYERS, STATISTICS = 200, 14
MLFLOW_AT_ONCE = 1000
"""As many metrics as one call of MLflow takes."""


Rows = list[dict[str, float]]
Reading = Callable[[], int]
"""Reads one of the series back; returns how many numbers it has."""


def numbers(steps: int) -> Rows:
    """One row a step: 2,800 named numbers."""
    names = [f"layers.{layer}.weight/{at}" for layer in range(LAYERS) for at in range(STATISTICS)]
    values = np.random.default_rng(0).lognormal(sigma=0.1, size=(steps, len(names))).astype(np.float32)
    return [dict(zip(names, row, strict=True)) for row in values.tolist()]


def mlflow(folder: Path, rows: Rows) -> Reading:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("benchmark")).info.run_id
    for step, row in enumerate(rows, 1):
        metrics = [Metric(name, value, 1_700_000_000_000 + step, step) for name, value in row.items()]
        for at in range(0, len(metrics), MLFLOW_AT_ONCE):
            client.log_batch(run, metrics[at : at + MLFLOW_AT_ONCE])
    return lambda: len(client.get_metric_history(run, next(iter(rows[0]))))


def trackio(_folder: Path, rows: Rows) -> Reading:
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    for at in range(0, len(rows), 64):
        part = rows[at : at + 64]
        storage.bulk_log("benchmark", "run", part, steps=list(range(at + 1, at + 1 + len(part))))
    return lambda: len(storage.get_logs("benchmark", "run"))


def aim(folder: Path, rows: Rows) -> Reading:
    from aim import Run
    from aim.storage.context import Context

    run = Run(repo=str(folder), system_tracking_interval=None, log_system_params=False)
    for step, row in enumerate(rows, 1):
        for name, value in row.items():
            run.track(value, name=name, step=step)
    run.report_successful_finish(block=True)
    return lambda: len(run.get_metric(next(iter(rows[0])), Context({})).values.sparse_list()[0])


PEERS: dict[str, Callable[[Path, Rows], Reading]] = {"mlflow": mlflow, "trackio": trackio, "aim": aim}


def beside_each_other(steps: int) -> dict[str, Any]:
    """What each takes in a second, and what a number costs it. steps: given to those that make a row of each number."""
    sizes = {f"gradspectra, {size} steps a batch": of_server(size) for size in (64, 1)}
    sizes["gradspectra, 64 steps a batch, FULL"] = of_server(64, synchronous="FULL")
    return others(steps) | sizes


def others(steps: int) -> dict[str, Any]:
    """The other trackers; a sentence in the place of each that is not installed."""
    found: dict[str, Any] = {}
    for name, take in PEERS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TRACKIO_DIR"] = folder  # read when it is imported
            try:
                importlib.import_module(name)
            except ImportError as error:
                found[name] = f"not measured: {name} cannot be imported here ({error})"
            else:
                found[name] = {"version": version(name)} | of_peer(take, numbers(steps), Path(folder))
    return found


def of_peer(take: Callable[[Path, Rows], Reading], rows: Rows, folder: Path) -> dict[str, Any]:
    """One of the others."""
    count = len(rows) * LAYERS * STATISTICS
    begin, spent = time.perf_counter(), time.process_time()
    read = take(folder, rows)
    wall, cpu = time.perf_counter() - begin, time.process_time() - spent
    begin = time.perf_counter()
    assert read() == len(rows)
    read_in = time.perf_counter() - begin
    size = folder_bytes(folder)
    return {
        "steps": len(rows),
        "values_per_second": round(count / wall),
        "cpu_us_a_value": round(cpu / count * 1e6, 2),
        "bytes_a_value": round(size / count, 1),
        "read_one_series_ms": round(read_in * 1e3, 1),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def of_server(size: int, steps: int = 6400, synchronous: str = "NORMAL") -> dict[str, Any]:
    """A real server: batches of `size` steps by a client that encodes them, one after the other, to their commits."""
    options = settings(size, max(min(steps // size, 1000), 1))
    with serving(synchronous) as (address, server, _):
        return {"synchronous": synchronous} | measure(options, address, server.pid)


def settings(size: int, batches: int, layers: int = LAYERS, statistics: int = STATISTICS) -> argparse.Namespace:
    """The options of ingest.py."""
    return argparse.Namespace(layers=layers, statistics=statistics, steps=size, batches=batches, encode=True, jobs=1)


def server_memory() -> dict[str, Any]:
    """The most memory a server takes while it is sent runs of 200 and of 2,000 layers and asked for both."""
    found: dict[str, Any] = {}
    with serving() as (address, server, _):
        for layers, batches in ((LAYERS, 100), (2000, 10)):
            job = Job(settings(64, batches, layers), address)
            for sequence in range(1, batches + 1):
                job.send(encode_batch(job.batch(sequence)))
                if sequence % 10 == 0:
                    ask(job)
            while job.derived_step() < batches * 64:
                time.sleep(0.05)
            for _ in range(3):
                ask(job)
            found[f"peak_megabytes_after_{layers}_layers"] = peak_megabytes(server.pid)
    return found


def ask(job: Job) -> None:
    """What an open page asks for: figures, a heatmap of all layers, all series."""
    run = f"/runs/{job.run['id']}"
    for path in ("/layers/grad_norm?columns=1000", "/layers/grad_sq?columns=300", "/series?columns=1000"):
        job.call("GET", run + path)
