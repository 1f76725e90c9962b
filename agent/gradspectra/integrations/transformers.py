"""Hugging Face Trainer: `Trainer(..., callbacks=[GradSpectraCallback(project="...")])`."""

from __future__ import annotations

import functools
import numbers
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback

from gradspectra.guard import Guard
from gradspectra.integrations.batch_sizes import IGNORED, examples_of, tokens_of
from gradspectra.integrations.watch_options import checked
from gradspectra.patches import Function, Patch
from gradspectra.run_request import MAX_NAME
from gradspectra.watch import Watch, watch

OWN = frozenset(("loss", "grad_norm", "learning_rate", "epoch", "step"))
"""What Trainer logs now and then of the training itself: the watch has it of each step."""


class GradSpectraCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Watches the training of a Trainer, from its first to its last step.

    options: the arguments of `gradspectra.watch` but model and optimizer. By default the run has the configuration of
    the TrainingArguments, and their name or else folder; a training that Trainer resumes from a checkpoint resumes the
    run. Raises TypeError or ValueError for what is no option, or a wrong value.
    `watch` is the open watch; of a training that breaks it is closed as failed at the end of the program, or when the
    callback's next one begins.
    """

    def __init__(self, **options: Any) -> None:
        self.watch: Watch | None = None
        self._options = checked(options)
        self._guard = Guard()
        self._losses: list[Tensor] = []
        self._parts_seen = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Open the watch."""
        options = {
            "run": str(args.run_name or args.output_dir)[-MAX_NAME:],
            "config": args.to_sanitized_dict(),
            "total_steps": state.max_steps if state.max_steps > 0 else None,
            "start_step": state.global_step,
            "resume": "auto" if state.global_step else None,
        } | self._options
        self._close("failed")  # one that is open yet broke: Trainer tells nobody of an exception
        self.watch = watch(self._wrapped(given["model"]), given["optimizer"], **options)
        self._losses.clear()
        self._parts_seen = False
        patch.open(self)

    def _wrapped(self, model: Any) -> Any:
        """The model as DistributedDataParallel has it where several ranks train; Trainer gives what is inside."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            trainer = frame.f_locals.get("self")
            if isinstance(trainer, Trainer) and self in trainer.callback_handler.callbacks:
                wrapped = trainer.model_wrapped
                return wrapped if isinstance(wrapped, DistributedDataParallel) else model
            frame = frame.f_back
        return model

    def saw_part(self, trainer: Any, loss: Tensor, inputs: Any, weighted: bool) -> None:
        """A micro-batch went through; loss: its share of the step's loss, as Trainer has divided it.

        weighted: the shares go by the numbers of predicted tokens.
        """
        self._guard.run("part", self._saw_part, trainer, loss, inputs, weighted)

    def _saw_part(self, trainer: Any, loss: Tensor, inputs: Any, weighted: bool) -> None:
        if self.watch is None:
            return
        self._parts_seen = True
        self._losses.append(loss.detach())
        sizes: dict[str, Any] = {"examples": examples_of(inputs), "tokens": tokens_of(inputs)}
        if weighted:
            sizes["part_weight"] = predicted_tokens(trainer, inputs)
            if sizes["part_weight"] is None:
                self.watch.parts_unclear()
        self.watch.log(**{name: size for name, size in sizes.items() if size is not None})

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Log the step's loss: the sum of its parts' shares. A loss may take several passes of its own (GradCache)."""
        if self.watch is not None and self._losses:
            if self.watch._session.measuring.backward.passes not in (0, len(self._losses)):
                self.watch.parts_unclear()
            self.watch.log(loss=torch.stack([loss.reshape(()) for loss in self._losses]).sum())
            self._losses.clear()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Pass on what is logged beside the training's own numbers: evaluations, rewards, your own."""
        if self.watch is None or not logs:
            return
        own = OWN - {"loss"} if not self._parts_seen else OWN
        numbers_only: dict[str, Any] = {
            str(k): v for k, v in logs.items() if isinstance(v, numbers.Real) and k not in own
        }
        if numbers_only:
            self.watch.log(**numbers_only)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the watch."""
        self._close("finished")

    def _close(self, state: str) -> None:
        patch.close(self)
        if self.watch is not None:
            self.watch.close(state=state)


def predicted_tokens(trainer: Any, inputs: Any) -> Tensor | None:
    """How many tokens of a micro-batch Trainer counts when it divides the loss by those of the whole step.

    None where that is not known: before transformers 5 told whether the loss shifts the labels, with a loss of the
    user's own, and with several ranks.
    """
    shifts = getattr(trainer, "_loss_shifts_labels", None)
    own = trainer.compute_loss_func is not None or getattr(trainer, "loss_is_scaled_for_ga", None)
    if shifts is None or own or trainer.args.world_size > 1:
        return None
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"][..., 1:] if shifts else inputs["labels"]
    counted: Tensor = (labels != IGNORED).sum()
    return counted


def _weighted(trainer: Any, num_items: Any) -> bool:
    """Whether the loss of a micro-batch is its share by predicted tokens, and not the mean by their number."""
    said = getattr(trainer, "loss_is_scaled_for_ga", None)
    if said is not None:
        return bool(said)
    return num_items is not None and (trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None)


def _wrap(_: str, original: Function) -> Function:
    @functools.wraps(original)
    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, inputs, *args, **kwargs)
        for callback in tuple(patch.observers):
            if callback in self.callback_handler.callbacks:
                num_items = args[0] if args else kwargs.get("num_items_in_batch")
                callback.saw_part(self, loss, inputs, _weighted(self, num_items))
        return loss

    return training_step


patch: Patch[GradSpectraCallback] = Patch([(Trainer, "training_step")], _wrap)
