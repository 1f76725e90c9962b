"""How long a run's page takes from its address to its first drawn figures, in a browser; prints one JSON object.

python benchmarks/page_open.py [--layers 2000] [--statistics 14] [--steps 2000] [--tabs overview layers] [--repeat 10]

A real server is sent the run; then Chromium opens its page again and again, each time in a new tab that has the files
of the one before. The clock is the page's own: it starts with the navigation and stops when the first, and when every
figure in sight, stands in a frame. The very first opening, with nothing decoded in the server and no file in the
browser, is given by itself. cpu_ms_per_opening tells what server and browser spent, whatever else ran on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ingest import Job, cpu_seconds, encode_batch, peak_megabytes, serving
from peers import settings
from playwright.sync_api import BrowserContext, sync_playwright

WATCH = """
window.drawn = {};
new MutationObserver((changes) => {
  const names = changes.map(({ target }) => target.dataset.figure);
  requestAnimationFrame(() => names.forEach((name) => { window.drawn[name] ??= performance.now(); }));
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-last-step"] });
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SETTLED_MS = 1500


def opened(context: BrowserContext, address: str) -> dict[str, float]:
    """Open a page in a new tab; milliseconds from the navigation to each figure."""
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(address)
    page.locator("figure[data-last-step]").first.wait_for(timeout=60_000)
    page.wait_for_timeout(SETTLED_MS)
    found: dict[str, float] = page.evaluate("window.drawn")
    page.close()
    return found


def browser_cpu_seconds() -> float:
    """CPU of all of Chromium's processes below this one, and of those that have ended, so far."""
    parents, spent = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        parents[int(stat.parent.name)] = int(fields[1])
        if name.startswith("chrom"):
            spent[int(stat.parent.name)] = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def below(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return sum(seconds for process, seconds in spent.items() if below(process))


def sent(job: Job, steps: int) -> None:
    """Send a run and wait until it is derived."""
    size = job.options.steps
    for sequence in range(1, -(-steps // size) + 1):
        job.send(encode_batch(job.batch(sequence)))
    while job.derived_step() < steps // size * size:
        time.sleep(0.1)


def summary(times: list[dict[str, float]]) -> dict[str, Any]:
    """Of the openings after the first: medians to the first figure, to the last one, and to each."""
    rest = times[1:]
    names = sorted({name for one in rest for name in one})
    return {
        "first_opening_ms": {"first_figure": round(min(times[0].values())), "all": round(max(times[0].values()))},
        "first_figure_ms": round(float(np.median([min(one.values()) for one in rest]))),
        "all_figures_ms": round(float(np.median([max(one.values()) for one in rest]))),
        "figures_ms": {name: round(float(np.median([one[name] for one in rest if name in one]))) for name in names},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2000)
    parser.add_argument("--statistics", type=int, default=14, help="per layer, one of them a count")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tabs", nargs="+", default=["overview", "layers"])
    parser.add_argument("--repeat", type=int, default=10)
    options = parser.parse_args()
    program = os.environ.get("GRADSPECTRA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        parser.error("no Chromium is installed (apt-get install chromium)")
    load = round(os.getloadavg()[0], 2)
    result: dict[str, Any] = {"options": vars(options)}
    with serving() as (address, server, _), sync_playwright() as playwright:
        job = Job(settings(16, 1, options.layers, options.statistics), address)
        sent(job, options.steps)
        for tab in options.tabs:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            place = f"http://{address[0]}:{address[1]}/runs/{job.run['id']}/{tab}"
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            times = [opened(context, place)]
            begin = cpu_seconds(server.pid), browser_cpu_seconds()
            times += [opened(context, place) for _ in range(options.repeat)]
            spent = cpu_seconds(server.pid) - begin[0], browser_cpu_seconds() - begin[1]
            each = [round(seconds * 1e3 / options.repeat) for seconds in spent]
            result[tab] = summary(times) | {"cpu_ms_per_opening": {"server": each[0], "browser": each[1]}}
            result["chromium"] = browser.version
            browser.close()
        result["server_peak_megabytes"] = peak_megabytes(server.pid)
    versions = {name: version(name) for name in ("gradspectra", "plotly", "fastapi", "sqlalchemy")}
    machine = {"cpus": len(os.sched_getaffinity(0)), "load_before": load, "python": platform.python_version()}
    print(json.dumps(result | {"machine": machine, "versions": versions}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
