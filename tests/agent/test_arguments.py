"""Every argument of what a user makes, with every odd value: refused at once by its name, or of no harm later."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradspectra
import pytest
import torch
from agent.odd_values import odd_values, traces
from agent.watched_training import attention, loss_of
from gradspectra.client import Client
from gradspectra.recorder import Recorder
from gradspectra.together import Silent
from gradspectra_backend.routes.lifecycle import RunStart
from gradspectra_core.records import Batch
from gradspectra_core.wire import decode_batch, encode_batch
from gradspectra_store.runs import RunRequest, _checked

DRIFTS = {"mapping", "nan within", "circle", "unreadable"}
WHOLE = {"one", "numpy int", "enum int"}
NAMES = {"x", "(", "emoji", "numpy text", "text", "enum text", "file", "below a file", "folder"}
REACTIONS = {"none", "type", "module", "of one", "scaler type"}
SENDING = {
    "project": NAMES,
    "run": NAMES | {"none"},
    "config": {"none", "mapping", "nan within"},
    "tags": {"texts", "no list", "tuple", "set"},
    "notes": NAMES | {"empty", "blank", "new line", "10,000 characters"},
    "total_steps": WHOLE | {"none"},
    "server": {"none", "empty"},
    "token": (NAMES - {"emoji"}) | {"none", "empty", "blank", "10,000 characters"},
    "resume": NAMES | {"none"},
    "spool": (NAMES - {"file", "below a file"})
    | {"none", "empty", "blank", "new line", "path"}
    | {"10,000 characters", "half a character"},
    "on_alert": REACTIONS,
    "stop_on": {"none"},
}
OF_WATCH = SENDING | {
    "model": {"module"},
    "optimizer": {"none", "no list", "tuple", "optimizer"},
    "every": WHOLE,
    "budget": {"none", "one", "half", "numpy float", "enum int", "fraction"},
    "spectra": WHOLE | {"numpy text", "text", "enum text"},
    "spectra_of": set[str](),
    "layers": (NAMES - {"("})
    | {"none", "empty", "blank", "new line", "nul", "10,000 characters", "half a character"}
    | {"of one", "expression"},
    "batch_size": WHOLE | {"none", "type", "module", "module type", "of one", "of none", "scaler type"},
    "parts": WHOLE | {"numpy text", "text", "enum text"},
    "drift": set[str](),
    "second_tier": {"numpy text", "text", "enum text"},
    "scaler": {"none"},
    "start_step": WHOLE | {"none", "zero"},
    "enabled": {"true", "false"},
}
OF_RECORDER = SENDING | {
    "layers": {"none", "texts", "no list", "tuple", "set"},
    "start_step": WHOLE | {"zero"},
}
OF_CLIENT = {
    "server": SENDING["server"],
    "token": SENDING["token"],
    "timeout": WHOLE | {"half", "numpy float", "fraction"},
}


class Kept(Silent):
    """Checks all that the sending side checks, and sends nothing."""

    last: Kept

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        Kept.last = self

    def record(self, record: Any) -> None:
        self._queue.put(record)

    def batches(self) -> list[Batch]:
        """What would be sent."""
        found = self._packer.pack(*self._queue.take())
        assert self._packer.failed == 0
        return found

    def request(self) -> RunRequest:
        """The request for the run as the server takes it; raises where it does not."""
        sent = RunStart.model_validate(json.loads(json.dumps(self._request.to_json(), allow_nan=False)))
        members = sent.model_dump() | {"name": sent.name or "run"}
        return _checked(RunRequest(**{name: members[name] for name in members if name != "version"}))


@pytest.fixture(autouse=True)
def _nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("gradspectra.watch", "gradspectra.recorder"):
        monkeypatch.setattr(importlib.import_module(name), "Transport", Kept)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_refused(error: BaseException, argument: str, value: str) -> None:
    assert type(error) in (TypeError, ValueError), f"{argument}={value}: {error!r}"
    begins = (argument, f"a {argument}", "a layer must", "layer names", "layers(")
    assert str(error).startswith(begins), f"{argument}={value}: {error}"
    assert len(str(error)) < 500, f"{argument}={value}: {len(str(error))} characters"


def trained(watch: Any, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights after three steps, with a log of each."""
    for step in range(3):
        loss = loss_of(model, 4, step)
        loss.backward()
        if watch is not None:
            watch.log(loss=loss, tokens=7)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_no_argument_is_forgotten():
    for made, known in ((gradspectra.watch, OF_WATCH), (Recorder, OF_RECORDER), (Client, OF_CLIENT)):
        assert set(inspect.signature(made).parameters) == known.keys()


@pytest.mark.parametrize("argument", OF_WATCH)
def test_an_odd_argument_of_watch_is_refused_at_once_or_harms_nothing(argument, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    model = attention()
    expected = trained(None, model, torch.optim.SGD(model.parameters(), lr=0.1))
    accepted = set()
    for name, value in odd_values(tmp_path).items():
        model = attention()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = list(traces(model, optimizer))
        try:
            watch = gradspectra.watch(**({"model": model, "optimizer": optimizer} | {argument: value}))
        except Exception as error:
            assert_refused(error, argument, name)
            assert list(traces(model, optimizer)) == before, f"{argument}={name} leaves something behind"
            continue
        accepted.add(name)
        assert all(map(torch.equal, trained(watch, model, optimizer), expected)), f"{argument}={name}"
        failed = set(watch._guard._failures)
        watch.close()
        assert failed <= ({"batch_size"} if argument == "batch_size" else set()), f"{argument}={name}: {failed}"
        assert list(traces(model, optimizer)) == before, f"{argument}={name} leaves something behind"
        Kept.last.request()
        steps = [step for batch in Kept.last.batches() for step in decode_batch(encode_batch(batch)).steps.tolist()]
        start = int(value) if argument == "start_step" and value is not None else 0
        own = argument in ("model", "optimizer") or (argument, name) == ("enabled", "false")
        assert own or steps == [start + 1, start + 2, start + 3], f"{argument}={name}: {steps}"
    assert accepted == OF_WATCH[argument]


@pytest.mark.parametrize("argument", OF_RECORDER)
def test_an_odd_argument_of_a_recorder_is_refused_at_once_or_harms_nothing(argument, tmp_path):
    accepted = set()
    for name, value in odd_values(tmp_path).items():
        try:
            recorder = Recorder(**{argument: value})
        except Exception as error:
            assert_refused(error, argument, name)
            continue
        accepted.add(name)
        recorder.record(5, loss=1.0)
        recorder.close()
        Kept.last.request()
        assert [batch.steps.tolist() for batch in Kept.last.batches()] == [[5]]
    assert accepted == OF_RECORDER[argument]


@pytest.mark.parametrize("argument", OF_CLIENT)
def test_an_odd_argument_of_a_client_is_refused_at_once(argument, tmp_path):
    accepted = set()
    for name, value in odd_values(tmp_path).items():
        try:
            Client(**{argument: value})
        except Exception as error:
            assert_refused(error, argument, name)
        else:
            accepted.add(name)
    assert accepted == OF_CLIENT[argument]


def test_a_watch_takes_any_odd_thing_that_is_logged(tmp_path, caplog):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gradspectra.watch(model, optimizer)
    for value in odd_values(tmp_path).values():
        watch.log(own=value)
        watch.log(loss=1.0, step=value)
        watch.log(tokens=value, part_weight=value, examples=value)
        loss = loss_of(model, 4, 1)
        loss.backward()
        watch.log(loss=2.0)
        optimizer.step()
        optimizer.zero_grad()
    watch.close()
    assert not watch._guard._failures
    batches = [decode_batch(encode_batch(batch)) for batch in Kept.last.batches()]
    assert sum(len(batch.steps) for batch in batches) == len(odd_values(tmp_path))
    assert caplog.text.count("log(own=...) is not recorded") == 1


@pytest.mark.parametrize("what", ["timeout", "state"])
def test_a_close_with_odd_arguments_closes_and_says_what_was_wrong(what, tmp_path, caplog):
    good = {"timeout": WHOLE | {"zero", "minus", "half", "inf", "1e300", "1e30 whole", "400 digits", "5000 digits"}}
    good["timeout"] |= {"numpy float", "fraction"}
    said = set()
    for name, value in odd_values(tmp_path).items():
        caplog.clear()
        model = attention()
        watch = gradspectra.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
        watch.close(**{what: value})
        assert watch.closed
        assert not watch._guard._failures
        if f"{what} must be" in caplog.text:
            said.add(name)
        recorder = Recorder()
        if name in said:
            with pytest.raises((TypeError, ValueError), match=f"{what} must be"):
                recorder.close(**{what: value})
            recorder.close()
        else:
            recorder.close(**{what: value})
    assert said == odd_values(tmp_path).keys() - good.get(what, set())


def test_a_state_that_is_of_no_watch_is_refused(tmp_path):
    model = attention()
    good = {"version": 1, "run_id": "x", "step": 3, "tokens": 0, "drift": {}}
    with gradspectra.watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        whole = WHOLE | {"zero"}
        for name, value in odd_values(tmp_path).items():
            states = [value, good | {"version": value}, good | {"step": value}, good | {"tokens": value}]
            right = [False, name in WHOLE - {"numpy int"}, name in whole, name in whole | {"minus"} or "digits" in name]
            right[3] |= name == "1e30 whole"
            for state, fine in zip([*states, good | {"drift": value}], [*right, name in DRIFTS], strict=True):
                if fine:
                    watch.load_state_dict(state)
                else:
                    with pytest.raises(ValueError, match=r"state must come from watch\.state_dict\(\), got"):
                        watch.load_state_dict(state)
        watch.load_state_dict(good)
        trained(watch, model, watch._session.optimizers[0])
    assert [step for batch in Kept.last.batches() for step in batch.steps] == [4, 5, 6]


@pytest.mark.parametrize("given", [float("nan"), float("inf"), -1, 0, 1 << 60, "many", None, torch.ones(2)])
def test_a_batch_size_that_is_none_leaves_the_rest_of_the_step(given, caplog):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradspectra.watch(model, optimizer, batch_size=lambda _: given) as watch:
        for _ in range(5):
            trained(watch, model, optimizer)
    (batch,) = Kept.last.batches()
    assert len(decode_batch(encode_batch(batch)).steps) == 15
    assert "examples" not in batch.counts.names
    assert ("batch_size failed" in caplog.text) == (given is not None)


@pytest.mark.parametrize(
    ("begin", "make"),
    [
        ("step", lambda value: {"step": value}),
        ("time", lambda value: {"time": value}),
        ("loss", lambda value: {"loss": value}),
        ("tokens", lambda value: {"tokens": value}),
        ("layers", lambda value: {"layers": value}),
        ("layers['grad_sq']", lambda value: {"layers": {"grad_sq": value}}),
        ("layers['grad_sq']", lambda value: {"layers": {"grad_sq": [0, value]}}),
        ("layers['grad_nonfinite']", lambda value: {"layers": {"grad_nonfinite": [0, value]}}),
        ("spectra", lambda value: {"spectra": value}),
        ("spectra['a']", lambda value: {"spectra": {"a": value}}),
        ("spectra['a']", lambda value: {"spectra": {"a": [value]}}),
    ],
)
def test_a_recorder_names_what_it_does_not_take_and_sends_the_rest(begin, make, tmp_path):
    for name, value in odd_values(tmp_path).items():
        if name in ("large tensor", "unreadable"):  # the one would be as large as it says, of the other the error is
            continue
        recorder = Recorder(layers=["a", "b"])
        try:
            recorder.record(**({"step": 1} | make(value)))
        except Exception as error:
            assert_refused(error, begin, name)
        else:
            assert all(decode_batch(encode_batch(batch)) for batch in Kept.last.batches())
