"""What the agent's spectra cost beside an SVD and how exact they are, which steps they make longer, and its memory.

`--pieces spectra,steps,memory` chooses. Prints JSON:
spectra: processor time of all matrices' singular values as the agent takes them from the second time on, over that of
torch's float32 SVD, on one thread, the median of rounds in which each matrix is measured both ways in turn; how many of
them come by a float64 SVD; and the largest relative error of nuclear norm and effective rank against one.
steps: with the agent at its default budget, a step with a spectrum over the mean of the nearest steps of the same kind
(layer numbers or none) without one, before and after it: the median ratio, from wall and from processor time.
memory: what is held more after some steps than before the watch was made: torch's storages, and what Python and numpy
have allocated, over the bytes of the model's parameters. A model of a few kilobytes says nothing.
`python benchmarks/agent_pieces.py --task gpt-10m --steps 400`
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import gradspectra
import numpy as np
import torch
from gradspectra.singular import GRAM, SVD, measured, resolved, singular_values
from gradspectra_core.spectrum import aggregates
from models import TASKS, Task
from sink import start_sink
from torch import Tensor, nn

NUCLEAR, ENTROPY = 0, 4
"""Where `aggregates` has the nuclear norm, and the entropy whose exponential is the effective rank."""


def matrices(model: nn.Module) -> list[Tensor]:
    """The gradients of a model that have a spectrum, as matrices of (out, in)."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [g.reshape(len(g), -1) for g in gradients if g.dim() >= 2 and min(len(g), g[0].numel()) >= 2]


def busy(work: Callable[[], object]) -> float:
    """Processor seconds of this thread."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def spectra(task: Task, rounds: int) -> dict[str, Any]:
    """The agent's way against the float32 SVD, in time, and against the float64 SVD, in numbers."""
    model = _trained(task)[0]
    found = matrices(model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    methods = [GRAM if resolved(singular_values(matrix)) else SVD for matrix in found]
    ratios = []
    for _ in range(rounds):
        own = svd = 0.0
        for matrix, method in zip(found, methods, strict=True):
            own += busy(lambda matrix=matrix, method=method: resolved(measured(matrix, method)[0]))  # type: ignore[misc]
            svd += busy(lambda matrix=matrix: torch.linalg.svdvals(matrix))  # type: ignore[misc]
        ratios.append(own / svd)
    torch.set_num_threads(threads)
    errors = np.array([_errors(matrix) for matrix in found])
    return {
        "matrices": len(found),
        "by_svd": methods.count(SVD),
        "time_over_float32_svd": round(statistics.median(ratios), 3),
        "error_nuclear": float(errors[:, 0].max()),
        "error_effective_rank": float(errors[:, 1].max()),
    }


def _errors(matrix: Tensor) -> tuple[float, float]:
    own = aggregates(singular_values(matrix))
    exact = aggregates(torch.linalg.svdvals(matrix.double()).numpy())
    rank = np.exp(own[ENTROPY] - exact[ENTROPY]) - 1
    return abs(float(own[NUCLEAR] / exact[NUCLEAR] - 1)), abs(float(rank))


def _trained(task: Task) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after three steps, the gradients of the last still there."""
    torch.manual_seed(0)
    model = task.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        _step(task, model, optimizer, generator)
    return model, optimizer


def _step(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    for _ in range(task.parts):
        x, y = task.draw(generator)
        (task.loss(model, x, y) / task.parts).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def steps(task: Task, count: int, server: str) -> dict[str, Any]:
    """Steps with a spectrum beside those without."""
    model, optimizer = _trained(task)
    generator = torch.Generator().manual_seed(2)
    times: list[tuple[float, float]] = []
    kinds: list[tuple[bool, bool]] = []
    with (
        tempfile.TemporaryDirectory() as spool,
        gradspectra.watch(model, optimizer, server=server, spool=spool) as watch,
    ):
        measuring = watch._session.measuring
        for _ in range(count):
            optimizer.zero_grad()
            step = watch._session.open
            wall, processor = time.perf_counter(), time.thread_time()
            _step(task, model, optimizer, generator)
            times.append((time.perf_counter() - wall, time.thread_time() - processor))
            kinds.append((any(c.taken == step.number for c in measuring.spectra.candidates), step.measured))
        overhead = watch.overhead
    ratios = [beside(times, kinds, at) for at in range(count // 4, count) if kinds[at][0]]
    found = np.array([ratio for ratio in ratios if ratio is not None])
    medians = np.median(found, axis=0).round(4).tolist() if len(found) else [None, None]
    return {
        "steps": count,
        "with_spectrum": len(found),
        "wall_over_neighbours": medians[0],
        "processor_over_neighbours": medians[1],
        "reported": round(overhead, 5),
    }


def beside(
    times: Sequence[tuple[float, float]], kinds: Sequence[tuple[bool, bool]], at: int
) -> tuple[float, float] | None:
    """Wall and processor time of a step over the mean of its neighbours of the same kind without a spectrum."""
    same = [other for other, kind in enumerate(kinds) if kind == (False, kinds[at][1])]
    before, after = [other for other in same if other < at], [other for other in same if other > at]
    if not before or not after:
        return None
    near = np.array([times[before[-1]], times[after[0]]]).mean(0)
    return times[at][0] / near[0], times[at][1] / near[1]


def storages() -> dict[int, int]:
    """Bytes of each storage that a tensor has, by its address."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def memory(task: Task, count: int, server: str) -> dict[str, Any]:
    """What the agent holds between two steps, without budget, so that every part of it is in use."""
    model, optimizer = _trained(task)
    generator = torch.Generator().manual_seed(2)
    optimizer.zero_grad()
    tracemalloc.start()
    before, python = storages(), tracemalloc.get_traced_memory()[0]
    options: dict[str, Any] = {"budget": None, "spectra": 1, "server": server}
    with tempfile.TemporaryDirectory() as spool, gradspectra.watch(model, optimizer, spool=spool, **options):
        for _ in range(count):
            _step(task, model, optimizer, generator)
            optimizer.zero_grad()
        held = sum(size for place, size in storages().items() if place not in before)
        more = tracemalloc.get_traced_memory()[0] - python
    tracemalloc.stop()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "parameters_bytes": weights,
        "tensors_bytes": held,
        "tensors_share": round(held / weights, 5),
        "python_and_numpy_bytes": more,
        "python_and_numpy_share": round(more / weights, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), default="gpt-10m")
    parser.add_argument("--pieces", default="spectra,steps,memory")
    parser.add_argument("--rounds", type=int, default=5, help="of spectra")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    task, wanted = TASKS[options.task], options.pieces.split(",")
    sink, server = start_sink()
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "spectra": lambda: spectra(task, options.rounds),
        "steps": lambda: steps(task, options.steps, server),
        "memory": lambda: memory(task, min(options.steps, 8), server),
    }
    unknown = [name for name in wanted if name not in made]
    if unknown:
        parser.error(f"--pieces must name {', '.join(made)}, got {', '.join(unknown)}")
    try:
        found = {name: made[name]() for name in wanted}
    finally:
        sink.terminate()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    about = {"task": options.task, "machine": machine, "torch": torch.__version__}
    print(json.dumps({"benchmark": "agent_pieces", **about, **found}, indent=2))


if __name__ == "__main__":
    main()
