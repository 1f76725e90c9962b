"""What the agent costs a training step, beside its peers (variants.py) and the plain step, in one run.

Each variant has a model and an optimizer of its own over the same memory, since copies of a model differ in speed by a
percent or two through where they lie; all of them train the one set of weights on. Eight steps of each in turn, each
turn in an order drawn anew. A pair is a variant's step and the plain step of the same number.
Prints JSON: shares of the plain step, from wall time and from the training thread's own processor time, which says the
same on a machine that is busy with other things (with --threads 1, where that thread does all the work). `blocks` are
the same differences of eight steps together, whose median is the figure to trust: a cadence of 8 costs each of them
alike, and what else the machine does is left out. Blocks with a step that logs now and then, as each 100th, are a group
of their own with a median of its own. What the sending thread took outside the variant's own steps, where nobody sees
it, is added as it is. `times` are ratios of these figures: of each peer to the agent's settings in the same run, and
of each of those to the yardsticks, torch's clip and Composer's norms.
`python benchmarks/agent_overhead.py --task demo --steps 400`; `--variants all` for every peer whose library is there
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gradspectra_core import __version__
from models import TASKS, Task
from sink import start_sink
from variants import ADDITIONS, WITH_LIBRARY, Variant, left_out

BUSY = 1.6
"""A turn counts only if no variant's step took more than this many times its own median: else the machine did other
things."""


BLOCK = 8
"""Steps of a variant in a row: enough for caches, batches of records and cadences to be as in a job alone."""

DEFAULT = "plain,control,watch,watch-first-tier,watch-everything,clip,composer-style,tensorboard"
YARDSTICKS = ("clip", "composer", "composer-style")


def compare(variants: Sequence[Variant], warmup: int) -> dict[str, Any]:
    """Extra time of each variant over the plain step, as a share of it: means over turns, with their errors."""
    plain = variants[0]
    usual = statistics.median(plain.seconds[warmup:])
    quiet = quiet_turns([variant.seconds for variant in variants], warmup)
    results: dict[str, Any] = {
        "plain_step_ms": round(usual * 1e3, 2),
        "plain_processor_ms": round(statistics.median(plain.processor[warmup:]) * 1e3, 2),
        "turns": len(plain.seconds) - warmup,
        "quiet_turns": len(quiet),
    }
    for variant in variants[1:]:
        found: dict[str, Any] = {
            "wall": extra(variant.seconds, plain.seconds, quiet),
            "processor": extra(variant.processor, plain.processor, range(warmup, len(plain.seconds))),
            "blocks": of_blocks(variant.seconds, plain.seconds, warmup, variant.marked, variant.addition.every),
        }
        if variant.watch is not None:
            found |= of_agent(variant, found, usual)
        results[variant.name] = found
    agent = [variant.name for variant in variants if variant.watch is not None]
    for name in (variant.name for variant in variants[1:]):
        others = [other for other in YARDSTICKS if other in results] if name in agent else agent
        results[name]["times"] = {other: times(results[name], results[other]) for other in others}
    return results


def of_agent(variant: Variant, found: dict[str, Any], usual: float) -> dict[str, Any]:
    """What only the agent has: its sending thread, what it reports of itself, and its cadences.

    found: its figures without the sending thread; usual: seconds of the plain step.
    """
    assert variant.watch is not None
    status = variant.watch.status()
    everything = variant.sent() / variant.steps / usual
    outside = everything - variant.sent_within / variant.steps / usual
    return {
        "sending_thread": round(everything, 5),
        "sending_thread_outside": round(outside, 5),
        "wall_with_sending": round(found["wall"]["mean"] + outside, 5),
        "blocks_with_sending": round(found["blocks"]["median"] + outside, 5),
        "reported": round(status["overhead"], 5),
    } | {key: status[key] for key in ("cadence_layers", "cadence_second", "cadence_spectra", "not_measured")}


def quiet_turns(seconds: Sequence[Sequence[float]], warmup: int) -> list[int]:
    """The turns after the warm-up in which no variant's step took far longer than it usually does.

    seconds: of each step of each variant. Steps that log now and then are not quiet either: `blocks` has them.
    """
    most = [BUSY * statistics.median(own[warmup:]) + 0.05 for own in seconds]
    return [
        turn
        for turn in range(warmup, len(seconds[0]))
        if all(own[turn] < limit for own, limit in zip(seconds, most, strict=True))
    ]


def extra(own: Sequence[float], plain: Sequence[float], turns: Sequence[int]) -> dict[str, float]:
    """Mean and median of what own took more than plain in these turns, as shares of the usual plain step."""
    if len(turns) < 2:
        return {"mean": math.nan, "standard_error": math.nan, "median": math.nan}
    usual = statistics.median(plain[turn] for turn in turns)
    more = [(own[turn] - plain[turn]) / usual for turn in turns]
    return {
        "mean": round(statistics.fmean(more), 5),
        "standard_error": round(statistics.stdev(more) / len(more) ** 0.5, 5),
        "median": round(statistics.median(more), 5),
    }


def of_blocks(
    own: Sequence[float], plain: Sequence[float], warmup: int, marked: Sequence[bool], every: int
) -> dict[str, float]:
    """Median of what own took more than plain in the blocks after the warm-up, with the error of the median.

    marked: the steps that cost more than the others, one in `every`. Blocks with and without one have a median each,
    and count as often as they come in a long run. NaN where there are fewer than two blocks, or none of one kind.
    """
    starts = range(-(-warmup // BLOCK) * BLOCK, len(plain) - BLOCK + 1, BLOCK)
    usual = statistics.median(sum(plain[at : at + BLOCK]) for at in starts) if starts else math.nan
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for at in starts:
        more = (sum(own[at : at + BLOCK]) - sum(plain[at : at + BLOCK])) / usual
        kinds[any(marked[at : at + BLOCK])].append(more)
    often = min(1.0, BLOCK / every)
    parts = [(share, kinds[kind]) for kind, share in ((True, often), (False, 1.0 - often)) if share]
    if len(starts) < 2 or not all(more for _, more in parts):
        return {"median": math.nan, "standard_error": math.nan, "trimmed_mean": math.nan}
    draw = random.Random(0)
    medians = [
        sum(share * statistics.median(draw.choices(more, k=len(more))) for share, more in parts) for _ in range(500)
    ]
    return {
        "median": round(sum(share * statistics.median(more) for share, more in parts), 5),
        "standard_error": round(statistics.stdev(medians), 5),
        "trimmed_mean": round(sum(share * trimmed(more) for share, more in parts), 5),
    }


def trimmed(values: Sequence[float]) -> float:
    """Mean without the fifth of the values at either end."""
    return statistics.fmean(sorted(values)[len(values) // 5 : len(values) - len(values) // 5])


def times(own: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How many times what the other costs own does, from the medians of blocks, with the error that theirs give."""
    costs = [found.get("blocks_with_sending", found["blocks"]["median"]) for found in (own, other)]
    errors = [found["blocks"]["standard_error"] for found in (own, other)]
    if not costs[1]:
        return {"ratio": math.nan, "standard_error": math.nan}
    ratio = costs[0] / costs[1]
    return {
        "ratio": round(ratio, 3),
        "standard_error": round(math.hypot(errors[0], ratio * errors[1]) / abs(costs[1]), 3),
    }


def train(variants: Sequence[Variant], warmup: int, steps: int, minutes: float) -> None:
    """Train all of them in turn, blocks of each in an order drawn anew.

    After so many minutes no turn begins, if two are there after the warm-up.
    """
    until = time.perf_counter() + 60 * minutes
    for variant in variants:
        variant.begin(variants[0])
    order = random.Random(0)
    enough = -(-warmup // BLOCK) * BLOCK + 2 * BLOCK
    for taken in range(0, warmup + steps - BLOCK + 1, BLOCK):
        if taken >= enough and time.perf_counter() > until:
            return
        for variant in order.sample(list(variants), len(variants)):
            for _ in range(BLOCK):
                variant.step()
            variant.drain()


def measure(task: Task, names: Sequence[str], options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Number of parameters, and what was found of the variants of these names."""
    sink, server = start_sink()
    variants: list[Variant] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            variants.extend(Variant(task, name, server, folder, options.device) for name in names)
            train(variants, options.warmup, options.steps, options.minutes)
            results = compare(variants, options.warmup)
        finally:
            for variant in variants:
                variant.addition.close()
            sink.terminate()
    return sum(p.numel() for p in variants[0].model.parameters()), results


def import_seconds() -> float:
    """Time that `import gradspectra` adds to starting Python, the best of five; fails if it loads torch."""
    code = "import time; t = time.perf_counter(); import gradspectra, sys; assert 'torch' not in sys.modules; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - t)"]
    return min(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), default="demo")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: trust `blocks` alone")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no turn after so many minutes")
    listed = f'comma-separated, plain first, or "all" (default {DEFAULT}): {", ".join(ADDITIONS)}'
    parser.add_argument("--variants", default=DEFAULT, help=listed)
    options = parser.parse_args()
    options.variants = list(ADDITIONS) if options.variants == "all" else options.variants.split(",")
    unknown = [name for name in options.variants if name not in ADDITIONS]
    if unknown or options.variants[0] != "plain":
        parser.error(f"--variants must begin with plain and name {', '.join(ADDITIONS)}, got {options.variants}")
    if options.steps < 2 * BLOCK:
        parser.error(f"--steps must be at least {2 * BLOCK}, two blocks, got {options.steps}")
    return options


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    absent = {name: why for name in options.variants if (why := left_out(name)) is not None}
    for why in absent.values():
        print(why, file=sys.stderr)
    names = [name for name in options.variants if name not in absent]
    parameters, results = measure(TASKS[options.task], names, options)
    libraries = {WITH_LIBRARY[name][1] for name in names if name in WITH_LIBRARY}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "gradspectra": __version__}
    about = {
        "task": options.task,
        "parameters": parameters,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": versions | {library: importlib.metadata.version(library) for library in sorted(libraries)},
        "left_out": absent,
        "import_seconds": round(import_seconds(), 3),
    }
    print(json.dumps({"benchmark": "agent_overhead", **about, **results}, indent=2))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
