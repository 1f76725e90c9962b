"""Where the agent touches a training step: the optimizers' own step hooks, and what they call in which order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from gradspectra import clipping, data_wait, scaling
from gradspectra.capture import capturing
from gradspectra.clipping import Clip
from gradspectra.guard import Guard
from gradspectra.hookable import hookable
from gradspectra.session import Session
from gradspectra.shards import local

PLAIN_STEPS = 2
"""Classes of an optimizer that have a step of their own, where one does not call another: its own and torch's base."""


class Hooks:
    """Hangs a session on its optimizers, and on torch's clipping functions, loss scaler and data loader.

    Whatever fails in here stays in here; only `react` may raise: it is where the user asked for it.
    """

    def __init__(self, session: Session, guard: Guard, start: Callable[[], None], react: Callable[[], None]) -> None:
        self._session = session
        self._start = start
        self._guard = guard
        self._react = react
        self._handles: list[Any] = []
        self._calls = 0
        self._thread = threading.get_ident()
        """The thread that trains: that of the last step."""
        self.unhooked = ", ".join(
            type(optimizer).__name__ for optimizer in session.optimizers if not hookable(optimizer)
        )
        """Names of the optimizers that do not tell of their steps."""
        for index, optimizer in enumerate(session.optimizers):
            if hookable(optimizer):
                self._handles.append(optimizer.register_step_pre_hook(self._opens(index)))
                self._handles.append(optimizer.register_step_post_hook(self._stepped(index)))
        clipping.patch.open(self)
        scaling.patch.open(self)
        data_wait.patch.open(self)

    @property
    def complete(self) -> bool:
        """Whether every optimizer tells of its steps itself, so that nobody needs to call watch.step()."""
        return bool(self._handles) and len(self._handles) == 2 * len(self._session.optimizers)

    def close(self) -> None:
        """Take everything away again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        clipping.patch.close(self)
        scaling.patch.close(self)
        data_wait.patch.close(self)

    def _opens(self, index: int) -> Callable[..., None]:
        def pre_hook(optimizer: Any, *_: Any) -> None:
            if capturing():
                self._session.captured()
                return
            if _within_its_own_step(optimizer):
                return
            self._thread = threading.get_ident()
            self._guard.run("start", self._start)
            self._timed("step", self._session.opens, index)
            self._react()

        return pre_hook

    def _stepped(self, index: int) -> Callable[..., None]:
        def post_hook(optimizer: Any, *_: Any) -> None:
            if torch.compiler.is_compiling() or capturing() or _within_its_own_step(optimizer):
                return
            self._calls += 1
            self._session.exchange()
            self._timed("measure", self._session.stepped, index)

        return post_hook

    def step(self) -> None:
        """The user's own watch.step()."""
        if capturing():
            return
        self._thread = threading.get_ident()
        self._timed("step", self._session.settle)
        self._react()
        self._timed("measure", self._session.stepped_by_hand)

    def clips_norm(self, clip: Clip) -> None:
        """torch is about to clip a norm."""
        if capturing():
            return
        if (divisor := local(clip.divisor)) is not clip.divisor:
            clip = replace(clip, divisor=divisor)
        self._session.open.clipping_unseen |= not self._timed("clipping", self._session.clips_norm, clip)

    def clips_value(self, gradients: Iterable[Tensor]) -> None:
        """torch is about to clip values."""
        if capturing():
            return
        self._session.open.clipping_unseen |= not self._timed("clipping", self._session.clips_value, list(gradients))

    def waited(self, seconds: float) -> None:
        """A thread has waited for data; not the training, where it is another thread, or an evaluation."""
        if self._thread == threading.get_ident() and torch.is_grad_enabled():
            self._session.open.log.data_seconds += seconds

    def scaler_steps(self, scaler: Any, optimizer: Any) -> None:
        """A loss scaler is about to step one of the optimizers, or to skip it."""
        self._calls = 0
        if self._session.index_of(optimizer) is not None and not capturing():
            self._session.open.parts_unclear |= not self._timed("scaling", self._session.scaled, scaler)

    def scaler_stepped(self, optimizer: Any) -> None:
        """The scaler has stepped the optimizer; if no hook was called meanwhile it skipped it."""
        index = self._session.index_of(optimizer)
        if index is not None and not self._calls and not capturing():
            self._guard.run("start", self._start)
            self._timed("step", self._session.opens, index)
            self._react()
            self._timed("measure", self._session.stepped, index, True)

    def _timed(self, stage: str, work: Callable[..., Any], *args: Any) -> Any:
        self._session.enter()
        result = self._guard.run(stage, work, *args)
        self._session.leave()
        return result


def _within_its_own_step(optimizer: Any) -> bool:
    """Whether the step that calls a hook was begun by a step of the same optimizer, which calls the hook as well.

    torch hooks the step of every class that was used; one that calls super().step() would count twice.
    """
    if sum("step" in vars(kind) for kind in type(optimizer).__mro__) <= PLAIN_STEPS:
        return False
    hooked = sys._getframe(2)
    frame: FrameType | None = hooked.f_back
    while frame is not None:
        if frame.f_code is hooked.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False
