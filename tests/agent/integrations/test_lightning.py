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
        self.seen, self.expected, self.losses = [], [], []

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
        sums = [len(batch[0]) * float(self.loss_of(self.net, batch).detach()) for batch in self.seen]
        self.losses.append(sum(sums) / sum(len(batch[0]) for batch in self.seen))
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


def fit(module, tmp_path, checkpoint=None, count=32, beside=(), **arguments):
    from gradspectra.integrations.lightning import GradSpectraCallback

    callback = GradSpectraCallback(project="tests", budget=None, spectra="off")
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        callbacks=[callback, *beside],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        accumulate_grad_batches=module.accumulated,
        enable_checkpointing=False,
        **(defaults | arguments),
    )
    trainer.fit(module, loader(count), loader(8), ckpt_path=checkpoint)
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
    assert [record.scalars["loss"] for record in kept()] == pytest.approx(module.losses, rel=1e-5)
    assert kept()[-1].scalars["eval_loss"] > 0
    assert KeepingTransport.last.closed == "finished"
    assert callback.watch.status()["closed"]


@way(ROW)
@pytest.mark.parametrize(("count", "sizes"), [(14, [[4, 4], [4, 2]]), (18, [[4, 4], [4, 4], [2]])])
def test_a_last_batch_and_a_last_group_that_are_short(count, sizes, kept, tmp_path, the_way: Way):
    module = Module(2)
    fit(module, tmp_path, count=count, max_epochs=2)
    for index, (record, step) in enumerate(zip(kept(), module.expected, strict=True)):
        own = sizes[index % len(sizes)]
        the_way.check(record, named(step), rel=1e-4, parts=len(own) > 1 and index > 0)
        assert (record.counts["parts"], record.counts["examples"]) == (len(own), sum(own))
    assert [record.scalars["loss"] for record in kept()] == pytest.approx(module.losses, rel=1e-5)


@pytest.mark.parametrize(("precision", "rel"), [("bf16-true", 1e-2), ("64-true", 1e-6)])
def test_weights_of_another_precision(precision, rel, kept, tmp_path):
    module = Module()
    fit(module, tmp_path, precision=precision)
    assert KeepingTransport.last.arguments["config"]["precision"] == precision
    assert len(kept()) == 8
    for record, step in zip(kept(), module.expected, strict=True):
        assert record.scalars["grad_norm"] == pytest.approx(step.norm, rel=rel)


def test_batches_without_a_backward_pass_change_no_step(kept, tmp_path):
    class LeavesOut(Module):
        def training_step(self, batch, index):
            return None if index == 3 else super().training_step(batch, index)

    module = LeavesOut()
    averaging = lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.03, swa_epoch_start=1)
    module.net.insert(1, nn.BatchNorm1d(8))
    fit(module, tmp_path, max_epochs=3, beside=[averaging])
    own = [(r, loss) for r, loss in zip(kept(), module.losses, strict=False) if "grad_norm" in r.scalars]
    assert [record.scalars["loss"] for record, _ in own] == pytest.approx([loss for _, loss in own])
    assert {record.counts["examples"] for record, _ in own} == {4}
    assert [record.step for record, _ in own] == [step for step in range(1, 25) if (step - 1) % 8 != 3]


class Two(Module):
    """Trained by hand by two optimizers, of which one steps in every second batch alone."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for place, optimizer in enumerate(self.optimizers()):
            if index % 2 == 0 or not place:
                optimizer.zero_grad()
                self.manual_backward(self.loss_of(self.net, batch))
                optimizer.step()

    def on_before_optimizer_step(self, _):
        pass

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.03) for part in (self.net[0], self.net[2])]


def test_optimizers_that_do_not_step_alike_go_on_where_the_checkpoint_was(kept, tmp_path):
    trainer, _ = fit(Two(), tmp_path)
    steps = [record.step for record in kept()]
    assert trainer.global_step == 12
    assert steps[-1] > 12 // 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(Two(), tmp_path, tmp_path / "last.ckpt", max_epochs=2)
    assert KeepingTransport.last.arguments["start_step"] == steps[-1]
    assert [record.step for record in kept()] == [steps[-1] + step for step in steps]


def test_a_length_that_lightning_cannot_tell_is_left_out(kept, tmp_path, monkeypatch):
    def fails(_):
        raise lightning.pytorch.utilities.exceptions.MisconfigurationException("not known")

    monkeypatch.setattr(lightning.Trainer, "estimated_stepping_batches", property(fails))
    fit(Module(), tmp_path)
    assert KeepingTransport.last.arguments["total_steps"] is None
    assert len(kept()) == 8


def test_what_is_no_option_is_named_when_the_callback_is_made():
    from gradspectra.integrations.lightning import GradSpectraCallback

    with pytest.raises(TypeError, match=r"^'projct' is no option: take of project, run, "):
        GradSpectraCallback(projct="x")
    with pytest.raises(ValueError, match=r"^budget must be a share of the step time above 0"):
        GradSpectraCallback(budget=2)


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


def test_a_callback_does_not_go_on_with_a_run_whose_training_the_checkpoint_is_not_of(kept, tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    other = lightning.Trainer(devices=1, max_epochs=1, **quiet)
    other.fit(Module(), loader(), loader(8))
    other.save_checkpoint(tmp_path / "other.ckpt")
    _, callback = fit(Module(), tmp_path)
    trainer = lightning.Trainer(devices=1, max_epochs=2, callbacks=[callback], **quiet)
    trainer.fit(Module(), loader(), loader(8), ckpt_path=tmp_path / "other.ckpt")
    assert KeepingTransport.last.arguments["resume"] is None
    assert [record.step for record in kept()] == list(range(9, 17))


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
