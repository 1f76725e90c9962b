"""The compiled pass against float64, what it leaves to torch, and what happens where it cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from agent.float64_rows import check_row
from gradspectra import compiling, fused
from gradspectra.compiling import ADAM, CHOICES, LAYER, LINEAR, NO_UPDATE, ROW, NotCompiled, compilation, compiled
from gradspectra.fused import UNKNOWN
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.measure import FirstTier
from torch import nn

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def measure():
    why_not = str(compilation().exception() or "")
    if "no C compiler" in why_not:
        pytest.skip(why_not)
    assert why_not == "", "where there is a compiler there is a pass"
    return compilation().result().measure


def measured(measure, arrays, rule, scale=0.0, epsilon=0.0, decay=0.0):
    layer, row = np.zeros(1, LAYER), np.full((1, len(ROW)), -1.0)
    layer[0] = (*(array.ctypes.data for array in arrays), *arrays[0].shape, rule, scale, epsilon, decay)
    measure(1, layer.ctypes.data, row.ctypes.data, 1)
    return dict(zip(ROW, row[0].tolist(), strict=True))


def drawn(shape, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal(shape, np.float32) for _ in range(3)] + [draw.random(shape, np.float32)]


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2047), (1, 2048), (5, 2049), (64, 300)])
def test_every_sum_is_that_of_float64_whatever_the_size(measure, shape):
    arrays = drawn(shape)
    found = measured(measure, arrays, ADAM, 0.9, 1e-4, 0.1)
    check_row(found, arrays, UNKNOWN._replace(rule=ADAM, scale=0.9, epsilon=1e-4, decay=0.1), near_zero=1e-3)


def test_the_linear_rule_takes_gradient_buffer_and_weights(measure):
    g, w, m, v = drawn((4, 50))
    found = measured(measure, (g, w, m, v), LINEAR, -1.0, 0.9, 0.2)
    d = -1.0 * g.astype(np.float64) + 0.9 * m + 0.2 * w
    assert found["update_sq"] == pytest.approx((d**2).sum(), rel=1e-6)
    assert found["update_dot_grad"] == pytest.approx((d * g).sum(), rel=1e-5)
    assert found["first_sq"] == found["second_sum"] == 0


def test_rows_of_zeros_are_counted_and_minus_zero_is_zero(measure):
    g, w, m, v = drawn((6, 70))
    g[1], g[4] = 0.0, -0.0
    g[5, :69] = 0.0
    assert measured(measure, (g, w, m, v), NO_UPDATE)["grad_zero_rows"] == 2


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_entries_that_are_not_finite_are_counted_and_left_out(measure, bad):
    g, w, m, v = drawn((3, 3000))
    g[1, 17] = g[2, 2999] = bad
    found = measured(measure, (g, w, m, v), NO_UPDATE)
    finite = np.isfinite(g)
    assert found["grad_nonfinite"] == 2
    assert found["grad_sq"] == pytest.approx((g[finite].astype(np.float64) ** 2).sum(), rel=1e-6)
    assert found["grad_l1"] == pytest.approx(np.abs(g[finite].astype(np.float64)).sum(), rel=1e-6)
    assert found["grad_dot_weight"] == pytest.approx((g[finite].astype(np.float64) * w[finite]).sum(), rel=1e-4)
    assert found["grad_max"] == np.abs(g[finite]).max()
    assert not np.isfinite(found["whole_sq"])


def test_the_extremes_of_float32_are_those_of_torch(measure):
    g, w, m, v = drawn((2, 8))
    g[:] = 1e20
    found = measured(measure, (g, w, m, v), NO_UPDATE)
    assert found["grad_sq"] == INF
    assert found["grad_nonfinite"] == 0
    assert found["grad_max"] == np.float32(1e20)
    g[:] = 1e-24
    found = measured(measure, (g, w, m, v), NO_UPDATE)
    assert found["grad_sq"] == 0
    assert found["grad_max"] == np.float32(1e-24), "a layer that is alive"
    w[0, 0] = NAN
    assert np.isnan(measured(measure, (g, w, m, v), NO_UPDATE)["weight_sq"])


class Mixed(nn.Module):
    """What the pass takes and what it leaves."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(6, 5)
        self.low = nn.Linear(6, 5, dtype=torch.bfloat16)
        self.wide = nn.Linear(6, 5, dtype=torch.float64)
        self.last = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.sparse = nn.Embedding(9, 4, sparse=True)


def taken_by(model, optimizer):
    inventory = take_inventory({"": model}, [optimizer], choice_of(None))
    rows = FirstTier(inventory).fused.take(inventory.tensors, optimizer)
    names = {tensor.first: tensor.name for tensor in inventory.tensors}
    return set() if rows is None else {names[first] for first in rows.tensors}


@pytest.mark.usefixtures("measure")
def test_what_is_not_float32_in_plain_order_is_left_to_torch():
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.sparse.weight.grad = torch.ones(9, 4).to_sparse(1)
    assert taken_by(model, optimizer) == {"plain.weight", "plain.bias", "last.bias"}
    model.plain.bias.grad = None
    assert taken_by(model, optimizer) == {"plain.weight", "last.bias"}


@pytest.mark.usefixtures("measure")
@pytest.mark.parametrize("what", ["parameter", "gradient", "state"])
def test_memory_that_has_become_smaller_is_never_read_past_its_end(what):
    model = nn.Linear(30, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    inventory = take_inventory({"": model}, [optimizer], choice_of(None))
    tier = FirstTier(inventory)
    weight, smaller = model.weight, torch.ones(20, 3)
    gradient = weight.grad
    if what == "parameter":
        weight.data = smaller
    elif what == "gradient":
        gradient.data = smaller
    else:
        optimizer.state[weight]["momentum_buffer"] = smaller
    names = {tensor.first: tensor.name for tensor in inventory.tensors}
    assert {names[first] for first in tier.fused.take(inventory.tensors, optimizer).tensors} == {"bias"}
    if what == "gradient":
        assert tier.fused.squares([(inventory.tensors[0], gradient)])[2] == [0]


@pytest.mark.usefixtures("measure")
def test_a_rate_on_the_device_is_left_to_torch():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert taken_by(model, optimizer) == set()


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NotCompiled, match="no C compiler"):
        compiled(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_raises_at_once(monkeypatch):
    import gradspectra

    monkeypatch.setenv("GRADSPECTRA_FUSED", "yes")
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="GRADSPECTRA_FUSED must be auto, off or triton, got 'yes'"):
        gradspectra.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.usefixtures("measure")
def test_a_compiler_that_fails_is_told_with_its_first_words(monkeypatch, tmp_path):
    broken = tmp_path / "fused.c"
    broken.write_text("int main( { }")
    monkeypatch.setattr(compiling, "SOURCES", (broken,))
    with pytest.raises(NotCompiled, match="error"):
        compiled(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir()), "nothing half made is left"


@pytest.mark.usefixtures("measure")
@pytest.mark.parametrize(
    "change",
    [
        ("weight += w[i] * w[i]", "weight += w[i]"),
        ("x[i] * x[i]", "x[i]"),
        ("moved * moved", "moved"),
        ("[i - half] >> 4", "[i - half] & 15"),
    ],
)
def test_a_pass_that_measures_wrong_is_not_used(change, monkeypatch, tmp_path):
    shutil.copy(compiling.SHARED, tmp_path)
    wrong = [tmp_path / source.name for source in compiling.SOURCES]
    texts = [source.read_text() for source in compiling.SOURCES]
    for path, text in zip(wrong, texts, strict=True):
        path.write_text(text.replace(*change))
    assert [path.read_text() for path in wrong] != texts
    monkeypatch.setattr(compiling, "SOURCES", wrong)
    with pytest.raises(NotCompiled, match="it measures"):
        compiled(tmp_path / "kept")


@pytest.mark.usefixtures("measure")
def test_it_is_compiled_once_and_kept_where_nobody_else_can_write(tmp_path):
    kept = tmp_path / "kept"
    compiled(kept)
    (library,) = kept.iterdir()
    made = library.stat().st_mtime_ns
    compiled(kept)
    assert library.stat().st_mtime_ns == made
    assert kept.stat().st_mode & 0o777 == 0o700

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    compiled(shared)
    assert not list(shared.iterdir()), "others could put a library of theirs there"


def test_without_code_for_several_processors_it_works_too(monkeypatch, tmp_path, measure):
    monkeypatch.setattr(compiling, "CHOICES", (("-Dunknown", "-fno-such-flag"), *CHOICES[1:]))
    plain = compiled(tmp_path / "kept").measure
    g, w, m, v = drawn((5, 333))
    arrays = (g, w, m, v)
    one, other = measured(plain, arrays, ADAM, 0.9, 1e-4, 0.1), measured(measure, arrays, ADAM, 0.9, 1e-4, 0.1)
    assert one == pytest.approx(other, rel=1e-5, abs=1e-4)


def test_importing_watch_compiles_nothing_and_a_watch_does_not_wait_for_it(tmp_path):
    code = (
        "import time, torch, gradspectra; from gradspectra import compiling; "
        "compiling.compiled = lambda folder: time.sleep(60); "
        "m = torch.nn.Linear(2, 2); w = gradspectra.watch(m, torch.optim.SGD(m.parameters(), lr=0.1)); "
        "print(w.status()['fused']); w.close(timeout=0.1)"
    )
    environment = os.environ | {"GRADSPECTRA_SPOOL": str(tmp_path), "GRADSPECTRA_SERVER": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "being compiled", done.stderr


@pytest.mark.usefixtures("measure", "kept")
def test_the_status_says_whether_it_is_used(monkeypatch):
    import gradspectra

    model = nn.Linear(2, 2)
    with gradspectra.watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        assert watch.status()["fused"] == "compiled"
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    with gradspectra.watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        assert watch.status()["fused"] == "not compiled: GRADSPECTRA_FUSED is off"


@pytest.mark.usefixtures("measure")
def test_both_ways_give_the_same_numbers(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 70), nn.LayerNorm(70), nn.Linear(70, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().sum().backward()
        optimizer.step()
    inventory = take_inventory({"": model}, [optimizer], choice_of(None))
    one, other = FirstTier(inventory), FirstTier(inventory)
    assert one.take(inventory.tensors, optimizer) is not None
    monkeypatch.setattr(fused.FusedPass, "compiled", property(lambda _: None))
    with torch.no_grad():
        assert other.take(inventory.tensors, optimizer) is None
    a, b = (tier.rows([r.numpy() for r in tier.results()], tier.marks) for tier in (one, other))
    assert np.maximum(-a[1], a[2]) == pytest.approx(np.maximum(-b[1], b[2]))
    for rows in ([0], [3]):
        assert a[rows] == pytest.approx(b[rows], rel=1e-5)
    assert a[4] * one.marks.factor == pytest.approx(b[4] * other.marks.factor, rel=1e-4)
    assert (one.marks.gradient == other.marks.gradient).all()
    assert (one.marks.update == other.marks.update).all()
