"""What blocks and the pyramid cost and give: bytes per value, and reading at any zoom of runs of any length.

python benchmarks/storage.py [--parts reading layers forms peers server] [--layers 200] [--lengths 1000 100000 10000000]
    [--database URL]

reading: runs of several lengths, and layers: of several widths, written as blocks directly by the functions that
compaction uses, and read with the memory settings of a server. Where their numbers would be too many (--most-values),
all but the newest 65,536 steps or fewer have layer numbers at every 2nd, 4th, 8th … step alone: the levels of the
pyramid that an answer reads are the same. Buckets of 2, 4, 16 and 32 steps, as those of 3,900 and 31,900 steps at 1,000
columns, are made of narrower ones when they are read, and cost the most. forms: what it takes to write an answer in
each form. peers: the same numbers taken in and read back by this and by what other trackers are installed (peers.py).
server: the memory of a real server under ingest and questions. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peers
import sqlalchemy as sa
from fresh_database import add_option, bytes_on_disk, fresh_store
from gradspectra_backend.answers import dumps
from gradspectra_backend.forms import FORMS, answer_layers, unchanged_or
from gradspectra_backend.memory import give_back_freed
from gradspectra_backend.routes.figures import FEWEST_COLUMNS, MOST_CELLS
from gradspectra_core.blocks import Recorded
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_frontend.figures import build
from gradspectra_store import Store
from gradspectra_store.block_rows import Source
from gradspectra_store.block_schema import blocks
from gradspectra_store.compaction import Extent, Round, rounds_of, write_round
from gradspectra_store.layer_tables import store_table
from gradspectra_store.layer_values import layer_quantity
from gradspectra_store.making_blocks import Making
from gradspectra_store.names import add_names
from gradspectra_store.quantities import Quantity
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.runs import RunRequest, start_run
from gradspectra_store.schema import runs
from gradspectra_store.segment_cache import SegmentCache
from starlette.requests import Request

PARTS = ("reading", "layers", "forms", "peers", "server")
AT_ONCE = 13_000_000
"""Numbers made and written at a time."""


def walk(random: np.random.Generator, rows: int, steps: int, dtype: type) -> np.ndarray:
    """Positive numbers that change slowly and noisily, as statistics of a training run do: (rows, steps)."""
    slow = np.cumsum(random.normal(0, 0.005, (rows, steps)), axis=1)
    return np.exp(slow + random.normal(0, 0.1, (rows, steps))).astype(dtype)


def filled(store: Store, steps: int, layers: int, scalars: int, every: int = 1) -> str:
    """A run of so many steps in blocks: `scalars` series, and grad_sq of `layers` layers where there are any.

    every: the layers' cadence, but for the newest steps.
    """
    table = LayerTable.of(Layer(f"layers.{at}.weight", "linear", at, (512, 512)) for at in range(layers))
    names = ["loss", *(f"scalar_{at}" for at in range(1, scalars))]
    with store.write() as conn:
        run = start_run(conn, RunRequest("benchmark", f"{steps} steps")).run
        store_table(conn, run, table, 1)
        add_names(conn, run, "run", names, derived=False)
        add_names(conn, run, "layer", ["grad_sq"], derived=False)
        conn.execute(sa.update(runs).where(runs.c.id == run).values(last_step=steps))
    random = np.random.default_rng(0)
    kinds = {"scalars": (names, 1, np.float64), "layers": (["grad_sq"] if layers else [], layers, np.float32)}
    for kind, (own, rows, dtype) in kinds.items():
        cadence = every if kind == "layers" else 1
        for first, stop in portions(steps, cadence, min(AT_ONCE // rows, 65_536)):
            at = np.arange(first, stop)
            at = at if stop > steps else at[at % cadence == 0]
            fresh = {name: Recorded(at, walk(random, rows, len(at), dtype), None) for name in own}
            if kind == "scalars":
                quantities = [Quantity(name, (name,), 1, last=True) for name in own]
            else:
                quantities = [layer_quantity(name, layers) for name in ("grad_sq", "grad_norm") if own]
            put(store, Source(run, kind, False, 1, 0), fresh, quantities, first, stop - 1)
    return run


def portions(steps: int, every: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Cut the steps into ranges [first, stop) to write at a time; the last is the newest `at_once` at most."""
    first = 1
    while first <= steps:
        left = steps + 1 - first
        taken = min(at_once * every, left - at_once) if left > at_once else left
        yield first, first + taken
        first += taken


def put(
    store: Store, source: Source, fresh: dict[str, Recorded], quantities: list[Quantity], first: int, last: int
) -> None:
    """Write one round, as compaction does."""
    with store.read() as conn:
        making = Making(conn, source, 0 if first == 1 else first)
        making.add(fresh, quantities, last + 1)
        rounds = rounds_of(conn, source.run)
    extent = Extent(1, last, last + 1)
    with store.write() as conn:
        assert write_round(conn, Round(source, rounds, (), tuple(making.replaced), tuple(making.new), extent))


def bytes_per_value(store: Store, run: str, values: int, **where: Any) -> dict[str, float]:
    """Bytes of payload at level 0 and above, over the numbers recorded."""
    found = {}
    for name, levels in (("level_0", blocks.c.level == 0), ("pyramid", blocks.c.level > 0)):
        own = [blocks.c[column] == value for column, value in (where | {"run": run}).items()]
        with store.read() as conn:
            total = conn.execute(sa.select(sa.func.sum(sa.func.length(blocks.c.payload))).where(*own, levels))
            found[name] = round((total.scalar_one() or 0) / values, 3)
    return found


def event_file_bytes(scalars: int = 10_000) -> float | None:
    """Bytes of a scalar in a TensorBoard event file, None without tensorboard."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    values = walk(np.random.default_rng(0), 1, scalars, np.float32)[0].tolist()
    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for step, value in enumerate(values, 1):
            summary = Summary(value=[Summary.Value(tag="layers.100.weight/grad_norm", simple_value=value)])
            writer.add_event(Event(wall_time=1.7e9 + step, step=step, summary=summary))
        writer.close()
        return round(sum(file.stat().st_size for file in Path(folder).iterdir()) / scalars, 1)


class Decoded(SegmentCache):
    """Keeps what was decoded, and not what a question came to: as where the run has changed since."""

    def get(self, key: Hashable) -> Any | None:
        """Return what is kept of blocks and segments alone."""
        return None if isinstance(key, tuple) and key[0] == "layers" else super().get(key)


def timed(
    store: Store, repeat: int, question: Callable[[sa.Connection], Any], drawn: int | None = None
) -> dict[str, float]:
    """Medians in milliseconds, on the clock and of CPU of the whole process, whose helper threads decode blocks too.

    cold: nothing is kept of what was read before; warm: what was decoded is; again: the same question was asked before.
    drawn: cells, to give nanoseconds of CPU for each.
    """
    kinds = {"cold": None, "warm": Decoded(), "again": SegmentCache()}
    taken: dict[str, list[float]] = {f"{name}_{kind}": [] for name in kinds for kind in ("ms", "cpu_ms")}
    for _ in range(repeat):
        for name, cache in kinds.items():
            with store.read() as conn:
                conn.execute(sa.select(1))
                conn.execution_options(segment_cache=cache)
                begin = time.perf_counter(), time.process_time()
                question(conn)
                taken[f"{name}_ms"].append((time.perf_counter() - begin[0]) * 1e3)
                taken[f"{name}_cpu_ms"].append((time.process_time() - begin[1]) * 1e3)
    found = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    if drawn is not None:
        found |= {f"{kind}_ns_a_cell": round(found[f"{kind}_cpu_ms"] * 1e6 / drawn, 1) for kind in kinds}
    return found


def of_length(store: Store, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Reading a run of so many steps: its newest 2,000 steps, the whole at 1,000 columns, a tenth in the middle."""
    layers, every = options.layers, 1
    while steps * layers > options.most_values * every:
        every *= 2
    begin = time.perf_counter()
    run = filled(store, steps, layers, 1, every)
    wrote = time.perf_counter() - begin
    middle = (steps * 45 // 100, steps * 55 // 100)
    questions: dict[str, Callable[[sa.Connection], Any]] = {
        "series_newest_2000": lambda conn: read_series(conn, run, ["loss"], max(steps - 2000, 0), None, 2000),
        "series_whole": lambda conn: read_series(conn, run, ["loss"], columns=1000),
        "series_middle": lambda conn: read_series(conn, run, ["loss"], *middle, 1000),
        "heatmap_newest_1000": lambda conn: read_layers(conn, run, "grad_norm", max(steps - 999, 0), None, 1000),
        "heatmap_whole": lambda conn: read_layers(conn, run, "grad_norm", columns=1000),
    }
    found: dict[str, Any] = {"layers": layers, "cadence": every, "seconds_to_write": round(wrote, 1)}
    found |= {name: timed(store, options.repeat, question) for name, question in questions.items()}
    found["bytes_on_disk"] = bytes_on_disk(store)
    found["bytes_per_series_value"] = bytes_per_value(store, run, steps, name="loss")
    if every == 1:
        recorded = bytes_per_value(store, run, steps * layers, name="grad_sq")
        of_metric = bytes_per_value(store, run, steps * layers, name="grad_norm")["pyramid"]
        found["bytes_per_layer_value"] = recorded | {"pyramid_of_metric": of_metric}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--most-values", type=int, default=25_000_000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 100_000, 156_250, 10_000_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[20, 200, 2000], help="layers, for --parts layers")
    parser.add_argument("--width-lengths", type=int, nargs="+", default=[1000, 3900, 31_900, 100_000])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeat", type=int, default=15)
    add_option(parser)
    parser.add_argument("--peer-steps", type=int, default=50, help="steps that the slower peers are given")
    options = parser.parse_args()
    versions = {name: version(name) for name in ("numpy", "sqlalchemy")}
    versions |= {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    machine = {"cpus": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 2)}
    print(json.dumps({"versions": versions, "machine": machine} | measured(options), indent=2))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for."""
    give_back_freed()
    result: dict[str, Any] = {}
    if "reading" in options.parts:
        for steps in options.lengths:
            with fresh_store(options.database) as store:
                result[f"{steps} steps"] = of_length(store, steps, options)
    if "layers" in options.parts:
        result["layers"] = {f"{layers} layers": of_width(layers, options) for layers in options.widths}
    if "forms" in options.parts:
        result["forms"] = in_forms(options)
    if "peers" in options.parts:
        result["peers"] = peers.beside_each_other(options.peer_steps)
    if "server" in options.parts:
        result["server"] = peers.server_memory()
    return result


def of_width(layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """The heatmap of runs of several lengths, its numbers alone and as the page asks for it, the answer written.

    Each with nanoseconds of CPU per cell of what is drawn.
    """
    found = {}
    page = min(1000, max(MOST_CELLS // layers, FEWEST_COLUMNS))
    for steps in options.width_lengths:
        every = 1
        while steps * layers > options.most_values * every:
            every *= 2
        with fresh_store(options.database) as store:
            run = filled(store, steps, layers, 1, every)
            questions: dict[str, Callable[[sa.Connection], Any]] = {
                "values": partial(read_layers, run=run, statistic="grad_norm", columns=1000),
                "page": partial(figure_answer, run=run, columns=page),
            }
            found[f"{steps} steps"] = {
                name: timed(store, options.repeat, question, cells(store, run, columns))
                for (name, question), columns in zip(questions.items(), (1000, page), strict=True)
            }
    return found


def cells(store: Store, run: str, columns: int) -> int:
    """How many cells a heatmap has."""
    with store.read() as conn:
        return read_layers(conn, run, "grad_norm", columns=columns).mean.size


def figure_answer(conn: sa.Connection, run: str, columns: int) -> int:
    """Answer with a heatmap as the page asks for it; its bytes."""
    data = read_layers(conn, run, "grad_norm", columns=columns)
    figure = build("layers", data=data, alerts=[], theme="light", damaged=(), compact=True)
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    return len(unchanged_or(request, dumps(figure), FORMS[0]).body)


def in_forms(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of CPU to write an answer of 1,000 columns, ETag included, of numbers that were read already."""
    with fresh_store(options.database) as store:
        run = filled(store, 7999, options.layers, 1)
        with store.read() as conn:
            values = read_layers(conn, run, "grad_norm", columns=1000)
    found: dict[str, Any] = {"cells": values.mean.size}
    for form in FORMS:
        headers = [(b"accept", form.encode())]
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": headers})
        taken = []
        for _ in range(options.repeat):
            begin = time.process_time()
            size = len(answer_layers(request, values, values.x).body)
            taken.append((time.process_time() - begin) * 1e3)
        found[form] = {"cpu_ms": round(statistics.median(taken), 2), "bytes": size}
    return found


if __name__ == "__main__":
    main()
