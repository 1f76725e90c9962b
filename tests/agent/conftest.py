"""What the tests of the agent share."""

from __future__ import annotations

import contextlib
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


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Every test finds the fused pass as compiled as it will be, so that all runs of a test take the same way."""
    from gradspectra.compiling import compilation

    with contextlib.suppress(Exception):
        compilation().result()


@pytest.fixture(params=["compiled", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the fused pass, and once with torch's own operations."""
    monkeypatch.setenv("GRADSPECTRA_FUSED", "auto" if request.param == "compiled" else "off")
