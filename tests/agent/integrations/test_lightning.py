"""The callback of Lightning, in real fits on random data, against a plain float64 computation."""

from __future__ import annotations

import copy

import pytest
import torch
from agent.watched_training import KeepingTransport
from agent.ways.plain import Plain
from agent.ways.way import Way, way
from torch import nn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
lightning = pytest.importorskip(
    "lightning", reason="lightning is not installed: pip install 'gradspectra[integrations]'"
)
ROW = "Lightning (GradSpectraCallback)"


class Module(lightning.LightningModule):
    """A regression that keeps a float64 computation of each step it takes."""

    def __init__(self, accumulated=1, optimizer=torch.optim.AdamW):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.accumulated, self.optimizer = accumulated, optimizer
        self.seen, self.expected = [], []

    def loss_of(self, net, batch):
        x, y = (part.to(net[0].weight) for part in batch)
        return (net(x) - y).square().mean()

    def training_step(self, batch, index):
        if index % self.accumulated == 0:
            self.seen.clear()
        self.seen.append(batch)
        loss = self.loss_of(self.net, batch)
        self.log("mine", loss.detach())
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss_of(self.net, batch))

    def on_before_optimizer_step(self, _):
        plain = Plain(self.net)
        parts = [lambda m, b=b: self.loss_of(m, b) / self.accumulated for b in self.seen]
        self.expected.append(plain.step(self.net, *parts))

    def on_train_batch_end(self, *_):
        if self.expected and not self.expected[-1].after:
            self.expected[-1].after = Plain.weights(self.net)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.03)


def loader(count=32):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 6, generator=generator), torch.randn(count, 1, generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)


def fit(module, tmp_path, checkpoint=None, **arguments):
    from gradspectra.integrations.lightning import GradSpectraCallback

    callback = GradSpectraCallback(project="tests", budget=None, spectra="off")
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        accumulate_grad_batches=module.accumulated,
        enable_checkpointing=False,
        **(defaults | arguments),
    )
    trainer.fit(module, loader(), loader(8), ckpt_path=checkpoint)
    return trainer, callback


def named(expected):
    """The same step with the names that the net has within the module."""
    found = copy.copy(expected)
    for part in ("gradient", "before", "after"):
        setattr(found, part, {f"net.{name}": array for name, array in getattr(expected, part).items()})
    found.parts = [{f"net.{name}": array for name, array in part.items()} for part in expected.parts]
    return found


@way(ROW)
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("clip", [None, "norm", "value"])
def test_a_fit_s_steps(accumulated, clip, kept, tmp_path, the_way: Way):
    module = Module(accumulated)
    clipping = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": clip} if clip else {}
    _, callback = fit(module, tmp_path, **clipping)
    assert [record.step for record in kept()] == list(range(1, 8 // accumulated + 1))
    for index, (record, step) in enumerate(zip(kept(), module.expected, strict=True)):
        parts = accumulated > 1 and index > 0
        the_way.check(record, named(step), rel=1e-4, parts=parts, second=clip != "value")
        assert record.counts["examples"] == 4 * accumulated
        assert record.counts["parts"] == accumulated
    last = [float(module.loss_of(module.net, batch).detach()) for batch in module.seen]
    assert kept()[-1].scalars["loss"] == pytest.approx(sum(last) / len(last), rel=0.5)
    assert kept()[-1].scalars["eval_loss"] > 0
    assert KeepingTransport.last.closed == "finished"
    assert callback.watch.status()["closed"]


@way(ROW)
def test_bfloat16_and_a_checkpoint_that_is_resumed(kept, tmp_path, the_way: Way):
    module = Module(2)
    trainer, _ = fit(module, tmp_path, precision="bf16-mixed")
    for record, step in zip(kept(), module.expected, strict=True):
        assert record.scalars["grad_norm"] == pytest.approx(step.norm, rel=0.05)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(Module(2), tmp_path, tmp_path / "last.ckpt", max_epochs=2)
    assert [record.step for record in kept()] == [5, 6, 7, 8]
    assert KeepingTransport.last.arguments["resume"] == "here"
    assert KeepingTransport.last.arguments["start_step"] == 4
    assert the_way.layers


@pytest.mark.usefixtures("kept")
def test_a_fit_that_breaks_ends_as_failed(tmp_path):
    class Broken(Module):
        def training_step(self, batch, index):
            if index == 2:
                raise ArithmeticError("broken on purpose")
            return super().training_step(batch, index)

    with pytest.raises(ArithmeticError):
        fit(Broken(), tmp_path)
    assert KeepingTransport.last.closed == "failed"


def test_a_fit_that_goes_on_goes_on_with_its_run(kept, tmp_path):
    module = Module()
    trainer, callback = fit(module, tmp_path)
    assert KeepingTransport.last.arguments["resume"] is None
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(), loader(8))
    assert [record.step for record in kept()] == list(range(9, 17))
    assert (KeepingTransport.last.arguments["resume"], KeepingTransport.last.arguments["start_step"]) == ("here", 8)
    assert callback.watch.closed


def test_a_callback_of_a_resumed_fit_begins_a_new_run_with_a_new_trainer(kept, tmp_path):
    trainer, _ = fit(Module(), tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _, callback = fit(Module(), tmp_path, tmp_path / "last.ckpt", max_epochs=2)
    assert KeepingTransport.last.arguments["resume"] == "here"
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 1}
    lightning.Trainer(accelerator="cpu", devices=1, callbacks=[callback], **quiet).fit(Module(), loader(), loader(8))
    assert [record.step for record in kept()] == list(range(1, 9))
    assert KeepingTransport.last.arguments["resume"] is None


def test_an_interrupted_fit_ends_as_failed(kept, tmp_path):
    class Interrupted(Module):
        def training_step(self, batch, index):
            if index == 3:
                raise KeyboardInterrupt
            return super().training_step(batch, index)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Interrupted(), tmp_path)
    assert KeepingTransport.last.closed == "failed"
    assert [record.step for record in kept()] == [1, 2, 3]
