"""How long the training waits for its data: in torch's DataLoader, for a batch or for its workers to start."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, dataloader

from gradspectra.patches import Function, Patch


class DataObserver(Protocol):
    """What hears of a wait that is over, in the thread that waited; must not raise."""

    def waited(self, seconds: float) -> None: ...


_waiting = threading.local()


def _wrap(_: str, original: Function) -> Function:
    observers = patch.observers

    @functools.wraps(original)
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or getattr(_waiting, "now", False):
            return original(self, *args, **kwargs)  # of a loader within a data set the outer one counts
        _waiting.now, began = True, time.perf_counter()
        try:
            return original(self, *args, **kwargs)
        finally:
            _waiting.now = False
            seconds = time.perf_counter() - began
            for observer in tuple(observers):
                observer.waited(seconds)

    return wait


patch: Patch[DataObserver] = Patch(
    [
        (owner, name)
        for owner, name in (
            (DataLoader, "__iter__"),
            (getattr(dataloader, "_BaseDataLoaderIter", None), "__next__"),
        )
        if owner is not None
    ],
    _wrap,
)
