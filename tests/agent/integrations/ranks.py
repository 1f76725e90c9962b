"""Two processes that train by Accelerate, Trainer or Lightning; rank 0 checks each step of its watch.

python -m agent.integrations.ranks TRAINER, started as two: prints as JSON what rank 0 has checked. Each step is
compared with a float64 computation of the batches of both ranks.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
from agent.ways.plain import Expected, Plain
from agent.ways.way import Way
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RANKS, PARTS, EXAMPLES, LIMIT, RATE = 2, 2, 4, 0.05, 0.03
OPTIONS: dict[str, Any] = {"project": "tests", "budget": None, "spectra": "off"}
Batch = tuple[torch.Tensor, torch.Tensor]


def examples(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=generator), torch.randn(count, 1, generator=generator)


class Net(nn.Module):
    """A regression."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(x.to(self.net[0].weight)) - y).square().mean()}


class Steps:
    """The steps of both ranks in float64, from the batches that each had."""

    def __init__(self, model: nn.Module) -> None:
        self._plain, self._model = Plain(model), model
        self.expected: list[Expected] = []
        self.losses: list[float] = []

    def begins(self, batches: list[Batch]) -> None:
        """The step of these batches of this rank is to come. To be called by both ranks."""
        assert len(batches) == PARTS
        found: list[Any] = [None] * RANKS
        torch.distributed.all_gather_object(found, batches)
        with torch.no_grad():
            self.losses.append(sum(float(self._model(*batch)["loss"]) for batch in batches) / PARTS)
        every = [batch for own in found for batch in own]
        parts = [lambda m, b=b: m(*b)["loss"] / len(every) for b in every]
        self.expected.append(self._plain.step(self._model, *parts))

    def ended(self) -> None:
        self.expected[-1].after = self._plain.weights(self._model)

    def check(self, records: list[Any]) -> dict[str, Any]:
        """Compare, on rank 0; returns what the test looks at."""
        for record, step, loss in zip(records, self.expected, self.losses, strict=True):
            own = [{n: None if h is None else RANKS * h for n, h in p.items()} for p in step.parts[:PARTS]]
            Way("two ranks").check(record, replace(step, parts=own), rel=1e-4, parts=True)
            assert record.counts["parts"] == RANKS * PARTS
            assert record.counts["examples"] == RANKS * PARTS * EXAMPLES
            assert abs(record.scalars["loss"] - loss) < 1e-5 * loss
        return {"steps": [record.step for record in records]}


def by_accelerate() -> Steps:
    from accelerate import Accelerator
    from gradspectra.integrations.accelerate import watch

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    inner = Net()
    optimizer: Any = torch.optim.AdamW(inner.parameters(), lr=RATE)
    loader = DataLoader(TensorDataset(*examples(48)), batch_size=EXAMPLES)
    model, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
    steps, batches = Steps(inner), []
    with watch(accelerator, model, optimizer, **OPTIONS) as opened:
        for batch in loader:
            batches.append(tuple(batch))
            with accelerator.accumulate(model):
                accelerator.backward(model(*batch)["loss"])
                opened.log(examples=len(batch[0]))
                if accelerator.sync_gradients:
                    steps.begins(batches[-PARTS:])
                    accelerator.clip_grad_norm_(model.parameters(), LIMIT)
                optimizer.step()
                if accelerator.sync_gradients:
                    steps.ended()
                optimizer.zero_grad()
    return steps


def by_transformers() -> Steps:
    from gradspectra.integrations.transformers import GradSpectraCallback
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, batches = Net(), []
    steps = Steps(model)

    class Seen(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            steps.begins(batches[PARTS * state.global_step :][:PARTS])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.ended()

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        batches.append(tuple(torch.stack(column) for column in zip(*rows, strict=True)))
        return dict(zip("xy", batches[-1], strict=True))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=EXAMPLES,
            gradient_accumulation_steps=PARTS,
            max_steps=3,
            max_grad_norm=LIMIT,
            learning_rate=RATE,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            ddp_backend="gloo",
        )
        data = TensorDataset(*examples(48))
        callbacks = [GradSpectraCallback(**OPTIONS), Seen()]
        Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=callbacks).train()
    return steps


def by_lightning() -> Steps:
    from gradspectra.integrations.lightning import GradSpectraCallback
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.batches = Net().net, []
            self.steps = Steps(self)

        forward = Net.forward

        def training_step(self, batch: Any, _: int) -> Any:
            self.batches.append(tuple(batch))
            return self(*batch)

        def on_before_optimizer_step(self, _: Any) -> None:
            self.steps.begins(self.batches[-PARTS:])

        def on_train_batch_end(self, *_: Any) -> None:
            if len(self.batches) % PARTS == 0:
                self.steps.ended()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    module = Module()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp",
        max_epochs=1,
        accumulate_grad_batches=PARTS,
        gradient_clip_val=LIMIT,
        callbacks=[GradSpectraCallback(**OPTIONS)],
        **quiet,
    )
    trainer.fit(module, DataLoader(TensorDataset(*examples(48)), batch_size=EXAMPLES))
    return module.steps


def main(trainer: str) -> None:
    from agent.watched_training import KeepingTransport

    torch.set_num_threads(1)
    importlib.import_module("gradspectra.watch").Transport = KeepingTransport  # type: ignore[attr-defined]
    steps = {"accelerate": by_accelerate, "transformers": by_transformers, "lightning": by_lightning}[trainer]()
    if torch.distributed.get_rank() == 0:
        found = steps.check(KeepingTransport.last.records) | {"closed": KeepingTransport.last.closed}
        print(json.dumps(found), flush=True)
    else:
        assert not hasattr(KeepingTransport, "last") or not KeepingTransport.last.started
    torch.distributed.barrier()
    os._exit(0)  # gloo's own threads sometimes abort a process that ends in the usual way


if __name__ == "__main__":
    main(sys.argv[1])
