"""Training loops of Accelerate, against a plain float64 computation."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from agent.watched_training import KeepingTransport, attention, loss_of
from agent.ways.plain import Plain
from agent.ways.way import Way, way

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
accelerate = pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'gradspectra[integrations]'"
)
ROW = "Accelerate (integrations.accelerate.watch)"


@pytest.fixture(autouse=True)
def _afresh():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(**arguments):
    accelerator = accelerate.Accelerator(cpu=True, **arguments)
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    return accelerator, *accelerator.prepare(model, optimizer)


def open_watch(accelerator, model, optimizer):
    from gradspectra.integrations.accelerate import watch

    return watch(accelerator, model, optimizer, project="tests", budget=None, spectra="off")


def train(accelerator, model, optimizer, first, last, accumulated, limit=None):
    plain, expected = Plain(accelerator.unwrap_model(model)), []
    for micro in range(first, last):
        step, part = divmod(micro, accumulated)
        if part == 0:
            seeds = range(step * accumulated, (step + 1) * accumulated)
            expected.append(
                plain.step(
                    accelerator.unwrap_model(model), *[lambda m, s=s: loss_of(m, 4, s) / accumulated for s in seeds]
                )
            )
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, 4, micro))
            if limit and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()
        expected[-1].after = plain.weights(accelerator.unwrap_model(model))
    return expected


@way(ROW)
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("limit", [None, 0.05])
def test_a_loop_of_accelerate(accumulated, limit, kept, the_way: Way):
    accelerator, model, optimizer = prepared(gradient_accumulation_steps=accumulated)
    with open_watch(accelerator, model, optimizer):
        expected = train(accelerator, model, optimizer, 0, 3 * accumulated, accumulated, limit)
    assert [record.step for record in kept()] == [1, 2, 3]
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=1e-4, parts=accumulated > 1 and index > 0)
        assert record.counts["parts"] == accumulated
    first = attention()
    losses = [float(loss_of(first, 4, seed).detach()) for seed in range(accumulated)]
    assert kept()[0].scalars["loss"] == pytest.approx(sum(losses) / accumulated, rel=1e-5)


@way(ROW)
def test_bfloat16_and_a_saved_state(kept, tmp_path, the_way: Way):
    accelerator, model, optimizer = prepared(mixed_precision="bf16")
    with open_watch(accelerator, model, optimizer):
        expected = train(accelerator, model, optimizer, 0, 3, 1)
        accelerator.save_state(tmp_path / "state")
    for record, step in zip(kept(), expected, strict=True):
        assert record.scalars["grad_norm"] == pytest.approx(step.norm, rel=0.05)
    accelerator, model, optimizer = prepared(mixed_precision="bf16")
    with open_watch(accelerator, model, optimizer):
        accelerator.load_state(tmp_path / "state")
        train(accelerator, model, optimizer, 3, 5, 1)
    assert [record.step for record in kept()] == [4, 5]
    assert KeepingTransport.last.arguments["start_step"] == 3
    assert the_way.layers


def test_a_state_that_is_loaded_in_the_middle_moves_nothing(kept, tmp_path, caplog):
    accelerator, model, optimizer = prepared()
    with open_watch(accelerator, model, optimizer):
        train(accelerator, model, optimizer, 0, 2, 1)
        accelerator.save_state(tmp_path / "state")
        train(accelerator, model, optimizer, 2, 4, 1)
        accelerator.load_state(tmp_path / "state")
        assert "load_state_dict must come before the first step, 4 were taken" in caplog.text
        train(accelerator, model, optimizer, 2, 4, 1)
    accelerator.load_state(tmp_path / "state")
    assert [record.step for record in kept()] == [1, 2, 3, 4, 5, 6]


def test_states_saved_with_and_without_a_watch_load_without_and_with_one(kept, tmp_path, caplog):
    accelerator, model, optimizer = prepared()
    train(accelerator, model, optimizer, 0, 2, 1)
    accelerator.save_state(tmp_path / "without")
    for _ in range(2):  # the second is alone again: the first is closed
        with open_watch(accelerator, model, optimizer):
            train(accelerator, model, optimizer, 2, 4, 1)
        accelerator.save_state(tmp_path / "with")
        accelerator.load_state(tmp_path / "with")  # the watch is closed: it takes nothing
    accelerator, model, optimizer = prepared()
    accelerator.load_state(tmp_path / "with")
    for folder, start in (("without", 2), ("with", 6)):
        accelerator, model, optimizer = prepared()
        with open_watch(accelerator, model, optimizer):
            accelerator.load_state(tmp_path / folder)
            train(accelerator, model, optimizer, 2, 4, 1)
        assert [record.step for record in kept()] == [start + 1, start + 2]
    assert "load_state failed" not in caplog.text


@pytest.mark.usefixtures("kept")
def test_two_watches_of_one_accelerator_keep_a_state_each(tmp_path):
    def two(first, last):
        accelerator = accelerate.Accelerator(cpu=True)
        models = [attention(), attention()]
        both = [(m, torch.optim.AdamW(m.parameters(), lr=0.03)) for m in models]
        both = [accelerator.prepare(*pair) for pair in both]
        with open_watch(accelerator, *both[0]) as one, open_watch(accelerator, *both[1]) as other:
            if first:
                accelerator.load_state(tmp_path / "state")
            for _ in range(last - first):
                train(accelerator, *both[1], 0, 1, 1)
            accelerator.save_state(tmp_path / "state")
            return one.state_dict()["step"], other.state_dict()["step"]

    assert two(0, 3) == (0, 3)
    assert two(3, 5) == (0, 5)


@pytest.mark.usefixtures("kept")
def test_a_closed_watch_lets_its_model_go():
    from gradspectra.integrations import accelerate as integration

    accelerator, model, optimizer = prepared()
    with open_watch(accelerator, model, optimizer):
        train(accelerator, model, optimizer, 0, 1, 1)
    gone = weakref.ref(accelerator.unwrap_model(model))
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    other, second, optimizer = prepared()
    with open_watch(other, second, optimizer):
        train(other, second, optimizer, 0, 1, 1)
        assert len(integration.patch.observers) == 1
        assert not accelerator._save_model_state_pre_hook
        assert not accelerator._load_model_state_pre_hook
    KeepingTransport.last = None
    del accelerator, model
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("kept")
def test_what_is_no_accelerator_is_named():
    from gradspectra.integrations.accelerate import watch

    with pytest.raises(TypeError, match=r"accelerator must be an accelerate.Accelerator, got 7"):
        watch(7, attention(), None)
