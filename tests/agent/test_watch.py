"""What a user of watch sees: which step a number belongs to, what is recorded of it, and what happens on alerts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agent.watched_training import (
    KeepingTransport,
    attention,
    gradients,
    loss_of,
    squares,
    total_norm,
    value,
    watched,
)
from gradspectra.errors import InstabilityError
from torch import nn


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1} | options))


def train(model, optimizer, steps, after=lambda _: None, before=lambda _: None):
    for step in range(1, steps + 1):
        loss = loss_of(model, 4, step)
        loss.backward()
        before(step)
        optimizer.step()
        optimizer.zero_grad()
        after(step)


@pytest.mark.usefixtures("kept")
def test_the_run_says_which_optimizers_it_is_trained_with():
    model = attention()
    with watched(model, [sgd(model), torch.optim.AdamW(model.parameters())]):
        environment = KeepingTransport.last.arguments["environment"]
    assert environment["optimizer"] == ["SGD", "AdamW"]
    assert environment["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_logged_before_or_after_the_step_belongs_to_it(late, kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        logged = {"after" if late else "before": lambda step: watch.log(loss=float(step), eval_loss=10.0 * step)}
        train(model, optimizer, 3, **logged)
    assert [(r.step, r.scalars["loss"], r.scalars["eval_loss"]) for r in kept()] == [
        (1, 1.0, 10.0),
        (2, 2.0, 20.0),
        (3, 3.0, 30.0),
    ]


def test_losses_are_averaged_by_tokens_then_by_examples_and_counts_are_summed(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        for weights in ({"tokens": (30, 10), "examples": (1, 1)}, {"examples": (3, 1)}, {}):
            for part, loss in enumerate((1.0, 5.0)):
                loss_of(model, 2, part).backward()
                watch.log(loss=torch.tensor(loss), epoch=part, **{name: sizes[part] for name, sizes in weights.items()})
            optimizer.step()
            optimizer.zero_grad()
    assert [r.scalars["loss"] for r in kept()] == [2.0, 2.0, 3.0]
    assert [r.scalars["epoch"] for r in kept()] == [1.0, 1.0, 1.0]
    assert kept()[0].counts["tokens"] == 40
    assert [r.counts.get("examples") for r in kept()] == [2, 4, None]


def test_step_says_outright_which_step_a_number_belongs_to(kept, caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2, before=lambda step: watch.log(step=step, loss=step))
        watch.log(step=2, eval_loss=0.5)
        watch.log(step=1, eval_loss=0.25)
        watch.log(step=1, eval_loss=0.25)
    assert [r.scalars.get("eval_loss") for r in kept()] == [None, 0.5]
    assert sum("comes too late" in message for message in caplog.messages) == 1


def test_what_is_no_single_number_is_not_recorded_and_said_once(kept, caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2, before=lambda _: watch.log(loss=torch.ones(2), note="text", skipped=3, lr_x=1))
    assert [sorted(set(r.scalars) & {"loss", "note", "skipped", "lr_x"}) for r in kept()] == [["lr_x"], ["lr_x"]]
    assert [message.partition(" is not recorded: ")[::2] for message in caplog.messages] == [
        ("gradspectra: log(loss=...)", "it takes single numbers, got tensor([1., 1.])"),
        ("gradspectra: log(note=...)", "it takes single numbers, got 'text'"),
        ("gradspectra: log(skipped=...)", "the agent itself records a number of this name"),
    ]
    assert kept()[0].counts["skipped"] == 0


def test_a_name_that_no_batch_can_carry_is_said_and_the_rest_is_recorded(kept, caplog):
    model = attention()
    groups = [{"params": [p], "name": "two\nlines" if n == "head.bias" else n} for n, p in model.named_parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2, before=lambda _: watch.log(loss=1.0, **{"two\nlines": 1, "": 2, "n" * 513: 3}))
    for record in kept():
        assert all(name.isprintable() and 1 <= len(name) <= 512 for name in record.scalars)
        assert {"loss", "learning_rate/embed.weight", "learning_rate/6"} <= set(record.scalars)
    assert sum("a name has 1 to 512 printable characters" in message for message in caplog.messages) == 3


@pytest.mark.parametrize("number", [torch.empty((), device="meta"), torch.ones(1).to_sparse().to("meta")])
def test_a_tensor_without_a_number_harms_no_other(number, kept, caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 5, before=lambda step: watch.log(odd=number, loss=step))
    assert [record.scalars["loss"] for record in kept()] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert watch.status()["not_measured"] == []
    assert sum("log(odd=...) is not recorded" in message for message in caplog.messages) == 1


def test_numbers_given_as_a_mapping_are_said_with_the_form_that_is_taken(kept, caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2, before=lambda _: watch.log({"loss": 1.0}))
    assert caplog.messages == [
        "gradspectra: log({...}) is not recorded: it takes numbers by name, as in log(loss=loss)"
    ]
    assert all("loss" not in record.scalars for record in kept())


@pytest.mark.parametrize(
    ("leaving", "state"), [(SystemExit(0), "finished"), (SystemExit(), "finished"), (SystemExit("no"), "failed")]
)
@pytest.mark.usefixtures("kept")
def test_sys_exit_without_an_error_is_a_good_end(leaving, state):
    model = attention()
    with pytest.raises(SystemExit), watched(model, sgd(model)):
        raise leaving
    assert KeepingTransport.last.closed == state


@pytest.mark.usefixtures("kept")
def test_the_status_says_at_once_that_a_module_was_swapped_and_no_optimizer_has_it():
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2)
        assert watch.status()["not_measured"] == []
        model.head = nn.Linear(12, 5)
        assert watch.status()["not_measured"] == ["2 trainable tensors are in no watched optimizer"]
        optimizer.add_param_group({"params": model.head.parameters()})
        assert watch.status()["not_measured"] == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_recorded_as_they_are(number, kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 1, before=lambda _: watch.log(loss=torch.tensor(number), tokens=number))
    assert kept()[0].scalars["loss"] == pytest.approx(number, nan_ok=True)
    assert "tokens" not in kept()[0].counts


def test_every_group_has_its_rate_by_name_or_index(kept):
    model = attention()
    groups = [{"params": model.qkv.parameters(), "lr": 0.3, "name": "qkv"}, {"params": model.head.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(0.02))
    with watched(model, optimizer):
        train(model, optimizer, 1)
    record = kept()[0]
    assert record.table.names[-2:] == ("head.weight", "head.bias")
    assert record.scalars["learning_rate"] == pytest.approx(0.3)
    assert record.scalars["learning_rate/qkv"] == pytest.approx(0.3)
    assert record.scalars["learning_rate/1"] == pytest.approx(0.02)
    assert record.values.shape == (len(record.statistics), len(record.table))


def test_a_closure_s_own_gradient_is_measured(kept):
    model = attention()
    optimizer = torch.optim.LBFGS([model.head.weight], lr=0.1, max_iter=1)
    with watched(model, optimizer):
        for step in range(2):

            def closure(step=step):
                optimizer.zero_grad()
                loss = loss_of(model, 4, step)
                loss.backward()
                return loss

            before = model.head.weight.detach().clone()
            optimizer.step(closure)
            moved = float((model.head.weight.detach() - before).double().square().sum())
            gradient = float(model.head.weight.grad.double().square().sum())
    assert [r.step for r in kept()] == [1, 2]
    assert value(kept()[1], "grad_sq", "head.weight") == pytest.approx(gradient, rel=1e-5)
    assert value(kept()[1], "update_sq", "head.weight") == pytest.approx(moved, rel=1e-5)


def test_two_optimizers_make_one_step(kept):
    models = {"generator": attention(1), "critic": attention(2)}
    optimizers = [sgd(model) for model in models.values()]
    with watched(models, optimizers) as watch:
        for step in range(2):
            for model, optimizer in zip(models.values(), optimizers, strict=True):
                loss_of(model, 4, step).backward()
                optimizer.step()
                optimizer.zero_grad()
            watch.log(loss=step)
    assert [(r.step, r.scalars["loss"]) for r in kept()] == [(1, 0.0), (2, 1.0)]
    assert {name.split(".")[0] for name in kept()[0].table.names} == {"generator", "critic"}
    assert value(kept()[0], "grad_sq", "generator.head.weight") > 0
    assert value(kept()[0], "grad_sq", "critic.head.weight") > 0


def test_a_step_ends_when_one_of_two_optimizers_steps_again(kept):
    models = {"generator": attention(1), "critic": attention(2)}
    generator, critic = (sgd(model) for model in models.values())
    with watched(models, [generator, critic]):
        for optimizer, model in ((critic, "critic"), (critic, "critic"), (generator, "generator")):
            loss_of(models[model], 4, 0).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [r.step for r in kept()] == [1, 2]
    assert value(kept()[0], "grad_sq", "generator.head.weight") is None
    assert value(kept()[1], "grad_sq", "generator.head.weight") > 0


def test_without_an_optimizer_the_user_says_when_a_step_is_over(kept):
    model = attention()
    with watched(model) as watch:
        for step in range(2):
            loss_of(model, 4, step).backward()
            norm = total_norm(gradients(model))
            watch.step()
            model.zero_grad()
        assert any("no optimizer" in reason for reason in watch.status()["not_measured"])
    assert [r.step for r in kept()] == [1, 2]
    assert kept()[1].scalars["grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_an_optimizer_that_cannot_be_hooked_says_so_and_is_stepped_by_hand(kept):
    class Foreign:
        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters), "lr": 0.5}]

    model = attention()
    with pytest.warns(UserWarning, match=r"Foreign cannot be hooked: call watch.step\(\)"):
        watch = watched(model, Foreign(model.parameters()))
    with watch:
        loss_of(model, 4, 0).backward()
        watch.step()
    assert kept()[0].scalars["learning_rate"] == 0.5
    assert value(kept()[0], "grad_sq", "head.weight") > 0


def test_wrapped_optimizers_are_unwrapped(kept):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            if name.startswith("register_"):
                raise AttributeError(name)
            return getattr(self.optimizer, name)

    model = attention()
    wrapped = Wrapper(Wrapper(sgd(model)))
    with watched(model, wrapped):
        train(model, wrapped, 2)
    assert [r.step for r in kept()] == [1, 2]


def test_layers_that_are_frozen_unfrozen_or_added_change_the_table(kept):
    model = attention()
    model.head.requires_grad_(False)
    optimizer = sgd(model)
    with watched(model, optimizer):
        train(model, optimizer, 2)
        model.head.requires_grad_(True)
        model.norm.requires_grad_(False)
        train(model, optimizer, 2)
        model.extra = nn.Linear(5, 5)
        optimizer.add_param_group({"params": model.extra.parameters(), "lr": 0.01})
        train(model, optimizer, 2)
    names = [set(r.table.names) for r in kept()]
    assert "head.weight" not in names[0]
    assert "head.weight" in names[-1]
    assert "norm.weight" in names[0]
    assert "norm.weight" not in names[-1]
    assert "extra.weight" in names[-1]
    assert value(kept()[-1], "grad_sq", "head.weight") > 0
    assert [r.step for r in kept()] == [1, 2, 3, 4, 5, 6]


def test_layers_can_be_chosen_by_expression_or_function_and_split(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer, layers=r"^(head|norm)\."):
        train(model, optimizer, 1)
    assert kept()[0].table.names == ("norm.weight", "norm.bias", "head.weight", "head.bias")
    halves = (("[low]", 0, 0, 2), ("[high]", 0, 2, 5))
    with watched(model, optimizer, layers=lambda name: halves if name == "head.weight" else False):
        loss_of(model, 4, 0).backward()
        low = float(model.head.weight.grad[:2].double().square().sum())
        optimizer.step()
    assert kept()[0].table.names == ("head.weight[low]", "head.weight[high]")
    assert value(kept()[0], "grad_sq", "head.weight[low]") == pytest.approx(low, rel=1e-5)


def test_no_layers_at_all_still_records_the_run(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer, layers="nothing") as watch:
        train(model, optimizer, 2, before=lambda step: watch.log(loss=step))
    assert [r.scalars["loss"] for r in kept()] == [1.0, 2.0]
    assert kept()[0].table is None


def test_steps_that_are_skipped_before_anything_is_logged_are_counted_once(kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with watched(model, optimizer) as watch:
        for step in range(4):
            scaler.scale(loss_of(model, 4, step)).backward()
            if step < 2:
                model.head.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watch.log(loss=step)
        assert watch.status()["not_measured"] == []
    assert [(r.step, r.scalars["loss"], r.counts["skipped"]) for r in kept()] == [
        (1, 0.0, 1),
        (2, 1.0, 1),
        (3, 2.0, 0),
        (4, 3.0, 0),
    ]


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_and_skipped_steps_count(fused, kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(3):
            loss = loss_of(model, 4, step)
            expected.append([s / 2.0**32 for s in [squares(gradients(model))["head.weight"] or 0.0]])
            scaler.scale(loss).backward()
            expected[-1] = squares(gradients(model))["head.weight"] / scaler.get_scale() ** 2
            if step == 1:
                model.head.weight.grad[0, 0] = math.inf
            watch.log(loss=loss)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert [r.step for r in kept()] == [1, 2, 3]
    assert [r.counts["skipped"] for r in kept()] == [0, 1, 0]
    assert [r.scalars["loss_scale"] for r in kept()] == [2.0**16, 2.0**16, 2.0**15]
    assert value(kept()[0], "grad_sq", "head.weight") == pytest.approx(expected[0], rel=1e-5)
    assert value(kept()[2], "grad_sq", "head.weight") == pytest.approx(expected[2], rel=1e-5)
    assert value(kept()[1], "grad_nonfinite", "head.weight") == 1


def test_bfloat16_autocast_is_measured_as_float32(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, 4, 0)
        loss.backward()
        expected = squares(gradients(model))["head.weight"]
        watch.log(loss=loss)
        optimizer.step()
    assert value(kept()[0], "grad_sq", "head.weight") == pytest.approx(expected, rel=1e-5)
    assert kept()[0].scalars["loss"] == pytest.approx(float(loss.detach()))


def test_batch_size_may_be_a_function_of_the_model_s_inputs(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer, batch_size=len):
        for size in (3, 5):
            loss_of(model, size, 0).backward()
        optimizer.step()
        with torch.no_grad():
            loss_of(model, 7, 0)
    assert kept()[0].counts["examples"] == 8
    assert kept()[0].scalars["noise_w"] == pytest.approx(0.25 / 3 + 0.25 / 5)


def test_the_noise_is_in_batches_where_the_examples_are_not_known(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer):
        for part in range(4):
            loss_of(model, 2, part).backward()
        optimizer.step()
    assert "examples" not in kept()[0].counts
    assert kept()[0].scalars["noise_w"] == pytest.approx(3.0)
    assert kept()[0].scalars["noise_w2"] == pytest.approx(1.0)


def test_alerts_come_at_the_next_step_and_stop_on_raises(kept):
    model = attention()
    optimizer = sgd(model)
    heard = []
    watch = watched(model, optimizer, on_alert=heard.append, stop_on="critical")

    def log(step):
        watch.log(loss=math.nan if step == 3 else 1.0)

    with pytest.raises(InstabilityError, match="step 3") as raised, watch:
        train(model, optimizer, 9, before=log)
    assert [(alert["rule"], alert["opened_step"]) for alert in heard] == [("nonfinite", 3)]
    assert raised.value.alerts == heard
    assert [r.step for r in kept()] == [1, 2, 3]
    assert KeepingTransport.last.closed == "failed"


@pytest.mark.usefixtures("kept")
def test_alerts_of_the_server_are_heard_once_and_its_stop_is_obeyed():
    model = attention()
    optimizer = sgd(model)
    heard = []
    alert = {"rule": "dead_layer", "severity": "warning", "state": "open", "opened_step": 1, "first_layer": "x"}
    with watched(model, optimizer, on_alert=heard.append, stop_on="critical"):
        train(model, optimizer, 1)
        tell = KeepingTransport.last.arguments["on_alerts"]
        tell([alert])
        tell([alert, alert | {"state": "closed"}])
        train(model, optimizer, 2)
        assert heard == [alert]
        KeepingTransport.last.stop_at_step = 3
        with pytest.raises(InstabilityError, match="stop at step 3"):
            train(model, optimizer, 1)


def test_an_error_of_the_user_s_own_callback_is_raised(kept):
    def complain(alert):
        raise KeyError(alert["rule"])

    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer, on_alert=complain) as watch, pytest.raises(KeyError, match="nonfinite"):
        train(model, optimizer, 3, before=lambda _: watch.log(loss=math.inf))
    assert kept()[0].scalars["loss"] == math.inf


def test_steps_go_on_from_a_checkpoint(kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 3)
        state = watch.state_dict()
    with watched(model, optimizer):
        train(model, optimizer, 1)
    assert [r.step for r in kept()] == [4]
    assert KeepingTransport.last.arguments["start_step"] == 3
    fresh = sgd(model)
    resumed = watched(model, fresh)
    resumed.load_state_dict(state)
    with resumed:
        train(model, fresh, 1)
        with pytest.raises(ValueError, match="before the first step"):
            resumed.load_state_dict(state)
    assert [r.step for r in kept()] == [4]
    with watched(model, fresh) as other, pytest.raises(ValueError, match="state must come from"):
        other.load_state_dict({"step": -1})


def test_a_watch_that_is_not_enabled_does_nothing(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer, enabled=False) as watch:
        train(model, optimizer, 2, before=lambda _: watch.log(loss=1.0))
        watch.step()
        assert watch.status()["enabled"] is False
    assert kept() == []
    assert not KeepingTransport.last.started


def test_after_close_nothing_is_recorded_and_no_hook_is_left(kept):
    model = attention()
    optimizer = sgd(model)
    watch = watched(model, optimizer)
    train(model, optimizer, 2)
    watch.close()
    watch.close()
    train(model, optimizer, 2)
    watch.log(loss=1.0)
    assert [r.step for r in kept()] == [1, 2]
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert KeepingTransport.last.closed == "finished"


@pytest.mark.parametrize(
    ("argument", "wrong", "error"),
    [
        ("every", 0, "every must be at least 1, got 0"),
        ("every", 1.5, "every must be a whole number, got 1.5"),
        ("budget", 0.0, r"budget must be a share .* got 0\.0"),
        ("budget", 2, r"budget must be a share .* got 2"),
        ("budget", "1%", r"budget must be a share .* got '1%'"),
        ("spectra", 0, 'spectra must be "auto", "off" or at least 1, got 0'),
        ("spectra", "often", 'spectra must be "auto", "off" or a whole number, got \'often\''),
        ("layers", "(", r"layers must be a valid regular expression, got '\('"),
        ("layers", 3, "layers must be a regular expression or a callable on names, got 3"),
        ("batch_size", 0.5, "batch_size must be at least 1, .* got 0.5"),
        ("batch_size", 0, "batch_size must be at least 1, .* got 0"),
        ("batch_size", math.nan, "batch_size must be at least 1, .* got nan"),
        ("parts", 0, 'parts must be "auto" or at least 1, got 0'),
        ("parts", True, 'parts must be "auto" or a whole number, got True'),
        ("drift", "some", "drift must be one of sampled, exact, off, got 'some'"),
        ("scaler", 5, r"scaler must have a method get_scale\(\), got 5"),
        ("start_step", -1, "start_step must be at least 0, got -1"),
        ("on_alert", "mail", "on_alert must be a function of one alert, got 'mail'"),
        ("stop_on", "never", "stop_on must be None or one of info, warning, critical, got 'never'"),
        ("enabled", "yes", "enabled must be True or False, got 'yes'"),
        ("optimizer", 7, "optimizer must be an optimizer, several of them, or None, got 7"),
        ("model", 7, "model must be a torch.nn.Module, or a mapping of names to modules, got 7"),
        ("model", {}, "model must name at least one module, got none"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_a_wrong_argument_is_named_at_construction(argument, wrong, error):
    model = attention()
    arguments = {"model": model, "optimizer": sgd(model)} | {argument: wrong}
    with pytest.raises((TypeError, ValueError), match=error):
        watched(**arguments)


def test_real_numbers_from_numpy_are_accepted(kept):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer, every=np.int64(2), budget=np.float64(0.5), batch_size=np.int32(4)) as watch:
        train(model, optimizer, 2, before=lambda _: watch.log(loss=np.float32(0.5), tokens=np.int64(9)))
    assert kept()[1].scalars["loss"] == 0.5
    assert kept()[1].counts["tokens"] == 9


def test_calls_of_log_between_backward_passes_are_taken_as_the_numbers_were_and_in_order(kept):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = torch.zeros(())
    with watched(model, optimizer) as watch:
        for step in range(2):
            for part in range(3):
                model(torch.ones(2, 3)).sum().backward()
                seen.fill_(10 * step + part)
                watch.log(loss=seen, tokens=4, seen=seen)
                if part == 1:
                    assert watch.state_dict()["tokens"] == 4 * (3 * step + 2), "what is held back counts already"
            watch.log(seen="no number")
            watch.log(last=part, parts=7)
            optimizer.step()
            optimizer.zero_grad()
    first, second = kept()
    assert (first.scalars["loss"], second.scalars["loss"]) == (1.0, 11.0)
    assert (first.scalars["seen"], second.scalars["seen"]) == (2.0, 12.0)
    assert (first.scalars["last"], first.counts["tokens"], first.counts["parts"]) == (2.0, 12, 3)
    assert second.counts["tokens"] == 12
