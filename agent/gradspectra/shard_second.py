"""The second tier of sharded layers within a step: as for whole tensors, but taken where the ranks exchange."""

from __future__ import annotations

import time
from typing import Any

import torch
from gradspectra_core.records import Float64
from torch import Tensor

from gradspectra.device_rows import DeviceRows
from gradspectra.flat import OneThread
from gradspectra.fused import FusedRows
from gradspectra.layer_marks import LayerMarks
from gradspectra.second_measuring import Job, SecondMeasuring
from gradspectra.shard_tier import STOPPED, ShardTier
from gradspectra.step import OpenStep


class ShardSecond(SecondMeasuring):
    """Measures the shards of this rank when the ranks exchange.

    optimizer, rank, ranks: as for `ShardTier`. seconds: what that took at the exchange at hand.
    """

    def __init__(self, job: Job, optimizer: Any, rank: int, ranks: int) -> None:
        self.shards = ShardTier(job.inventory, job.budget, optimizer, rank, ranks)
        super().__init__(job, self.shards)
        self.seconds = 0.0
        self._failures = 0
        self._begun = False

    def begins(self, step: OpenStep) -> None:
        """Plan what has its turn; after an alarm of any rank the forward passes of all layers are measured."""
        self._failures, self.seconds = self._guard.failures("activations"), 0.0
        self._begun = True
        super().begins(step)
        if step.due and self.shards.alarmed:
            self._guard.run("activations", self.activations.arm, self.shards.every)

    @property
    def forward_failed(self) -> bool:
        """Whether the forward passes of this step, and of no other, could not be measured."""
        failed = self._guard.failures("activations") > self._failures
        return failed or not self._begun or "activations" in self._guard.off

    def sums(self, step: OpenStep, marks: LayerMarks, fused: FusedRows | DeviceRows | None) -> Tensor:
        """What this rank brings to the exchange, (N,) float64 where its shards lie.

        marks: of its own first tier; fused: what came with that already.
        """
        self._guard.run("activations", self.activations.collect)
        self._count_forward(step)
        began = time.perf_counter()
        with OneThread(), torch.no_grad():
            self.shards.take_shards(step.number, marks, step.clips.spoiled, fused)
            found = self.shards.share(frozenset() if self.forward_failed else self.activations.armed)
        self.seconds = time.perf_counter() - began
        return found

    def agree(self, turns: Float64, alarmed: bool) -> None:
        """An exchange is over: plan the next. turns: (R,) what each rank said; alarmed: whether any raised an alarm."""
        self._begun = False
        self._guard.run("second tier", self._learn)
        self.shards.agree(turns, alarmed)

    def _learn(self) -> None:
        planned = self.shards.due()
        if planned and self.seconds:
            self.shards.learn(planned, self._before + self.seconds)
        self._before = 0.0

    def ready(self) -> int:
        """What this rank says of its next turns."""
        turns = self._guard.run("second tier", self.shards.ready)
        if turns is not None:
            return turns
        return STOPPED if "second tier" in self._guard.off else 0

    def adopt(self, numbers: Float64, marks: LayerMarks) -> None:
        """Take the numbers of all ranks. marks: of the first tier, over all ranks."""
        began = time.perf_counter()
        with OneThread():
            self._guard.run("second tier", self.shards.adopt, numbers, marks)
        self.seconds += time.perf_counter() - began
