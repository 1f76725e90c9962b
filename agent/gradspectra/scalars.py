"""What the user logs within one step, and what comes out of it: averages, sums, or the last number."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradspectra_core.limits import DEFAULT_LIMITS
from torch import Tensor

from gradspectra.arguments import MAX_STEP, is_whole, shown

Number = float | Tensor
"""A number on the host, or a copy of one on its device that is read with the step's statistics."""

log = logging.getLogger("gradspectra")

MOST_CALLS = 10_000
"""Calls of log that are kept of one step: while no step ends, as after the optimizer was replaced, they add up."""
SUMMED = ("tokens", "examples")
CADENCES = ("cadence_layers", "cadence_second", "cadence_spectra")
MEMORY = ("device_memory_bytes", "device_memory_peak_bytes", "process_memory_bytes")
RESERVED = frozenset(("parts", "skipped", *CADENCES, *MEMORY))


def as_number(value: Any) -> Number | None:
    """Take over one logged value without waiting for its device; None where it is no single number."""
    try:
        if not isinstance(value, Tensor):
            return float(value)
        if value.numel() != 1 or value.is_complex() or (type(value) is Tensor and value.is_meta):
            return None
        return float(value.item()) if value.is_cpu else value.detach().reshape(()).clone()
    except Exception:  # of a tensor within torch.func, or whatever an object says when it is asked for a number
        return None


class Total:
    """A count that grows with calls of log, kept where the numbers are: adding waits for nothing."""

    def __init__(self) -> None:
        self._here = 0
        self._there: Tensor | None = None

    def add(self, number: Number) -> None:
        """Add one number; on the host what is not finite is left out."""
        if isinstance(number, Tensor):
            self._there = number.long() if self._there is None else self._there + number.long()
        elif math.isfinite(number):
            self._here += round(number)

    def read(self) -> int:
        """The total so far; waits for its device."""
        return self._here + (0 if self._there is None else int(self._there))


class StepLog:
    """The logged numbers of one step. Losses are averaged by tokens, else by examples; the last counts of others.

    part_weights: of the parts in the step's loss, in their order, where they were logged as `part_weight`.
    data_seconds: what the step was seen to wait for data; what is logged under this name takes its place.
    """

    def __init__(self) -> None:
        self.losses: list[tuple[Number, dict[str, Number]]] = []
        self.sums: dict[str, list[Number]] = {}
        self.last: dict[str, Number] = {}
        self.part_weights: list[Number] = []
        self.data_seconds = 0.0
        self._calls = 0

    def add(self, values: Mapping[str, Number]) -> None:
        """Add one call of log; beyond MOST_CALLS it is left out, and said once."""
        self._calls += 1
        if self._calls > MOST_CALLS:
            if self._calls == MOST_CALLS + 1:
                log.warning("gradspectra: log was called %d times within one step; the rest is left out", MOST_CALLS)
            return
        weights = {name: values[name] for name in SUMMED if name in values}
        for name, value in values.items():
            if name == "loss":
                self.losses.append((value, weights))
            elif name in SUMMED:
                self.sums.setdefault(name, []).append(value)
            elif name == "part_weight":
                self.part_weights.append(value)
            else:
                self.last[name] = value

    def tensors(self) -> list[Tensor]:
        """The numbers that still lie on a device."""
        return [number for number in self._numbers() if isinstance(number, Tensor)]

    def _numbers(self) -> list[Number]:
        weights = [weight for _, named in self.losses for weight in named.values()]
        summed = [number for numbers in self.sums.values() for number in numbers]
        return [*(loss for loss, _ in self.losses), *weights, *summed, *self.last.values(), *self.part_weights]

    def resolve(self, read: Callable[[Number], float]) -> tuple[dict[str, float], dict[str, int]]:
        """Scalars and counts by name. read: gives the value of a number, also of one of `tensors`."""
        scalars = {name: read(number) for name, number in self.last.items()}
        if self.data_seconds:
            scalars.setdefault("data_seconds", self.data_seconds)
        counts: dict[str, int] = {}
        for name, numbers in self.sums.items():
            total = math.fsum(read(number) for number in numbers)
            if 0 <= total <= MAX_STEP:
                counts[name] = round(total)
        if self.losses:
            scalars["loss"] = self._loss(
                [(read(loss), {k: read(w) for k, w in named.items()}) for loss, named in self.losses]
            )
        return scalars, counts

    @staticmethod
    def _loss(losses: Sequence[tuple[float, Mapping[str, float]]]) -> float:
        for name in SUMMED:
            if all(name in weights for _, weights in losses):
                total = sum(weights[name] for _, weights in losses)
                if 0 < total < math.inf:
                    return sum(loss * weights[name] for loss, weights in losses) / total
        return sum(loss for loss, _ in losses) / len(losses)


class HeldCalls:
    """Calls of log that are taken in together when their step ends.

    Between two backward passes the caches are full of the training's own, and a few lines of Python cost many times
    what they cost one after another.
    """

    def __init__(self) -> None:
        self._calls: list[dict[str, Number]] = []

    def hold(self, values: Mapping[str, Any]) -> bool:
        """Keep the numbers of a call as they are now; False where not all are plain ones under good names."""
        if len(self._calls) >= MOST_CALLS:
            return False
        kept: dict[str, Number] = {}
        for name, value in values.items():
            plain = value.is_cpu if isinstance(value, Tensor) else type(value) in (float, int)
            number = as_number(value) if plain and _refusal(name) is None else None
            if number is None:
                return False
            kept[name] = number
        self._calls.append(kept)
        return True

    def take(self) -> list[dict[str, Number]]:
        """The calls in their order; they are forgotten here."""
        calls, self._calls = self._calls, []
        return calls


def _refusal(name: str) -> str | None:
    """Why a number cannot be recorded under this name; None where it can."""
    if name in RESERVED:
        return "the agent itself records a number of this name"
    if not 1 <= len(name) <= DEFAULT_LIMITS.max_name or not name.isprintable():
        return f"a name has 1 to {DEFAULT_LIMITS.max_name} printable characters"
    return None


def accept(values: Mapping[str, Any], complained: set[str]) -> dict[str, Number]:
    """The values of one call of log that are single numbers under names that can be sent; warns once per bad name."""
    good: dict[str, Number] = {}
    for name, value in values.items():
        refusal = _refusal(name)
        number = as_number(value) if refusal is None else None
        if number is not None:
            good[name] = number
        elif name not in complained and len(complained) < 100:
            complained.add(name)
            refusal = refusal or f"it takes single numbers, got {shown(value)}"
            log.warning("gradspectra: log(%.60s=...) is not recorded: %s", name, refusal)
    return good


def complain_of_step(step: Any, now: int, complained: set[str]) -> None:
    """Say once that nothing can be recorded at `step`; now: the step that is open."""
    kind = "step" if is_whole(step) else "no step"
    if kind in complained:
        return
    complained.add(kind)
    if kind == "no step":
        told = "{...}" if isinstance(step, Mapping) else shown(step)
        log.warning("gradspectra: log(%s) is not recorded: it takes numbers by name, as in log(loss=loss)", told)
    else:
        log.warning("gradspectra: log(step=%s) comes too late or too early; step %d is open", shown(step), now)


def complain_of_close(closed: bool, values: Mapping[str, Any], complained: set[str]) -> None:
    """Say once that a training goes on after its watch was closed; values: what it logs."""
    if closed and "loss" in values and "no watch" not in complained:
        complained.add("no watch")
        log.warning("gradspectra: log(loss=...) comes after close and is not recorded: close when the training ends")


def rates(optimizers: Sequence[Any], index: int) -> dict[str, Number]:
    """Learning rates of one of the optimizers: of the very first group, and of each by name where there are several."""
    found: dict[str, Number] = {}
    before, total = (sum([len(own.param_groups) for own in some]) for some in (optimizers[:index], optimizers))
    for place, group in enumerate(optimizers[index].param_groups, before):
        rate = as_number(group.get("lr"))
        if rate is None:
            continue
        if place == 0:
            found["learning_rate"] = rate
        if total > 1:
            name = f"learning_rate/{group.get('name', place)}"
            found[name if _refusal(name) is None else f"learning_rate/{place}"] = rate
    return found
