"""The second tier within a step: what has its turn is armed for the forward pass, staged, and taken at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradspectra.activations import Activations
from gradspectra.budget import Budget
from gradspectra.device_rows import DeviceRows
from gradspectra.flat import OneThread
from gradspectra.fused import FusedPass, FusedRows
from gradspectra.guard import Guard
from gradspectra.inventory import Inventory
from gradspectra.measure import FirstTier
from gradspectra.second_tier import SecondTier
from gradspectra.second_units import Unit
from gradspectra.step import OpenStep


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured, and with what. fused: the compiled pass, where there is one. optimizers: as for Staging."""

    models: Mapping[str, nn.Module]
    inventory: Inventory
    budget: Budget
    guard: Guard
    fused: FusedPass | None = None
    optimizers: Sequence[Any] = ()


class SecondMeasuring:
    """Measures the second tier of one inventory at the recorded steps. What fails is counted by the guard.

    shards: what takes the place of a tier of whole tensors; all ranks then measure the same outputs.
    """

    def __init__(self, job: Job, shards: SecondTier | None = None) -> None:
        self.tier = SecondTier(job.inventory, job.budget, job.optimizers) if shards is None else shards
        self.activations = Activations(
            job.models, job.inventory, self.tier, job.budget, job.guard, job.fused, in_turns=shards is None
        )
        self._fused = job.fused
        self._guard = job.guard
        self.copies = shards is None
        """Whether weights are copied where an optimizer's state does not tell its updates."""
        self._due: list[Unit] | None = None
        self._before = 0.0

    def begins(self, step: OpenStep) -> None:
        """Plan what has its turn at a recorded step that begins, and measure its forward passes."""
        self._due = None
        if step.due:
            self._due = self._guard.run("second tier", self.tier.due)
            self._guard.run("activations", self.activations.arm, self._due or ())

    def opens(self, step: OpenStep, parameters: frozenset[int]) -> None:
        """The optimizer of these parameters is about to step: keep of them what will be asked for."""
        if step.due:
            self._guard.run("second tier", self._stage, step, parameters)

    def _stage(self, step: OpenStep, parameters: frozenset[int]) -> None:
        began = time.perf_counter()
        with OneThread(), torch.no_grad():
            self.tier.stage(self._of(parameters))
        seconds = time.perf_counter() - began
        self._before += seconds
        step.second_cost += seconds

    def _of(self, parameters: frozenset[int]) -> list[Unit]:
        if self._due is None:
            self._due = self.tier.due()
        return [unit for unit in self._due if id(unit.tensors[0].parameter) in parameters]

    def take(
        self,
        step: OpenStep,
        parameters: frozenset[int],
        optimizer: Any,
        tier: FirstTier,
        skipped: bool,
        fused: FusedRows | DeviceRows | None,
    ) -> None:
        """The optimizer of these parameters has stepped, and the first tier is measured: measure what has its turn.

        fused: what came with the first tier already.
        """
        if step.measured:
            self._guard.run("second tier", self._take, step, parameters, optimizer, tier, skipped, fused)

    def _take(
        self,
        step: OpenStep,
        parameters: frozenset[int],
        optimizer: Any,
        tier: FirstTier,
        skipped: bool,
        fused: FusedRows | DeviceRows | None,
    ) -> None:
        if fused is not None:
            self.tier.put_fused(fused, step.clips.spoiled)
        known: frozenset[int] = frozenset() if fused is None else fused.tensors
        own = self._of(parameters)
        if not own:
            return
        self._count_forward(step)
        began, started = time.perf_counter(), step.device.start()
        with OneThread(), torch.no_grad():
            whole: frozenset[int] = frozenset()
            if fused is not None and self._fused is not None:
                whole = self.tier.take_medians(own, fused, self._fused)
            for unit in own:
                self.tier.take(
                    unit, step.number, optimizer, tier.marks, skipped, step.clips.spoiled, known, whole, tier
                )
        step.device.stop("second", started)
        seconds = time.perf_counter() - began
        step.second_cost += seconds
        self.tier.learn(own, self._before + seconds)
        self._before = 0.0

    def _count_forward(self, step: OpenStep) -> None:
        """Add what the hooks took of the step's forward passes to its books."""
        seconds, self.activations.seconds = self.activations.seconds, 0.0
        self._before += seconds
        step.own += seconds
        step.second_cost += seconds

    def complete(self, step: OpenStep) -> None:
        """A step ends: hand what was measured over to it."""
        self._guard.run("activations", self.activations.collect)
        self._count_forward(step)
        self.activations.disarm()
        found = self._guard.run("second tier", self.tier.finish)
        if step.measured:
            step.second = found

    def close(self) -> None:
        """Take the hook in the forward passes away."""
        self.activations.disarm()
