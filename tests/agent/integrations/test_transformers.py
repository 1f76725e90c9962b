"""The callback of Hugging Face Trainer, in real trainings on random data, against a plain float64 computation."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import KeepingTransport
from agent.ways.plain import Plain
from agent.ways.way import Way, way
from torch import nn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'gradspectra[integrations]'"
)


class Regression(nn.Module):
    """A model as Trainer takes it: keyword arguments in, a loss out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, y):
        return {"loss": (self.layers(x.to(self.layers[0].weight)) - y).square().mean()}


def examples(count):
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(6, generator=generator), "y": torch.randn(1, generator=generator)} for _ in range(count)]


class Seen(transformers.TrainerCallback):
    """Computes each step anew in float64 from the batches that the collator gave out. epoch: batches of one."""

    def __init__(self, model, accumulated, loss, epoch):
        self.plain, self.accumulated, self.loss, self.epoch = Plain(model), accumulated, loss, epoch
        self.batches, self.expected, self.evaluated = [], [], examples(68)[64:]

    def collate(self, rows):
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        if "x" not in batch or not any(torch.equal(batch["x"][0], own["x"]) for own in self.evaluated):
            self.batches.append(batch)
        return batch

    def on_train_begin(self, args, state, control, **_):  # noqa: ARG002
        self.first = state.global_step

    def on_step_begin(self, args, state, control, model=None, **_):  # noqa: ARG002
        epochs, group = divmod(state.global_step - self.first, -(-self.epoch // self.accumulated))
        start = epochs * self.epoch + group * self.accumulated
        parts = self.batches[start : min(start + self.accumulated, (epochs + 1) * self.epoch)]
        self.expected.append(self.plain.step(model, *self.loss(parts)))

    def on_step_end(self, args, state, control, model=None, **_):  # noqa: ARG002
        self.expected[-1].after = self.plain.weights(model)


def fit(model, rows, tmp_path, loss, accumulated=1, resume=False, **arguments):
    from gradspectra.integrations.transformers import GradSpectraCallback

    seen = Seen(model, accumulated, loss, -(-len(rows) // 4))
    options = {"budget": None, "spectra": "off", "project": "tests"}
    callback = GradSpectraCallback(**options)
    defaults = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": accumulated,
        "max_steps": 4,
        "learning_rate": 0.03,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "logging_steps": 2,
        "disable_tqdm": True,
        "run_name": "small",
    }
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**(defaults | arguments)),
        train_dataset=rows,
        eval_dataset=seen.evaluated,
        data_collator=seen.collate,
        callbacks=[callback, seen],
    )
    trainer.train(resume_from_checkpoint=resume)
    return seen.expected, trainer, callback


def mean_of_parts(parts):
    return [lambda m, b=b: m(**b)["loss"] / len(parts) for b in parts]


@way("Hugging Face Trainer (GradSpectraCallback)")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_a_trainer_s_steps(accumulated, clip, kept, tmp_path, the_way: Way):
    model = Regression()
    expected, trainer, callback = fit(model, examples(64), tmp_path, mean_of_parts, accumulated, max_grad_norm=clip)
    assert [record.step for record in kept()] == [1, 2, 3, 4]
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=1e-4, parts=accumulated > 1 and index > 0)
        assert record.counts["examples"] == 4 * accumulated
        assert record.counts["parts"] == accumulated
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(record.scalars["loss"] for record in kept()[:2]) / 2 == pytest.approx(logged[0], abs=1e-3)
    assert KeepingTransport.last.closed == "finished"
    assert KeepingTransport.last.arguments["name"] == "small"
    assert KeepingTransport.last.arguments["total_steps"] == 4
    assert callback.watch.status()["closed"]


@way("Hugging Face Trainer (GradSpectraCallback)")
def test_a_language_model_whose_loss_is_divided_by_all_tokens_of_the_step(kept, tmp_path, the_way: Way):
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in range(4, 36):
        ids = torch.randint(0, 32, (12,), generator=generator)
        labels = ids.clone()
        labels[4 + length % 9 :] = -100
        rows.append({"input_ids": ids, "labels": labels})

    weights = []

    def of_all_tokens(parts):
        counts = [int((part["labels"][:, 1:] != -100).sum()) for part in parts]
        predicted = sum(counts)
        weights.append([count / predicted for count in counts])

        def loss(m, part):
            logits = m(input_ids=part["input_ids"]).logits[:, :-1]
            labels = part["labels"][:, 1:]
            total = nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="sum")
            return total / predicted

        return [lambda m, p=p: loss(m, p) for p in parts]

    expected, _, _ = fit(model, rows, tmp_path, of_all_tokens, 2, max_grad_norm=0.1)
    assert any(first != second for first, second in weights)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=2e-3, parts=index > 0, weights=weights[index])
        assert record.scalars["noise_w"] == pytest.approx(sum(w * (1 - w) / 4 for w in weights[index]))


@way("Hugging Face Trainer (GradSpectraCallback)")
def test_bfloat16_with_evaluations_and_a_resumed_training(kept, tmp_path, the_way: Way):
    arguments = {"bf16": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    arguments["label_names"] = ["y"]
    expected, trainer, _ = fit(Regression(), examples(64), tmp_path, mean_of_parts, 2, **arguments)
    for record, step in zip(kept(), expected, strict=True):
        assert record.scalars["grad_norm"] == pytest.approx(step.norm, rel=0.05)
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert set(evaluated) == {2, 4}
    assert {r.step: r.scalars["eval_loss"] for r in kept() if "eval_loss" in r.scalars} == evaluated
    through = [record.scalars["grad_norm"] for record in kept()]
    fit(Regression(), examples(64), tmp_path, mean_of_parts, 2, str(tmp_path / "checkpoint-2"), **arguments)
    assert [record.step for record in kept()] == [3, 4]
    assert KeepingTransport.last.arguments["resume"] == "auto"
    assert [record.scalars["grad_norm"] for record in kept()] == pytest.approx(through[2:], rel=1e-5)
    assert the_way.layers


@way("Hugging Face Trainer (GradSpectraCallback)")
@pytest.mark.parametrize(("count", "sizes"), [(14, [[4, 4], [4, 2]] * 3), (18, [[4, 4], [4, 4], [2]] * 2)])
def test_a_last_batch_and_a_last_group_that_are_short(count, sizes, kept, tmp_path, the_way: Way):
    model = Regression()
    expected, _, _ = fit(model, examples(count), tmp_path, mean_of_parts, 2, max_steps=6)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=1e-4, parts=len(sizes[index]) > 1 and index > 0)
        assert record.counts["parts"] == len(step.parts) == len(sizes[index])
        assert record.counts["examples"] == sum(sizes[index])
        if len(sizes[index]) > 1:
            assert record.scalars["noise_w"] == pytest.approx(sum(1 / 4 / size for size in sizes[index]))


@pytest.mark.parametrize(("scaled", "noise"), [(None, True), (False, True), (True, False)])
def test_a_loss_that_is_scaled_by_the_user_s_own_code_brings_no_noise(scaled, noise, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "loss_is_scaled_for_ga", scaled, raising=False)
    fit(Regression(), examples(64), tmp_path, mean_of_parts, 2)
    assert [record.scalars["loss"] > 0 for record in kept()] == [True] * 4
    assert ["noise_w" in record.scalars for record in kept()[1:]] == [noise] * 3


def test_each_training_of_one_trainer_is_a_run_of_its_own(kept, tmp_path):
    from gradspectra.integrations.transformers import GradSpectraCallback

    trainer = small(tmp_path, GradSpectraCallback(budget=None, spectra="off"))
    trainer.train()
    first = KeepingTransport.last
    trainer.train()
    assert KeepingTransport.last is not first
    assert [record.step for record in first.records] == [record.step for record in kept()] == [1, 2, 3, 4]
    assert (first.closed, KeepingTransport.last.closed) == ("finished", "finished")


@pytest.mark.parametrize("wrong", [{"projct": "x"}, {"model": None}, {"optimizer": None}])
def test_what_is_no_option_is_named_when_the_callback_is_made(wrong):
    from gradspectra.integrations.transformers import GradSpectraCallback

    with pytest.raises(
        TypeError, match=f"^'?{next(iter(wrong))}'? (is no option: take of project, run|must be left out)"
    ):
        GradSpectraCallback(**wrong)


def small(tmp_path, *callbacks, **arguments):
    """A Trainer of four steps without a name of its own."""
    defaults = {"output_dir": str(tmp_path), "max_steps": 4, "report_to": [], "save_strategy": "no", "use_cpu": True}
    given = transformers.TrainingArguments(**(defaults | {"disable_tqdm": True} | arguments))
    data = {"train_dataset": examples(64), "eval_dataset": examples(8)}
    return transformers.Trainer(Regression(), given, callbacks=list(callbacks), **data)


def test_a_training_that_broke_is_failed_and_the_next_is_a_run_of_its_own(kept, tmp_path):
    from gradspectra.integrations.transformers import GradSpectraCallback

    class Breaks(transformers.TrainerCallback):
        broken = False

        def on_step_end(self, args, state, control, **_):  # noqa: ARG002
            if state.global_step == 2 and not self.broken:
                self.broken = True
                raise KeyboardInterrupt

    trainer = small(tmp_path, GradSpectraCallback(budget=None, spectra="off"), Breaks())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    first = KeepingTransport.last
    trainer.train()
    assert (first.closed, KeepingTransport.last.closed) == ("failed", "finished")
    assert [record.step for record in kept()] == [1, 2, 3, 4]
    assert KeepingTransport.last.arguments["resume"] is None


def test_a_training_without_a_name_has_that_of_its_folder_and_finds_it_again(kept, tmp_path):
    from gradspectra.integrations.transformers import GradSpectraCallback

    folder = tmp_path / ("x" * 120) / ("y" * 120)
    for resume in (False, str(folder / "checkpoint-2")):
        callback = GradSpectraCallback(budget=None, spectra="off")
        small(folder, callback, save_strategy="steps", save_steps=2).train(resume_from_checkpoint=resume)
        assert KeepingTransport.last.arguments["name"] == str(folder)[-200:]
    assert KeepingTransport.last.arguments["resume"] == "auto"
    assert [record.step for record in kept()] == [3, 4]


def test_an_early_stop_and_an_evaluation_before_the_first_step_end_well(kept, tmp_path):
    from gradspectra.integrations.transformers import GradSpectraCallback

    stop = transformers.EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    evaluating = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_loss",
        "eval_on_start": True,
    }
    saving = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "label_names": ["y"]}
    trainer = small(tmp_path, GradSpectraCallback(budget=None, spectra="off"), stop, **evaluating, **saving)
    trainer.train()
    assert trainer.state.global_step < 4
    assert [record.step for record in kept()] == list(range(1, trainer.state.global_step + 1))
    assert all("eval_loss" in record.scalars for record in kept())
    assert KeepingTransport.last.closed == "finished"


def test_the_callback_hears_its_own_trainer_alone(kept, tmp_path):
    fit(Regression(), examples(64), tmp_path, mean_of_parts)
    from gradspectra.integrations import transformers as integration

    assert integration.patch.observers == []
    assert not hasattr(transformers.Trainer.training_step, "__wrapped__")
    assert len(kept()) == 4


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("every", 0, "every must be at least 1, got 0"),
        ("server", "nowhere", "server must be an address like"),
        ("run", "", "run must be printable text of 1 to 200 characters"),
        ("enabled", 1, "enabled must be True or False, got 1"),
    ],
)
def test_a_wrong_value_is_named_when_the_callback_is_made(option, value, why):
    from gradspectra.integrations.transformers import GradSpectraCallback

    with pytest.raises((TypeError, ValueError), match=f"^{why}"):
        GradSpectraCallback(**{option: value})
