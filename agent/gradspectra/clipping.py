"""The gradient's norm before clipping, and the coefficients that lead back to it, from torch's own functions.

No optimizer hook sees the norm before clipping. torch's clip_grad_norm_ calls two functions of its module by name;
wrapping them catches every caller, however it imported clip_grad_norm_, and costs no synchronisation. Clipping by
value cannot be undone: the gradient is measured before it, again at a function that torch calls inside.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor
from torch.nn.utils import clip_grad

from gradspectra.inventory import Inventory
from gradspectra.patches import Function, Patch

SILENT_STEPS = 100
UNKNOWN = (
    "clipping is not known: neither clip_grad_norm_ nor clip_grad_value_ was seen, and no grad_norm was logged;"
    " of a clip by other code watch.log(grad_norm=...) tells"
)


@dataclass(frozen=True, slots=True)
class Clip:
    """One clipping by norm. parameters: identities; total: the norm before (None: not a 2-norm, not comparable)."""

    parameters: frozenset[int]
    divisor: Tensor
    limit: float
    euclidean: bool

    def coefficient(self, total: float) -> float:
        """What the gradients are multiplied by. total: the divisor as a number; NaN gives NaN.

        As torch computes it: in the type of the divisor, which in bfloat16 makes it another one by up to 0.4%.
        """
        if math.isnan(total):
            return math.nan
        if self.divisor.dtype.itemsize < torch.float32.itemsize:
            return min(1.0, float(self.limit / (torch.tensor(total, dtype=self.divisor.dtype) + 1e-6)))
        return min(1.0, self.limit / (total + 1e-6))


class Clipped(NamedTuple):
    """A clipping. gradient: that of one of the parameters, a small one; parameters: identities of all.

    passes: backward passes before it, and how often such were dropped.
    """

    parameter: Tensor
    gradient: Tensor
    parameters: frozenset[int]
    passes: tuple[int, int]


class ClippingObserver(Protocol):
    """What hears of clipping, just before it happens; must not raise."""

    def clips_norm(self, clip: Clip) -> None: ...

    def clips_value(self, gradients: Iterable[Tensor]) -> None: ...


class StepClips:
    """The clips of the step that is open."""

    def __init__(self) -> None:
        self.clips: list[Clip] = []
        self.early: dict[int, int] = {}
        """How many clips a parameter had seen when its gradient was measured, where that was before the step's end."""
        self.spoiled: set[int] = set()
        """Those of them whose gradient was then changed in a way that a factor does not undo."""
        self.noted: list[Clipped] = []
        """What was clipped, by norm or by value."""
        self.stepped = False
        """Whether an optimizer has stepped since."""

    def totals(self) -> list[Tensor]:
        """Norms before each clip, on the device."""
        return [clip.divisor for clip in self.clips]

    def needed(self, inventory: Inventory) -> frozenset[int]:
        """The parameters that clips must cover for the whole norm to be known: those that have a gradient."""
        if not self.clips or self.clips[0].parameters >= inventory.parameters:
            return inventory.parameters
        return frozenset([id(t.parameter) for t in inventory.tensors if t.parameter.grad is not None])

    def beyond(self, inventory: Inventory) -> bool:
        """Whether parameters were clipped too that the inventory lacks: the norm is that of more than it has."""
        return not all(clip.parameters <= inventory.parameters for clip in self.clips)

    def grad_norm(self, totals: list[float], needed: frozenset[int]) -> float | None:
        """Norm of the whole gradient before clipping; None where the clips do not cover all of `needed`."""
        if not self.clips:
            return None
        covered: frozenset[int] = frozenset()
        square = 0.0
        for clip, total in zip(self.clips, totals, strict=True):
            if clip.euclidean and covered.isdisjoint(clip.parameters):
                covered |= clip.parameters
                square += total * total
        return math.sqrt(square) if covered >= needed else None

    def coefficient(self, totals: list[float]) -> float | None:
        """What all parameters' gradients were multiplied by; of several clips the smallest; None without one."""
        factors = [clip.coefficient(total) for clip, total in zip(self.clips, totals, strict=True)]
        return min(factors, default=None)

    def factors(self, inventory: Inventory, totals: list[float], after: bool = False) -> Float64:
        """What each layer's gradient had been multiplied by when it was measured, (L,); 1 where that is not known.

        after: at the step's end, where the second tier and the spectra are taken; NaN where nothing is left of it.
        """
        factors = np.ones(len(inventory.table))
        early = {one: seen for one, seen in self.early.items() if one in self.spoiled or not after}
        for at, (clip, total) in enumerate(zip(self.clips, totals, strict=True)):
            coefficient = clip.coefficient(total)
            missed = {one for one, seen in early.items() if seen <= at}
            if not missed and clip.parameters >= inventory.parameters:
                factors *= coefficient
                continue
            for tensor in inventory.tensors:
                if id(tensor.parameter) in clip.parameters and id(tensor.parameter) not in missed:
                    factors[tensor.first : tensor.first + len(tensor.pieces)] *= coefficient
        if after or not any(map(math.isnan, totals)):
            return factors
        return np.where(np.isnan(factors), 1.0, factors)


class ClippingSeen:
    """Whether anything has said how a run's gradients are clipped; code that scales them by itself says nothing."""

    def __init__(self) -> None:
        self._silent = 0

    def look(self, clips: StepClips, unseen: bool, logged: Container[str]) -> None:
        """A step is over. unseen: it was clipped, how is not known; logged: names of what the user logged."""
        told = unseen or bool(clips.noted) or "grad_norm" in logged
        self._silent = -1 if told or self._silent < 0 else self._silent + 1

    def unknown(self) -> list[str]:
        """Say that clipping is not known, once that many steps have said nothing of it; no sentence else."""
        return [UNKNOWN] if self._silent >= SILENT_STEPS and missing() is None else []


_norm_type = 2.0


def _wrap(name: str, original: Function) -> Function:
    return functools.wraps(original)((_WRAPPERS | _PUBLIC)[name](original))


def _total_norm(original: Function) -> Function:
    def get_total_norm(tensors: Any, norm_type: float = 2.0, *rest: Any, **named: Any) -> Any:
        global _norm_type
        _norm_type = float(norm_type)
        return original(tensors, norm_type, *rest, **named)

    return get_total_norm


def _clip_with_norm(original: Function) -> Function:
    observers = patch.observers

    def clip_grads_with_norm_(parameters: Any, max_norm: float, total_norm: Tensor, *rest: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(parameters, max_norm, total_norm, *rest, **named)
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        clipped = frozenset([id(p) for p in parameters if p.grad is not None])
        if clipped:
            clip = Clip(clipped, total_norm.detach(), float(max_norm), _norm_type == 2.0)
            for observer in tuple(observers):
                observer.clips_norm(clip)
        return original(parameters, max_norm, total_norm, *rest, **named)

    return clip_grads_with_norm_


def _group(original: Function) -> Function:
    """torch's grouping by device, which clip_grad_value_ calls with the gradients it is about to clip."""
    code = getattr(clip_grad.clip_grad_value_, "__wrapped__", clip_grad.clip_grad_value_).__code__
    observers = patch.observers

    def group_tensors(tensors: Any, *rest: Any, **named: Any) -> Any:
        if not torch.compiler.is_compiling() and sys._getframe(1).f_code is code:
            for observer in tuple(observers):
                observer.clips_value(tensors[0])
        return original(tensors, *rest, **named)

    return group_tensors


_WRAPPERS: dict[str, Callable[[Function], Function]] = {
    "_get_total_norm": _total_norm,
    "_clip_grads_with_norm_": _clip_with_norm,
    "_group_tensors_by_device_and_dtype": _group,
}

_PUBLIC: dict[str, Callable[[Function], Function]] = {
    "get_total_norm": _total_norm,
    "clip_grads_with_norm_": _clip_with_norm,
}
"""Names under which torch.nn.utils has the first two, where this torch has them."""

patch: Patch[ClippingObserver] = Patch(
    [*((clip_grad, name) for name in _WRAPPERS), *((torch.nn.utils, name) for name in _PUBLIC)], _wrap
)


def missing() -> str | None:
    """Say what of clipping this version of torch does not let us see; None where it lets us see all."""
    lacking = [name for name in _WRAPPERS if not hasattr(clip_grad, name)]
    return f"clipping is not seen: torch {torch.__version__} has no {', '.join(lacking)}" if lacking else None
