"""Accelerate: `watch(accelerator, model, optimizer, project="...")` after `accelerator.prepare`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gradspectra.guard import Guard
from gradspectra.patches import Function, Patch
from gradspectra.watch import Watch
from gradspectra.watch import watch as open_watch


def watch(accelerator: Accelerator, model: Any, optimizer: Any, **options: Any) -> Watch:
    """Watch what an Accelerator trains. model, optimizer: as `prepare` gave them; options: as of `gradspectra.watch`.

    The loss of each `accelerator.backward(loss)` is logged; log the rest yourself. The state of the watch travels in
    `accelerator.save_state` and `load_state`, in a file of its own; one that is loaded after the first step moves
    nothing, and is said. Raises TypeError or ValueError for a wrong argument.
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {accelerator!r:.80}")
    opened = open_watch(model, optimizer, **options)
    patch.open(_Attached(accelerator, opened))
    return opened


class _Attached:
    """Logs the losses that one Accelerator takes backward, and keeps the state of its watch with its own.

    It stays after the watch is closed, for the state to be saved yet, until any Accelerator takes a loss backward.
    """

    def __init__(self, accelerator: Accelerator, opened: Watch) -> None:
        self._accelerator = accelerator
        self._watch = opened
        self._guard = Guard()
        own = sum(other.serves(accelerator) for other in patch.observers)
        self._file = f"gradspectra_{own}.pt"
        self._handles = [
            accelerator.register_save_state_pre_hook(self._saves),
            accelerator.register_load_state_pre_hook(self._loads),
        ]

    def serves(self, accelerator: Accelerator) -> bool:
        """Whether this is of the Accelerator, and its watch open."""
        return accelerator is self._accelerator and not self._watch.closed

    def saw(self, accelerator: Accelerator, loss: Any) -> None:
        """An Accelerator took a loss backward."""
        if self._watch.closed:  # whoever it was: nothing is to keep the model alive
            patch.close(self)
            for handle in self._handles:
                handle.remove()
        elif accelerator is self._accelerator and isinstance(loss, Tensor):
            self._watch.log(loss=loss.detach())

    def _saves(self, _: Any, __: Any, folder: Any) -> None:
        each_node = self._accelerator.project_configuration.save_on_each_node
        if self._accelerator.is_local_main_process if each_node else self._accelerator.is_main_process:
            self._guard.run("save_state", self._save, Path(folder) / self._file)

    def _save(self, file: Path) -> None:
        torch.save(self._watch.state_dict(), file)

    def _loads(self, _: Any, folder: Any) -> None:
        if not self._watch.closed:
            self._guard.run("load_state", self._load, Path(folder) / self._file)

    def _load(self, file: Path) -> None:
        if file.exists():
            self._watch.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def _wrap(_: str, original: Function) -> Function:
    @functools.wraps(original)
    def backward(self: Accelerator, loss: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, loss, *args, **kwargs)
        for observer in tuple(patch.observers):
            observer.saw(self, loss)
        return result

    return backward


patch: Patch[_Attached] = Patch([(Accelerator, "backward")], _wrap)
