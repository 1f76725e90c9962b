"""What the agent costs a training step, beside TensorBoard's gradient histograms and the plain step, in one run.

Each variant has a model and an optimizer of its own over the same memory, since copies of a model differ in speed by a
percent or two through where they lie; all of them train the one set of weights on. Eight steps of each in turn, each
turn in an order drawn anew. A pair is a variant's step and the plain step of the same number.
Prints JSON: shares of the plain step, from wall time and from the training thread's own processor time, which says the
same on a machine that is busy with other things (with --threads 1, where that thread does all the work). `blocks` are
the same differences of eight steps together, whose median is the figure to trust: a cadence of 8 costs each of them
alike, and what else the machine does is left out. What the sending thread took outside the variant's own steps, where
nobody sees it, is added as it is. watch: at the default budget while nobody has a page open; watch-viewed: while
somebody has.
`python benchmarks/agent_overhead.py --task demo --steps 400`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradspectra
import torch
from gradspectra_core import __version__
from models import TASKS, Task
from sink import start_sink
from torch import nn

BUSY = 1.6
"""A turn counts only if its plain step took less than this many times the median: else the machine did other things."""


BLOCK = 8
"""Steps of a variant in a row: enough for caches, batches of records and cadences to be as in a job alone."""


class Variant:
    """One way to train: a model, its optimizer, and what is done besides."""

    def __init__(self, task: Task, name: str, server: str, folder: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.task = task
        self.model = task.make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.generator = torch.Generator().manual_seed(1)
        self.watch: gradspectra.Watch | None = None
        self.finish: Callable[[], None] = lambda: None
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.steps = 0
        self.sent_within = 0.0
        options: dict[str, Any] = {"project": "benchmark", "run": name, "server": server, "spool": f"{folder}/{name}"}
        if name in ("watch", "watch-viewed"):
            self.watch = gradspectra.watch(self.model, self.optimizer, **options)
        elif name == "watch-every-step":
            self.watch = gradspectra.watch(self.model, self.optimizer, budget=None, every=1, spectra="off", **options)
        elif name == "tensorboard":
            self.finish = self._tensorboard(folder)

    def _tensorboard(self, folder: str) -> Callable[[], None]:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(f"{folder}/tensorboard")

        def histograms() -> None:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    writer.add_histogram(name, parameter.grad, self.steps)

        return histograms

    def begin(self, first: Variant) -> None:
        """Take a step that does not count, on the weights and the optimizer's state of the first, in its memory."""
        if first is not self:
            for own, theirs in zip(self.model.parameters(), first.model.parameters(), strict=True):
                own.data = theirs.data
                self.optimizer.state[own] = first.optimizer.state[theirs]
        self.step()
        self.seconds.clear()
        self.processor.clear()

    def step(self) -> None:
        """One optimizer step, timed."""
        data = [self.task.draw(self.generator) for _ in range(self.task.parts)]
        sent = self.sent()
        began, busy = time.perf_counter(), time.thread_time()
        for x, y in data:
            loss = self.task.loss(self.model, x, y)
            (loss / self.task.parts).backward()
            if self.watch is not None:
                self.watch.log(loss=loss, examples=len(x))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.finish()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.seconds.append(time.perf_counter() - began)
        self.processor.append(time.thread_time() - busy)
        self.sent_within += self.sent() - sent

    def sent(self) -> float:
        """Processor seconds that the agent's sending thread has taken so far."""
        return 0.0 if self.watch is None else float(self.watch.status()["sending"]["seconds_spent"])


def compare(variants: Sequence[Variant], warmup: int) -> dict[str, Any]:
    """Extra time of each variant over the plain step, as a share of it: means over turns, with their errors."""
    plain = variants[0]
    usual = statistics.median(plain.seconds[warmup:])
    quiet = [i for i in range(warmup, len(plain.seconds)) if all(v.seconds[i] < BUSY * usual + 0.05 for v in variants)]
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
            "blocks": of_blocks(variant.seconds, plain.seconds, warmup),
        }
        if variant.watch is not None:
            status = variant.watch.status()
            everything = variant.sent() / variant.steps / usual
            outside = everything - variant.sent_within / variant.steps / usual
            found["sending_thread"] = round(everything, 5)
            found["sending_thread_outside"] = round(outside, 5)
            found["wall_with_sending"] = round(found["wall"]["mean"] + outside, 5)
            found["blocks_with_sending"] = round(found["blocks"]["median"] + outside, 5)
            found["reported"] = round(status["overhead"], 5)
            found |= {key: status[key] for key in ("cadence_layers", "cadence_spectra", "not_measured")}
        results[variant.name] = found
    return results


def extra(own: Sequence[float], plain: Sequence[float], turns: Sequence[int]) -> dict[str, float]:
    """Mean and median of what own took more than plain in these turns, as shares of the usual plain step."""
    if len(turns) < 2:
        return {"mean": float("nan"), "standard_error": float("nan"), "median": float("nan")}
    usual = statistics.median(plain[turn] for turn in turns)
    more = [(own[turn] - plain[turn]) / usual for turn in turns]
    return {
        "mean": round(statistics.fmean(more), 5),
        "standard_error": round(statistics.stdev(more) / len(more) ** 0.5, 5),
        "median": round(statistics.median(more), 5),
    }


def of_blocks(own: Sequence[float], plain: Sequence[float], warmup: int) -> dict[str, float]:
    """Median of what own took more than plain in the blocks after the warm-up, with the error of the median."""
    starts = range(-(-warmup // BLOCK) * BLOCK, len(plain) - BLOCK + 1, BLOCK)
    if len(starts) < 2:
        return {"median": float("nan"), "standard_error": float("nan")}
    usual = statistics.median(sum(plain[at : at + BLOCK]) for at in starts)
    more = [(sum(own[at : at + BLOCK]) - sum(plain[at : at + BLOCK])) / usual for at in starts]
    draw = random.Random(0)
    medians = [statistics.median(draw.choices(more, k=len(more))) for _ in range(500)]
    return {
        "median": round(statistics.median(more), 5),
        "standard_error": round(statistics.stdev(medians), 5),
        "trimmed_mean": round(statistics.fmean(sorted(more)[len(more) // 5 : len(more) - len(more) // 5]), 5),
    }


def import_seconds() -> float:
    """Time that `import gradspectra` adds to starting Python, the best of five; fails if it loads torch."""
    code = "import time; t = time.perf_counter(); import gradspectra, sys; assert 'torch' not in sys.modules; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - t)"]
    return min(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), default="demo")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0)
    names = "plain,control,watch,watch-every-step,tensorboard"
    parser.add_argument("--variants", default=names, help=f"comma-separated, plain first (default {names})")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sink, server = start_sink()
    with tempfile.TemporaryDirectory() as folder:
        try:
            variants = [Variant(TASKS[options.task], n, server, folder) for n in options.variants.split(",")]
            variants[0].begin(variants[0])
            for variant in variants[1:]:
                variant.begin(variants[0])
            order = random.Random(0)
            for _ in range((options.warmup + options.steps) // BLOCK):
                for variant in order.sample(variants, len(variants)):
                    for _ in range(BLOCK):
                        variant.step()
            results = compare(variants, options.warmup)
            for variant in variants:
                if variant.watch is not None:
                    variant.watch.close()
        finally:
            sink.terminate()
    about = {
        "task": options.task,
        "parameters": sum(p.numel() for p in variants[0].model.parameters()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "gradspectra": __version__},
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
