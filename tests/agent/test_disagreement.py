"""Steps whose layers do not give the total norm of the gradient: what would be a wrong curve is left out, and told."""

from __future__ import annotations

from collections.abc import Iterator

import gradspectra
import numpy as np
import pytest
import torch
from agent.scripted_server import ScriptedServer
from agent.service import service
from agent.watched_training import attention, loss_of, watched
from gradspectra import Client
from gradspectra.unmeasured import LONGEST, MOST, unmeasured_of
from gradspectra_core.detectors import DetectorSet, LayerObservation, Observation
from torch.nn.utils import clip_grad_norm_


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


KNOWN = {"weight_sq", "update_sq", "drift_sq", "grad_zero_rows", "moment_sq", "second_moment", "second_moment_median"}
UNKNOWN = {"grad_sq", "grad_max", "grad_l1", "grad_dot_weight", "update_dot_grad"}


def train(model, optimizer, watch, factors):
    """Steps at which somebody multiplies the gradients by a factor after they were clipped."""
    for step, factor in enumerate(factors):
        loss = loss_of(model, 6, step)
        loss.backward()
        watch.log(loss=loss)
        clip_grad_norm_(model.parameters(), 0.1)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("either_way")
def test_what_depends_on_the_size_of_the_gradient_is_left_out_at_such_a_step_and_nothing_else(kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    options = {"spectra": 1, "spectra_of": ("gradient", "weight"), "budget": None}
    with watched(model, optimizer, **options) as watch:
        train(model, optimizer, watch, (1.0, 3.0, 1.005))
    first, second, third = kept()
    here = [
        {name for name, row in zip(record.statistics, record.present, strict=True) if row.any()}
        for record in (first, second, third)
    ]
    assert here[0] >= UNKNOWN | (KNOWN - {"grad_zero_rows"})
    assert here[0] - here[1] == UNKNOWN
    assert here[2] == here[0], "half a percent is rounding"
    assert not second.values[~second.present].any()
    assert {spectrum.of for spectrum in first.spectra} == {"gradient", "weight"}
    assert {spectrum.of for spectrum in second.spectra} == {"weight"}
    assert second.scalars["grad_norm"] == pytest.approx(first.scalars["grad_norm"], rel=0.9)
    assert second.counts_present.any()
    assert watch.status()["norms_that_disagreed"] == 1


def test_a_layer_whose_gradient_is_withheld_is_not_taken_for_dead():
    detectors, found = DetectorSet(("dead_layer",)), []
    for step in range(1, 200):
        sizes = np.array([True, True, True]) if step < 20 else np.array([False, True, False])
        counts = np.array([True, True, step < 20])
        layers = LayerObservation(
            ("withheld", "alive", "dead"),
            grad_max=sizes.astype(np.float64),
            grad_max_present=sizes,
            grad_nonfinite=np.zeros(3, np.int64),
            grad_nonfinite_present=counts,
        )
        found += detectors.observe(Observation(step, layers=layers))
    assert [finding.layers for finding in found] == [("dead",)]


def test_the_server_tells_what_is_not_measured_and_how_often_norms_disagreed(tmp_path):
    model = attention()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
    with service(tmp_path / "data") as url:
        with gradspectra.watch(model, optimizer, server=url, spool=tmp_path / "spool", project="tests") as watch:
            train(model, optimizer, watch, (1.0, 3.0, 2.0))
        (run,) = Client(url).runs(project="tests")
        (attempt,) = run.attempts()
    assert attempt["not_measured"] == list(unmeasured_of(watch._session).not_measured)
    assert any("Adagrad" in reason for reason in attempt["not_measured"])
    assert attempt["norms_that_disagreed"] == 2


def test_of_very_many_reasons_the_first_are_told_and_how_many_there_are(kept):
    model = attention()
    with watched(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        watch._session.not_measured = lambda: [f"{at} " + "x" * LONGEST for at in range(MOST + 5)]
        said = unmeasured_of(watch._session)
    assert kept() == []
    assert len(said.not_measured) == MOST
    assert {len(reason) for reason in said.not_measured[:-1]} == {LONGEST}
    assert said.not_measured[-1] == "and 6 more: watch.status() has them all"


def test_heartbeats_carry_it_where_it_is_new(server: ScriptedServer, tmp_path, monkeypatch):
    monkeypatch.setattr("gradspectra.transport.HEARTBEAT", 0.05)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradspectra.watch(model, optimizer, server=server.url, spool=tmp_path / "spool") as watch:
        watch.step()
        server.wait_for(lambda: len(server.heartbeats) >= 4)
        watch._session.disagreements = 7
        server.wait_for(lambda: any(beat.get("norms_that_disagreed") == 7 for beat in server.heartbeats))
    carried = [beat["norms_that_disagreed"] for beat in server.heartbeats if "not_measured" in beat]
    assert carried == [0, 7]
