"""‖ΔW‖² of the update an optimizer intended, from its own state after the step: no weights are kept for it.

Adam family: ΔW = −η(u + λW_old) with u = m̂/(√v̂ + ε), and W_old = (W_new + ηu)/(1 − ηλ) for decoupled decay, hence
ΔW = −η(u + λW_new)/(1 − ηλ). SGD likewise, with its momentum buffer or its gradient in the place of u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradspectra.compiling import ADAM, LINEAR
from gradspectra.flat import joined, widest
from gradspectra.inventory import WatchedTensor
from gradspectra.shards import local

LEAST_LEFT = 1e-3
"""Of the weights before, the decay must leave this part at least: by its inverse grows what was rounded away."""
Number = float | Tensor
Group = dict[str, Any]
State = dict[str, Any]
Direction = Callable[[int, int, Tensor], Tensor]
"""Writes the direction d (ΔW = −factor·d) of the flattened elements [start, stop) to a scratch tensor, returns it."""
Update = tuple[Direction, Number]


class Coefficients(NamedTuple):
    """What the updates of tensors of one group have in common for fused.c: ΔW = −factor·d, and d by its rule.

    ADAM: d = first/(scale·√second + epsilon) + decay·W. LINEAR: d = scale·ḡ + epsilon·first + decay·W.
    corrections: 1 − β₁ᵗ and 1 − β₂ᵗ where first and second are Adam's m and v, else None.
    """

    rule: int
    scale: float
    epsilon: float
    decay: float
    factor: float
    corrections: tuple[float, float] | None


Terms = tuple[Tensor | None, Tensor | None, int]
"""The update of a tensor for fused.c: first, second, and which of UpdateTerms.coefficients are its."""


class UpdateTerms:
    """The updates that one optimizer of a known type has made to its tensors in the step just taken, for fused.c.

    What tensors of one group that have taken as many steps share is made once: coefficients.
    """

    def __init__(self, optimizer: Any) -> None:
        self.coefficients: list[Coefficients] = []
        self._optimizer = optimizer
        self._state = optimizer.state
        self._adam = type(optimizer) in _ADAM
        self._decoupled = type(optimizer) is torch.optim.AdamW
        self._current = {id(group) for group in optimizer.param_groups}
        self._places: dict[tuple[int, Any], int | None] = {}

    def of(self, tensor: WatchedTensor) -> Terms | None:
        """That of a tensor with a gradient; None where it is not known in numbers."""
        group, state = tensor.group, self._state.get(tensor.parameter) or {}
        if id(group) not in self._current:
            group = current_group(self._optimizer, tensor)
        if group is None:
            return None
        key = id(group), self._steps(state) if self._adam else None
        place = self._places[key] if key in self._places else self._add(key, group)
        if place is None:
            return None
        if self._adam:
            return state["exp_avg"], state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"], place
        buffer = state.get("momentum_buffer") if group["momentum"] else None
        return None if buffer is None and group["momentum"] else (buffer, None, place)

    def _steps(self, state: State) -> Any:
        return _step(state.get("step"))

    def _add(self, key: tuple[int, Any], group: Group) -> int | None:
        """The place of coefficients that are new: None where they are not known in numbers."""
        step = key[1]
        if isinstance(step, Tensor) or isinstance(group["lr"], Tensor):
            return None
        found = None
        with suppress(ZeroDivisionError):
            found = _adam_coefficients(group, step, self._decoupled) if self._adam else _sgd_coefficients(group)
        if found is None:
            return None
        self.coefficients.append(found)
        self._places[key] = len(self.coefficients) - 1
        return self._places[key]


def current_group(optimizer: Any, tensor: WatchedTensor) -> Group | None:
    """The tensor's group as the optimizer has it at present: loading a state puts others in the place of all."""
    group = tensor.group
    if group is not None and not any(group is own for own in optimizer.param_groups):
        own = [g for g in optimizer.param_groups if any(p is tensor.parameter for p in g["params"])]
        group = tensor.group = own[0] if own else None
    return group


def unknown_update(optimizer: Any, copied: bool = False) -> str | None:
    """Say what is not measured since the state of this optimizer (not of a type known exactly) tells no update."""
    if type(optimizer) in _RULES:
        return None
    name, known = type(optimizer).__name__, ", ".join(sorted(kind.__name__ for kind in _RULES))
    what = f"moments are not measured for {name}, and updates of a few layers at a time, by copies of their weights"
    what = what if copied else f"updates and moments are not measured for {name}"
    return f"{what}: its state is not known (known: {known})"


def betas(optimizers: Sequence[Any]) -> list[list[float]]:
    """β₁ and β₂ of all groups of the optimizers whose moments are measured, each pair once."""
    groups = [group for optimizer in optimizers if type(optimizer) in _ADAM for group in optimizer.param_groups]
    return [list(pair) for pair in dict.fromkeys((float(a), float(b)) for a, b in (group["betas"] for group in groups))]


def intended_update(optimizer: Any, tensors: Sequence[WatchedTensor]) -> Update | None:
    """The update that the step just taken made to tensors of one group that have a gradient, one after another.

    None where its type is not known, the tensors took different numbers of steps, or the decay took all of the weights.
    """
    rule = _RULES.get(type(optimizer))
    group = None if rule is None else current_group(optimizer, tensors[0])
    if rule is None or group is None:
        return None
    with suppress(ZeroDivisionError):
        return rule(group, [optimizer.state.get(tensor.parameter, {}) for tensor in tensors], tensors)
    return None


def _adam_coefficients(group: Group, step: Any, decoupled: bool) -> Coefficients | None:
    beta1, beta2 = group["betas"]
    if not step or isinstance(beta1, Tensor) or isinstance(beta2, Tensor):
        return None
    first, second = 1 - beta1**step, 1 - beta2**step
    decay, factor = decay_of(group, decoupled)
    assert not isinstance(factor, Tensor)
    corrections = None if group.get("amsgrad") else (first, second)
    return Coefficients(ADAM, first / second**0.5, group["eps"] * first, decay, factor, corrections)


def _sgd_coefficients(group: Group) -> Coefficients:
    if group["momentum"] and not group["nesterov"]:
        return Coefficients(LINEAR, 0.0, 1.0, 0.0, group["lr"], None)
    decay, factor = decay_of(group, True)
    assert not isinstance(factor, Tensor)
    sign = -1.0 if group["maximize"] else 1.0
    return Coefficients(LINEAR, sign, float(group["momentum"]), decay, factor, None)


def adam_moments(optimizer: Any, tensors: Sequence[WatchedTensor]) -> tuple[Tensor, Tensor, Number, Number] | None:
    """m and v that Adam keeps of tensors of one group, one after another; and 1 − β₁ᵗ and 1 − β₂ᵗ, which make m̂, v̂.

    None where the optimizer is not of the Adam family, or the tensors have not taken the same number of steps.
    """
    group = current_group(optimizer, tensors[0]) if type(optimizer) in _ADAM else None
    if group is None:
        return None
    states = [optimizer.state.get(tensor.parameter, {}) for tensor in tensors]
    step, axis = _common_step(states), tensors[0].axis
    if step is None:
        return None
    m, v = (joined([local(state[name]) for state in states], axis) for name in ("exp_avg", "exp_avg_sq"))
    beta1, beta2 = group["betas"]
    return m, v, 1 - beta1**step, 1 - beta2**step


def dot_of(direction: Direction, gradient: Tensor, start: int, stop: int, scratch: Tensor) -> Tensor:
    """⟨d, ḡ⟩ of the flattened elements [start, stop), 0-dimensional. scratch: a temporary; gradient: all elements."""
    total = scratch.new_zeros(())
    for begin in range(start, stop, len(scratch)):
        end = min(begin + len(scratch), stop)
        d = direction(begin, end, scratch[: end - begin])
        total += torch.dot(d, gradient[begin:end].to(d.dtype))
    return total


def square_into(slot: Tensor, direction: Direction, start: int, stop: int, scratch: Tensor) -> None:
    """Write ‖d‖² of the flattened elements [start, stop) to a 0-dimensional tensor. scratch: a temporary."""
    if stop - start <= len(scratch) and scratch.dtype is torch.float32:
        d = direction(start, stop, scratch[: stop - start])
        torch.dot(d, d, out=slot)
    else:
        slot.zero_()
        for begin in range(start, stop, len(scratch)):
            end = min(begin + len(scratch), stop)
            d = direction(begin, end, scratch[: end - begin])
            slot.add_(torch.dot(d, d))


def _adam(group: Group, states: list[State], tensors: Sequence[WatchedTensor], apart: bool = False) -> Update | None:
    step, axis = _common_step(states), tensors[0].axis
    if step is None:
        return None
    beta1, beta2 = group["betas"]
    correction = 1 - beta1**step
    scale = correction / (1 - beta2**step) ** 0.5
    decay, factor = decay_of(group, apart)
    second = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    m, v = (joined([local(state[name]) for state in states], axis) for name in ("exp_avg", second))
    weight = joined([local(tensor.parameter) for tensor in tensors], axis)
    eps = group["eps"] * correction
    eps = eps.float() if isinstance(eps, Tensor) else torch.tensor(eps, dtype=torch.float32, device="cpu")
    direction = partial(_adam_direction, m, v, weight, scale, eps, decay)
    return direction, factor * decay if decay else factor


def _common_step(states: list[State]) -> Any:
    """The number of steps that all of them have taken: a number, or a tensor where it is kept on the device.

    None where it is not one number, or 0, as long as a fused optimizer has skipped every step; of several kept on the
    device that is not known without waiting for it.
    """
    steps = [_step(state.get("step")) for state in states]
    if not isinstance(steps[0], Tensor) and not steps[0]:
        return None
    if len(steps) > 1 and (isinstance(steps[0], Tensor) or steps.count(steps[0]) < len(steps)):
        return None
    return steps[0]


def same_steps(optimizer: Any, tensors: Sequence[WatchedTensor]) -> bool:
    """Whether tensors of one group can be measured together as far as their number of steps goes."""
    if type(optimizer) not in _RULES:
        return True
    states = [optimizer.state.get(tensor.parameter, {}) for tensor in tensors]
    return "step" not in states[0] or _common_step(states) is not None


def _step(step: Any) -> Any:
    """The number of steps; on a device in float64, since 1 − βᵗ of a small t loses four digits in float32."""
    if not isinstance(step, Tensor):
        return step
    return step.item() if step.is_cpu else step.to(widest(step.device))


def _adam_direction(
    m: Tensor, v: Tensor, weight: Tensor, scale: Number, eps: Tensor, decay: float, start: int, stop: int, out: Tensor
) -> Tensor:
    m, v = m[start:stop], v[start:stop]
    if v.dtype is out.dtype:
        torch.sqrt(v, out=out)
    else:
        out.copy_(v).sqrt_()
    if isinstance(scale, Tensor):
        out.mul_(scale).add_(eps)
    else:
        torch.add(eps, out, alpha=scale, out=out)
    if decay:
        return torch.addcdiv(weight[start:stop], m, out, value=1 / decay, out=out)
    return torch.div(m, out, out=out)


def _sgd(group: Group, states: list[State], tensors: Sequence[WatchedTensor]) -> Update | None:
    momentum, axis = group["momentum"], tensors[0].axis
    buffers: list[Tensor] = [
        local(state["momentum_buffer"]) for state in states if state.get("momentum_buffer") is not None
    ]
    if momentum and len(buffers) < len(tensors):
        return None
    if momentum and not group["nesterov"]:
        return partial(_sum_direction, [(joined(buffers, axis), 1.0)]), group["lr"]
    decay, factor = decay_of(group, True)
    gradient = joined([local(t.parameter.grad) for t in tensors if t.parameter.grad is not None], axis)
    terms = [(gradient, -1.0 if group["maximize"] else 1.0)]
    if momentum:
        terms.append((joined(buffers, axis), momentum))
    if decay:
        terms.append((joined([local(tensor.parameter) for tensor in tensors], axis), decay))
    return partial(_sum_direction, terms), factor


def _sum_direction(terms: list[tuple[Tensor, float]], start: int, stop: int, out: Tensor) -> Tensor:
    (first, sign), *others = terms
    out.copy_(first[start:stop])
    if sign != 1.0:
        out.mul_(sign)
    for tensor, weight in others:
        out.add_(tensor[start:stop], alpha=weight)
    return out


def decay_of(group: Group, decoupled: bool) -> tuple[float, Number]:
    """Decay λ to add to the direction and the factor of the whole: η/(1 − ηλ), or η without decay.

    decoupled: whether weights decay apart from the gradient, where the group does not say it (torch before 2.7). Raises
    ZeroDivisionError where 1 − ηλ is about 0; of a rate on the device that is not known.
    """
    decay = float(group["weight_decay"]) if group.get("decoupled_weight_decay", decoupled) else 0.0
    left = 1 - group["lr"] * decay
    if not (isinstance(left, Tensor) and not left.is_cpu) and abs(left) < LEAST_LEFT:
        raise ZeroDivisionError(f"lr {float(group['lr']):g} · weight_decay {decay:g} takes all of the weights a step")
    return decay, group["lr"] / left


_ADAM = (torch.optim.Adam, torch.optim.AdamW)
_RULES: dict[type, Callable[[Group, list[State], Sequence[WatchedTensor]], Update | None]] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: partial(_adam, apart=True),
    torch.optim.SGD: _sgd,
}
