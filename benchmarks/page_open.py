"""How long a run's page takes from its address to its first drawn figures, in a browser; prints one JSON object.

python benchmarks/page_open.py [--layers 2000] [--statistics 14] [--steps 2000] [--tabs overview layers] [--repeat 10]
                               [--new 5]

A real server is sent the run and left to finish its work on it; then Chromium opens the run's page again and again,
each time in a new tab of one window, as a person's browser does: files and compiled scripts are kept, as it keeps them,
and no debugger is attached (chromium.py). The clock is the page's own: it starts with the navigation and stops when the
first, and when every figure in sight, stands in a frame. The first opening of all, with nothing decoded in the server
and no file in the browser, and the second, where the files are there but no compiled scripts, are given by themselves.
new_browser_ms are medians over browsers that are new each, at a server that has been asked before, with the way of such
an opening: when the page, its modules and Plotly's script were there, and the first figure was asked for and answered.
cpu_ms_per_opening tells what server and browser spent, whatever else ran on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from chromium import Chromium, Tab, program
from ingest import Job, cpu_seconds, encode_batch, peak_megabytes, serving
from peers import settings

WATCH = """
window.drawn = {};
new MutationObserver((changes) => {
  const names = changes.map(({ target }) => target.dataset.figure);
  requestAnimationFrame(() => names.forEach((name) => { window.drawn[name] ??= performance.now(); }));
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-last-step"] });
"""
WAY = """
(() => {
  const calls = performance.getEntriesByType("resource");
  const times = (part, time) => calls.filter(({ name }) => name.includes(part)).map((one) => one[time]);
  return {
    page: performance.getEntriesByType("navigation")[0].responseEnd,
    modules: Math.max(...times("/js/", "responseEnd")),
    plotly: Math.max(...times("/vendor/plotly", "responseEnd")),
    asked: Math.min(...times("/figures/", "requestStart")),
    answered: Math.min(...times("/figures/", "responseEnd")),
  };
})()
"""
SETTLED_SECONDS = 1.5
LONGEST_SECONDS = 60
LONGEST_WORK_SECONDS = 300


def opened(browser: Chromium, address: str) -> tuple[dict[str, float], dict[str, float]]:
    """Open a page in a new tab; milliseconds from the navigation to each figure, and to each part of the way there."""
    tab = Tab(browser, WATCH)
    tab.open(address)
    until = time.monotonic() + LONGEST_SECONDS
    while not tab.value("Object.keys(window.drawn ?? {}).length"):
        if time.monotonic() > until:
            raise SystemExit(f"no figure was drawn at {address}")
        time.sleep(0.2)
    time.sleep(SETTLED_SECONDS)
    found: tuple[dict[str, float], dict[str, float]] = tab.value("window.drawn"), tab.value(WAY)
    tab.close()
    return found


def idle(process: int) -> bool:
    """Wait until a process spends next to nothing, at most LONGEST_WORK_SECONDS: it compacts what it was sent.

    Whether it came to rest.
    """
    until = time.monotonic() + LONGEST_WORK_SECONDS
    while time.monotonic() < until:
        begin = cpu_seconds(process)
        time.sleep(10)
        if cpu_seconds(process) - begin < 0.1:
            return True
    return False


def sent(job: Job, steps: int) -> None:
    """Send a run and wait until it is derived."""
    size = job.options.steps
    for sequence in range(1, -(-steps // size) + 1):
        job.send(encode_batch(job.batch(sequence)))
    while job.derived_step() < steps // size * size:
        time.sleep(0.1)


def ends(one: dict[str, float]) -> dict[str, int]:
    """Milliseconds to the first and to the last figure of an opening."""
    return {"first_figure": round(min(one.values())), "all": round(max(one.values()))}


def summary(times: list[dict[str, float]]) -> dict[str, Any]:
    """The first two openings; of those after them medians to the first figure, to the last one, and to each."""
    rest = times[2:]
    names = sorted({name for one in rest for name in one})
    return {
        "first_opening_ms": ends(times[0]),
        "second_opening_ms": ends(times[1]),
        "first_figure_ms": round(float(np.median([min(one.values()) for one in rest]))),
        "all_figures_ms": round(float(np.median([max(one.values()) for one in rest]))),
        "figures_ms": {name: round(float(np.median([one[name] for one in rest if name in one]))) for name in names},
    }


def in_new_browsers(address: str, count: int) -> dict[str, float]:
    """Medians of openings in browsers that know nothing: to the first figure, to the last one, and the way there."""
    found = []
    for _ in range(count):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Chromium(Path(folder)) as browser:
            figures, way = opened(browser, address)
            found.append(way | ends(figures))
    return {name: round(float(np.median([one[name] for one in found]))) for name in found[0]}


def measured(tab: str, job: Job, address: tuple[str, int], server: int, options: argparse.Namespace) -> dict[str, Any]:
    """Open a tab of the run's page in a browser that knows nothing, and again; then in more of such browsers."""
    place = f"http://{address[0]}:{address[1]}/runs/{job.run['id']}/{tab}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Chromium(Path(folder)) as browser:
        times = [opened(browser, place)[0] for _ in range(2)]
        begin = cpu_seconds(server), browser.cpu_seconds()
        times += [opened(browser, place)[0] for _ in range(options.repeat)]
        spent = cpu_seconds(server) - begin[0], browser.cpu_seconds() - begin[1]
        each = [round(seconds * 1e3 / options.repeat) for seconds in spent]
        product = browser.call("Browser.getVersion")["product"]
    more = {"new_browser_ms": in_new_browsers(place, options.new)} if options.new else {}
    return summary(times) | more | {"cpu_ms_per_opening": {"server": each[0], "browser": each[1]}, "browser": product}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2000)
    parser.add_argument("--statistics", type=int, default=14, help="per layer, one of them a count")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tabs", nargs="+", default=["overview", "layers"])
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--new", type=int, default=5, help="browsers that know nothing")
    options = parser.parse_args()
    if program() is None:
        parser.error("no Chromium is installed (apt-get install chromium)")
    load = round(os.getloadavg()[0], 2)
    result: dict[str, Any] = {"options": vars(options)}
    with serving() as (address, server, _):
        job = Job(settings(16, 1, options.layers, options.statistics), address)
        sent(job, options.steps)
        result["server_at_rest"] = idle(server.pid)
        for tab in options.tabs:
            result[tab] = measured(tab, job, address, server.pid, options)
        result["server_peak_megabytes"] = peak_megabytes(server.pid)
    versions = {name: version(name) for name in ("gradspectra", "fastapi", "sqlalchemy")}
    machine = {"cpus": len(os.sched_getaffinity(0)), "load_before": load, "python": platform.python_version()}
    print(json.dumps(result | {"machine": machine, "versions": versions}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
