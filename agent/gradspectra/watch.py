"""`watch`: follow a training run through its optimizer's own hooks, and send what is measured to a server."""

from __future__ import annotations

import atexit
import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradspectra.arguments import checked_state, is_whole, shown
from gradspectra.capture import capturing
from gradspectra.duties import Duty, duty_of_rank
from gradspectra.errors import end_state, exit_state, uncaught
from gradspectra.guard import Guard
from gradspectra.hooks import Hooks
from gradspectra.inputs import Inputs
from gradspectra.layer_choice import Choice
from gradspectra.options import Options, models_by_name, optimizers_of, options
from gradspectra.reactions import Reactions
from gradspectra.reasons import LikelyMistake
from gradspectra.record_queue import Unmade
from gradspectra.rules import LocalRules
from gradspectra.scalars import accept, complain_of_close, complain_of_step
from gradspectra.session import Session
from gradspectra.step import ClosedStep
from gradspectra.surroundings import environment, rank, steps_taken
from gradspectra.together import Silent, together
from gradspectra.transport import Transport
from gradspectra.uncopied import Uncopied
from gradspectra.unmeasured import teller

log = logging.getLogger("gradspectra")


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Any = None,
    *,
    project: str = "default",
    run: str | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    notes: str = "",
    total_steps: int | None = None,
    server: str | None = None,
    token: str | None = None,
    every: int = 1,
    budget: float | None = 0.01,
    spectra: str | int = "auto",
    spectra_of: str | Sequence[str] = "gradient",
    layers: str | re.Pattern[str] | Choice | None = None,
    batch_size: float | Callable[..., Any] | None = None,
    parts: str | int = "auto",
    drift: str = "sampled",
    second_tier: str = "auto",
    scaler: Any = None,
    resume: str | None = None,
    start_step: int | None = None,
    spool: str | os.PathLike[str] | None = None,
    on_alert: Callable[[dict[str, Any]], None] | None = None,
    stop_on: str | None = None,
    enabled: bool = True,
) -> Watch:
    """Watch a training run; returns at once, and measures at each optimizer step from then on.

    model: a module, or several by name. optimizer: one, several, or None: then call `watch.step()` after each step.
    every: record the layer numbers of each n-th step. budget: share of the step time the agent may spend, all
    included; None: `every` exactly, at any cost. spectra: "auto", an interval in steps, or "off"; spectra_of: of the
    "gradient", "weight" (after the step), "update", or several of them. layers: regular expression or callable on
    parameter names; the callable may also give the blocks of a fused tensor. batch_size: examples per part, a number or
    a callable on the model's inputs; else from `log(examples=…)`. parts: backward passes per step, "auto" counts them.
    drift: of "sampled" weights (1 in 61 of large layers), "exact" or "off". second_tier: "auto" or "off": update_sq,
    and what a few layers get at each recorded step in turn. scaler: a loss scaler not torch's own. start_step: steps
    already taken. resume: a run id, or "auto" for the last run of this name. on_alert: called in the training thread at
    the step after. stop_on: severity from which InstabilityError is raised there. server, token, spool: else from
    GRADSPECTRA_SERVER, GRADSPECTRA_TOKEN, GRADSPECTRA_SPOOL.

    Raises TypeError or ValueError for a wrong argument; after that only what on_alert and stop_on ask for.
    """
    chosen = options(
        *(every, budget, spectra, spectra_of, layers, batch_size, parts, drift, second_tier, scaler, start_step),
        *(on_alert, stop_on),
    )
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True or False, got {shown(enabled)}")
    sending = {
        "server": server,
        "token": token,
        "project": project,
        "name": run,
        "config": config,
        "tags": tags,
        "notes": notes,
        "total_steps": total_steps,
        "resume": resume,
        "spool": spool,
    }
    models, optimizers = models_by_name(model), optimizers_of(optimizer)
    return Watch(models, optimizers, chosen, sending, duty_of_rank(models, optimizers, enabled, chosen))


class Watch(Uncopied):
    """A run that is being watched; made by `watch`. A context manager: leaving it closes the watch."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[Any],
        chosen: Options,
        sending: dict[str, Any],
        duty: Duty,
    ) -> None:
        on_alert, self._options = chosen.on_alert, duty.options(chosen)
        chosen = self._options
        facts = environment(models, optimizers) | {"drift": chosen.drift}
        self._reactions = Reactions(chosen.on_alert, chosen.stop_on)
        self._sending = {**sending, "environment": facts, "on_alerts": self._reactions.tell}
        self._make_transport = Silent if duty.active and not duty.sends else Transport
        self._transport = self._make_transport(**self._sending, start_step=chosen.start_step or 0)
        self._rules = LocalRules(self._transport.local_key)
        self._guard = Guard()
        self._together = together(rank(), self._guard, on_alert) if duty.acts else None
        self._session = Session(models, optimizers, chosen, self._guard, self._emit, self._background, duty.group)
        self._models = models
        self._closed = self._named = False
        self._pid = os.getpid()
        self._uncaught_before = id(uncaught())
        self._complaints: set[str] = set()
        self._start_step = chosen.start_step
        self._started, self._enabled = False, duty.active
        self._loaded: dict[str, Any] = {}
        self._hooks: Hooks | None = None
        self._inputs: Inputs | None = None
        if not duty.active:
            self._session.close()
            return
        self._hooks = Hooks(self._session, self._guard, self._start, self._react)
        for reason in self._session.not_measured():
            log.log(logging.WARNING if isinstance(reason, LikelyMistake) else logging.INFO, "gradspectra: %s", reason)
        if not self._hooks.complete:
            who = self._hooks.unhooked
            text = f"{who} cannot be hooked" if who else "no optimizer was given"
            (warnings.warn if who else log.info)(f"{text}: call watch.step() after each optimizer step")
        atexit.register(self._at_exit)
        if callable(chosen.batch_size):
            self._inputs = Inputs(models, chosen.batch_size, self._guard, self._session.found_examples)

    @property
    def run_id(self) -> str:
        """Identity of the run; until the server has given one, a key of this session's own."""
        self._start()
        return self._transport.run_id or self._transport.local_key

    @property
    def url(self) -> str | None:
        """Address of the run's page; None until the server has made the run."""
        self._start()
        return self._transport.url

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def overhead(self) -> float:
        """Share of the step time that the agent has spent so far, everything included."""
        return self._session.budget.overhead

    def log(self, step: int | None = None, **scalars: Any) -> None:
        """Record numbers of a step: of the coming one if a backward pass has begun since the last, else of the last.

        step: says outright which. Several calls within a step: losses are averaged by tokens, else by examples;
        tokens and examples are summed; of others the last counts. Tensors are copied where they are: nothing waits.
        """
        if self._hooks is None or capturing():
            complain_of_close(self._closed and self._enabled, scalars, self._complaints)
            return
        self._start()
        self._session.enter()
        self._guard.run("log", self._log, step, scalars)
        self._session.leave()

    def _log(self, step: int | None, scalars: Mapping[str, Any]) -> None:
        if step is None and self._session.hold(scalars):
            return
        if not (step is None or is_whole(step)) or not self._session.log(accept(scalars, self._complaints), step):
            complain_of_step(step, self._session.open.number, self._complaints)

    def step(self) -> None:
        """Say that a step is over, where no optimizer hook does; call it before the gradients are set to zero."""
        if self._hooks is not None:
            self._start()
            self._hooks.step()

    def parts_unclear(self) -> None:
        """Say that the parts of the open step are not weighted alike: its noise and `part_sq` are then left out."""
        self._session.open.parts_unclear = True

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, foreach: bool | None = None) -> Tensor:
        """Clip the gradients of all parameters of the watched models; as torch's function, returns the norm before."""
        parameters = [p for model in self._models.values() for p in model.parameters()]
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, foreach=foreach)

    def status(self) -> dict[str, Any]:
        """What is measured how often, what is not and why, what it costs, and how the sending goes."""
        return {
            "enabled": self._hooks is not None and self._make_transport is not Silent,
            "closed": self._closed,
            **self._session.status(),
            "sending": self._transport.status(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on from here: the run, steps, tokens, the weights drift is measured from."""
        state = {"version": 1, "run_id": self.run_id, **self._session.state()}
        if not self._enabled:
            taken = max(self._start_step or 0, steps_taken(self._session.optimizers))
            state |= self._loaded | {"step": taken}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; raises ValueError once a step was taken, or for a state of another kind."""
        step = checked_state(state)
        if self._started and self._session.step != self._start_step:
            raise ValueError(f"load_state_dict must come before the first step, {self._session.step} were taken")
        if self._started and step != self._start_step:
            raise ValueError(f"load_state_dict must come before log, run_id and url: the run was begun without {step}")
        self._start_step = step
        self._loaded = dict(state)
        self._session.load(state)
        if self._started:
            self._session.begin_at(step)

    def close(self, timeout: float = 5.0, state: str = "finished") -> None:
        """End the watch: take all hooks away, send the rest for at most timeout seconds; a wrong argument is said."""
        before, self._closed = self._closed, True
        if before or self._hooks is None:
            return
        self._start()
        self._guard.run("close", self._hooks.close)
        if self._inputs is not None:
            self._guard.run("close", self._inputs.close)
        with torch.no_grad():
            self._guard.run("close", self._session.close)
        self._hooks = None
        atexit.unregister(self._at_exit)
        self._guard.run("send", self._transport.close, timeout, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(state=end_state(error))

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return
        self.close(state=exit_state(self._uncaught_before))

    def _start(self) -> None:
        """Start sending, once it is known from which step on."""
        if self._started or not self._enabled:
            return
        self._started = True
        self._guard.run("start", self._begin)

    def _begin(self) -> None:
        if self._start_step is None:
            self._start_step = self._guard.run("start", steps_taken, self._session.optimizers) or 0
        self._session.begin_at(self._start_step)
        if self._start_step != (self._options.start_step or 0):
            self._transport = self._make_transport(**self._sending, start_step=self._start_step)
        self._transport.unmeasured = teller(self._session, self._guard)
        self._transport.start()
        atexit.unregister(self._at_exit)  # the last registered is called first: steps are ended before the sending
        atexit.register(self._at_exit)

    def _emit(self, closed: ClosedStep) -> None:
        """Hand a step on: its record is made here where something reacts to it, else in the sending thread."""
        self._transport.set_overhead(self.overhead)
        if not self._reactions.wanted:
            make = partial(self._session.record, closed)
            self._transport.record(Unmade(closed.step.number, closed.record_bytes, make))
            return
        if (record := self._session.record(closed)) is None:
            return
        self._transport.record(record)
        if not self._named and self._transport.run_id is not None:
            self._named = True
            self._rules.name(self._transport.run_id, self._transport.attempt or 1)
        self._reactions.tell(self._guard.run("rules", self._rules.observe, record) or ())

    def _background(self) -> float:
        return self._transport.seconds_spent

    def _react(self) -> None:
        act = self._reactions.act if self._together is None else partial(self._together.act, self._reactions)
        act(self._transport.stop_at_step, self._session.step)
