"""The most memory a server takes while it is sent a large run, a page of it is open and exports go on; prints JSON.

python benchmarks/server_memory.py [--layers 2000] [--statistics 14] [--steps 2000] [--exports 2] [--seconds 60]

A real `gradspectra serve` is sent the run as fast as it answers. Meanwhile one reader asks over and over for what an
open page shows (the heatmap of all layers, the curves, the list of layers), and others take in exports of the layers'
numbers, as Parquet and as CSV in turn; they go on for some seconds after all was derived. The peaks are the most that
the process has ever had resident (VmHWM) by then.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import threading
import time
from collections import Counter
from itertools import cycle
from typing import Any

from gradspectra_core.wire import encode_batch
from ingest import Job, cpu_seconds, peak_megabytes, serving
from peers import settings

PAGE = ("figures/layers?columns=1000", "figures/loss", "figures/grad_norm", "figures/noise_scale", "layers", "series")
EXPORTS = ("export?what=layers&format=parquet", "export?what=layers&format=csv&names=grad_sq")
PAUSE = 0.5
"""Seconds between two looks of the page: it redraws no more often."""


class Reader(threading.Thread):
    """Asks for one path after the other and drops what it is answered, until told to stop."""

    def __init__(self, address: tuple[str, int], run: str, paths: tuple[str, ...], pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.address, self.run_id, self.paths, self.pause = address, run, paths, pause
        self.stopped = threading.Event()
        self.answers: Counter[str] = Counter()
        self.bytes = 0
        self.failure: str | None = None

    def run(self) -> None:
        """Read until stopped."""
        for path in cycle(self.paths):
            if self.stopped.is_set() or self.failure:
                return
            self.ask(path)
            self.stopped.wait(self.pause)

    def ask(self, path: str) -> None:
        """Read one answer in pieces."""
        connection = http.client.HTTPConnection(*self.address, timeout=600)
        connection.request("GET", f"/api/v1/runs/{self.run_id}/{path}")
        answer = connection.getresponse()
        while not self.stopped.is_set() and (piece := answer.read(1 << 16)):
            self.bytes += len(piece)
        if answer.status >= 300:
            self.failure = f"{path} answered {answer.status}"
        self.answers[path] += 1
        connection.close()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Send the run, read meanwhile, and look how much memory the server took."""
    found: dict[str, Any] = {}
    with serving() as (address, server, _):
        job = Job(settings(options.batch, 1, options.layers, options.statistics), address)
        job.send(encode_batch(job.batch(1)))
        page = Reader(address, job.run["id"], PAGE, PAUSE)
        exports = [Reader(address, job.run["id"], EXPORTS) for _ in range(options.exports)]
        begin = time.perf_counter()
        for reader in (page, *exports):
            reader.start()
        for sequence in range(2, -(-options.steps // options.batch) + 1):
            job.send(encode_batch(job.batch(sequence)))
        found["seconds_to_send"] = round(time.perf_counter() - begin, 1)
        found["peak_megabytes_as_sent"] = peak_megabytes(server.pid)
        while job.derived_step() < options.steps // options.batch * options.batch:
            time.sleep(0.2)
        found["seconds_to_derive"] = round(time.perf_counter() - begin, 1)
        found["peak_megabytes_as_derived"] = peak_megabytes(server.pid)
        time.sleep(options.seconds)
        found["peak_megabytes"] = peak_megabytes(server.pid)
        for reader in (page, *exports):
            reader.stopped.set()
        for reader in (page, *exports):
            reader.join()
        found["answers"] = dict(sum((one.answers for one in (page, *exports)), Counter()))
        found["megabytes_read"] = round(sum(one.bytes for one in (page, *exports)) / 2**20)
        found["server_cpu_seconds"] = round(cpu_seconds(server.pid), 1)
        found["failures"] = [one.failure for one in (page, *exports) if one.failure]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2000)
    parser.add_argument("--statistics", type=int, default=14, help="per layer, one of them a count")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="steps in a batch")
    parser.add_argument("--exports", type=int, default=2, help="exports that go on at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="to read on after all was derived")
    options = parser.parse_args()
    machine = {"cpus": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 2)}
    found = measured(options)
    print(json.dumps({"options": vars(options), "machine": machine} | found, indent=2))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
