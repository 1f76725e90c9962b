"""Which tensors of a model are watched, by which names, and which layers (tensors or blocks of them) they make up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradspectra_core.identity import FusedBlock
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.limits import DEFAULT_LIMITS
from gradspectra_core.roles import depths_of
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradspectra.chosen_blocks import Chosen, can_be_recorded, keep_experts_together
from gradspectra.layer_choice import Choice
from gradspectra.layer_names import Models, names
from gradspectra.reasons import LikelyMistake
from gradspectra.shards import local, rows_here

Home = tuple[int, dict[str, Any]]
"""Which optimizer updates a parameter, and its group there."""
Signature = tuple[tuple[int, ...], ...]
"""Identities of the parameters of each optimizer, or of the models where there is none; negative of what is frozen,
0 of what a lazy module has not made yet."""


@dataclass(slots=True)
class WatchedTensor:
    """One parameter. pieces: per layer its elements [start, stop) in `flat(tensor, axis)`; first: index of the first.

    optimizer, group: where the parameter is updated (-1 and None without an optimizer). Of a sharded parameter pieces
    are those of the shard that is here; whole: those of the whole tensor. kind: what the parameter was like.
    """

    name: str
    parameter: Tensor
    optimizer: int
    group: dict[str, Any] | None
    first: int
    axis: int
    pieces: tuple[tuple[int, int], ...]
    whole: tuple[tuple[int, int], ...]
    kind: tuple[Any, ...]


@dataclass(slots=True)
class Inventory:
    """The watched tensors, the table of their L layers, and what must stay the same for both to hold.

    parameters: identities of the watched ones.
    trainable: all that could be watched, chosen or not. complete: whether the layers have every number of these.
    sharded: tensors left out because this process has only its shard of them. left_out: layers that were chosen and
    cannot be recorded, in words. sizes: of the tensors; looks, looked_at: of `changed`.
    """

    tensors: tuple[WatchedTensor, ...]
    table: LayerTable
    signature: Signature
    parameters: frozenset[int]
    trainable: tuple[Tensor, ...]
    sharded: int
    complete: bool
    left_out: tuple[str, ...]
    sizes: list[int]

    looks: int = 0
    looked_at: int = -1

    def changed(self, step: int) -> bool:
        """Whether a tensor has got another shape or type, or has moved to another device; asked again at a step: no.

        The first look is at all of that, a later one at the sizes of all tensors and the rest of one, in turn: what
        gives another type to a model, or moves it, does so with all.
        """
        if step == self.looked_at or not self.tensors:
            return False
        at = self.looks % len(self.tensors)
        some = self.tensors[at : at + 1] if self.looks else self.tensors
        self.looks, self.looked_at = self.looks + 1, step
        if [tensor.parameter.numel() for tensor in self.tensors] != self.sizes:
            return True
        return any(kind_of(tensor.parameter) != tensor.kind for tensor in some)


def kind_of(parameter: Tensor) -> tuple[Any, ...]:
    """What decides how a tensor is measured: shape, type, device."""
    return parameter.shape, parameter.dtype, parameter.device


class Trained:
    """Which parameters are trained: those of an optimizer that are not frozen while that one steps.

    Of two models that train in turn one is often frozen for the step of the other. Where what was frozen is trained
    again (two adapters in turn), all that was ever trained counts from then on.
    """

    def __init__(self, models: Models, optimizers: Sequence[Any]) -> None:
        self._models = models
        self._optimizers = optimizers
        self._lazy = True
        """Whether a parameter may still have to be made."""
        self._once: set[int] = set()
        """Identities of what was trained once and then frozen."""
        self._in_turn = False
        """Whether some of that was trained again."""
        self._seen = [self._marks(_parameters_of(optimizer)) for optimizer in optimizers]
        self._lazy = any(0 in marks for marks in self.signature())

    def look(self, index: int, due: bool, inventory: Inventory) -> bool:
        """An optimizer steps; due: it is time to look at its parameters. Returns whether the inventory lacks some."""
        if not due:
            return False
        parameters = _parameters_of(self._optimizers[index])
        before, self._seen[index] = self._seen[index], self._marks(parameters)
        if before != self._seen[index]:
            self._in_turn |= not self._once.isdisjoint(self._seen[index])
            self._once |= set(before) & {-mark for mark in self._seen[index]}
            self._seen[index] = self._marks(parameters)
        if self._seen[index] == inventory.signature[index]:
            return False
        known = {id(parameter) for parameter in inventory.trainable}
        return any(mark > 0 and mark not in known for mark in self._seen[index])

    def signature(self) -> Signature:
        """What differs once a parameter was added, frozen or swapped."""
        if self._optimizers:
            return tuple(self._seen)
        return (self._marks([p for model in self._models.values() for p in model.parameters()]),)

    def _marks(self, parameters: Sequence[Tensor]) -> tuple[int, ...]:
        kept = self._once if self._in_turn else ()
        marks = tuple([id(p) if p.requires_grad or id(p) in kept else -id(p) for p in parameters])
        if not self._lazy:
            return marks
        return tuple([0 if is_lazy(p) else mark for p, mark in zip(parameters, marks, strict=True)])

    def frozen(self) -> list[Tensor]:
        """What optimizers have and is frozen now, as far as it could be trained."""
        own = [p for optimizer in self._optimizers for p in _parameters_of(optimizer) if not p.requires_grad]
        return [p for p in own if not is_lazy(p) and (p.is_floating_point() or p.is_complex())]

    def left_out(self) -> str | None:
        """Say which trainable tensors of the models, as they are now, no optimizer updates; None where all are.

        Also where the models have no tensor that an optimizer could update.
        """
        homes = _homes(self._optimizers)
        if homes and not any(True for model in self._models.values() for _ in model.parameters()):
            said = "none of the model's parameters is watched, for it has none: is it the one that is trained?"
            return LikelyMistake(said)
        parameters = {id(p): p for model in self._models.values() for p in model.parameters() if p.requires_grad}
        without = len(parameters.keys() - homes.keys()) if self._optimizers else 0
        if without and without == len(parameters):
            none = f"none of the model's {without} trainable tensors is in a watched optimizer"
            return LikelyMistake(f"{none}: was it made of another model?")
        return f"{without} trainable tensors are in no watched optimizer" if without else None


def _parameters_of(optimizer: Any) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def take_inventory(
    models: Models,
    optimizers: Sequence[Any],
    choose: Choice,
    shards: bool = False,
    signature: Signature | None = None,
) -> Inventory:
    """List the trainable parameters in the order of the model, tied ones once.

    With optimizers only what they update is watched (a parameter they update that is in no model is named
    `param_groups.<group>.<index>`). shards: sharded ones are measured, not left out. signature: says which are
    trained, by default those that are not frozen now. Raises TypeError or ValueError for a choice of wrong blocks.
    """
    signature = signature or Trained(models, optimizers).signature()
    trained = frozenset([mark for marks in signature for mark in marks])
    homes = _homes(optimizers)
    named = names(models)
    ordered = [entry for entry in named.values() if not optimizers or id(entry[1]) in homes]
    ordered += _strangers(optimizers, {id(parameter) for _, parameter, _ in ordered})
    depths = depths_of([name for name, _, _ in ordered])
    trainable: list[Tensor] = []
    chosen: list[Chosen] = []
    sharded = 0
    for (name, parameter, kind), depth in zip(ordered, depths, strict=True):
        if id(parameter) not in trained or not (parameter.is_floating_point() or parameter.is_complex()):
            continue
        if hasattr(parameter, "placements") and not shards:
            sharded += 1
            continue
        trainable.append(parameter)
        one = Chosen.of(choose(name), name, parameter, kind, depth) if parameter.numel() else None
        if one is not None:
            chosen.append(one)
    tensors, layers, left_out = _recorded(chosen, homes)
    return Inventory(
        tuple(tensors),
        LayerTable.of(layers),
        signature,
        frozenset([id(tensor.parameter) for tensor in tensors]),
        tuple(trainable),
        sharded,
        not sharded and _numbers_in(tensors) == sum([_width(p) * p.numel() for p in trainable]),
        left_out,
        [tensor.parameter.numel() for tensor in tensors],
    )


def _recorded(
    chosen: Sequence[Chosen], homes: Mapping[int, Home]
) -> tuple[list[WatchedTensor], list[Layer], tuple[str, ...]]:
    """Of the chosen ones those that a run can have, their layers, and in words what is left out."""
    tensors: list[WatchedTensor] = []
    layers: list[Layer] = []
    beyond = unnamed = 0
    together = keep_experts_together(chosen)
    for one in chosen:
        own = one.layers()
        if not all(can_be_recorded(layer.name) for layer in own):
            unnamed += len(own)
        elif beyond or len(layers) + len(own) > DEFAULT_LIMITS.max_layers:
            beyond += len(own)
        else:
            tensors.append(_watched(one, homes, len(layers)))
            layers += own
    return tensors, layers, (*together, *_left_out(beyond, unnamed))


def _watched(one: Chosen, homes: Mapping[int, Home], first: int) -> WatchedTensor:
    optimizer, group = homes.get(id(parameter := one.parameter), (-1, None))
    axis = one.blocks[0][1] if one.blocks else 0
    here, whole = _pieces(parameter, one.blocks, True), _pieces(parameter, one.blocks, False)
    return WatchedTensor(one.name, parameter, optimizer, group, first, axis, here, whole, kind_of(parameter))


def _numbers_in(tensors: Sequence[WatchedTensor]) -> int:
    return sum([stop - start for tensor in tensors for start, stop in tensor.whole])


def _left_out(beyond: int, unnamed: int) -> tuple[str, ...]:
    """Say how many layers are too many, and how many have names that cannot be sent."""
    most, longest = DEFAULT_LIMITS.max_layers, DEFAULT_LIMITS.max_name
    too_many = f"{beyond} layers after the first {most} are left out, as many as a run can have: choose some by layers="
    unsendable = f"{unnamed} layers are left out: a name has 1 to {longest} printable characters"
    return (*([too_many] if beyond else []), *([unsendable] if unnamed else []))


def _homes(optimizers: Sequence[Any]) -> dict[int, Home]:
    return {
        id(parameter): (number, group)
        for number, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _strangers(optimizers: Sequence[Any], known: set[int]) -> list[tuple[str, Tensor, str]]:
    """Parameters that an optimizer updates and no model has."""
    found: list[tuple[str, Tensor, str]] = []
    for number, optimizer in enumerate(optimizers):
        prefix = f"optimizers.{number}." if len(optimizers) > 1 else ""
        for index, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    found.append((f"{prefix}param_groups.{index}.{place}", parameter, ""))
    return found


def _width(parameter: Tensor) -> int:
    """Real numbers of an entry."""
    return 2 if parameter.is_complex() else 1


def _pieces(parameter: Tensor, split: Sequence[FusedBlock], here: bool) -> tuple[tuple[int, int], ...]:
    """Elements of each block in the flattened parameter; here: in the shard of it that this process has."""
    numel = (local(parameter) if here else parameter).numel()
    width = _width(parameter)
    if not split:
        return ((0, numel * width),)
    axis = split[0][1]
    first, last = rows_here(parameter) if here and axis == 0 else (0, parameter.shape[axis])
    row = (parameter.numel() if axis == 0 else numel) // parameter.shape[axis] * width
    inside = [(min(max(start, first), last), min(max(stop, first), last)) for _, _, start, stop in split]
    return tuple(((start - first) * row, (stop - first) * row) for start, stop in inside)
