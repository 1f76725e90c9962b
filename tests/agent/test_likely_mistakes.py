"""What is most often done wrong with a watch is said in words that name it, and what to do."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import gradspectra
import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from torch import nn


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model, optimizer, steps, log):
    for step in range(steps):
        loss_of(model, 4, step).backward()
        log()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("given", [1.5, torch.tensor(2.5), "loss"])
def test_a_number_without_a_name_is_said_with_the_form_that_is_taken(given, kept, caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2, lambda: watch.log(given))
        watch.log(step=7, loss=1.0)
    assert caplog.messages == [
        f"gradspectra: log({given!r}) is not recorded: it takes numbers by name, as in log(loss=loss)",
        "gradspectra: log(step=7) comes too late or too early; step 3 is open",
    ]
    assert [record.step for record in kept()] == [1, 2]


def test_a_training_that_goes_on_after_close_is_told_once(kept, caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 2, lambda: watch.log(loss=1.0))
    watch.log(eval_loss=0.5)
    assert caplog.messages == []
    train(model, optimizer, 2, lambda: watch.log(loss=1.0))
    assert caplog.messages == [
        "gradspectra: log(loss=...) comes after close and is not recorded: close when the training ends"
    ]
    assert [record.step for record in kept()] == [1, 2]


@pytest.mark.usefixtures("kept")
def test_a_watch_that_is_not_enabled_says_nothing_of_what_is_logged(caplog):
    model = attention()
    with watched(model, sgd(model), enabled=False) as watch:
        watch.log(loss=1.0)
    watch.log(loss=1.0)
    assert [message for message in caplog.messages if "close" in message] == []


@pytest.mark.usefixtures("kept")
def test_a_model_without_anything_to_train_is_warned_of(caplog):
    model = attention().requires_grad_(False)
    with watched(model, sgd(model)) as watch:
        assert watch.status()["not_measured"] == ["no layer is measured: no parameter is trainable"]
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "gradspectra: no layer is measured: no parameter is trainable")
    ]


@pytest.mark.usefixtures("kept")
def test_a_model_without_parameters_is_warned_of_with_and_without_an_optimizer(caplog):
    with watched(nn.ReLU(), sgd(attention())):
        pass
    with watched(nn.ReLU()):
        pass
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "gradspectra: none of the model's parameters is watched, for it has none: is it the one that is trained?",
        "gradspectra: no layer is measured: no parameter is trainable",
    ]


@pytest.mark.usefixtures("kept")
def test_a_choice_that_no_layer_fits_is_warned_of(caplog):
    model = attention()
    with watched(model, sgd(model), layers="conv"):
        pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.usefixtures("kept")
def test_layers_that_are_still_to_be_made_are_no_mistake(caplog):
    model = nn.Sequential(nn.LazyLinear(4))
    with watched(model, sgd(model)) as watch:
        assert watch.status()["not_measured"] == []
    assert caplog.messages == []


@pytest.mark.usefixtures("kept")
def test_the_optimizer_of_another_model_is_warned_of_but_not_parameters_left_out_on_purpose(caplog):
    model, other = attention(), attention(1)
    caplog.set_level(logging.INFO, "gradspectra")
    with watched(model, sgd(other)):
        pass
    with watched(model, torch.optim.SGD(model.head.parameters(), lr=0.1)):
        pass
    first, second = [record for record in caplog.records if "watched optimizer" in record.message]
    assert (first.levelname, first.message) == (
        "WARNING",
        "gradspectra: none of the model's 9 trainable tensors is in a watched optimizer: was it made of another model?",
    )
    assert (second.levelname, second.message) == (
        "INFO",
        "gradspectra: 7 trainable tensors are in no watched optimizer",
    )


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_copies_a_watch_is_told_to_leave_it_out(way):
    model = attention()
    with watched(model, sgd(model)) as watch:
        model.watch = watch
        with pytest.raises(TypeError, match=r"a Watch can be neither copied nor pickled.*watch\.state_dict\(\)"):
            way(watch)
        with pytest.raises(TypeError, match="a Watch can be neither copied nor pickled"):
            copy.deepcopy(model)


def test_what_copies_a_recorder_is_told_the_same(tmp_path: Path):
    recorder = gradspectra.Recorder(server="http://127.0.0.1:9", spool=tmp_path)
    with pytest.raises(TypeError, match="a Recorder can be neither copied nor pickled"):
        pickle.dumps({"recorder": recorder})
    recorder.close(timeout=0)


@pytest.mark.usefixtures("kept")
def test_passes_without_a_step_name_each_thing_to_do(caplog):
    model = attention()
    with watched(model):
        for seed in range(102):
            loss_of(model, 1, seed).backward()
            model.zero_grad()
    (message,) = [message for message in caplog.messages if "backward passes" in message]
    assert "if the optimizer was replaced, close this watch" in message
    assert message.endswith("if none was given, call watch.step() after each step")


@pytest.mark.parametrize(("passes", "said"), [(1, False), (2, True), (40, True)])
def test_a_watch_that_saw_passes_and_no_step_says_so_when_it_closes(kept, caplog, passes, said):
    model = attention()
    with watched(model) as watch:
        for seed in range(passes):
            loss_of(model, 1, seed).backward()
            model.zero_grad()
        assert caplog.messages == []
    assert [f"{passes} backward passes and no step" in message for message in caplog.messages] == [True] * said
    assert watch.closed
    assert kept() == []


@pytest.mark.usefixtures("kept")
def test_passes_after_the_last_step_are_no_mistake(caplog):
    model = attention()
    optimizer = sgd(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, 1, lambda: watch.log(loss=1.0))
        for seed in range(3):
            loss_of(model, 1, seed).backward()
    assert caplog.messages == []
