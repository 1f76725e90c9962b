"""Lightning: `Trainer(callbacks=[GradSpectraCallback(project="...")])`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from gradspectra.guard import Guard
from gradspectra.integrations.batch_sizes import examples_of, tokens_of
from gradspectra.integrations.watch_options import checked
from gradspectra.watch import Watch, watch


class GradSpectraCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Watches the fit of a LightningModule, from its first to its last step.

    options: the arguments of `gradspectra.watch` but model and optimizer. The state of the watch travels in
    Lightning's checkpoints. Raises TypeError or ValueError for what is no option, or a wrong value. `watch`
    is the open watch; with manual optimization log the loss with `callback.watch.log(loss=...)`.
    """

    def __init__(self, **options: Any) -> None:
        self.watch: Watch | None = None
        self._options = checked(options)
        self._trainer: weakref.ref[Any] | None = None
        self._saved: Mapping[str, Any] | None = None
        self._guard = Guard()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the watch."""
        steps = self._guard.run("total_steps", lambda: trainer.estimated_stepping_batches)
        taken = trainer.global_step // max(1, len(trainer.optimizers))
        saved, self._saved = self._saved or self._earlier(trainer), None
        options = {
            "config": {"hyperparameters": dict(pl_module.hparams), "precision": str(trainer.precision)},
            "total_steps": steps if isinstance(steps, int) and steps > 0 else None,
            "start_step": saved["step"] if saved else taken,  # optimizers need not all step in each of them
            "resume": saved["run_id"] if saved else None,
        } | self._options
        wrapped = trainer.strategy.model  # by DistributedDataParallel, with several ranks
        self.watch = watch(wrapped if isinstance(wrapped, nn.Module) else pl_module, trainer.optimizers, **options)
        self._trainer = weakref.ref(trainer)
        if saved and saved["step"] == options["start_step"]:
            self.watch.load_state_dict(saved)

    def _earlier(self, trainer: Any) -> Mapping[str, Any] | None:
        """The state of the fit before, where the same Trainer goes on from it."""
        same = self._trainer is not None and self._trainer() is trainer
        return self.watch.state_dict() if same and self.watch is not None and trainer.global_step else None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Log loss and sizes of the part that went through."""
        self._guard.run("part", self._part, trainer, outputs, batch)

    def _part(self, trainer: Any, outputs: Any, batch: Any) -> None:
        if self.watch is None:
            return
        found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        without = found is None or getattr(trainer.fit_loop, "_skip_backward", False)
        if without and trainer.lightning_module.automatic_optimization:
            return  # no backward pass: the batch was left out, or only moves the statistics of norms (SWA)
        # Lightning has divided it by the number of accumulated batches
        loss = None if found is None else found * trainer.accumulate_grad_batches
        sizes: dict[str, Any] = {"loss": loss, "examples": examples_of(batch), "tokens": tokens_of(batch)}
        self.watch.log(**{name: number for name, number in sizes.items() if number is not None})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Log what the validation gave; `val_loss` is the evaluation loss."""
        if self.watch is not None and not trainer.sanity_checking:
            metrics = {str(name): number for name, number in trainer.callback_metrics.items()}
            metrics.pop("loss", None)
            if "val_loss" in metrics:
                metrics["eval_loss"] = metrics.pop("val_loss")
            self.watch.log(**metrics)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps of the callback in a checkpoint."""
        return {} if self.watch is None else {"watch": self.watch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint when the fit begins."""
        self._saved = state_dict.get("watch")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Close the watch."""
        self._close("finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Close the watch of a fit that broke."""
        self._close("failed")

    def _close(self, state: str) -> None:
        if self.watch is not None:
            self.watch.close(state=state)
