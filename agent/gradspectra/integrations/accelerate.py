"""Accelerate: `watch(accelerator, model, optimizer, project="...")` after `accelerator.prepare`."""

from __future__ import annotations

import functools
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from gradspectra.patches import Function, Patch
from gradspectra.watch import Watch
from gradspectra.watch import watch as open_watch


def watch(accelerator: Accelerator, model: Any, optimizer: Any, **options: Any) -> Watch:
    """Watch what an Accelerator trains. model, optimizer: as `prepare` gave them; options: as of `gradspectra.watch`.

    The loss of each `accelerator.backward(loss)` is logged; log the rest yourself. The state of the watch travels in
    `accelerator.save_state` and `load_state`; call `load_state` before the first step.
    Raises TypeError or ValueError for a wrong argument.
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {accelerator!r:.80}")
    opened = open_watch(model, optimizer, **options)
    accelerator.register_for_checkpointing(opened)
    patch.open(_Losses(accelerator, opened))
    return opened


class _Losses:
    """Logs the losses that one Accelerator takes backward, as long as its watch is open."""

    def __init__(self, accelerator: Accelerator, opened: Watch) -> None:
        self._accelerator = accelerator
        self._watch = opened

    def saw(self, accelerator: Accelerator, loss: Any) -> None:
        if self._watch.closed:  # whoever takes a loss backward now: nothing is to keep the model alive
            patch.close(self)
        elif accelerator is self._accelerator and isinstance(loss, Tensor):
            self._watch.log(loss=loss.detach())


def _wrap(_: str, original: Function) -> Function:
    @functools.wraps(original)
    def backward(self: Accelerator, loss: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, loss, *args, **kwargs)
        for observer in tuple(patch.observers):
            observer.saw(self, loss)
        return result

    return backward


patch: Patch[_Losses] = Patch([(Accelerator, "backward")], _wrap)
