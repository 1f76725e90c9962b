"""The start of drift in 20 bits a number: how exact that is, what it takes, and that checkpoints bring it."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from agent.watched_training import column, value, watched
from gradspectra.drift import sample
from gradspectra.starts import before, coded, decoded, extent, in_steps, is_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

NAN, INF = float("nan"), float("inf")


def drawn(kind, shape):
    """Weights to start from."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "uniform":
        return torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    if kind == "an outlier":
        normal.view(-1)[0] = 1000.0
    if kind == "heavy tails":
        return normal / torch.rand(shape, generator=generator, dtype=torch.float64)
    return normal * {"tiny": 1e-12, "huge": 1e12, "zero": 0.0, "too small to square": 1e-30}.get(kind, 1.0)


KINDS = ["normal", "uniform", "an outlier", "heavy tails", "tiny", "huge", "zero"]
CASES = [(dtype, kind) for dtype in (torch.float32, torch.float64, torch.bfloat16) for kind in KINDS]
CASES += [(torch.float16, kind) for kind in ("normal", "uniform", "zero")]
SHAPES = {"large": (700, 640), "middle": (136, 128), "whole": (30, 40), "short": (37,), "one": (1,)}
"""Of which the first has a sample of 7,344 entries, the second of 5,792, and the others are kept whole."""


class Weights(nn.Module):
    """Layers of all shapes and nothing else."""

    def __init__(self, kind, dtype):
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(drawn(kind, shape).to(dtype)))


def moved_by(model, changes):
    """One step of an optimizer that adds these to the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter, change in zip(model.parameters(), changes, strict=True):
        parameter.grad = -change.to(parameter.dtype)
    return optimizer


def sampled(model):
    """The sample of each layer in float64, and what it is scaled up by."""
    found = {}
    for name, parameter in model.named_parameters():
        chosen = sample(parameter.detach().view(-1)).double().clone()
        found[name] = chosen, parameter.numel() / chosen.numel()
    return found


def measured(model, optimizer, kept, steps=1, **options):
    with watched(model, optimizer, **options) as watch:
        for _ in range(steps):
            optimizer.step()
        state = watch.state_dict()
    return kept()[-1], state


def same(found, expected):
    """Whether the first is the second, NaN and absence too."""
    return found.keys() == expected.keys() and all(
        a == b or (a is not None and b is not None and np.isnan(a) and np.isnan(b))
        for a, b in zip(found.values(), expected.values(), strict=True)
    )


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("drift", [1e-4, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_drift_of_a_ten_thousandth_is_within_a_hundredth_of_that_of_float64(dtype, kind, drift, kept):
    model, generator = Weights(kind, dtype), torch.Generator().manual_seed(4)
    changes = []
    for parameter in model.parameters():
        size = float(parameter.detach().double().norm()) or 1.0
        change = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        changes.append(change * drift * size / parameter.numel() ** 0.5)
    start = sampled(model)
    record, _ = measured(model, moved_by(model, changes), kept)
    for name, (now, scale) in sampled(model).items():
        square = scale * float((now - start[name][0]).square().sum())
        assert value(record, "drift_sq", name) == pytest.approx(square, rel=0.01, abs=1e-37)
        product = scale * float((now * start[name][0]).sum())
        within = 1e-5 * scale * float(now.norm() * start[name][0].norm())
        found = value(record, "weight_dot_init", name)
        assert found is None if product == 0 else found == pytest.approx(product, rel=1e-5, abs=within)


@pytest.mark.parametrize("shrunk", [1e-3, 1e-2])
@pytest.mark.usefixtures("either_way")
def test_weights_that_shrink_and_rows_that_move_alone_are_as_exact(shrunk, kept):
    model = Weights("normal", torch.float32)
    changes = [-shrunk * parameter.detach() for parameter in model.parameters()]
    changes[0] = torch.zeros_like(changes[0])
    changes[0][:70] = 0.1
    start = sampled(model)
    record, _ = measured(model, moved_by(model, changes), kept)
    for name, (now, scale) in sampled(model).items():
        square = scale * float((now - start[name][0]).square().sum())
        assert value(record, "drift_sq", name) == pytest.approx(square, rel=0.01)


@pytest.mark.parametrize("kind", [*KINDS, "too small to square"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("begun", "gone_on"), [("auto", "auto"), ("auto", "off"), ("off", "auto"), ("off", "off")])
def test_weights_that_did_not_move_have_come_no_way_whatever_measures_them(
    begun, gone_on, dtype, kind, kept, monkeypatch
):
    model, state = Weights(kind, dtype), None
    for way in (begun, gone_on):
        monkeypatch.setenv("GRADSPECTRA_FUSED", way)
        optimizer = moved_by(model, [torch.zeros_like(p) for p in model.parameters()])
        with watched(model, optimizer) as watch:
            if state is not None:
                watch.load_state_dict(state)
            optimizer.step()
            state = watch.state_dict()
        assert set(column(kept()[-1], "drift_sq").values()) == {0.0}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("after", [NAN, 0.5])
@pytest.mark.parametrize("lost", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_start_that_is_not_finite_gives_what_it_gives_uncoded(dtype, lost, after, kept):
    def run(**options):
        model = Weights("normal", dtype)
        with torch.no_grad():
            model.whole[3, 4] = lost
        optimizer = moved_by(model, [torch.full_like(p, 0.01) for p in model.parameters()])
        with watched(model, optimizer, **options) as watch:
            optimizer.step()
            with torch.no_grad():
                model.whole[3, 4] = after if not np.isnan(after) else lost
            optimizer.step()
        assert not [reason for reason in watch.status()["not_measured"] if "drift" in reason]
        return [
            {name: column(kept()[-1], statistic)[name] for name in ("whole", "short", "one")}
            for statistic in ("drift_sq", "weight_dot_init")
        ]

    (drift, product), (exact, of_exact) = run(), run(drift="exact")
    assert not np.isfinite(drift["whole"])
    assert same({"whole": drift["whole"]}, {"whole": exact["whole"]})
    assert same({"whole": product["whole"]}, {"whole": of_exact["whole"]})
    assert drift["short"] == pytest.approx(exact["short"], rel=1e-3)


def bytes_of(start):
    if isinstance(start, torch.Tensor):
        return start.untyped_storage().nbytes()
    return bytes_of(start["upper"]) + bytes_of(start["lower"])


@pytest.mark.usefixtures("either_way")
def test_a_start_takes_two_and_a_half_bytes_a_number_and_what_cannot_be_coded_its_own(kept):
    def state(kind, dtype, **options):
        model = Weights(kind, dtype)
        optimizer = moved_by(model, [torch.zeros_like(p) for p in model.parameters()])
        starts = measured(model, optimizer, kept, **options)[1]["drift"]
        sizes = {name: chosen.numel() for name, (chosen, _) in sampled(model).items()}
        return {name: bytes_of(start) / sizes[name] for name, start in starts.items()}, starts

    for dtype in (torch.float32, torch.float64):
        found, starts = state("normal", dtype)
        assert [found[name] for name in ("large", "middle", "whole")] == pytest.approx([2.5] * 3, rel=0.002)
        assert starts["short"].dtype is dtype
    found, starts = state("an outlier", torch.float32)
    assert set(found.values()) == {4.0}
    for dtype in (torch.bfloat16, torch.float16):
        found, starts = state("normal", dtype)
        assert (set(found.values()), {start.dtype for start in starts.values()}) == ({2.0}, {dtype})
    found, starts = state("normal", torch.float32, drift="exact")
    assert {start.dtype for start in starts.values()} == {torch.float32}
    assert starts["large"].numel() == 700 * 640


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("form", ["present", "older"])
def test_a_checkpoint_of_either_form_brings_the_start(form, kept):
    model = Weights("normal", torch.float32)
    start = sampled(model)
    optimizer = moved_by(model, [torch.full_like(p, 1e-3) for p in model.parameters()])
    state = measured(model, optimizer, kept)[1]
    assert not isinstance(state["drift"]["large"], torch.Tensor)
    if form == "older":
        state["drift"] = {name: chosen.float() for name, (chosen, _) in start.items()}
    file = io.BytesIO()
    torch.save(copy.deepcopy(state), file)
    file.seek(0)
    with watched(model, optimizer) as watch:
        watch.load_state_dict(torch.load(file, weights_only=True))
        optimizer.step()
        again = watch.state_dict()["drift"]
    assert bytes_of(again["large"]) == pytest.approx(2.5 * start["large"][0].numel(), rel=0.002)
    for name, (now, scale) in sampled(model).items():
        square = scale * float((now - start[name][0]).square().sum())
        assert value(kept()[-1], "drift_sq", name) == pytest.approx(square, rel=0.01)


def test_a_start_of_another_shape_is_not_taken():
    numbers = torch.randn(40, 16)
    start = coded(numbers, 2.0**-17)
    assert is_of(start, numbers)
    assert is_of(coded(numbers.view(-1), 2.0**-17), numbers.view(-1))
    assert not is_of(start, numbers[1:])
    assert not is_of(start, numbers.view(-1))
    assert not is_of(start, torch.empty(0))
    assert not is_of(None, numbers)


@given(
    numbers=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=70),
    rows=st.integers(1, 3),
    exponent=st.integers(-9, 9),
)
def test_a_coded_number_is_within_half_a_step_and_at_the_top_within_one(numbers, rows, exponent):
    now, step = torch.tensor([numbers] * rows), 2.0**exponent
    now = now.clamp(-(2**19) * step, 2**19 * step)
    start = coded(now, step)
    found = before(start, 0, rows, now.dtype)
    allowed = torch.where(now > (2**19 - 1) * step, step, step / 2)
    assert bool(((found - now).abs() <= allowed).all())
    assert float(start["lost"]) == pytest.approx(float((found - now).double().square().sum()), rel=1e-5)


def test_numpy_decodes_starts_on_the_host_to_the_same_bits_one_after_another():
    shapes = ((1,), (2,), (4097,), (7, 16), (330, 16))
    starts = [coded(drawn("normal", shape).float(), 2.0**-exponent) for exponent, shape in enumerate(shapes, 15)]
    expected = [before(start, 0, len(start["upper"]), torch.float32).view(-1) for start in starts]
    found = decoded(starts)
    assert found.dtype == np.float32
    assert found.tobytes() == torch.cat(expected).numpy().tobytes()


@pytest.mark.parametrize("lost", [NAN, INF, -INF])
def test_weights_that_are_not_finite_any_more_have_come_no_finite_way_and_nothing_warns(lost, monkeypatch, kept):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    model = Weights("normal", torch.float32)
    optimizer = moved_by(model, [torch.zeros_like(p) for p in model.parameters()])
    with watched(model, optimizer):
        optimizer.step()
        with torch.no_grad():
            model.whole[:2, :2] = torch.tensor([[lost, INF], [-INF, 1e38]])
        optimizer.step()
    assert not np.isfinite(column(kept()[-1], "drift_sq")["whole"])


def test_what_lies_between_numbers_and_steps_is_small_beside_what_a_drift_is_told_from():
    """The rule itself: four standard deviations of what is lost are below 1% of a drift of 1e-4."""
    for kind in ("normal", "uniform"):
        numbers = drawn(kind, (4112,)).float()
        start = in_steps(numbers, *extent(numbers).tolist())
        assert not isinstance(start, torch.Tensor)
        deviation = start["step"] / (3**0.5 * 1e-4 * float(numbers.norm()))
        assert 4 * deviation < 0.01
        assert float(start["lost"]) == pytest.approx(4112 * start["step"] ** 2 / 12, rel=0.1)
