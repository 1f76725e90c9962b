"""What the agent measures of one step, computed the plain way: a float64 twin of the model, one part after another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from agent.watched_training import blocks
from torch import Tensor, nn

Arrays = dict[str, np.ndarray | None]
Loss = Callable[[nn.Module], Tensor]


@dataclass
class Expected:
    """One step in float64, by layer name. gradient: of the whole step; None where a layer has none.

    parts: what each part brought to the gradient. before, after: the weights; `after` is filled once they are there.
    outputs: the largest of each module, if they were kept.
    """

    gradient: Arrays
    parts: list[Arrays]
    before: Arrays
    after: Arrays = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)

    @property
    def grad_sq(self) -> dict[str, float | None]:
        return {name: None if g is None else float(np.square(g).sum()) for name, g in self.gradient.items()}

    @property
    def grad_max(self) -> dict[str, float | None]:
        return {name: None if g is None else float(np.abs(g).max()) for name, g in self.gradient.items()}

    @property
    def grad_l1(self) -> dict[str, float | None]:
        return {name: None if g is None else float(np.abs(g).sum()) for name, g in self.gradient.items()}

    @property
    def norm(self) -> float:
        return float(np.sqrt(sum(square for square in self.grad_sq.values() if square is not None)))

    @property
    def weight_sq(self) -> dict[str, float | None]:
        return {name: float(np.square(w).sum()) for name, w in self.after.items() if w is not None}

    @property
    def update_sq(self) -> dict[str, float | None]:
        moved = {name: w - self.before[name] for name, w in self.after.items() if w is not None}
        return {name: float(np.square(d).sum()) for name, d in moved.items()}

    def part_sq(self, weights: Sequence[float] | None = None) -> dict[str, float | None]:
        """Σⱼ ‖h_j‖²/w_j; weights: w_j, equal if not given."""
        weights = weights or [1 / len(self.parts)] * len(self.parts)
        found: dict[str, float | None] = {}
        for name, whole in self.gradient.items():
            brought = [(part[name], w) for part, w in zip(self.parts, weights, strict=True)]
            found[name] = (
                None if whole is None else sum(float(np.square(h).sum()) / w for h, w in brought if h is not None)
            )
        return found


class Plain:
    """Takes each step of a model again, in float64 and without any of what makes training fast."""

    def __init__(self, model: nn.Module) -> None:
        self.twin = copy.deepcopy(model).double()

    def step(self, model: nn.Module, *losses: Loss) -> Expected:
        """The step that the model is about to take. losses: of each part, its factor in the step's loss included."""
        self.twin.load_state_dict({name: tensor.detach() for name, tensor in model.state_dict().items()})
        for own, seen in zip(self.twin.parameters(), model.parameters(), strict=True):
            own.requires_grad_(seen.requires_grad)
        before = trainable(self.twin, lambda p: p)
        parts = []
        for loss in losses:
            self.twin.zero_grad(set_to_none=True)
            loss(self.twin).backward()
            parts.append(trainable(self.twin, lambda p: p.grad))
        return Expected(added(parts), parts, before)

    def beside(self, model: nn.Module, optimizer: torch.optim.Optimizer, *losses: Loss) -> Expected:
        """The step as `step` takes it, and then the same step of the model itself: the whole of it is expected."""
        expected = self.step(model, *losses)
        for loss in losses:
            loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.after = self.weights(model)
        return expected

    @staticmethod
    def given(model: nn.Module) -> Expected:
        """The step that the model is about to take with the gradient that lies in its `.grad`, whatever made it."""
        gradient = trainable(model, lambda p: p.grad)
        return Expected(gradient, [gradient], trainable(model, lambda p: p))

    @staticmethod
    def weights(model: nn.Module) -> Arrays:
        """The trainable weights as they are now."""
        return trainable(model, lambda p: p)


def trainable(model: nn.Module, of: Callable[[Tensor], Tensor | None]) -> Arrays:
    """What `of` gives of each trainable parameter, in float64 by layer name, sparse gradients made dense."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]

    def dense(parameter: Tensor) -> Tensor | None:
        tensor = of(parameter)
        return tensor.to_dense() if tensor is not None and tensor.is_sparse else tensor

    arrays = blocks(model, dense)
    return {name: array for name, array in arrays.items() if not any(name.startswith(f) for f in frozen)}


def added(parts: Sequence[Arrays]) -> Arrays:
    """The sum of the parts; None where none of them has a gradient."""
    found: Arrays = {}
    for name in parts[0]:
        there = [part[name] for part in parts if part[name] is not None]
        found[name] = np.sum(there, axis=0) if there else None
    return found
