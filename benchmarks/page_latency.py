"""How long a step takes until its point is drawn in a browser; prints one JSON object.

python benchmarks/page_latency.py [--rate 20] [--seconds 30] [--before 1500] [--layers 60] [--tab overview] [--job]

Starts the embedded server on a free port, fills a run with `--before` steps, opens its page in Chromium, then posts
one step at a time at `--rate` per second: the time counts from the POST. With --job a real training job with the
agent takes the steps (stepping_job.py), and the time counts from the end of optimizer.step(), the agent's own batching
included. The page says what it has drawn by data-last-step on each figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Batch, Columns, LayerBlock
from gradspectra_core.wire import CONTENT_TYPE, encode_batch
from playwright.sync_api import Browser, sync_playwright

SERVE = """
import sys
from gradspectra_backend.serve import serve
from gradspectra_backend.settings import Settings
sys.exit(serve(Settings(port=0, data=sys.argv[1], log_level="warning")))
"""
WATCH = """
window.drawn = [];
new MutationObserver((changes) => {
  const steps = changes.map(({ target }) => [target.dataset.figure, Number(target.dataset.lastStep)]);
  requestAnimationFrame(() => steps.forEach(([name, step]) => window.drawn.push([name, step, Date.now() / 1000])));
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-last-step"] });
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WARM_SECONDS = 3.0
SCALARS = ("loss", "grad_norm", "learning_rate", "step_seconds", "data_seconds", "agent_seconds", "clip_threshold")


class Poster:
    """Posts made-up steps of one run over one connection, and keeps the time of each POST."""

    def __init__(self, url: str, layers: int) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        started = self._call(
            "/api/v1/runs", json.dumps({"project": "latency", "name": "page"}).encode(), "application/json"
        )
        self.run, self.session = started["id"], started["session"]
        self.table = LayerTable.of(Layer(f"h.{i}.weight", "linear", i, (256, 256)) for i in range(layers))
        self.random = np.random.default_rng(0)
        self.sequence = 0
        self.step = 0
        self.posted: dict[int, float] = {}

    def _call(self, path: str, body: bytes, content_type: str) -> Any:
        self.connection.request("POST", path, body, {"Content-Type": content_type})
        response = self.connection.getresponse()
        text = response.read()
        if response.status not in (200, 201):
            raise RuntimeError(f"{path} answered {response.status}: {text.decode()[:300]}")
        return json.loads(text)

    def post(self, count: int = 1) -> None:
        """Post the next `count` steps as one batch."""
        self.sequence += 1
        steps = np.arange(self.step + 1, self.step + count + 1)
        scalars = np.exp(0.1 * self.random.standard_normal((len(SCALARS), count))) * (1 + 50 / steps)
        values = self.random.lognormal(size=(2, count, len(self.table))).astype(np.float32)
        block = LayerBlock(
            self.table.digest, steps, ("grad_sq", "weight_sq"), values, np.ones(values.shape, bool), (),
            np.empty((0, count, len(self.table)), np.int64), np.empty((0, count, len(self.table)), bool),
        )  # fmt: skip
        now = time.time()
        batch = Batch(
            self.session, self.sequence, int(steps[-1]), steps, np.full(count, now),
            Columns(SCALARS, scalars, np.ones(scalars.shape, bool)),
            Columns(("examples",), np.full((1, count), 32), np.ones((1, count), bool)),
            self.table if self.sequence == 1 else None, block,
        )  # fmt: skip
        body = encode_batch(batch)
        self.step = int(steps[-1])
        self.posted.update(dict.fromkeys(steps.tolist(), time.time()))
        self._call(f"/api/v1/runs/{self.run}/records", body, CONTENT_TYPE)

    def keep_posting(self, rate: float, seconds: float) -> None:
        """Post one step at a time, at `rate` per second."""
        begun = time.perf_counter()
        for i in range(int(rate * seconds)):
            time.sleep(max(0.0, begun + i / rate - time.perf_counter()))
            self.post()


def latencies(
    posted: dict[int, float], drawn: list[tuple[str, int, float]], figure: str, first: int, last: int
) -> np.ndarray:
    """Seconds from POST to drawn for the steps first to last; drawn is when the figure shows it or a later one."""
    ours = sorted((when, step) for name, step, when in drawn if name == figure)
    out = []
    at = 0
    for step in range(first, last + 1):
        while at < len(ours) and ours[at][1] < step:
            at += 1
        if at == len(ours):
            raise RuntimeError(f"{figure} never showed step {step}; its last was {ours[-1][1] if ours else None}")
        out.append(ours[at][0] - posted[step])
    return np.array(out)


def measure(url: str, options: argparse.Namespace, chromium: Browser) -> dict[str, Any]:
    """Fill a run, watch its page while it goes on, and sum up."""
    poster = Poster(url, options.layers)
    while poster.step < options.before:
        poster.post(min(64, options.before - poster.step))
    thread = threading.Thread(target=poster.keep_posting, args=(options.rate, options.seconds))
    drawn = watch_page(f"{url}/runs/{poster.run}/{options.tab}", options, chromium, thread)
    return summary(poster.posted, drawn, options.before + int(WARM_SECONDS * options.rate), options.seconds)


def measure_job(url: str, options: argparse.Namespace, chromium: Browser) -> dict[str, Any]:
    """Watch the page of a training job, and sum up."""
    stepped: dict[int, float] = {}
    command = [sys.executable, str(Path(__file__).with_name("stepping_job.py")), url]
    command += ["--rate", str(options.rate), "--seconds", str(options.seconds + 10)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        lines = job.stdout
        run = lines.readline().strip()

        def read() -> None:
            for line in lines:
                step, when = line.split()
                stepped[int(step)] = float(when)

        drawn = watch_page(f"{url}/runs/{run}/{options.tab}", options, chromium, threading.Thread(target=read))
    return summary(stepped, drawn, int((5 + WARM_SECONDS) * options.rate), options.seconds)


def watch_page(
    address: str, options: argparse.Namespace, chromium: Browser, steps: threading.Thread
) -> list[tuple[str, int, float]]:
    """What the page draws while the thread runs: figure, last step, seconds since 1970."""
    page = chromium.new_page(viewport={"width": 1280, "height": options.height})
    page.add_init_script(WATCH)
    page.goto(address)
    page.locator("figure[data-last-step]").first.wait_for(timeout=30_000)
    steps.start()
    while steps.is_alive():
        page.wait_for_timeout(200)
    steps.join()
    page.wait_for_timeout(3000)
    return [(name, step, when) for name, step, when in page.evaluate("window.drawn")]


def summary(began: dict[int, float], drawn: list[tuple[str, int, float]], first: int, seconds: float) -> dict[str, Any]:
    """Quantiles for each figure of the time from a step's beginning to its point, for the steps from first on."""
    out = {}
    for figure in sorted({name for name, step, _ in drawn if step > first}):
        last = max(step for name, step, _ in drawn if name == figure)
        waited = latencies(began, drawn, figure, first, min(last, max(began)))
        redraws = sum(name == figure and step > first for name, step, _ in drawn)
        out[figure] = {
            "p50_ms": round(1000 * float(np.quantile(waited, 0.5))),
            "p95_ms": round(1000 * float(np.quantile(waited, 0.95))),
            "max_ms": round(1000 * float(waited.max())),
            "steps": len(waited),
            "redraws_per_second": round(redraws / (seconds - WARM_SECONDS), 2),
        }
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="steps per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--before", type=int, default=1500, help="steps the run has already")
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--tab", default="overview")
    parser.add_argument("--height", type=int, default=900, help="of the window; figures out of sight are not drawn")
    parser.add_argument("--job", action="store_true", help="a training job with the agent takes the steps")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    program = os.environ.get("GRADSPECTRA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        parser.error("no Chromium is installed (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = subprocess.Popen([sys.executable, "-c", SERVE, folder], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "http://" in line)
            url = re.search(r"http://[^/\s]+", line)[0]  # type: ignore[index]
            chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
            figures = (measure_job if options.job else measure)(url, options, chromium)
            browser = chromium.version
            chromium.close()
        finally:
            server.terminate()
            server.wait(10)
    print(
        json.dumps(
            {
                "what": "milliseconds to the drawn point",
                "from": "the end of optimizer.step()" if options.job else "the POST of the step",
                "options": vars(options),
                "figures": figures,
                "machine": {
                    "cpus": os.cpu_count(),
                    "load_before": round(load, 2),
                    "platform": platform.platform(),
                    "python": platform.python_version(),
                },
                "versions": {name: version(name) for name in ("gradspectra", "fastapi", "sqlalchemy")}
                | {"chromium": browser},
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
