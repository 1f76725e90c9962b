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
from agent.experts import mixture
from agent.watched_training import attention, loss_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

RANKS, EXAMPLES = 2, 4


@dataclass(frozen=True)
class Plan:
    """How the two train. no_sync: gradients are exchanged in the last backward pass of a step alone.

    stops: the third loss of rank 0 is not finite, and the watches are to tell of that and stop. shards: fully_shard,
    not DistributedDataParallel, of a model with matrices of all shapes if mixed, with experts if experts. weighted: the
    parts of a step have other weights in its loss, which are logged. divided: gradients are divided by this in place of
    the number of ranks.
    broken: a method `module:Class.name` of the agent that fails on broken_rank. budget, spectra, drift: of the watch.
    resumed: whose state a second watch goes on from, "own" or "rank 0"; "" for no second watch.
    """

    parts: int = 1
    no_sync: bool = False
    bucket_view: bool = False
    clip: float | None = None
    clip_value: float | None = None
    steps: int = 3
    stops: bool = False
    shards: bool = False
    mixed: bool = False
    experts: bool = False
    weighted: bool = False
    divided: float | None = None
    adamw: bool = False
    watch: bool = True
    broken: str = ""
    broken_rank: int = 1
    budget: float | None = None
    spectra: str | int = "off"
    drift: str = "exact"
    resumed: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """What the watches of all ranks must have alike."""
        return {"budget": self.budget, "spectra": self.spectra, "drift": self.drift}

    def weight(self, part: int) -> float:
        """Of a part in the step's loss; they sum to 1."""
        return 2 * (part + 1) / (self.parts * (self.parts + 1)) if self.weighted else 1 / self.parts


class Conv1D(nn.Module):
    """A linear layer whose rows are inputs, as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Mixed(nn.Module):
    """Matrices that are tall, wide, fused by rows and by columns, a convolution, and one with fewer rows than ranks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.c_attn = Conv1D(width, 3 * width)
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) / width**0.5)
        self.conv = nn.Conv1d(width, 5, 3, padding=1)
        self.up = nn.Linear(5, 31)
        self.down = nn.Linear(31, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for fused in (self.c_attn(x), x @ self.in_proj_weight.t()):
            q, k, v = fused.chunk(3, -1)
            x = x + torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        found: torch.Tensor = self.head(self.down(torch.tanh(self.up(self.conv(x.transpose(1, 2)).transpose(1, 2)))))
        return found


def made(plan: Plan) -> nn.Module:
    """The model before it is wrapped."""
    if plan.experts:
        return mixture()
    if not plan.mixed:
        return attention()
    torch.manual_seed(0)
    return Mixed()


class Alerts:
    """What the watch of a rank told it of: at which step, and by which rule."""

    watch: gradspectra.Watch

    def __init__(self) -> None:
        self.called: list[list[Any]] = []

    @property
    def options(self) -> dict[str, Any]:
        return {"on_alert": self._on_alert, "stop_on": "critical"}

    def _on_alert(self, alert: dict[str, Any]) -> None:
        self.called.append([self.watch.status()["step"], alert["rule"], alert["opened_step"]])


def part_loss(model: nn.Module, rank: int, step: int, part: int, plan: Plan) -> torch.Tensor:
    """Loss of one part of one rank, as it goes into its backward pass."""
    return loss_of(model, EXAMPLES, 100 * rank + 10 * step + part) * plan.weight(part)


def wrapped(model: nn.Module, plan: Plan) -> Any:
    """The model in small buckets, or sharded; one of its layers has no part in the loss."""
    if plan.shards:
        mesh = init_device_mesh("cpu", (RANKS,))
        fully_shard(model.get_submodule("c_attn" if plan.mixed or plan.experts else "norm"), mesh=mesh)
        model = fully_shard(model, mesh=mesh)
        if plan.divided is not None:
            model.set_force_sum_reduction_for_comms(True)  # gloo does not divide while it sums
            model.set_gradient_divide_factor(plan.divided)
        return model
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
                loss = part_loss(model, rank, step, part, plan)
                loss.backward()
            logged = math.nan if plan.stops and rank == 0 and step == 2 else loss.detach() / plan.weight(part)
            weight = {"part_weight": 10 * plan.weight(part)} if plan.weighted else {}
            watch.log(loss=logged, examples=EXAMPLES, tokens=7, **weight)
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        if plan.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), plan.clip_value)
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
    """The whole weights and gradients of a sharded model; to be called by all ranks."""
    whole = dict(into.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            whole[name].copy_(parameter.full_tensor())
            whole[name].grad = None if parameter.grad is None else parameter.grad.full_tensor()
    return into


def handed(folder: Path, rank: int, state: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The state that the second watch of a rank goes on from; to be called by all ranks."""
    torch.save(state, folder / f"state-{rank}")
    torch.distributed.barrier()
    found: dict[str, Any] = torch.load(folder / f"state-{0 if plan.resumed == 'rank 0' else rank}")
    return found


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
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
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
        model = wrapped(made(plan), plan)
        optimizer = optimizer_of(model, plan)
        stopped, alerts = "", Alerts()

        @contextmanager
        def around(_: int) -> Iterator[None]:
            for before in (True, False):
                if plan.shards:
                    gathered(model, made(plan))
                if before:
                    yield

        options = {**plan.options, **(alerts.options if plan.stops else {}), "enabled": plan.watch}
        with broken(plan, 1), gradspectra.watch(model, optimizer, **options) as watch:
            alerts.watch = watch
            try:
                train(model, optimizer, watch, 1, plan, around)
            except gradspectra.InstabilityError as error:
                stopped = str(error)
            state = watch.state_dict()
        if plan.resumed:
            with gradspectra.watch(model, optimizer, **options) as watch:
                watch.load_state_dict(handed(folder, 1, state, plan))
                train(model, optimizer, watch, 1, plan, around)
        told = {
            "stopped": stopped,
            "alerts": alerts.called,
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
