"""The small arithmetic under the figures, against known values and properties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from gradspectra_frontend.heatmap import gridded, held, log_ticks, packed, short_names
from gradspectra_frontend.marks import broken, holes
from gradspectra_frontend.noise_floor import noise_effective_rank
from gradspectra_frontend.theme import DARK, LIGHT, SEQUENCE, VALUE_TICKS, colour_scale, faded, step_axis, value_ticks
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(("columns", "share"), [(256, 0.802), (512, 0.926), (1024, 0.966)])
def test_effective_rank_of_pure_noise_matches_a_gaussian_matrix(columns: int, share: float) -> None:
    assert noise_effective_rank(256, columns) / 256 == pytest.approx(share, abs=0.004)
    assert noise_effective_rank(columns, 256) == noise_effective_rank(256, columns)


def test_effective_rank_of_pure_noise_agrees_with_drawn_matrices() -> None:
    sigma = np.linalg.svd(np.random.default_rng(0).standard_normal((200, 900)), compute_uv=False)
    share = sigma / sigma.sum()
    assert noise_effective_rank(200, 900) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=0.003)
    assert noise_effective_rank(1, 50) == 1.0
    with pytest.raises(ValueError, match="rows and columns must be at least 1, got 0 and 5"):
        noise_effective_rank(0, 5)


@given(st.floats(-40, 40), st.floats(0.06, 60))
def test_colour_ticks_are_inside_in_order_and_not_too_many(low: float, span: float) -> None:
    ticks, texts = log_ticks(low, low + span)
    assert len(ticks) == len(texts) == len(set(texts))
    assert 1 <= len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert low - 1e-6 <= ticks[0] <= ticks[-1] <= low + span + 1e-6


def test_colour_ticks_read_as_people_write_them() -> None:
    assert log_ticks(-3, 1)[1] == ["0.001", "0.01", "0.1", "1", "10"]
    assert log_ticks(-20, 20)[1] == ["10⁻¹⁸", "10⁻¹²", "10⁻⁶", "1", "10⁶", "10¹²", "10¹⁸"]
    assert log_ticks(0, 1)[1] == ["1", "2", "5", "10"]
    assert log_ticks(0.4, 1.7)[1] == ["5", "10", "20", "50"]


def test_names_lose_what_most_share_but_never_become_alike() -> None:
    names = ["model.wte.weight", "model.h.0.q.weight", "model.h.1.q.weight", "head.weight"]
    assert short_names(names) == ["wte", "h.0.q", "h.1.q", "head"]
    assert short_names(["a.x", "b.x", "x"]) == ["a.x", "b.x", "x"]
    assert short_names(["m.a.weight", "m.b.weight", "a.weight"]) == ["m.a", "m.b", "a"]
    assert short_names(["a.bias", "a.weight"]) == ["a.bias", "a"]
    assert short_names(["h.0.qkv.weight[q]", "h.0.qkv.bias[q]"]) == ["h.0.qkv[q]", "h.0.qkv.bias[q]"]
    assert short_names([]) == []


@pytest.mark.parametrize(("steps", "ticks"), [([5], [5]), ([3, 9], [3, 4, 5, 6, 7, 8, 9]), ([3, 10], None), ([], None)])
def test_few_steps_have_a_tick_each_and_no_distance_that_a_wider_range_would_repeat(
    steps: list[int], ticks: list[int] | None
) -> None:
    axis = step_axis(LIGHT, "step", np.array(steps))
    assert axis.get("tickvals") == ticks
    assert axis.get("tickmode") == (ticks and "array")
    assert "dtick" not in axis


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60, unique=True).map(sorted))
def test_breaking_a_line_adds_only_missing_values(x: list[int]) -> None:
    steps = np.array(x)
    y = np.arange(len(x), dtype=float)
    wide, values = broken(steps, y)
    assert values[~np.isnan(values)].tolist() == y.tolist()
    assert np.isnan(values).sum() == len(holes(steps))
    assert (np.diff(wide) >= 0).all()


def test_holes_stand_out_from_their_neighbours() -> None:
    assert holes(np.array([1, 2, 3, 50, 51, 52])).tolist() == [2]
    assert holes(np.array([1, 2, 3, 4, 8, 16, 24, 32])).tolist() == []
    assert holes(np.array([5])).tolist() == []


def test_packing_keeps_nan_and_the_shape() -> None:
    form = packed(np.array([[1.0, np.nan], [3.0, 4.0], [5.0, 6.0]]))
    assert (form["dtype"], form["shape"]) == ("f4", "3,2")


def test_the_bucket_that_a_run_begins_in_does_not_make_all_columns_narrow() -> None:
    x = np.array([1, 4, 8, 12, 16])  # buckets of 4 steps, named by the first step recorded in each
    value = np.arange(10.0).reshape(2, 5)
    grid = gridded(x, value, np.zeros((2, 5), int), np.ones((2, 5), bool))
    assert grid.x.tolist() == [0, 4, 8, 12, 16]
    assert grid.value.tolist() == value.tolist()
    assert gridded(x[:2], value[:, :2], np.zeros((2, 2), int), np.ones((2, 2), bool)).x.tolist() == [1, 4]


@given(st.lists(st.integers(1, 2**12 - 1), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_rows_measured_at_the_same_steps_hold_the_same_columns(patterns: list[int], rows: list[int]) -> None:
    x = np.array([1, 2, 3, 4, 8, 16, 24, 32, 40, 41, 42, 90])
    bits = [[pattern >> at & 1 for at in range(12)] for pattern in patterns]
    present = np.array([bits[row % len(bits)] for row in rows], bool)
    alone = [held(row[None], x)[0].tolist() for row in present]
    assert held(present, x).tolist() == alone


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_lines_stand_out_from_the_paper(theme: object) -> None:
    assert contrast(theme.ink, theme.paper) >= 7
    assert contrast(theme.muted, theme.paper) >= 4.5
    for colour in (*theme.lines, *theme.severity.values(), theme.nonfinite):
        assert contrast(colour, theme.paper) >= 3


def test_the_colour_scale_only_grows_lighter() -> None:
    light = [luminance(colour) for colour in SEQUENCE]
    assert all(b > a for a, b in pairwise(light))
    scale = colour_scale()
    assert (scale[0], scale[-1]) == ([0.0, SEQUENCE[0]], [1.0, SEQUENCE[-1]])
    assert faded("#102030", 0.25) == "rgba(16,32,48,0.25)"


@pytest.mark.parametrize(
    ("low", "high", "each"),
    [(1.0, 2.0, None), (1.0, 100.0, "D2"), (1e-3, 10.0, 1), (1e-38, 1e38, 10), (5e-324, 1e308, 79)],
)
def test_a_log_axis_has_few_ticks_whatever_it_spans(low: float, high: float, each: object) -> None:
    ticks = value_ticks(True, np.array([high, np.nan, low, np.inf]))
    assert ticks.get("dtick") == each
    assert not isinstance(each, int) or (np.log10(high) - np.log10(low)) / each <= VALUE_TICKS
