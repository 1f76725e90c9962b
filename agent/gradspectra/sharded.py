"""What the ranks measure together of sharded layers: each stage on its own rank, put together by one exchange."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor, nn

from gradspectra.backward import Backward
from gradspectra.budget import Budget
from gradspectra.device_rows import DeviceRows
from gradspectra.drift import TURN, Drift, DriftSums
from gradspectra.exchange import (
    ALARM,
    ANEW,
    DONE,
    DRIFT,
    FAILED,
    FORWARD,
    IDLE,
    LAYERS,
    PARTS,
    READY,
    SECOND,
    SPECTRA,
    TURNS,
    Exchange,
    Share,
    Whole,
)
from gradspectra.flat import OneThread
from gradspectra.fused import FusedRows
from gradspectra.guard import Guard
from gradspectra.inventory import Inventory
from gradspectra.measure import SQUARE, FirstTier
from gradspectra.options import Options
from gradspectra.record import GRADIENT
from gradspectra.second_measuring import Job
from gradspectra.shard_parts import ShardParts
from gradspectra.shard_second import ShardSecond
from gradspectra.shard_spectra import MOST_NUMBERS, OFF, WAITS, ShardSpectra
from gradspectra.shards import local, wait_for_all
from gradspectra.spectra import Candidate
from gradspectra.starts import Start
from gradspectra.step import OpenStep, WholeParts
from gradspectra.together import job_store

LESS = 0.99
"""Parts whose sum of squares is below this part of the whole gradient's were not all seen."""


class Sharded:
    """Measures the sharded layers of one inventory with the other ranks. All ranks make it, alike.

    A stage that fails on one rank is left out of the step on all; the others go on.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizer: Any,
        inventory: Inventory,
        tier: FirstTier,
        options: Options,
        budget: Budget,
        guard: Guard,
        backward: Backward,
        drift: Drift | None,
        group: Any,
    ) -> None:
        self._optimizer = optimizer
        self._inventory = inventory
        self._tier = tier
        self._budget = budget
        self._guard = guard
        self._backward = backward
        self.drift = drift
        self._exchanges = 0
        self._parts_seconds = 0.0
        self._unseen = ""
        self._fused: FusedRows | DeviceRows | None = None
        """What of the second tier came with the first at the exchange at hand."""
        layers, tensors = len(inventory.table), inventory.tensors
        device = local(tensors[0].parameter).device if tensors else torch.device("cpu")
        wait_for_all(group, job_store(), _plan(layers, options, optimizer))
        rank, ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self.spectra = ShardSpectra(inventory, options.spectra or None, budget, rank == 0, options.spectra != 0)
        self._no_spectra_of = [of for of in options.spectra_of if of != GRADIENT]
        self.second: ShardSecond | None = None
        room = self.spectra.room
        if options.second_tier != "off" and tensors:
            self.second = ShardSecond(Job(models, inventory, budget, guard, tier.fused), optimizer, rank, ranks)
            room += self.second.shards.room
        self.exchange = Exchange(group, layers, options.every, device, guard, room)
        self.parts = ShardParts(list(models.values()), tensors, layers, backward, guard, self.exchange.size)
        backward.follow_outputs(list(models.values()))

    @property
    def shard(self) -> list[int]:
        """Which of how many shards is here."""
        return [self.exchange.rank, self.exchange.size]

    def begin(self, starts: Mapping[str, Start]) -> None:
        """The run starts with the weights as they are, or from starts, if these are of all layers of this shard."""
        if self.drift is not None:
            self.drift.starts = dict(starts)
            self._guard.run("drift", self.drift.begin)
            if starts and self.drift.anew:
                self._restart_drift()

    def _restart_drift(self) -> None:
        assert self.drift is not None
        self.drift.starts = {}
        self._guard.run("drift", self.drift.begin)

    def begins(self, due: bool) -> None:
        """A step begins: within a budget its parts are measured at a cadence of their own, as all ranks count steps."""
        if due and (self._budget.share is None or (self.exchange.count + 1) % self.exchange.parts_cadence == 0):
            self._guard.run("parts", self.parts.arm)

    def before_clipping_values(self, parameters: frozenset[int]) -> None:
        """Values of these gradients are about to be clipped, which cannot be undone."""
        if self.exchange.due:
            self._guard.run("spectra", self.spectra.take_early, self._planned(), parameters)

    def _planned(self) -> list[Candidate]:
        return self.spectra.planned(self.exchange.count + 1) if self.exchange.due else []

    def step(self, step: OpenStep) -> None:
        """An optimizer step was taken: at a recorded one measure with the other ranks. Not to be guarded as a whole.

        What decides how long the exchanged vector is must be the same on all ranks, whatever has failed.
        """
        began, before, second = time.perf_counter(), step.spectra_cost, self.second
        hooks = self.parts.seconds if self.parts.armed else None
        self._parts_seconds = 0.0
        planned, budget, exchange = self._planned(), self._budget, self.exchange
        share = partial(self._share, step, planned)
        numbers = 0 if second is None else second.shards.numbers, self.spectra.numbers_of(planned)
        whole = exchange.step(share, budget.cadence, budget.parts_cadence, *numbers)
        if whole is None:
            return
        self._exchanges += 1
        self._guard.run("ranks", self._adopt, step, planned, whole)
        self.spectra.agree(exchange.count, whole.flags[READY])
        if second is not None:
            second.agree(whole.flags[TURNS], bool(whole.flags[ALARM].any()))
            step.second_cost += second.seconds
            step.layers_cost -= second.seconds
        budget.cadence, budget.parts_cadence = exchange.cadence, exchange.parts_cadence
        step.layers_cost += time.perf_counter() - began - (step.spectra_cost - before) - self._parts_seconds
        if hooks is not None:
            step.parts_cost = hooks + self._parts_seconds
            step.own += hooks

    def _share(self, step: OpenStep, planned: Sequence[Candidate]) -> Share:
        """What this rank brings, each stage guarded on its own."""
        own = Share()
        own.layers = self._guard.run("layers", self._layers, step)
        own.flags[LAYERS] = FAILED if own.layers is None else DONE
        if self.parts.armed:
            own.parts = self._guard.run("parts", self._part_sums, step)
            own.flags[PARTS] = FAILED if own.parts is None else DONE
        if self.drift is not None and (self._budget.share is None or self._exchanges % TURN == 0):
            own.drift = self._guard.run("drift", self._drift_sums)
            own.flags[DRIFT] = FAILED if own.drift is None else ANEW if self.drift.anew else DONE
        if planned:
            own.numbers = self._guard.run("spectra", self.spectra.numbers, planned)
            own.flags[SPECTRA] = FAILED if own.numbers is None else DONE
        if self.second is not None:
            self._share_second(own, self.second, step)
        ready = self._guard.run("spectra", self.spectra.ready, self.exchange.count)
        own.flags[READY] = (OFF if "spectra" in self._guard.off else WAITS) if ready is None else ready
        return own

    def _share_second(self, own: Share, second: ShardSecond, step: OpenStep) -> None:
        if own.layers is not None and second.shards.numbers:
            own.second = self._guard.run("second tier", second.sums, step, self._tier.marks, self._fused)
            own.flags[SECOND] = FAILED if own.second is None else DONE
        own.flags[FORWARD] = FAILED if second.forward_failed else DONE
        own.flags[TURNS], own.flags[ALARM] = second.ready(), float(second.activations.alarmed)

    def _layers(self, step: OpenStep) -> Tensor:
        room = self._budget.share is None or not self.parts.armed
        optimizer = self._optimizer if room and self.second is not None else None
        self._fused = None
        with OneThread(), torch.no_grad():
            fused = self._tier.take(self._inventory.tensors, optimizer, False, step.clips.early)
            self._fused = None if optimizer is None else fused
            self._tier.repair()
            return self._tier.share()

    def _part_sums(self, step: OpenStep) -> Tensor:
        began = time.perf_counter()
        self.parts.disarm()
        try:
            return self.parts.sums(step.log.part_weights)
        finally:
            self._parts_seconds = time.perf_counter() - began

    def _drift_sums(self) -> Tensor:
        assert self.drift is not None
        with OneThread():
            sums = self.drift.measure()
        return torch.from_numpy(sums.on_host([rows.double().cpu().numpy() for rows in sums.results]))

    def _adopt(self, step: OpenStep, planned: Sequence[Candidate], whole: Whole) -> None:
        """Take the numbers over all ranks."""
        if planned and whole.flags[SPECTRA].min() != IDLE:
            began = time.perf_counter()
            records = self._guard.run("spectra", self.spectra.adopt, planned, whole, self.exchange.count)
            step.spectra += records or []
            step.spectra_cost += time.perf_counter() - began + self.spectra.seconds + whole.seconds
        if {DONE, ANEW} <= set(whole.flags[DRIFT].tolist()):
            self._restart_drift()
        if whole.layers is None:
            return
        self._tier.adopt(whole.layers)
        step.measured = True
        if self.second is not None and whole.second is not None and not self.exchange.rank:
            self.second.adopt(whole.second, self._tier.marks)
        if whole.drift is not None:
            step.drift = DriftSums.of(whole.drift)
        if whole.parts is not None and self._seen(whole.parts, whole.layers[SQUARE], step.scale is not None):
            step.whole_parts = WholeParts(whole.parts, len(step.log.part_weights))

    def _seen(self, parts: Float64, square: Float64, scaled: bool) -> bool:
        """Whether no sum over parts is smaller than the square of the parts' own sum can be."""
        unseen = np.flatnonzero((parts == 0) & (square > 0) if scaled else parts < LESS * square)
        if len(unseen):
            self._unseen = self._inventory.table.names[unseen[0]]
        return not len(unseen)

    def ended(self, step: OpenStep) -> None:
        """A step ends: its parts are left out where they turn out not to be those that were measured."""
        self.parts.disarm()
        if step.parts != self._backward.passes or step.parts * self.exchange.size < 2:
            step.whole_parts = None

    def not_measured(self) -> list[str]:
        """What sharding leaves out, in words."""
        reasons = self.exchange.not_measured()
        reasons += [f"no spectrum of any {of}: the model is sharded" for of in self._no_spectra_of]
        if self._unseen:
            reasons.append(f"part_sq was left out at some steps: not all backward passes of {self._unseen} were seen")
        reasons += [
            f"no spectrum of {name}: the ranks would exchange more than {MOST_NUMBERS} numbers"
            for name in self.spectra.too_many
        ]
        return reasons

    def close(self) -> None:
        """Take all hooks away."""
        self.parts.close()


def _plan(layers: int, options: Options, optimizer: Any) -> str:
    """What all ranks must have chosen alike, in words."""
    chosen = {0: "off", None: "auto"}.get(options.spectra, options.spectra)
    measured = f"spectra={chosen}, drift={options.drift}, second_tier={options.second_tier}"
    return f"{layers} layers, every={options.every}, budget={options.budget}, {measured}, {type(optimizer).__name__}"
