"""What the tests of the agent share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest
from gradspectra.record import StepRecord


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[StepRecord]]]:
    """Keeps the records of a watch instead of sending them; gives a function that returns those of the last one."""
    import torch
    from agent.watched_training import KeepingTransport

    monkeypatch.setattr(importlib.import_module("gradspectra.watch"), "Transport", KeepingTransport)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda: KeepingTransport.last.records
    torch.set_num_threads(threads)
