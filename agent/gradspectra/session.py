"""The steps of one training job as the agent follows them: opened, measured, closed, and handed on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gradspectra.accounts import Accounts
from gradspectra.budget import Budget
from gradspectra.clipping import Clip, ClippingSeen
from gradspectra.device_time import DeviceTimes
from gradspectra.explain import not_measured
from gradspectra.guard import Guard
from gradspectra.hookable import hookable
from gradspectra.measuring import Measuring
from gradspectra.memory import add_memory
from gradspectra.options import Options
from gradspectra.record import StepRecord
from gradspectra.scalars import HeldCalls, Number, Total, as_number, rates
from gradspectra.starts import Start
from gradspectra.step import ClosedStep, OpenStep, Unfinished
from gradspectra.surroundings import ranks_averaged


class Session:
    """Follows the steps; emit(closed) gets each step once nothing can be added to it any more.

    background() tells the CPU seconds that the sending thread has taken so far.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[Any],
        options: Options,
        guard: Guard,
        emit: Callable[[ClosedStep], None],
        background: Callable[[], float],
        group: Any = None,
    ) -> None:
        self.optimizers = list(optimizers)
        self.options = options
        self.budget = Budget(options.budget, options.every, options.spectra != 0)
        self.ranks = ranks_averaged(models) if group is None else group.size()
        self.measuring = Measuring(models, self.optimizers, options, self.budget, guard, self.ranks, group)
        self.step = self.disagreements = 0
        self._clipping = ClippingSeen()
        self._held = HeldCalls()
        self._tokens = Total()
        self._tokens_before = 0
        self._starts: Mapping[str, Start] = {}
        self._guard = guard
        self._emit = emit
        self._accounts = Accounts(self.budget, background, self.measuring.beside)
        self._stepped: set[int] = set()
        self._passes_seen = self._drops_seen = 0
        self._closed: deque[ClosedStep] = deque()
        self._unfinished: list[Unfinished] = []
        self._entered = time.perf_counter()
        self._captured = self._hook_seen = False
        self._hooked = all(hookable(optimizer) for optimizer in optimizers)
        self.open = self._next_step()

    def begin_at(self, steps_taken: int) -> None:
        """Count from here: this many steps were taken before."""
        self.step = steps_taken
        self.open.number = steps_taken + 1
        self.open.due = self._due(steps_taken + 1)
        self.measuring.begin(self._starts)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs: steps, tokens so far, and the weights that drift is measured from."""
        self._guard.run("log", self._release)
        starts = {} if self.measuring.drift is None else self.measuring.drift.starts
        tokens = self._tokens_before + self._tokens.read() * max(self.ranks, 1)
        shard = {} if self._shard is None else {"shard": self._shard}
        return {"step": self.step, "tokens": tokens, "drift": dict(starts), **shard}

    @property
    def _shard(self) -> list[int] | None:
        """Which of how many shards of the parameters this process has; None where it has them whole."""
        return None if self.measuring.sharded is None else self.measuring.sharded.shard

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, but for the steps."""
        self._tokens_before = int(state.get("tokens", 0))
        self._starts = dict(state.get("drift", {})) if state.get("shard") == self._shard else {}

    def index_of(self, optimizer: Any) -> int | None:
        """Which of the session's optimizers this is."""
        return next((i for i, own in enumerate(self.optimizers) if own is optimizer), None)

    def _next_step(self) -> OpenStep:
        step = OpenStep(self.step + 1, self._due(self.step + 1), device=DeviceTimes(self.measuring.clock))
        step.unfinished = self._unfinished
        step.counts["cadence_layers"] = self.budget.cadence
        self.measuring.begins(step)
        return step

    def _due(self, step: int) -> bool:
        sharded = self.measuring.sharded
        return self.budget.due(step) if sharded is None else sharded.exchange.due

    def exchange(self) -> None:
        """An optimizer has stepped: where parameters are sharded, measure with the other ranks. Not to be guarded."""
        if self.measuring.sharded is not None:
            self.enter()
            self.measuring.sharded.step(self.open)
            self.leave()

    def enter(self) -> None:
        """The training thread comes in: its time is the agent's from here on."""
        self._entered = time.perf_counter()

    def leave(self) -> None:
        """The training thread goes out."""
        self.open.own += time.perf_counter() - self._entered

    def hold(self, values: Mapping[str, Any]) -> bool:
        """Keep a call of log until its step ends, where it is of plain numbers and certain to be of the open step."""
        return bool(self.measuring.backward.passes) and not self._stepped and self._held.hold(values)

    def _release(self) -> None:
        for values in self._held.take():
            self._take(values)
            self.open.log.add(values)

    def _take(self, values: Mapping[str, Number]) -> None:
        if "tokens" in values:
            self._tokens.add(values["tokens"])
        self.measuring.tell_loss(self.open.number, values.get("loss"))

    def log(self, values: Mapping[str, Number], step: int | None) -> bool:
        """Add logged numbers to the step they belong to; False where that step's record is gone already."""
        self._release()
        if self._stepped:
            self._end_step()
        values = dict(values)
        self._take(values)
        backward = self.measuring.backward
        if step is None and (backward.passes or not backward.counted or not self._closed):
            self.settle()
            step = self.open.number
        if step == self.open.number:
            self.open.log.add(values)
            return True
        closed = self._closed[-1] if step is None else next((c for c in self._closed if c.step.number == step), None)
        if closed is not None:
            closed.add(values)
        return closed is not None

    def found_examples(self, examples: float) -> None:
        """The model was called with this many examples."""
        self.open.examples.append(examples)

    def settle(self, wait: bool = False) -> None:
        """Hand on the steps to which nothing can be added any more, as far as their numbers have arrived."""
        self._guard.run("overhead", self._accounts.settle)
        while self._closed and (wait or self._closed[0].ready()):
            self._guard.run("handing on", self._emit, self._closed.popleft())

    def record(self, closed: ClosedStep) -> StepRecord | None:
        """Make the record of a step that was handed on, in any thread; None if that fails."""
        record = self._guard.run("record", closed.record)
        if record is not None:
            self.measuring.tell_loss(record.step, record.scalars.get("loss"))
        self.disagreements += closed.disagrees
        self._clipping.look(closed.step.clips, closed.step.clipping_unseen, closed.step.log.last)
        return record

    def opens(self, index: int) -> None:
        """An optimizer is about to step."""
        self._hook_seen = True
        self._guard.run("log", self._release)
        if index in self._stepped:
            self._end_step()
        self._note_passes()
        self.measuring.opens(self.open, index)
        self.settle()

    def captured(self) -> None:
        """An optimizer's step is captured in a CUDA graph: it is done when the graph is replayed, and no hook tells."""
        self._captured, self._hook_seen = True, False

    def _note_passes(self) -> None:
        """Backward passes between the steps of two optimizers are not parts of one batch (two models in turn)."""
        backward = self.measuring.backward
        self.open.parts_unclear |= backward.unclear or (bool(self._stepped) and backward.passes != self._passes_seen)
        self._passes_seen, self._drops_seen = backward.passes, backward.dropped

    def stepped(self, index: int, skipped: bool = False) -> None:
        """An optimizer has stepped, or its step was skipped for an overflow."""
        optimizer = self.optimizers[index]
        step = self.open
        if step.found_inf is None and isinstance(getattr(optimizer, "found_inf", None), Tensor):
            step.found_inf = optimizer.found_inf.detach().clone()
        step.skipped |= skipped
        backward = self.measuring.backward  # a closure that was called more than once brings no parts
        step.parts_unclear |= backward.dropped != self._drops_seen or backward.passes - self._passes_seen > 1
        self._passes_seen = backward.passes
        self._stepped.add(index)
        self._guard.run("rates", self._log_rates, index)
        self.measuring.stepped(step, index, skipped)
        if len(self._stepped) == len(self.optimizers):
            self._end_step()

    def stepped_by_hand(self) -> None:
        """The user says that a step is over."""
        replayed, self._hook_seen = self._captured and not self._hook_seen, False
        if self.optimizers and self._hooked:
            if self._stepped:
                self._end_step()
            elif self.measuring.backward.passes or replayed:  # a compiled or replayed step runs without the hooks
                self.open.replayed = replayed and not self.measuring.backward.passes
                self._note_passes()
                for index in range(len(self.optimizers)):
                    self.stepped(index)
            return
        for index in range(len(self.optimizers)):
            self._guard.run("rates", self._log_rates, index)
        self.measuring.all_stepped(self.open)
        self._end_step()

    def scaled(self, scaler: Any) -> bool:
        """A loss scaler steps: its scale is that of this step's backward passes. True, as the two below, once seen."""
        scale = scaler._get_scale_async()
        if scale is not None:
            self.open.scale = as_number(scale)
        return True

    def clips_norm(self, clip: Clip) -> bool:
        """A norm is about to be clipped."""
        if not self.measuring.inventory.parameters.isdisjoint(clip.parameters):
            self.measuring.before_clipping(self.open, clip)
        return True

    def clips_value(self, gradients: Sequence[Tensor]) -> bool:
        """Values are about to be clipped."""
        self.measuring.before_clipping_values(self.open, gradients)
        return True

    def _log_rates(self, index: int) -> None:
        self.open.log.last = rates(self.optimizers, index) | self.open.log.last

    def _end_step(self) -> None:
        """Close the open step and plan the next."""
        self._guard.run("log", self._release)
        step = self.open
        self._stepped.clear()
        self.step = step.number
        passes = 0 if step.parts_unclear else self.measuring.backward.passes
        step.parts = (self.options.parts or passes) if self.ranks else 0
        step.ranks, step.dropped = max(self.ranks, 1), bool(self.measuring.backward.dropped)
        self._passes_seen = 0
        if self.options.scaler is not None:
            step.scale = as_number(self.options.scaler.get_scale())
        if isinstance(self.options.batch_size, (int, float)):
            step.examples = [float(self.options.batch_size)] * step.parts
        step.counts |= {name: steps for name, steps in self.measuring.cadences().items() if steps is not None}
        self._guard.run("memory", add_memory, step, self.measuring.clock.devices)
        self.measuring.complete(step)
        parts = self.measuring.parts(step)
        self.settle()
        closed = self._guard.run("record", ClosedStep, step, self.measuring.tier, parts)
        if closed is not None:
            self._closed.append(closed)
        self.measuring.ended(step)
        self.open = self._next_step()
        self._guard.run("overhead", self._account, step)

    def _account(self, step: OpenStep) -> None:
        """Close the books on a step: what of its time was the agent's."""
        now = time.perf_counter()
        step.own += now - self._entered
        self._entered = now
        self._accounts.close(step, now)

    def not_measured(self) -> list[str]:
        """What is not measured, and why, in words."""
        on = self.measuring
        found = not_measured(self.options, self.optimizers, on.inventory, on.trained.left_out(), on.spectra, on.second)
        if on.sharded is not None:
            found += on.sharded.not_measured()
        elif not self.ranks:
            found.append("noise is not measured: of several ranks; pass the model that is wrapped in DDP")
        return found + self._clipping.unknown() + [f"{stage}: {why}" for stage, why in self._guard.off.items()]

    def status(self) -> dict[str, Any]:
        """What is measured how often, what is not, and what it costs."""
        return {
            "step": self.step,
            "layers": len(self.measuring.inventory.table),
            "cadence_layers": self.budget.cadence,
            **self.measuring.cadences(),
            **self.budget.status(),
            "fused": self.measuring.tier.state,
            "not_measured": self.not_measured(),
            "norms_that_disagreed": self.disagreements,
        }

    def close(self) -> None:
        """End an unfinished step and hand on everything."""
        if self._stepped:
            self._end_step()
        self.measuring.close()
        self.settle(wait=True)
