"""How many steps a second one server process acknowledges after their commit, deriving meanwhile; prints JSON.

python benchmarks/ingest.py [--layers 200] [--statistics 14] [--steps 16] [--batches 500] [--encode] [--jobs 1]
    [--database URL]

A real `gradspectra serve` (one process, SQLite or what is named, inline dispatcher) is a process of its own; the client
beside it, on the same cores, posts one batch after the other by the agent's own HTTP client. Batches are made before
the clock starts, and encoded too without --encode. With --jobs so many clients, each a process of its own with a
run of its own, post --batches each at the same time. cpu_ms_per_batch tells what the server and the clients spent,
whatever else ran on the machine; a PostgreSQL's own processes are not in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from fresh_database import add_option, fresh_url, told
from gradspectra.http_client import HttpClient
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock
from gradspectra_core.wire import CONTENT_TYPE, encode_batch

SERVE = "import argparse, sys; from gradspectra_backend.commands import register; p = argparse.ArgumentParser(); "
SERVE += "register(p.add_subparsers()); o = p.parse_args(); sys.exit(o.run(o))"
SCALARS = ("loss", "grad_norm", "learning_rate", "step_seconds", "data_seconds", "agent_seconds")
MEASURED = ("grad_sq", "grad_max", "weight_sq", "part_sq", "update_sq")
PACKAGES = ("numpy", "fastapi", "uvicorn", "httptools", "uvloop", "sqlalchemy", "orjson")


class Job:
    """A training job that sends as fast as it is answered."""

    def __init__(self, options: argparse.Namespace, address: tuple[str, int]) -> None:
        self.options = options
        self.client = HttpClient("http://{}:{}".format(*address), timeout=60)
        self.table = LayerTable.of(Layer(f"layers.{at}.weight", "up", at, (512, 512)) for at in range(options.layers))
        count = options.statistics - 1
        self.statistics = (*MEASURED, *(f"statistic_{at}" for at in range(count - len(MEASURED))))[:count]
        random = np.random.default_rng(0)
        shape = (len(self.statistics), options.steps, options.layers)
        self.values = [random.lognormal(size=shape, sigma=0.1).astype(np.float32) for _ in range(8)]
        self.present = np.ones(shape, bool)
        self.counts = np.zeros((1, *shape[1:]), np.int64)
        self.run = self.call("POST", "/runs", {"project": "benchmark", "name": "ingest"})

    def call(self, method: str, path: str, members: Any = None) -> Any:
        body = None if members is None else json.dumps(members).encode()
        return self.exchange(method, path, body, "application/json")

    def exchange(self, method: str, path: str, body: bytes | None, content_type: str) -> Any:
        answer = self.client.request(method, path, body, content_type)
        if answer.status >= 300:
            raise SystemExit(f"{method} {path} answered {answer.status}: {answer.body[:500]!r}")
        return answer.json()

    def batch(self, sequence: int) -> Batch:
        size = self.options.steps
        steps = np.arange(size * (sequence - 1) + 1, size * sequence + 1)
        values = self.values[sequence % len(self.values)]
        block = LayerBlock(
            self.table.digest,
            steps,
            self.statistics,
            values,
            self.present,
            ("grad_nonfinite",),
            self.counts,
            self.present[:1],
        )
        scalars = 2.0 + 0.1 * np.random.default_rng(sequence).random((len(SCALARS), size))
        return Batch(
            session=self.run["session"],
            sequence=sequence,
            complete_through=int(steps[-1]),
            steps=steps,
            times=1.7e9 + steps,
            scalars=Columns(SCALARS, scalars, np.ones(scalars.shape, bool)),
            counts=Columns(("tokens",), np.full((1, size), 512), np.ones((1, size), bool)),
            layer_table=self.table if sequence == 1 else None,
            layers=block,
        )

    def send(self, body: bytes) -> float:
        begin = time.perf_counter()
        self.exchange("POST", f"/runs/{self.run['id']}/records", body, CONTENT_TYPE)
        return time.perf_counter() - begin

    def derived_step(self) -> int:
        return int(self.call("GET", f"/runs/{self.run['id']}")["derived_step"])


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(process: int) -> float:
    """The most memory that a process has had resident."""
    status = Path(f"/proc/{process}/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024, 1)  # type: ignore[index]


@contextmanager
def serving(
    synchronous: str = "NORMAL", database: str | None = None
) -> Iterator[tuple[tuple[str, int], subprocess.Popen[str], Path]]:
    """A real server on a free port, with a folder of its own: its address, its process, and the folder.

    database: a PostgreSQL that the server has a fresh database of; None: an SQLite file in the folder.
    """
    with tempfile.TemporaryDirectory() as folder, fresh_url(database) as url:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADSPECTRA_")}
        environment = clean | {"GRADSPECTRA_SQLITE_SYNCHRONOUS": synchronous}
        environment |= {} if database is None else {"GRADSPECTRA_DATABASE_URL": url}
        command = [sys.executable, "-c", SERVE, "serve", "--port", "0", "--data", folder]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"http://([\d.]+):(\d+)", server.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start; its message stands above")
            yield (found[1], int(found[2])), server, Path(folder)
        finally:
            server.terminate()
            server.wait(60)  # exports in hand end first


def milliseconds(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(np.array(seconds) * 1e3, (50, 95, 99))
    return {"p50": round(p50, 2), "p95": round(p95, 2), "p99": round(p99, 2), "max": round(max(seconds) * 1e3, 1)}


def post(options: argparse.Namespace, address: tuple[str, int], pipe: Connection) -> None:
    """A job in a process of its own: says when it is ready, begins when it is told to, says what it measured."""
    job = Job(options, address)
    warm = max(1, options.batches // 20)
    for sequence in range(1, warm + 1):
        job.send(encode_batch(job.batch(sequence)))
    made = [job.batch(number) for number in range(warm + 1, warm + 1 + options.batches)]
    ready = made if options.encode else [encode_batch(batch) for batch in made]
    pipe.send(None)
    pipe.recv()
    spent = time.process_time()
    seconds = [job.send(encode_batch(one) if isinstance(one, Batch) else one) for one in ready]
    pipe.send((seconds, time.process_time() - spent))
    last = options.steps * made[-1].sequence
    pipe.send(last - job.derived_step())
    while job.derived_step() < last:
        time.sleep(0.02)
    pipe.send(None)


def measure(options: argparse.Namespace, address: tuple[str, int], server: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(options.jobs):
        here, there = context.Pipe()
        context.Process(target=post, args=(options, address, there), daemon=True).start()
        pipes.append(here)
    for pipe in pipes:
        pipe.recv()
    spent = cpu_seconds(server)
    begin = time.perf_counter()
    for pipe in pipes:
        pipe.send(None)
    told = [pipe.recv() for pipe in pipes]
    took = time.perf_counter() - begin
    spent = cpu_seconds(server) - spent
    begin = time.perf_counter()
    behind = max(pipe.recv() for pipe in pipes)
    for pipe in pipes:
        pipe.recv()
    batches = options.batches * options.jobs
    steps = batches * options.steps
    return {
        "steps_per_second": round(steps / took),
        "values_per_second": round(steps * options.layers * options.statistics / took),
        "post_ms": milliseconds([one for seconds, _ in told for one in seconds]),
        "cpu_ms_per_batch": {
            "server": round(spent * 1e3 / batches, 2),
            "client": round(sum(cpu for _, cpu in told) * 1e3 / batches, 2),
        },
        "underived_steps_at_end": behind,
        "derived_after_seconds": round(time.perf_counter() - begin, 2),
        "server_peak_megabytes": peak_megabytes(server),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--statistics", type=int, default=14, help="per layer, one of them a count")
    parser.add_argument("--steps", type=int, default=16, help="in a batch")
    parser.add_argument("--batches", type=int, default=500, help="of each job")
    parser.add_argument("--jobs", type=int, default=1, help="that send at the same time")
    parser.add_argument("--encode", action="store_true", help="encode each batch within the time, as the agent does")
    parser.add_argument("--synchronous", choices=("NORMAL", "FULL"), default="NORMAL")
    add_option(parser)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    with serving(options.synchronous, options.database) as (address, server, _):
        result = measure(options, address, server.pid)
    result["options"] = told(options)
    result["machine"] = {
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "load_before": load,
    }
    result["versions"] = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
