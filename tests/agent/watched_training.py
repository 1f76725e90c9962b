"""A transport that keeps the records, a small model, and the plain float64 twins of what the agent measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradspectra
import numpy as np
import pytest
import torch
from gradspectra.record import StepRecord
from gradspectra.record_queue import Unmade
from torch import Tensor, nn


class KeepingTransport:
    """Takes the place of the sending side: keeps every record; those that are not made yet it makes when asked."""

    last: KeepingTransport

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self._queue: list[StepRecord | Unmade] = []
        self.run_id: str | None = None
        self.url: str | None = None
        self.attempt: int | None = None
        self.stop_at_step: int | None = None
        self.seconds_spent = 0.0
        self.local_key = "here"
        self.started = False
        self.closed: str | None = None
        self.overhead = 0.0
        KeepingTransport.last = self

    def start(self) -> None:
        self.started = True

    def record(self, record: StepRecord | Unmade) -> None:
        self._queue.append(record)

    @property
    def records(self) -> list[StepRecord]:
        made = [entry.make() if isinstance(entry, Unmade) else entry for entry in self._queue]
        self._queue = [record for record in made if record is not None]
        return self._queue

    def set_overhead(self, overhead: float) -> None:
        self.overhead = overhead

    def status(self) -> dict[str, Any]:
        return {}

    def close(self, _: float = 5.0, state: str = "finished") -> None:
        self.closed = state
        self._queue = self.records


class Attention(nn.Module):
    """A fused projection, a norm, an embedding and a layer that gets no gradient."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        scores: Tensor = self.head(self.norm(mixed))
        return scores


def attention(seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    return Attention()


def tokens(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 20, (examples, 7), generator=generator)
    return x, torch.randint(0, 5, (examples, 7), generator=generator)


def loss_of(model: nn.Module, examples: int, seed: int) -> Tensor:
    x, y = tokens(examples, seed)
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def watched(model: Any, optimizer: Any = None, **options: Any) -> gradspectra.Watch:
    """A watch that measures everything at every step, without spectra unless asked for."""
    defaults = {"project": "tests", "budget": None, "spectra": "off"}
    return gradspectra.watch(model, optimizer, **(defaults | options))


def value(record: StepRecord, statistic: str, layer: str) -> float | None:
    """One number of a record; None where it is absent."""
    assert record.table is not None
    column = record.table.names.index(layer)
    if statistic in record.count_statistics:
        row = record.count_statistics.index(statistic)
        assert record.counts_values is not None
        assert record.counts_present is not None
        return int(record.counts_values[row, column]) if record.counts_present[row, column] else None
    row = record.statistics.index(statistic)
    assert record.values is not None
    assert record.present is not None
    return float(record.values[row, column]) if record.present[row, column] else None


def column(record: StepRecord, statistic: str) -> dict[str, float | None]:
    """A statistic of all layers by name."""
    assert record.table is not None
    return {name: value(record, statistic, name) for name in record.table.names}


def blocks(model: nn.Module, of: Callable[[Tensor], Tensor | None]) -> dict[str, np.ndarray | None]:
    """What `of` gives of each parameter, in float64 by layer name, the fused projection split in three."""
    found: dict[str, np.ndarray | None] = {}
    for name, parameter in model.named_parameters():
        tensor = of(parameter)
        array = None if tensor is None else tensor.detach().double().numpy().copy()
        if name.endswith("qkv.weight"):
            parts = [None] * 3 if array is None else np.split(array, 3)
            found |= {f"{name}[{suffix}]": part for suffix, part in zip("qkv", parts, strict=True)}
        else:
            found[name] = array
    return found


def gradients(model: nn.Module) -> dict[str, np.ndarray | None]:
    return blocks(model, lambda p: p.grad)


def weights(model: nn.Module) -> dict[str, np.ndarray | None]:
    return blocks(model, lambda p: p)


def squares(arrays: dict[str, np.ndarray | None]) -> dict[str, float | None]:
    return {name: None if a is None else float(np.square(a).sum()) for name, a in arrays.items()}


def largest(arrays: dict[str, np.ndarray | None]) -> dict[str, float | None]:
    return {name: None if a is None else float(np.abs(a).max()) for name, a in arrays.items()}


def total_norm(arrays: dict[str, np.ndarray | None]) -> float:
    return float(np.sqrt(sum(s for s in squares(arrays).values() if s is not None)))


def assert_close(
    actual: dict[str, float | None], expected: dict[str, float | None], rel: float, abs: float = 0.0
) -> None:
    """The same layers, the same of them absent, and all numbers within rel."""
    assert {name for name, x in actual.items() if x is None} == {name for name, x in expected.items() if x is None}
    assert {n: x for n, x in actual.items() if x is not None} == pytest.approx(
        {n: x for n, x in expected.items() if x is not None}, rel=rel, abs=abs
    )
