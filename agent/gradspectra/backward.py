"""Backward passes between two steps: how many of them brought something to the gradient that the step takes.

They are seen by hooks on a few parameters, which run before something is added to `.grad`, once for tied weights. They
also run for autograd.grad, which adds nothing and is told apart. A hook on the node that adds would not, but it keeps
the node alive, and that has the shape and type which the parameter had when it was made.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import unserializable_hook

from gradspectra.capture import capturing
from gradspectra.guard import Guard

log = logging.getLogger("gradspectra")

MANY_DROPPED = 100
"""Gradients dropped one after another, with no step between them, from which on it is said."""
FEW_PASSES = 2
"""Backward passes of a watch without a single step, from which on it is said when it closes: one may have failed."""
_REMEDY = (
    "nothing is recorded without one; if the optimizer was replaced, close this watch and make another one; if none "
    "was given, call watch.step() after each step"
)
_FUNCTION_BACKWARD = BackwardCFunction.apply.__code__


class Backward:
    """Counts the backward passes since the last step, but for those whose gradients were dropped before it.

    A gradient that a pass has brought and that the next pass does not find any more was dropped (zero_grad after a
    batch that is not to count), or was taken for something else than the step.

    models: whose outputs are followed too once a pass comes to parameters by passes within it alone (reentrant
    checkpointing of blocks that have all of the trainable ones), so that nothing shows where it begins.
    """

    def __init__(self, guard: Guard, models: Sequence[nn.Module] = ()) -> None:
        self.passes = 0
        self.dropped = 0
        """How often since the last step the gradients of all passes before were dropped."""
        self.unclear = False
        """Whether a pass since the last step was seen by one within it alone: there may have been more."""
        self._guard = guard
        self._models = models
        self._outputs_followed = self._unchecked = False
        self._task = getattr(torch._C, "_current_graph_task_id", None)
        self._last = self._counted = -1
        self._by_parameters = False
        """Whether parameters are followed, and not outputs."""
        self._handles: list[Any] = []
        self._reached: dict[int, Tensor] = {}
        """The parameters that passes came to first, by identity."""
        self.stepped = False
        """Whether an optimizer has stepped since the last step: it may have let go of the gradients that it took."""
        self._fruitless = False
        """Whether no pass has come since every parameter is followed: the gradients come from elsewhere."""
        self._warned = self._ended = False

    def follow(self, parameters: Sequence[Tensor], every: bool = False, frozen: Sequence[Tensor] = ()) -> None:
        """Count by a few of these parameters, or by every one where the few have no part in the loss.

        frozen: others, which passes come to once they are trained in place of these.
        """
        self.stop()
        self._fruitless = every
        count = len(parameters)
        chosen = range(count) if every else sorted({0, count // 2, count - 1} & set(range(count)))
        self._by_parameters = count > 0
        known = {id(parameter) for parameter in parameters}
        others = [parameter for parameter in frozen if id(parameter) not in known]
        for parameter in [*[parameters[index] for index in chosen], *others]:
            with _trainable(parameter):
                self._handles.append(parameter.register_hook(self._hook(parameter)))  # type: ignore[no-untyped-call]

    def follow_outputs(self, models: Sequence[nn.Module]) -> None:
        """Count by the models' outputs, where the nodes of parameters never run: those of sharded ones."""
        roots = {id(model) for model in models}
        self._outputs_followed = True

        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if id(module) in roots and torch.is_grad_enabled():
                self._guard.run("backward", self._follow_output, output)

        self._handles.append(register_module_forward_hook(hook))

    def _follow_output(self, output: Any) -> None:
        entries = output.values() if isinstance(output, Mapping) else output
        tensors = [output] if isinstance(output, Tensor) else [e for e in entries if isinstance(e, Tensor)]
        for node in {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}:  # the loss may be of any
            node.register_prehook(self._hook(None))

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs_followed = False

    def _hook(self, parameter: Tensor | None) -> Callable[[Any], None]:
        """A hook on a parameter, or on the node that an output comes from."""

        def hook(gradient: Any) -> None:
            new = self._task is None or self._unchecked or self._task() != self._last
            if new and not capturing():
                self._guard.run("backward", self._comes, parameter, gradient is not None)

        return unserializable_hook(hook)  # type: ignore[no-any-return, no-untyped-call]

    def _comes(self, parameter: Tensor | None, brings: bool) -> None:
        """A pass has come to a parameter, or to an output. brings: whether with a gradient."""
        if parameter is None or _adds(parameter):
            self.saw(parameter if brings else None, parameter is None)

    @property
    def counted(self) -> bool:
        """Whether passes are still counted."""
        return "backward" not in self._guard.off

    @property
    def worth_following(self) -> bool:
        """Whether to follow every parameter may show passes that are not seen yet."""
        return self.counted and not self._fruitless

    def saw(self, parameter: Tensor | None = None, output: bool = False) -> int:
        """A node of the pass that runs now was reached. Returns the number of the pass, from 1.

        parameter: the one whose `.grad` the node is about to add to; None where that is not known. output: the node is
        that of a model's output.
        """
        task = torch._C._current_graph_task_id()
        if task != self._last:
            self._last = task
            if task != self._counted:  # else it goes on after one within it
                self._comes_anew(task, parameter, output)
        if self._unchecked and parameter is not None:
            self._unchecked = False
            self.passes -= 1
            self._begins(parameter)
        return max(self.passes, 1)

    def _comes_anew(self, task: int, parameter: Tensor | None, output: bool) -> None:
        """A pass is seen that was not counted: one that begins, one within it, or one that such have shown before."""
        if _within_another():
            if not self.passes:
                self.unclear = True
                self._begins(parameter)
                if not self._outputs_followed:
                    self.follow_outputs(self._models)
            return
        self._counted = task
        if self.unclear and not output and self.passes == 1:
            self.unclear = False
            return
        self._unchecked = output and self._by_parameters
        self._begins(parameter)

    def _begins(self, parameter: Tensor | None) -> None:
        """Count a pass that has just begun, or come to its first parameter."""
        self._fruitless = False
        if parameter is not None and self._by_parameters:
            if parameter.grad is None and (id(parameter) in self._reached or self._all_gone()):
                self._drop()
            self._reached[id(parameter)] = parameter
        self.passes += 1

    def _all_gone(self) -> bool:
        """Whether no parameter that passes came to first has its gradient any more, and no optimizer has taken it."""
        return bool(self._reached) and not self.stepped and all(p.grad is None for p in self._reached.values())

    def _drop(self) -> None:
        """What the passes before have brought is gone."""
        self.passes = 0
        self._reached.clear()
        self.dropped += 1
        self.unclear = False
        if self.dropped == MANY_DROPPED and not self._warned:
            self._warned = True
            log.warning(
                "gradspectra: the gradients of %d backward passes were dropped one after another, with no step of a "
                "watched optimizer between them, and %s",
                MANY_DROPPED,
                _REMEDY,
            )

    def end(self) -> int:
        """A step ends: count anew. Returns how many passes there were."""
        passes, self.passes, self.dropped = self.passes, 0, 0
        self.unclear = self._unchecked = self.stepped = False
        self._ended = True
        self._reached.clear()
        return passes

    def close(self) -> None:
        """Stop for good; passes that no step has ever followed are said."""
        self.stop()
        seen = self.passes + self.dropped
        if seen >= FEW_PASSES and not self._ended and not self._warned:
            log.warning("gradspectra: %d backward passes and no step of a watched optimizer: %s", seen, _REMEDY)


def _within_another() -> bool:
    """Whether this pass was begun by a function's own backward (reentrant checkpointing): it is no part of its own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FUNCTION_BACKWARD:
            return True
        frame = frame.f_back
    return False


def _adds(parameter: Tensor) -> bool:
    """Whether the pass that runs now adds to the parameter's `.grad`; one of autograd.grad does not."""
    try:
        return bool(torch._C._will_engine_execute_node(get_gradient_edge(parameter).node))
    except RuntimeError:  # so torch says that a leaf was asked for by autograd.grad
        return False


def node_of(parameter: Tensor) -> Any:
    """The node that adds to the parameter's `.grad`; it must be kept alive for its hooks to stay."""
    with _trainable(parameter):
        return get_gradient_edge(parameter).node


@contextmanager
def _trainable(parameter: Tensor) -> Iterator[None]:
    """Let a parameter be hooked that is frozen at this moment, as one of two models that train in turn."""
    frozen = not parameter.requires_grad
    if frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        if frozen:
            parameter.requires_grad_(False)
