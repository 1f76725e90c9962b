"""What a session measures of a step: layer numbers when they are due, spectra in turn, and the squares of its parts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradspectra.backward import Backward
from gradspectra.beside import Beside
from gradspectra.budget import Budget
from gradspectra.clipping import Clip
from gradspectra.device_rows import DeviceRows
from gradspectra.device_time import DeviceClock
from gradspectra.drift import TURN, Drift
from gradspectra.dropped import NOBODY, forget_clips, note_clip
from gradspectra.flat import OneThread
from gradspectra.fused import FusedRows
from gradspectra.guard import Guard
from gradspectra.inventory import Trained, WatchedTensor, take_inventory
from gradspectra.measure import FirstTier
from gradspectra.options import Options
from gradspectra.parts import LATELY, PartSquares
from gradspectra.record import GRADIENT
from gradspectra.second_measuring import Job, SecondMeasuring
from gradspectra.sharded import Sharded
from gradspectra.shards import local
from gradspectra.spectra import Spectra
from gradspectra.spectra_turn import SpectraTurn
from gradspectra.spent import Spent
from gradspectra.starts import Start
from gradspectra.step import OpenStep


class Measuring:
    """Measures the layers of the models as they are at present; looks now and then whether they have changed.

    A stage that fails is counted by the guard and leaves the rest of the step as it is.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[Any],
        options: Options,
        budget: Budget,
        guard: Guard,
        ranks: int,
        group: Any = None,
    ) -> None:
        self.backward = Backward(guard, list(models.values()))
        self.clock = DeviceClock()
        self._models, self._optimizers = models, optimizers
        self._options = options
        self._budget = budget
        self._guard = guard
        self._ranks, self._group = ranks, group
        self._parts_for = LATELY if (options.parts or 1) * ranks > 1 else 0
        self._turn, self._spent = SpectraTurn(), Spent(optimizers, self.backward)
        self._measured = 0
        self.drift: Drift | None = None
        self.second: SecondMeasuring | None = None
        self.beside = Beside(guard)
        self.trained = Trained(models, optimizers)
        self._take_inventory()

    def _take_inventory(self) -> None:
        models, optimizers, shards = self._models, self._optimizers, self._group is not None
        self.inventory = take_inventory(models, optimizers, self._options.choose, shards, self.trained.signature())
        tensors, layers = self.inventory.tensors, len(self.inventory.table)
        self._small_first = sorted(tensors, key=lambda tensor: tensor.parameter.numel())
        self.clock.follow([local(tensor.parameter).device for tensor in tensors])
        self._of_optimizer = [[t for t in tensors if t.optimizer == i] for i in range(len(self._optimizers))]
        self._identities = [frozenset(id(t.parameter) for t in own) for own in self._of_optimizer]
        both_tiers = self._options.second_tier != "off" and self._group is None
        self.tier = FirstTier(self.inventory, both_tiers and self._budget.share is None)
        self._parts = PartSquares(tensors, layers, self.backward, self._guard, self._ranks, self.tier.fused)
        if self.second is not None:
            self.second.close()
        if self._options.second_tier != "off" and self._group is None:
            job = Job(models, self.inventory, self._budget, self._guard, self.tier.fused, optimizers)
            self.second = SecondMeasuring(job)
        if self._options.drift != "off":
            known = self.drift.starts if self.drift is not None else {}
            self.drift = Drift(self.inventory, self._options.drift == "exact", known, self.tier.fused)
        interval, of = self._options.spectra or None, self._options.spectra_of
        self.spectra: Spectra = Spectra(self.inventory, interval, self._budget, self.beside, of)
        self.sharded = None if self._group is None else self._shards()
        if self.sharded is None:
            self.backward.follow(self.inventory.trainable, frozen=self.trained.frozen())
        else:
            self.spectra, self.second = self.sharded.spectra, self.sharded.second

    def _shards(self) -> Sharded:
        of = self._models, self._optimizers[0], self.inventory, self.tier
        return Sharded(*of, self._options, self._budget, self._guard, self.backward, self.drift, self._group)

    def begin(self, starts: Mapping[str, Start]) -> None:
        """The run starts with the weights as they are; starts: where it started, by layer name, as far as is known."""
        if self.sharded is not None:
            self.sharded.begin(starts)
        elif self.drift is not None:
            self.drift.starts |= starts
            self._guard.run("drift", self.drift.begin)

    def begins(self, step: OpenStep) -> None:
        """Make ready for a step: what has its turn is still to be planned, its parts are measured if it is theirs."""
        self._turn.begins()
        if self.second is not None:
            self.second.begins(step)
        if self.sharded is not None:
            self.sharded.begins(step.due)
            return
        wanted = self._options.parts != 1 or self._ranks > 1
        if self._parts_for and step.due and wanted and self._budget.parts_due(step.number):
            self._guard.run("parts", self._parts.arm)
        else:
            self._parts.rest()

    def _look(self, step: OpenStep, clipped: frozenset[int] = NOBODY, after: bool = False) -> None:
        """Before something is measured (after: a step), or clipped: forget other gradients' clips, see tensors anew."""
        if forget_clips(step, self.backward, self.tier, clipped):
            (self._turn.begins if self.sharded is None else self.sharded.spectra.forget_early)()
        if not (step.clips.noted or step.clips.stepped or after):
            step.share = self._parts.share()
        if clipped:
            note_clip(step, clipped, self._small_first, self.backward)
        if step.due and self.sharded is None and self.inventory.changed(step.number):
            self._guard.run("inventory", self._renew)
            self.begins(step)

    def stepped(self, step: OpenStep, index: int, skipped: bool) -> None:
        """An optimizer has stepped, or its step was skipped: measure what is due of its layers."""
        self._look(step, after=True)
        step.clips.stepped = self.backward.stepped = True
        if self.sharded is not None:
            return
        step.stale |= self.trained.look(index, step.due, self.inventory)
        optimizer, lost = self._optimizers[index], self._spent.stepped(step, index, self._identities[index])
        if step.due and self.inventory.tensors:
            fused = self._guard.run("layers", self._layers, step, self._of_optimizer[index], optimizer, skipped)
            if self.second is not None:
                self.second.take(step, self._identities[index], optimizer, self.tier, skipped, fused)
        if not (skipped or lost) and self._options.spectra != 0:
            self._guard.run("spectra", self._turn.take, self.spectra, step, self._identities[index], optimizer)

    def all_stepped(self, step: OpenStep) -> None:
        """A step is over of which no optimizer told: measure what is due of all layers."""
        self._look(step)
        for index in range(len(self._optimizers)):
            step.stale |= self.trained.look(index, step.due, self.inventory)
        if step.due and self.inventory.tensors:
            fused = self._guard.run("layers", self._layers, step, self.inventory.tensors, None, False)
            if self.second is not None:
                self.second.take(step, self.inventory.parameters, None, self.tier, False, fused)
        if self._options.spectra != 0:
            self._guard.run("spectra", self._turn.take, self.spectra, step, self.inventory.parameters)

    def before_clipping(self, step: OpenStep, clip: Clip) -> None:
        """A norm is about to be clipped; what a norm that is not finite would spoil is measured now.

        On an accelerator it is not known yet whether the norm is finite, and it is measured now in any case.
        """
        self._look(step, clip.parameters)
        step.clips.clips.append(clip)
        if not step.due:
            return
        on_host = clip.divisor.is_cpu
        if on_host and math.isfinite(clip.divisor.item()):
            return
        self._early(step, clip.parameters, len(step.clips.clips) - 1)
        if on_host:
            step.clips.spoiled |= clip.parameters

    def before_clipping_values(self, step: OpenStep, gradients: Iterable[Tensor]) -> None:
        """Values are about to be clipped, which cannot be undone: what is due is measured now."""
        clipped = {id(gradient) for gradient in gradients}
        found = frozenset(id(t.parameter) for t in self.inventory.tensors if id(t.parameter.grad) in clipped)
        self._look(step, found)
        self._before_change(step, found)

    def _before_change(self, step: OpenStep, parameters: frozenset[int]) -> None:
        """The gradients of these are about to be changed."""
        if self.sharded is not None:
            self.sharded.before_clipping_values(parameters)
        elif self._options.spectra != 0:
            self._turn.take(self.spectra, step, parameters, of=(GRADIENT,))
        if step.due:
            self._early(step, parameters, len(step.clips.clips))
            step.clips.spoiled |= parameters

    def _early(self, step: OpenStep, parameters: frozenset[int], clips_seen: int) -> None:
        early = step.clips.early
        began, started = time.perf_counter(), step.device.start()
        with OneThread(), torch.no_grad():
            own = [t for t in self.inventory.tensors if id(t.parameter) in parameters and id(t.parameter) not in early]
            self.tier.take_gradients(own)
            early |= {id(tensor.parameter): clips_seen for tensor in own}
            self.tier.repair()
        step.device.stop("layers", started)
        step.layers_cost += time.perf_counter() - began

    def _layers(
        self, step: OpenStep, tensors: Sequence[WatchedTensor], optimizer: Any, skipped: bool
    ) -> FusedRows | DeviceRows | None:
        began, started = time.perf_counter(), step.device.start()
        step.measured = False
        update = self.second is not None and (self._budget.share is None or not self._parts.armed or self.tier.one_pass)
        with OneThread(), torch.no_grad():
            fused = self.tier.take(tensors, optimizer if update else None, skipped, step.clips.early)
            self.tier.repair()
        step.measured = True
        step.device.stop("layers", started)
        step.layers_cost += time.perf_counter() - began
        return fused

    def opens(self, step: OpenStep, index: int) -> None:
        """An optimizer is about to step."""
        self._look(step)
        asked = self._of_optimizer[index] if step.due and self.sharded is None else ()
        if self._spent.opens(index, asked):
            self._guard.run("layers", self._before_change, step, self._identities[index])
        if self.second is not None:
            self.second.opens(step, self._identities[index])

    def cadences(self) -> dict[str, int | None]:
        """Steps from one measurement of a layer to its next, of what comes in turn; None before it has come twice."""
        second = None if self.second is None else self.second.tier.cadence()
        return {"cadence_second": second, "cadence_spectra": self.spectra.interval()}

    def complete(self, step: OpenStep) -> None:
        """Add to a step that ends what there is once all its optimizers have stepped."""
        if self.second is not None and step.due:
            self.second.complete(step)
        if step.measured and self.sharded is None:
            self._take_drift(step)

    def tell_loss(self, step: int, loss: Any) -> None:
        """The loss of a step as far as it is known: a number, else it is passed over."""
        if self.second is not None and isinstance(loss, float):
            self.second.activations.tell(step, math.isfinite(loss))

    def _take_drift(self, step: OpenStep) -> None:
        """Measure how far the weights have come; within a budget only now and then."""
        if self.drift is None:
            return
        if self._budget.share is None or self._measured % TURN == 0:
            began, started = time.perf_counter(), step.device.start()
            with OneThread():
                step.drift = self._guard.run("drift", self.drift.measure)
            step.device.stop("layers", started)
            step.layers_cost += time.perf_counter() - began
        self._measured += 1

    def parts(self, step: OpenStep) -> list[Tensor] | None:
        """‖h_j‖² per part and layer of a step that ends; None where its parts were not measured."""
        if self.sharded is not None:
            self._guard.run("parts", self.sharded.ended, step)
            return None
        squares = self._guard.run("parts", self._part_squares, step)
        self._parts.disarm()
        return squares

    def _part_squares(self, step: OpenStep) -> list[Tensor] | None:
        self._parts_for = LATELY if step.parts * self._ranks > 1 else max(self._parts_for - 1, 0)
        if not self._parts.armed:
            return None
        self._parts.disarm()
        step.own += self._parts.seconds
        began = time.perf_counter()
        usable = step.measured and self._parts_for == LATELY and step.parts == self.backward.passes
        squares = self._parts.squares() if usable else None
        step.parts_cost = self._parts.seconds + time.perf_counter() - began
        return squares

    def ended(self, step: OpenStep) -> None:
        """A step has ended: count the backward passes anew, and look whether the layers have changed."""
        if step.due and not step.measured:
            self.tier.finish()
            self.inventory.looks = 0
        self._guard.run("inventory", self._follow_on, step, self.backward.end())

    def _follow_on(self, step: OpenStep, passes: int) -> None:
        if self.sharded is not None:
            return
        if (step.measured or not self.inventory.tensors) and self.trained.signature() != self.inventory.signature:
            self._renew()
        unseen = step.measured and not step.replayed and not passes and self.backward.worth_following
        if unseen and any(tensor.parameter.grad is not None for tensor in self.inventory.tensors):
            self.backward.follow(self.inventory.trainable, True, self.trained.frozen())

    def _renew(self) -> None:
        self.backward.stop()
        self._parts.rest()
        self._take_inventory()
        self.begin({})

    def close(self) -> None:
        """Take the hooks in the backward passes away, and end what is done beside the training."""
        self.beside.close()
        self.backward.close()
        self._parts.rest()
        if self.second is not None:
            self.second.close()
        if self.sharded is not None:
            self.sharded.close()
