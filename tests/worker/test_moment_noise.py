"""The noise of steps with one part, from Adam's moments, on a quadratic whose noise is known: 26 examples."""

from __future__ import annotations

import dataclasses
import importlib
import json
from itertools import pairwise

import numpy as np
import pytest
import reference
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.noise import FEWEST_STEPS
from gradspectra_core.records import Batch, Columns, LayerBlock
from gradspectra_worker.derive import optimizer_betas
from gradspectra_worker.deriver import Deriver
from gradspectra_worker.moment_noise import MomentNoise
from gradspectra_worker.noise_state import MOMENTS, PARTS, NoiseState
from worker.synthetic import batches, numbers

TABLE = LayerTable.of([Layer("first.weight", "linear", -1, (1, 5)), Layer("rest.weight", "linear", -1, (1, 15))])
ENDS = (0, 5, 20)
BETAS = (0.9, 0.95)
BLOCK = 20
"""Steps that the second moment remembers: 1/(1 − β₂)."""
STATISTICS = ("grad_sq", "part_sq", "moment_sq", "second_moment")
BATCH = 8


def quadratic(steps, seed=0, betas=BETAS, stagger=1):
    """Adam's moments on a linear regression: x ~ N(0, I₂₀), residual variance 0.25, distance 1 from the optimum.

    Gives grad_sq, moment_sq and second_moment of two layers, (steps, 2) each. stagger: of so many steps, a layer's
    moments are known at one, another one for each layer.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, BATCH, 20))
    gradients = (x * (x[..., :1] + 0.5 * rng.normal(size=(steps, BATCH, 1)))).mean(1)
    first, second = np.zeros(20), np.zeros(20)
    found = {name: np.zeros((steps, 2)) for name in ("grad_sq", "moment_sq", "second_moment")}
    for at, gradient in enumerate(gradients):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        m, v = first / (1 - betas[0] ** (at + 1)), second / (1 - betas[1] ** (at + 1))
        for name, entries in (("grad_sq", gradient**2), ("moment_sq", m**2), ("second_moment", v)):
            found[name][at] = [entries[a:b].sum() for a, b in pairwise(ENDS)]
    at = np.arange(steps)[:, None]
    return found | {"present": at % stagger == np.array([0, stagger // 2])}


def stream(run, per_batch=40, examples=BATCH, parts=1, clip=None):
    """Batches of one part per step. clip: the coefficient of each step, (steps,)."""
    steps = len(run["grad_sq"])
    found = []
    for sequence, start in enumerate(range(0, steps, per_batch), 1):
        part = slice(start, start + per_batch)
        number = np.arange(1, steps + 1)[part]
        counts = np.array([[parts], [examples]]) * np.ones(len(number), np.int64)
        known = np.array([[True], [examples > 0]]) & np.ones((2, len(number)), np.bool_)
        values = np.stack([run[name][part] if name in run else np.zeros((len(number), 2)) for name in STATISTICS])
        present = np.ones(values.shape, np.bool_)
        present[1] = False
        present[2:] = run["present"][part]
        nothing = np.zeros((0, len(number), 2))
        block = LayerBlock(
            TABLE.digest, number, STATISTICS, values.astype(np.float32), present, (), nothing.astype(np.int64),
            nothing.astype(np.bool_),
        )  # fmt: skip
        coefficient = np.ones(len(number)) if clip is None else clip[part]
        scalars = Columns(("clip_coefficient",), coefficient[None], np.ones((1, len(number)), np.bool_))
        found.append(
            Batch("s", sequence, int(number[-1]), number, 1e9 + number, scalars, Columns(("parts", "examples"), counts,
            known), TABLE, block)
        )  # fmt: skip
    return found


def follow(found, betas=BETAS, state=None):
    """The noise state after the batches, and the steps at which it said something."""
    state, steps = state or NoiseState(), []
    for batch in found:
        series, layers = state.update(batch, betas)
        assert (series is None) == (layers is None)
        steps += [] if series is None else series[0].tolist()
    return state, steps


@pytest.mark.parametrize("stagger", [1, 8])
def test_the_noise_scale_of_a_known_problem_comes_out_of_adams_moments(stagger):
    state, steps = follow(stream(quadratic(4000, stagger=stagger)))
    tr, signal = (float(average[0]) for average in state.run.averages())
    assert (state.method, state.unit, state.batch) == (MOMENTS, "examples", BATCH)
    assert tr == pytest.approx(26, rel=0.1)
    assert signal == pytest.approx(1, rel=0.35)
    low, high = (float(bound[0]) for bound in state.run.interval())
    assert low < 26 < high
    layers = state.layers.averages()[0]
    assert layers.tolist() == pytest.approx([2.25 + 4 * 1.25, 15 * 1.25], rel=0.2)
    assert steps[0] >= 60 + BLOCK - 1
    assert all(np.diff(steps) >= BLOCK)


def test_the_moving_averages_of_moments_are_over_sixteen_blocks():
    (batch,) = stream(quadratic(1500), per_batch=1500)
    state, moments = NoiseState(), MomentNoise(2)
    blocks = moments.blocks(batch, BETAS, np.full(1500, float(BATCH)))
    taken = [(block.tr_sigma.sum(), block.signal_sq.sum()) for block in blocks]
    state.update(batch, BETAS)
    twin = reference.noise_average(*zip(*taken, strict=True), 16.0, float(np.exp(-1)))
    assert len(taken) > 50
    assert [float(average[0]) for average in state.run.averages()] == pytest.approx(twin[:2], rel=1e-9)
    assert [float(bound[0]) for bound in state.run.interval()] == pytest.approx(twin[3:], rel=1e-9)


@pytest.mark.slow
def test_the_interval_knows_that_moments_agree_from_step_to_step():
    covered, spans = 0, []
    for seed in range(40):
        state, _ = follow(stream(quadratic(700, seed), per_batch=700))
        low, high = (float(bound[0]) for bound in state.run.interval())
        covered += low <= 26 <= high
        spans.append(high / low)
    assert covered >= 34
    assert 1.2 < np.nanmedian(spans) < 12


def test_confidence_is_never_more_than_low_and_the_method_is_named():
    deriver, last = Deriver(), None
    for batch in stream(quadratic(2500), per_batch=100):
        last = deriver.derive(batch, 1, "adam", BETAS).suggestions or last
    run = [one for one in last if one.scope == "run"]
    assert {one.rule for one in run} == {"critical_batch", "norm_test"}
    for one in run:
        assert one.enough_evidence
        assert one.confidence == "low"
        assert one.evidence["method"] == "adam moments"
        assert "from Adam's moments" in one.text
    layers = [one for one in last if one.scope == "layer"]
    assert {one.layer for one in layers} == set(TABLE.names)
    assert {one.confidence for one in layers} <= {"low", None}
    assert "high" in (one.confidence for one in derived_from_parts())


def derived_from_parts():
    deriver, last = Deriver(), None
    for batch in batches(numbers(600), "s", per_batch=100):
        last = deriver.derive(batch, 1, "adam", BETAS).suggestions or last
    assert {one.evidence["method"] for one in last} == {"parts"}
    return last


def test_steps_of_several_parts_are_not_asked_for_moments():
    state, steps = follow(stream(quadratic(300), parts=4))
    assert (steps, state.records) == ([], 0)


def test_once_a_step_had_parts_its_noise_is_that_of_parts_for_good():
    parts = batches(numbers(40), "s")
    state, _ = follow(stream(quadratic(300)))
    assert (state.method, state.records > 0) == (MOMENTS, True)
    follow(parts, state=state)
    assert (state.method, state.records) == (PARTS, 20)
    before = state.run.state()
    _, steps = follow(stream(quadratic(300)), state=state)
    assert (steps, state.method, state.run.state()) == ([], PARTS, before)


def test_nothing_is_said_within_three_times_the_memory_of_the_start_or_of_a_clipped_step():
    run, clip = quadratic(300), np.ones(300)
    clip[149] = 0.5
    _, steps = follow(stream(run, per_batch=7, clip=clip))
    assert [step for step in steps if step < 79] == []
    assert [step for step in steps if 150 <= step < 150 + 60 + BLOCK - 1] == []
    assert min(step for step in steps if step > 150) < 150 + 60 + BLOCK + 1
    assert [step for step in steps if step < 150] == [79, 99, 119, 139]
    clip[149] = np.nan
    assert follow(stream(run, per_batch=7, clip=clip))[1] == steps
    clip[149] = 1.0
    assert len(follow(stream(run, per_batch=7, clip=clip))[1]) > len(steps)


@pytest.mark.parametrize("betas", [None, (0.9, 0.999)])
def test_why_there_is_no_noise_yet_is_said(betas):
    deriver, last = Deriver(), None
    for batch in stream(quadratic(200)):
        last = deriver.derive(batch, 1, "adam", betas).suggestions or last
    assert last[0].text.startswith("Not enough evidence: one part per step")
    assert ("before step 3000" in last[0].text) == (betas is not None)


def test_few_blocks_and_layers_without_moments_are_said():
    deriver, last = Deriver(), None
    for batch in stream(quadratic(60 + 5 * BLOCK)):
        last = deriver.derive(batch, 1, "adam", BETAS).suggestions or last
    assert last[0].text == f"Not enough evidence: 5 blocks of Adam's moments, {FEWEST_STEPS} are needed."
    run = quadratic(200)
    run["present"][:, 1] = False
    deriver = Deriver()
    for batch in stream(run):
        last = deriver.derive(batch, 1, "adam", BETAS).suggestions or last
    assert "Adam's moments of 1 layers of 2 are not known yet" in last[0].text


def test_an_unknown_batch_gives_multiples_of_it():
    state, _ = follow(stream(quadratic(3000), examples=0))
    assert (state.unit, state.batch) == ("batches", 1.0)
    assert float(state.run.averages()[0][0]) == pytest.approx(26 / BATCH, rel=0.15)


def test_a_state_that_was_saved_goes_on_without_any_difference():
    found = stream(quadratic(400, stagger=4), per_batch=13)
    whole, steps = follow(found)
    cut, again = NoiseState(), []
    for batch in found:
        cut = NoiseState.restore(json.loads(json.dumps(cut.state(), allow_nan=False)))
        again += follow([batch], state=cut)[1]
    assert again == steps
    assert cut.state() == whole.state()


def test_a_state_from_before_there_were_moments_is_taken_over():
    state, _ = follow(batches(numbers(40), "s"))
    old = state.state()
    del old["moments"], old["method"]
    assert NoiseState.restore(old).state() == state.state()


def test_layers_that_change_begin_a_new_block():
    *before, after = stream(quadratic(120))
    turned = LayerTable.of(TABLE.layers[::-1])
    assert follow([*before, after])[1] == [79, 99, 119]
    assert follow([*before, dataclasses.replace(after, layer_table=turned)])[1] == [79, 100, 120]


def test_a_watched_run_of_one_part_gives_its_noise_and_its_betas(monkeypatch):
    torch = pytest.importorskip("torch")
    import gradspectra
    from agent.watched_training import KeepingTransport
    from gradspectra.packing import Packer

    monkeypatch.setattr(importlib.import_module("gradspectra.watch"), "Transport", KeepingTransport)
    model = torch.nn.Linear(20, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()[0, 0] = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, betas=(0.9, 0.9), weight_decay=0.0)
    generator = torch.Generator().manual_seed(3)
    with gradspectra.watch(model, optimizer, budget=None, spectra="off", drift="off") as watch:
        for _ in range(200):
            x = torch.randn(BATCH, 20, generator=generator)
            error = model(x).squeeze(1) + 0.5 * torch.randn(BATCH, generator=generator)
            optimizer.zero_grad()
            (error.square().mean() / 2).backward()
            watch.log(examples=BATCH)
            optimizer.step()
    packed = Packer().pack(KeepingTransport.last.records)
    table = packed[0].layer_table
    betas = optimizer_betas(KeepingTransport.last.arguments["environment"])
    assert betas == (0.9, 0.9)
    state, steps = follow([dataclasses.replace(batch, layer_table=table) for batch in packed], betas)
    assert (state.method, state.batch, len(steps)) == (MOMENTS, BATCH, 17)
    low, high = (float(bound[0]) for bound in state.run.interval())
    assert low < 26 < high < 2 * 26


@pytest.mark.parametrize(
    ("environment", "betas"),
    [
        ({"betas": [[0.9, 0.95]]}, (0.9, 0.95)),
        ({"betas": [[0.9, 0.95], [0.9, 0.999]]}, None),
        ({"betas": []}, None),
        ({}, None),
        ({"betas": [[0.0, 0.95]]}, None),
        ({"betas": [[0.9, "NaN"]]}, None),
        ({"betas": "0.9"}, None),
        ({"betas": [[0.9]]}, None),
    ],
)
def test_betas_are_those_that_all_layers_share(environment, betas):
    assert optimizer_betas(environment) == betas
