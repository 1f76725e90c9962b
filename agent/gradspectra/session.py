"""The steps of one training job as the agent follows them: opened, measured, closed, and handed on as records."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradspectra.budget import Budget
from gradspectra.clipping import Clip
from gradspectra.explain import not_measured
from gradspectra.flat import OneThread
from gradspectra.guard import Guard
from gradspectra.inventory import WatchedTensor, signature_of, take_inventory
from gradspectra.measure import FirstTier
from gradspectra.options import Options
from gradspectra.parts import Backward, PartSquares
from gradspectra.record import StepRecord
from gradspectra.scalars import Number, as_number, rates
from gradspectra.spectra import Candidate, Spectra
from gradspectra.step import DISAGREEMENT, ClosedStep, OpenStep

PAUSE = 5.0
"""A step that took this many times the usual is a pause (an evaluation, a checkpoint), not a step."""


class Session:
    """Follows the steps; emit(record) gets each record once nothing can be added to it any more.

    background() tells the CPU seconds that the sending thread has taken so far.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[Any],
        options: Options,
        guard: Guard,
        emit: Callable[[StepRecord], None],
        background: Callable[[], float],
    ) -> None:
        self.optimizers = list(optimizers)
        self.options = options
        self.budget = Budget(options.budget, options.every, options.spectra != 0)
        self.backward = Backward()
        self.step = 0
        self.disagreements = 0
        self._models = models
        self._guard = guard
        self._emit = emit
        self._background = background
        self._background_seen = 0.0
        self._stepped: set[int] = set()
        self._closed: deque[ClosedStep] = deque()
        self._ended: float | None = None
        self._several_parts = (options.parts or 1) > 1
        self._entered = time.perf_counter()
        self._due_spectra: list[Candidate] | None = None
        self._recorded = 0
        self._last_cost: float | None = None
        self.open = self._next_step()
        self._take_inventory()

    def _take_inventory(self) -> None:
        self.inventory = take_inventory(self._models, self.optimizers, self.options.choose)
        tensors, layers = self.inventory.tensors, len(self.inventory.table)
        self._of_optimizer = [[t for t in tensors if t.optimizer == i] for i in range(len(self.optimizers))]
        self.tier = FirstTier(self.inventory)
        self._parts = PartSquares(tensors, layers, self.backward, self._guard)
        self.spectra = Spectra(self.inventory, self.options.spectra or None, self.budget)
        self.backward.follow(self.inventory.trainable)

    def begin_at(self, steps_taken: int) -> None:
        """Count from here: this many steps were taken before."""
        self.step = steps_taken
        self.open.number = steps_taken + 1
        self.open.due = self.budget.due(steps_taken + 1)

    def index_of(self, optimizer: Any) -> int | None:
        """Which of the session's optimizers this is."""
        return next((i for i, own in enumerate(self.optimizers) if own is optimizer), None)

    def _next_step(self) -> OpenStep:
        step = OpenStep(self.step + 1, self.budget.due(self.step + 1))
        step.counts["cadence_layers"] = self.budget.cadence
        self._due_spectra = None
        return step

    def enter(self) -> None:
        """The training thread comes in: its time is the agent's from here on."""
        self._entered = time.perf_counter()

    def leave(self) -> None:
        """The training thread goes out."""
        self.open.own += time.perf_counter() - self._entered

    def log(self, values: Mapping[str, Number], step: int | None) -> bool:
        """Add logged numbers to the step they belong to; False where that step's record is gone already."""
        if self._stepped:
            self._end_step()
        values = dict(values)
        if step is None and (self.backward.passes or not self._closed):
            self.settle()
            step = self.open.number
        if step is None:
            self._closed[-1].add(values)
            return True
        if step == self.open.number:
            self.open.log.add(values)
            return True
        for closed in self._closed:
            if closed.step.number == step:
                closed.add(values)
                return True
        return False

    def found_examples(self, examples: float) -> None:
        """The model was called with this many examples."""
        self.open.examples.append(examples)

    def settle(self, wait: bool = False) -> None:
        """Hand on the steps to which nothing can be added any more, as far as their numbers have arrived."""
        while self._closed and (wait or self._closed[0].ready()):
            closed = self._closed.popleft()
            record = self._guard.run("record", closed.record)
            if closed.disagreement is not None and closed.disagreement > DISAGREEMENT:
                self.disagreements += 1
            if record is not None:
                self._emit(record)

    def opens(self, index: int) -> None:
        """An optimizer is about to step."""
        if index in self._stepped:
            self._end_step()
        self.settle()

    def stepped(self, index: int, skipped: bool = False) -> None:
        """An optimizer has stepped, or its step was skipped for an overflow."""
        optimizer = self.optimizers[index]
        step = self.open
        if step.found_inf is None and isinstance(getattr(optimizer, "found_inf", None), Tensor):
            step.found_inf = optimizer.found_inf.detach().clone()
        step.skipped |= skipped
        self._stepped.add(index)
        self._log_rates(index)
        self._measure(self._of_optimizer[index], optimizer, skipped)
        if len(self._stepped) == len(self.optimizers):
            self._end_step()

    def stepped_by_hand(self) -> None:
        """The user says that a step is over."""
        hooked = all(hasattr(optimizer, "register_step_post_hook") for optimizer in self.optimizers)
        if self.optimizers and hooked:
            if self._stepped:
                self._end_step()
            return
        for index in range(len(self.optimizers)):
            self._log_rates(index)
        self._measure(self.inventory.tensors, None, False)
        self._end_step()

    def scaled(self, scaler: Any) -> None:
        """A loss scaler steps: its scale is that of this step's backward passes."""
        scale = scaler._get_scale_async()
        if scale is not None:
            self.open.scale = as_number(scale)

    def clips_norm(self, clip: Clip) -> None:
        """A norm is about to be clipped; what a norm that is not finite would spoil is measured now."""
        step = self.open
        if self.inventory.parameters.isdisjoint(clip.parameters):
            return
        step.clips.clips.append(clip)
        if step.due and clip.divisor.device.type == "cpu" and not bool(clip.divisor.isfinite()):
            self._measure_early(clip.parameters, len(step.clips.clips) - 1)

    def clips_value(self, gradients: Sequence[Tensor]) -> None:
        """Values are about to be clipped, which cannot be undone: what is due is measured now."""
        clipped = {id(gradient) for gradient in gradients}
        found = [t for t in self.inventory.tensors if id(t.parameter.grad) in clipped]
        if self.options.spectra != 0:
            self._take_spectra({id(tensor.parameter) for tensor in found})
        if self.open.due:
            self._measure_early({id(t.parameter) for t in found}, len(self.open.clips.clips))

    def _measure_early(self, parameters: set[int] | frozenset[int], clips_seen: int) -> None:
        early = self.open.clips.early
        with OneThread(), torch.no_grad():
            for tensor in self.inventory.tensors:
                if id(tensor.parameter) in parameters and id(tensor.parameter) not in early:
                    self.tier.take_gradient(tensor)
                    early[id(tensor.parameter)] = clips_seen
            self.tier.repair()

    def _log_rates(self, index: int) -> None:
        self.open.log.last = rates(self.optimizers, index) | self.open.log.last

    def _measure(self, tensors: Sequence[WatchedTensor], optimizer: Any, skipped: bool) -> None:
        if self.open.due and self.inventory.tensors:
            self._guard.run("layers", self._measure_layers, tensors, optimizer, skipped)
        if not skipped and self.options.spectra != 0:
            self._guard.run("spectra", self._take_spectra, {id(tensor.parameter) for tensor in tensors})

    def _measure_layers(self, tensors: Sequence[WatchedTensor], optimizer: Any, skipped: bool) -> None:
        began = time.perf_counter()
        self.open.measured = False
        known = None if self._parts.armed and self.budget.share is not None else optimizer
        with OneThread(), torch.no_grad():
            self.tier.take(tensors, known, skipped, self.open.clips.early)
            self.tier.repair()
        self.open.measured = True
        self.open.layers_cost += time.perf_counter() - began

    def _take_spectra(self, parameters: set[int]) -> None:
        step = self.open
        if self._due_spectra is None:
            self._due_spectra = self.spectra.due(step.number)
        if not self._due_spectra:
            return
        began = time.perf_counter()
        waiting = []
        for candidate in self._due_spectra:
            if id(candidate.tensor.parameter) not in parameters:
                waiting.append(candidate)
                continue
            with OneThread(), torch.no_grad():
                spectrum = self.spectra.take(candidate, step.number)
            if spectrum is not None:
                step.spectra.append(spectrum)
        self._due_spectra = waiting
        step.spectra_cost += time.perf_counter() - began

    def _end_step(self) -> None:
        """Close the open step and plan the next."""
        step = self.open
        self._stepped.clear()
        self.step = step.number
        step.parts = self.options.parts or self.backward.passes
        if self.options.scaler is not None:
            step.scale = as_number(self.options.scaler.get_scale())
        if isinstance(self.options.batch_size, (int, float)):
            step.examples = [float(self.options.batch_size)] * step.parts
        interval = self.spectra.interval()
        if interval is not None:
            step.counts["cadence_spectra"] = interval
        sums = self._guard.run("parts", self._part_sums, step)
        self.settle()
        self._closed.append(ClosedStep(step, self.tier, sums))
        if not step.measured:
            self.tier.finish()
        self._guard.run("inventory", self._follow_on, step)
        self.open = self._next_step()
        if self._several_parts and self.open.due and self.options.parts != 1 and self._turn_of_parts():
            self._guard.run("parts", self._parts.arm)
        self._account(step)

    def _turn_of_parts(self) -> bool:
        """Whether the next recorded step measures its parts: within a budget parts and updates take turns."""
        self._recorded += 1
        return self.budget.share is None or self._recorded % 2 == 0

    def _part_sums(self, step: OpenStep) -> list[Tensor] | None:
        sums = None
        if self._parts.armed:
            self._parts.disarm()
            step.layers_cost += self._parts.seconds
            step.own += self._parts.seconds
            if step.measured and step.parts > 1 and step.parts == self.backward.passes:
                sums = self._parts.sums()
        self._several_parts = step.parts > 1
        return sums

    def _follow_on(self, step: OpenStep) -> None:
        """Make ready for the next step: count its backward passes anew, and look whether the layers have changed."""
        if (
            step.measured
            and not self.backward.passes
            and any(t.parameter.grad is not None for t in self.inventory.tensors)
        ):
            self.backward.follow(self.inventory.trainable, every=True)
        self.backward.passes = 0
        if (step.measured or not self.inventory.tensors) and self._changed():
            self.backward.stop()
            self._take_inventory()

    def _changed(self) -> bool:
        return signature_of(self._models, self.optimizers) != self.inventory.signature

    def _account(self, step: OpenStep) -> None:
        """Close the books on a step: what of its time was the agent's."""
        now = time.perf_counter()
        step.own += now - self._entered
        self._entered = now
        step.seconds = None if self._ended is None else now - self._ended
        self._ended = now
        pause = PAUSE * self.budget.step_seconds
        seconds = None if step.seconds is None or 0 < pause < step.seconds else step.seconds
        background = self._background()
        sent, self._background_seen = background - self._background_seen, background
        base = max(step.own - step.layers_cost - step.spectra_cost, 0.0)
        cost = None
        if step.measured:
            before = step.layers_cost if self._last_cost is None else self._last_cost
            cost, self._last_cost = (step.layers_cost + before) / 2, step.layers_cost
        self.budget.step_done(seconds, base, cost, step.spectra_cost, sent)

    def not_measured(self) -> list[str]:
        """What is not measured, and why, in words."""
        return not_measured(self.optimizers, self.inventory, self.spectra)

    def close(self) -> None:
        """End an unfinished step and hand on everything."""
        if self._stepped:
            self._end_step()
        self.settle(wait=True)
        self.backward.stop()
        self._parts.disarm()
