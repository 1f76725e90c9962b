"""The pass in pieces, which is taken where nothing is compiled, against float64 and against the compiled one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent.float64_rows import check_row
from gradspectra import fused, piecewise
from gradspectra.compiling import ADAM, LINEAR, MOST_BLOCKS, ROW
from gradspectra.fused import UNKNOWN
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.measure import FirstTier
from gradspectra.piecewise import PIECE, SMALL, TOGETHER, Numbers, layers_of, measure_in_pieces
from gradspectra.updates import Coefficients
from torch import nn

NAN, INF = float("nan"), float("inf")
OF_ADAM = Coefficients(ADAM, 0.9, 1e-4, 0.1, 1.0, (1.0, 1.0))
SIZES = [(1, 1), (3, 1), (5, 2049), (1, SMALL), (64, 300), (2, PIECE), (3, PIECE + 7)]


def drawn(shape, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal(shape, np.float32) for _ in range(3)] + [draw.random(shape, np.float32)]


def layer(arrays, update):
    return Numbers(*(torch.from_numpy(array.ravel()) for array in arrays), arrays[0].shape[1], update)


def measured(arrays, update):
    rows, medians = measure_in_pieces([layer(arrays, update)])
    return dict(zip(ROW, rows[0].tolist(), strict=True)) | {"median": medians[0]}


def agree(found, g, w, m, v, update=OF_ADAM):
    check_row(found, (g, w, m, v), update, near_zero=max(2e-3, 1e-8 * g.size))


def test_one_thread_measures_whatever_threads_there_are_and_they_are_as_many_afterwards(monkeypatch):
    arrays, before, seen = drawn((5, PIECE + 7)), torch.get_num_threads(), []
    sums = piecewise._sums
    monkeypatch.setattr(piecewise, "_sums", lambda *given: seen.append(torch.get_num_threads()) or sums(*given))
    try:
        torch.set_num_threads(3)
        agree(measured(arrays, OF_ADAM), *arrays)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_sum_is_that_of_float64_whatever_the_size(shape, decay):
    arrays, update = drawn(shape), OF_ADAM._replace(decay=decay)
    agree(measured(arrays, update), *arrays, update)


def test_layers_measured_together_keep_their_own_sums_in_their_own_order():
    """Small ones of two kinds of update, more than go together, and large ones between them."""
    other = OF_ADAM._replace(decay=0.0)
    sizes = [(4, 500), (1, PIECE + 1), (7, 1), (3, SMALL // 3), (100, 80), (1, SMALL + 1), (9, 900), (2, 3)]
    kinds = [OF_ADAM, other, other, OF_ADAM, OF_ADAM, OF_ADAM, OF_ADAM, other]
    small = [rows * each for (rows, each), kind in zip(sizes, kinds, strict=True) if kind is OF_ADAM]
    assert sum(size for size in small if size <= SMALL) > TOGETHER
    arrays = [drawn(size, seed) for seed, size in enumerate(sizes)]
    rows, medians = measure_in_pieces([layer(own, kind) for own, kind in zip(arrays, kinds, strict=True)])
    for own, kind, row, median in zip(arrays, kinds, rows, medians, strict=True):
        agree(dict(zip(ROW, row.tolist(), strict=True)), *own, kind)
        assert median == measured(own, kind)["median"]


def test_no_more_go_together_than_the_temporary_has_room_for():
    rows, _ = measure_in_pieces([layer(drawn((2, SMALL // 2), seed), OF_ADAM) for seed in range(3)])
    agree(dict(zip(ROW, rows[2].tolist(), strict=True)), *drawn((2, SMALL // 2), 2))


def test_the_linear_rule_takes_gradient_buffer_and_weights():
    g, w, m, v = drawn((4, 50))
    found = measured((g, w, m, v), Coefficients(LINEAR, -1.0, 0.9, 0.2, 1.0, None))
    d = -1.0 * g.astype(np.float64) + 0.9 * m + 0.2 * w
    assert found["update_sq"] == pytest.approx((d**2).sum(), rel=1e-6)
    assert found["update_dot_grad"] == pytest.approx((d * g).sum(), rel=1e-5)
    assert found["first_sq"] == found["second_sum"] == 0
    assert np.isnan(found["median"])
    unknown = measured((g, w, m, v), UNKNOWN)
    assert unknown["update_sq"] == unknown["update_dot_grad"] == 0


def test_rows_of_zeros_are_counted_and_minus_zero_is_zero(monkeypatch):
    g, w, m, v = drawn((6, 70))
    g[1], g[4] = 0.0, -0.0
    g[5, :69] = 0.0
    assert measured((g, w, m, v), UNKNOWN)["grad_zero_rows"] == 2
    monkeypatch.setattr(piecewise, "PIECE", 80)
    assert measured((g, w, m, v), UNKNOWN)["grad_zero_rows"] == 2, "one row at a time"
    g[4, 3] = NAN
    assert measured((g, w, m, v), UNKNOWN)["grad_zero_rows"] == 1, "a NaN is no zero"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_entries_that_are_not_finite_are_counted_and_left_out(bad):
    g, w, m, v = drawn((3, PIECE))
    g[1, 17] = g[2, 2999] = bad
    found = measured((g, w, m, v), UNKNOWN)
    finite = np.isfinite(g)
    of_g = g[finite].astype(np.float64)
    assert found["grad_nonfinite"] == 2
    assert found["grad_sq"] == pytest.approx((of_g**2).sum(), rel=1e-6)
    assert found["grad_l1"] == pytest.approx(np.abs(of_g).sum(), rel=1e-6)
    assert found["grad_dot_weight"] == pytest.approx((of_g * w[finite]).sum(), rel=1e-4)
    assert found["grad_max"] == np.abs(g[finite]).max()
    assert not np.isfinite(found["whole_sq"])


def test_layers_measured_together_do_not_spoil_each_other():
    broken, whole = drawn((2, 40)), drawn((2, 40), 1)
    broken[0][0, 0] = NAN
    rows, _ = measure_in_pieces([layer(broken, OF_ADAM), layer(whole, OF_ADAM)])
    assert rows[0, ROW.index("grad_nonfinite")] == 1
    agree(dict(zip(ROW, rows[1].tolist(), strict=True)), *whole)


def test_rows_of_zeros_and_medians_of_layers_measured_together_are_their_own():
    arrays = [drawn((6, 7), seed) for seed in range(3)]
    arrays[1][0][[2, 5]] = 0.0
    arrays[2][3][0, 0] = NAN
    rows, medians = measure_in_pieces([layer(own, OF_ADAM) for own in arrays])
    assert rows[:, ROW.index("grad_zero_rows")].tolist() == [0, 2, 0]
    ordered = [np.sort(own[3], axis=None) for own in arrays]
    assert medians[:2].tolist() == [ordered[0][20], ordered[1][20]]
    assert np.isnan(medians[2])


def test_layers_are_read_in_whatever_shape_they_have_and_ask_for_no_gradient():
    """Weights as the model has them, and a gradient that could be differentiated again."""
    for shape in ((5, 7), (3, PIECE)):
        g, w, m, v = drawn(shape)
        of_torch = [torch.from_numpy(array) for array in (g, w, m, v)]
        of_torch[0] = of_torch[0].clone().requires_grad_() * 1.0
        found = layers_of(
            [[of_torch[0], nn.Parameter(of_torch[1]), *of_torch[2:]]] * 2,
            [OF_ADAM] * 2,
            [(at, 0, g.size, shape[1]) for at in range(2)],
        )
        rows, _ = measure_in_pieces(found)
        for row in rows:
            agree(dict(zip(ROW, row.tolist(), strict=True)), g, w, m, v)


def test_the_extremes_of_float32_are_those_of_torch():
    g, w, m, v = drawn((2, 8))
    g[:] = 1e20
    found = measured((g, w, m, v), UNKNOWN)
    assert found["grad_sq"] == INF
    assert found["grad_nonfinite"] == 0
    assert found["grad_max"] == np.float32(1e20)
    g[:] = 1e-24
    found = measured((g, w, m, v), UNKNOWN)
    assert found["grad_sq"] == 0
    assert found["grad_max"] == np.float32(1e-24), "a layer that is alive"
    w[0, 0] = NAN
    assert np.isnan(measured((g, w, m, v), UNKNOWN)["weight_sq"])


@pytest.mark.parametrize("entries", [1, 2, 5, MOST_BLOCKS, 3 * MOST_BLOCKS + 1])
def test_the_median_is_the_lower_of_two_of_the_sample(entries):
    g, w, m, v = drawn((1, entries))
    sample = v.ravel()[:: -(-entries // MOST_BLOCKS) | 1]
    assert measured((g, w, m, v), OF_ADAM)["median"] == torch.from_numpy(sample).median().item()
    v[0, 0] = NAN
    assert np.isnan(measured((g, w, m, v), OF_ADAM)["median"])


class Shapes(nn.Module):
    """Small and large layers, one with blocks, and one without a gradient."""

    def __init__(self):
        super().__init__()
        self.qkv_proj = nn.Linear(96, 3 * 96)
        self.head = nn.Linear(300, 40)
        self.norm = nn.LayerNorm(40)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.norm(self.head(x)).sum() + self.qkv_proj(x[:, :96]).square().sum()


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, maximize=True),
    ],
)
def test_it_finds_what_the_compiled_pass_finds(optimizer_of, monkeypatch):
    torch.manual_seed(0)
    model = Shapes()
    optimizer = optimizer_of(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 300)).backward()
        optimizer.step()
    inventory = take_inventory({"": model}, [optimizer], choice_of(None))
    compiled = FirstTier(inventory).fused
    if compiled.compiled is None:
        pytest.skip(compiled.state)
    of_c = compiled.take(inventory.tensors, optimizer)
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    assert FirstTier(inventory).fused.take(inventory.tensors, optimizer) is None
    pieces = FirstTier(inventory, everything=True).fused
    of_pieces = pieces.take(inventory.tensors, optimizer)
    assert of_pieces.tensors == of_c.tensors
    assert of_pieces.columns.tolist() == of_c.columns.tolist()
    np.testing.assert_allclose(of_pieces.rows, of_c.rows, rtol=1e-5, atol=1e-5)
    chosen = np.flatnonzero(of_c.moments)
    assert pieces.medians(of_pieces, chosen).tolist() == compiled.medians(of_c, chosen).tolist()


def test_it_is_taken_where_all_is_measured_at_each_step_and_nothing_is_compiled(kept, monkeypatch):
    import gradspectra

    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    asked = []
    original = fused.measure_in_pieces
    monkeypatch.setattr(fused, "measure_in_pieces", lambda layers: asked.append(len(layers)) or original(layers))
    for budget, second_tier, times in ((None, "auto", 3), (None, "off", 0), (0.5, "auto", 0)):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters())
        options = {"budget": budget, "every": 1, "second_tier": second_tier, "project": "test", "run": "pieces"}
        with gradspectra.watch(model, optimizer, **options):
            for _ in range(3):
                model(torch.ones(1, 3)).sum().backward()
                optimizer.step()
        assert len(asked) == times
        asked.clear()
        names = kept()[-1].statistics
        assert ("second_moment_median" in names) == (times == 3)
