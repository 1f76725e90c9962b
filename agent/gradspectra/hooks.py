"""Where the agent touches a training step: the optimizers' own step hooks, and what they call in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradspectra import clipping, scaling
from gradspectra.capture import capturing
from gradspectra.clipping import Clip
from gradspectra.guard import Guard
from gradspectra.session import Session
from gradspectra.shards import local


class Hooks:
    """Hangs a session on its optimizers, on torch's clipping functions and on its loss scaler.

    Whatever fails in here stays in here; only `react` may raise: it is where the user asked for it.
    """

    def __init__(self, session: Session, guard: Guard, start: Callable[[], None], react: Callable[[], None]) -> None:
        self._session = session
        self._start = start
        self._guard = guard
        self._react = react
        self._handles: list[Any] = []
        self._calls = 0
        for index, optimizer in enumerate(session.optimizers):
            if hasattr(optimizer, "register_step_post_hook"):
                self._handles.append(optimizer.register_step_pre_hook(self._opens(index)))
                self._handles.append(optimizer.register_step_post_hook(self._stepped(index)))
        clipping.patch.open(self)
        scaling.patch.open(self)

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

    def _opens(self, index: int) -> Callable[..., None]:
        def pre_hook(*_: Any) -> None:
            if capturing():
                self._session.captured()
                return
            self._guard.run("start", self._start)
            self._timed("step", self._session.opens, index)
            self._react()

        return pre_hook

    def _stepped(self, index: int) -> Callable[..., None]:
        def post_hook(*_: Any) -> None:
            if torch.compiler.is_compiling() or capturing():
                return
            self._calls += 1
            self._session.exchange()
            self._timed("measure", self._session.stepped, index)

        return post_hook

    def step(self) -> None:
        """The user's own watch.step()."""
        if capturing():
            return
        self._timed("step", self._session.settle)
        self._react()
        self._timed("measure", self._session.stepped_by_hand)

    def clips_norm(self, clip: Clip) -> None:
        """torch is about to clip a norm."""
        if capturing():
            return
        clip = replace(clip, divisor=local(clip.divisor))
        self._session.open.clipping_unseen |= not self._timed("clipping", self._session.clips_norm, clip)

    def clips_value(self, gradients: Iterable[Tensor]) -> None:
        """torch is about to clip values."""
        if capturing():
            return
        self._session.open.clipping_unseen |= not self._timed("clipping", self._session.clips_value, list(gradients))

    def scaler_steps(self, scaler: Any, optimizer: Any) -> None:
        """A loss scaler is about to step one of the optimizers, or to skip it."""
        self._calls = 0
        if self._session.index_of(optimizer) is not None and not capturing():
            self._session.open.parts_unclear |= not self._timed("scaling", self._session.scaled, scaler)

    def scaler_stepped(self, optimizer: Any) -> None:
        """The scaler has stepped the optimizer; if no hook was called meanwhile it skipped it."""
        index = self._session.index_of(optimizer)
        if index is not None and not self._calls and not capturing():
            self._timed("step", self._session.opens, index)
            self._react()
            self._timed("measure", self._session.stepped, index, True)

    def _timed(self, stage: str, work: Callable[..., Any], *args: Any) -> Any:
        self._session.enter()
        result = self._guard.run(stage, work, *args)
        self._session.leave()
        return result
