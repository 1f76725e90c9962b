"""The ways to train that agent_overhead.py compares: the agent in its settings, its peers, and two yardsticks.

A variant is a training loop and one addition to it; ADDITIONS is the list of them by name, WITH_LIBRARY says which
need a library that the project itself does not. Peers are called as their own documentation shows, and what they
write goes into a temporary folder; none of them uses the network.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import gradspectra
import torch
from models import Task
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

FORWARD_HOOKS = torch_module._global_forward_hooks
"""What is hooked into the forward passes of all modules: each variant finds there what it put there itself, alone."""


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Addition:
    """What is done besides training. before: the optimizer steps, gradients clipped; after: it has stepped.

    every: steps between two that cost more than the others, for what is logged now and then. close: at the end.
    """

    watch: gradspectra.Watch | None = None
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing
    close: Callable[[], object] = nothing
    every: int = 1


class Variant:
    """One way to train: a model, its optimizer, and what is done besides."""

    def __init__(self, task: Task, name: str, server: str, folder: str, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.device = device
        self.name = name
        self.task = task
        self.server = server
        self.folder = folder
        self.model = task.make().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.generator = torch.Generator().manual_seed(1)
        self.loss = torch.zeros(())
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.marked: list[bool] = []
        self.steps = 0
        self.sent_within = 0.0
        self.addition = ADDITIONS[name](self)
        self.hooks = dict(FORWARD_HOOKS)
        FORWARD_HOOKS.clear()
        self.watch = self.addition.watch

    def begin(self, first: Variant) -> None:
        """Take a step that does not count, on the weights and the optimizer's state of the first, in its memory."""
        if first is not self:
            for own, theirs in zip(self.model.parameters(), first.model.parameters(), strict=True):
                own.data = theirs.data
                self.optimizer.state[own] = first.optimizer.state[theirs]
        self.step()
        self.seconds.clear()
        self.processor.clear()
        self.marked.clear()

    def due(self) -> bool:
        """Whether the open step is one of those that cost more than the others."""
        return self.steps % self.addition.every == 0

    def step(self) -> None:
        """One optimizer step, timed."""
        data = [[tensor.to(self.device) for tensor in self.task.draw(self.generator)] for _ in range(self.task.parts)]
        FORWARD_HOOKS.update(self.hooks)
        sent = self.sent()
        self.steps += 1
        began, busy = time.perf_counter(), time.thread_time()
        for x, y in data:
            self.loss = self.task.loss(self.model, x, y)
            (self.loss / self.task.parts).backward()
            if self.watch is not None:
                self.watch.log(loss=self.loss, examples=len(x))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.addition.before()
        self.optimizer.step()
        self.addition.after()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - began)
        self.processor.append(time.thread_time() - busy)
        self.hooks = dict(FORWARD_HOOKS)
        FORWARD_HOOKS.clear()
        self.marked.append(self.due())
        self.sent_within += self.sent() - sent

    def drain(self) -> None:
        """The last step of a block takes until the device has done what it was given."""
        if self.device != "cpu":
            began = time.perf_counter()
            torch.cuda.synchronize()
            self.seconds[-1] += time.perf_counter() - began

    def sent(self) -> float:
        """Processor seconds that the agent's sending thread has taken so far."""
        return 0.0 if self.watch is None else float(self.watch.status()["sending"]["seconds_spent"])


def _plain(_: Variant) -> Addition:
    return Addition()


def _watch(variant: Variant, **options: Any) -> Addition:
    options |= {"project": "benchmark", "run": variant.name, "server": variant.server}
    options["spool"] = f"{variant.folder}/{variant.name}"
    watch = gradspectra.watch(variant.model, variant.optimizer, **options)
    return Addition(watch=watch, close=watch.close)


def _eager(variant: Variant, **options: Any) -> Addition:
    """The agent without its compiled pass: as GRADSPECTRA_FUSED=off makes it where there is no compiler."""
    before = os.environ.get("GRADSPECTRA_FUSED")
    os.environ["GRADSPECTRA_FUSED"] = "off"
    try:
        return _watch(variant, **options)
    finally:
        if before is None:
            del os.environ["GRADSPECTRA_FUSED"]
        else:
            os.environ["GRADSPECTRA_FUSED"] = before


def _norm_loop(variant: Variant) -> Addition:
    """What most scripts have: the norm of each tensor's gradient, one copy to the host for each."""

    def norms() -> list[float]:
        return [p.grad.norm().item() for p in variant.model.parameters() if p.grad is not None]

    return Addition(before=norms)


def _clip(variant: Variant) -> Addition:
    """The yardstick of the first tier: torch's own clip once more."""
    return Addition(before=lambda: nn.utils.clip_grad_norm_(variant.model.parameters(), 1.0))


def _tensorboard(variant: Variant, every: int) -> Addition:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(f"{variant.folder}/{variant.name}")

    def histograms() -> None:
        if variant.due():
            for name, parameter in variant.model.named_parameters():
                if parameter.grad is not None:
                    writer.add_histogram(name, parameter.grad, variant.steps)

    return Addition(before=histograms, close=writer.close, every=every)


def _wandb(variant: Variant, every: int) -> Addition:
    """Weights & Biases offline. It counts backward passes, not steps, and has one run a process, which both share."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = variant.folder
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    import wandb

    run = wandb.run or wandb.init(project="benchmark", dir=variant.folder, settings=wandb.Settings(console="off"))
    run.watch(variant.model, log="gradients", log_freq=every * variant.task.parts)
    return Addition(after=lambda: run.log({"loss": variant.loss.item()}), close=wandb.finish, every=every)


def _composer(variant: Variant) -> Addition:
    """MosaicML's OptimizerMonitor at each step, with the metrics of its DecoupledAdamW on torch's AdamW.

    Its logger writes nowhere: only the measuring is counted.
    """
    from composer.callbacks import OptimizerMonitor
    from composer.core import State
    from composer.devices import DeviceCPU
    from composer.loggers import Logger
    from composer.optim import DecoupledAdamW

    optimizer: Any = variant.optimizer
    optimizer.metric_functions = DecoupledAdamW.metric_functions
    optimizer.report_per_parameter_metrics = MethodType(DecoupledAdamW.report_per_parameter_metrics, optimizer)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    state = State(variant.model, 0, variant.name, DeviceCPU(), optimizers=optimizer)
    logger, monitor = Logger(state), OptimizerMonitor(batch_log_interval=1)
    return Addition(after=lambda: monitor.batch_end(state, logger))


def _composer_style(variant: Variant) -> Addition:
    return Addition(after=lambda: norms_as_composer(variant.model, variant.optimizer))


def norms_as_composer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Norms of gradient, first moment, weight and update of each tensor, one by one, as OptimizerMonitor takes them.

    For AdamW after its step, gradients still there. Source: `OptimizerMonitor.batch_end` and
    `DecoupledAdamW.report_per_parameter_metrics` of https://github.com/mosaicml/composer, version 0.32.1 (Apache-2.0),
    with its order of operations, its temporaries and its `item()` for each number.
    """
    found: dict[str, Tensor] = {}
    group = optimizer.param_groups[0]
    for name, p in model.named_parameters():
        if p.grad is None or not p.requires_grad:
            continue
        state = optimizer.state[p]
        taken = state["step"].item()
        first, second = (1 - beta**taken for beta in group["betas"])
        denominator = (state["exp_avg_sq"].sqrt() / math.sqrt(second)).add_(group["eps"])
        update = group["lr"] / first * state["exp_avg"].div(denominator)
        update.add_(p, alpha=-group["weight_decay"])
        for kind, tensor in (("moment", state["exp_avg"]), ("param", p.data), ("update", update), ("grad", p.grad)):
            found[f"l2_norm/{kind}/{name}"] = torch.linalg.vector_norm(tensor)
    gradients = [norm for name, norm in found.items() if name.startswith("l2_norm/grad")]
    found["l2_norm/grad/global"] = sum((norm**2 for norm in gradients), torch.zeros(())) ** 0.5
    return {name: norm.item() for name, norm in found.items()}


EVERY_STEP: dict[str, Any] = {"budget": None, "every": 1, "spectra": "off"}
FIRST_TIER = EVERY_STEP | {"second_tier": "off", "drift": "off"}

ADDITIONS: dict[str, Callable[[Variant], Addition]] = {
    "plain": _plain,
    "control": _plain,
    "watch": _watch,
    "watch-viewed": _watch,
    "watch-first-tier": partial(_watch, **FIRST_TIER),
    "watch-everything": partial(_watch, **EVERY_STEP),
    "watch-first-tier-eager": partial(_eager, **FIRST_TIER),
    "watch-everything-eager": partial(_eager, **EVERY_STEP),
    "clip": _clip,
    "norm-loop": _norm_loop,
    "composer-style": _composer_style,
    "composer": _composer,
    "tensorboard": partial(_tensorboard, every=1),
    "tensorboard-100": partial(_tensorboard, every=100),
    "wandb": partial(_wandb, every=1),
    "wandb-100": partial(_wandb, every=100),
}
"""Every variant by its name, in the order in which they are told."""

WITH_LIBRARY = {
    "composer": ("composer.callbacks", "mosaicml"),
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
    "tensorboard-100": ("torch.utils.tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "wandb-100": ("wandb", "wandb"),
}
"""Module and distribution that a variant needs beyond what the project is installed with."""


def left_out(name: str) -> str | None:
    """Why a variant cannot run here, in one sentence with the pip line; None where it can."""
    if name not in WITH_LIBRARY:
        return None
    module, distribution = WITH_LIBRARY[name]
    try:
        importlib.import_module(module)
    except Exception as error:  # a library that does not fit the installed torch may raise anything at all
        return f"{name} is left out, its library cannot be imported: pip install {distribution} ({error})"
    return None
