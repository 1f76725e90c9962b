"""Two processes that train one model by DistributedDataParallel over gloo; run as a program it is the second one.

python -m agent.ways.ranks FOLDER PLAN prints as JSON what the watch of that process did.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gradspectra
import torch
from agent.watched_training import attention, loss_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

RANKS, EXAMPLES = 2, 4


@dataclass(frozen=True)
class Plan:
    """How the two train. no_sync: gradients are exchanged in the last backward pass of a step alone.

    stops: the third loss of rank 0 is not finite, and the watch is to stop on that. shards: fully_shard in place of
    DistributedDataParallel. broken: a method `module:Class.name` of the agent that fails on broken_rank.
    """

    parts: int = 1
    no_sync: bool = False
    bucket_view: bool = False
    clip: float | None = None
    steps: int = 3
    stops: bool = False
    shards: bool = False
    adamw: bool = False
    watch: bool = True
    broken: str = ""
    broken_rank: int = 1


def part_loss(model: nn.Module, rank: int, step: int, part: int, parts: int) -> torch.Tensor:
    """Loss of one part of one rank, as it goes into its backward pass."""
    return loss_of(model, EXAMPLES, 100 * rank + 10 * step + part) / parts


def wrapped(model: nn.Module, plan: Plan) -> Any:
    """The model in small buckets, or sharded; one of its layers has no part in the loss."""
    if plan.shards:
        mesh = init_device_mesh("cpu", (RANKS,))
        fully_shard(model.get_submodule("norm"), mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return DistributedDataParallel(
        model, bucket_cap_mb=1e-3, find_unused_parameters=True, gradient_as_bucket_view=plan.bucket_view
    )


def train(model: Any, optimizer: Any, watch: Any, rank: int, plan: Plan, around: Callable[..., Any]) -> None:
    """Take the steps of one rank; around(step) is entered for each optimizer step."""
    for step in range(plan.steps):
        for part in range(plan.parts):
            apart = plan.no_sync and part < plan.parts - 1
            if plan.shards:
                model.set_requires_gradient_sync(not apart)
            with model.no_sync() if apart and not plan.shards else nullcontext():
                loss = part_loss(model, rank, step, part, plan.parts)
                loss.backward()
            logged = math.nan if plan.stops and rank == 0 and step == 2 else loss.detach() * plan.parts
            watch.log(loss=logged, examples=EXAMPLES, tokens=7)
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        with around(step):
            optimizer.step()
        optimizer.zero_grad()


def weight_sum(model: nn.Module) -> float:
    """The same on all ranks, to the last bit."""
    return sum(float(getattr(p, "_local_tensor", p).detach().double().sum()) for p in model.parameters())


def optimizer_of(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    if plan.adamw:
        return torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1)
    return torch.optim.SGD(model.parameters(), lr=0.1)


def gathered(model: nn.Module, into: nn.Module) -> nn.Module:
    """The whole weights of a sharded model; to be called by all ranks."""
    whole = dict(into.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            whole[name].copy_(parameter.full_tensor())
    return into


@contextmanager
def broken(plan: Plan, rank: int) -> Iterator[None]:
    """The agent with what the plan wants broken on this rank."""
    if not plan.broken or rank != plan.broken_rank:
        yield
        return
    module, _, path = plan.broken.partition(":")
    owner, _, name = path.partition(".")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("broken on purpose")

    with patch.object(getattr(importlib.import_module(module), owner), name, fail):
        yield


@contextmanager
def group(folder: Path, rank: int) -> Iterator[None]:
    """This process as one of the ranks."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def second_rank(folder: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    """Run the other process beside; what it tells is in the given dictionary afterwards."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "GRADSPECTRA_SPOOL": str(folder / "spool"),
        "GRADSPECTRA_SERVER": "http://127.0.0.1:9",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "agent.ways.ranks", str(folder), json.dumps(asdict(plan))]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told: dict[str, Any] = {}
    try:
        yield told
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        told |= json.loads(out.splitlines()[-1])
    finally:
        process.kill()
        process.communicate()


def main(folder: Path, plan: Plan) -> None:
    with group(folder, 1):
        model = wrapped(attention(), plan)
        optimizer = optimizer_of(model, plan)
        stopped, stop_on = "", "critical" if plan.stops else None

        @contextmanager
        def around(_: int) -> Iterator[None]:
            for before in (True, False):
                if plan.shards:
                    gathered(model, attention())
                if before:
                    yield

        options = {"budget": None, "spectra": 1, "stop_on": stop_on, "enabled": plan.watch}
        with broken(plan, 1), gradspectra.watch(model, optimizer, **options) as watch:
            try:
                train(model, optimizer, watch, 1, plan, around)
            except gradspectra.InstabilityError as error:
                stopped = str(error)
            state = watch.state_dict()
        told = {
            "stopped": stopped,
            "step": state["step"],
            "enabled": watch.status()["enabled"],
            "threads": [thread.name for thread in threading.enumerate()],
            "spooled": [path.name for path in folder.glob("spool/*")],
            "run_id": state["run_id"],
            "sum": weight_sum(model),
        }
        print(json.dumps(told), flush=True)
        os._exit(0)  # gloo's own threads sometimes abort a process that ends in the usual way


if __name__ == "__main__":
    main(Path(sys.argv[1]), Plan(**json.loads(sys.argv[2])))
