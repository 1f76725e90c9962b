"""Ranks of a spectrum: known values, the slow twins, the order of the ranks, and what is kept for drawing."""

import math

import numpy as np
import pytest
import reference
from gradspectra_core.records import AGGREGATES
from gradspectra_core.spectrum import (
    aggregates,
    drawn_indices,
    effective_rank,
    effective_rank_from,
    energy_rank,
    participation_ratio,
    participation_ratio_from,
    stable_rank,
    stable_rank_from,
)
from hypothesis import given
from hypothesis import strategies as st

HARMONIC = [1 / k for k in range(1, 101)]
SPECTRA = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("sigma", "effective", "stable", "participation"),
    [
        ([3, 1], 1.754765, 1.111111, 1.219512),
        ([4, 3, 2, 1], 3.596115, 1.875, 2.542373),
        (HARMONIC, 39.677241, 1.634984, 2.469847),
        ([7.0], 1, 1, 1),
        ([2, 2, 2, 2], 4, 4, 4),
        ([0, 5, 0], 1, 1, 1),
    ],
)
def test_ranks_of_known_spectra(sigma: list[float], effective: float, stable: float, participation: float):
    assert effective_rank(sigma) == pytest.approx(effective, abs=5e-7)
    assert stable_rank(sigma) == pytest.approx(stable, abs=5e-7)
    assert participation_ratio(sigma) == pytest.approx(participation, abs=5e-7)


@pytest.mark.parametrize(("columns", "share"), [(256, 0.802), (512, 0.926), (1024, 0.966)])
def test_the_noise_floor_of_a_gaussian_matrix(columns: int, share: float):
    matrix = np.random.default_rng(0).normal(size=(256, columns))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    assert effective_rank(sigma) / 256 == pytest.approx(share, abs=2e-3)


@given(SPECTRA)
def test_ranks_equal_their_slow_twins(sigma: list[float]):
    assert effective_rank(sigma) == pytest.approx(reference.effective_rank(sigma), rel=1e-12)
    assert stable_rank(sigma) == pytest.approx(reference.stable_rank(sigma), rel=1e-12)
    assert participation_ratio(sigma) == pytest.approx(reference.participation_ratio(sigma), rel=1e-12)


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=40).filter(any))
def test_the_ranks_stand_in_order(sigma: list[float]):
    stable, participation, effective = stable_rank(sigma), participation_ratio(sigma), effective_rank(sigma)
    slack = 1 + 1e-12
    assert 1 <= stable <= participation * slack
    assert participation <= effective * slack
    assert effective <= len(sigma) * slack


@given(SPECTRA, st.floats(1e-150, 1e150))
def test_ranks_do_not_change_with_the_gradients_scale(sigma: list[float], scale: float):
    for rank in (effective_rank, stable_rank, participation_ratio):
        assert rank(np.array(sigma) * scale) == pytest.approx(rank(sigma), rel=1e-9)


def test_leading_axes_are_layers():
    sigma = np.array([[[3.0, 1.0], [1.0, 1.0]]])
    assert effective_rank(sigma).shape == (1, 2)
    assert stable_rank(sigma)[0] == pytest.approx([10 / 9, 2])
    assert aggregates(sigma).shape == (1, 2, 7)


@pytest.mark.parametrize("sigma", [[0, 0], [math.nan, 1], [math.inf, 1], []])
def test_a_spectrum_without_a_direction_has_no_rank(sigma: list[float]):
    for rank in (effective_rank, stable_rank, participation_ratio):
        assert math.isnan(rank(sigma))
    assert energy_rank(sigma, 0.9) == 0


@pytest.mark.parametrize(
    ("sigma", "share", "rank"),
    [([3, 1], 0.9, 1), ([3, 1], 0.91, 2), ([1, 3], 0.9, 1), ([1] * 10, 0.9, 9), ([0.1] * 10, 0.9, 9), ([5, 0], 1, 1)],
)
def test_energy_ranks_of_known_spectra(sigma: list[float], share: float, rank: int):
    assert energy_rank(sigma, share) == rank


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(1, 100))
def test_energy_ranks_equal_their_slow_twin(sigma: list[int], percent: int):
    share = percent / 100
    expected = reference.energy_rank([float(s) for s in sigma], share - 1e-12)
    assert energy_rank(sigma, share) == expected


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_a_share_outside_its_range_is_refused(share: float):
    with pytest.raises(ValueError, match=f"share must be above 0 and at most 1, got {share}"):
        energy_rank([1.0], share)


def test_aggregates_stand_in_the_order_of_their_names():
    found = dict(zip(AGGREGATES, aggregates([1, 3, 4, 2]).tolist(), strict=True))
    assert found == pytest.approx(
        {
            "nuclear": 10, "frobenius_sq": 30, "operator": 4, "fourth": 256 + 81 + 16 + 1,
            "entropy": reference.entropy([1, 3, 4, 2]), "k90": 3, "k99": 4,
        }
    )  # fmt: skip


@given(SPECTRA)
def test_ranks_from_stored_aggregates_equal_those_from_the_spectrum(sigma: list[float]):
    _, frobenius_sq, operator, fourth, entropy, *_ = aggregates(sigma)
    assert effective_rank_from(entropy) == pytest.approx(effective_rank(sigma), rel=1e-12)
    assert stable_rank_from(frobenius_sq, operator) == pytest.approx(stable_rank(sigma), rel=1e-12)
    assert participation_ratio_from(frobenius_sq, fourth) == pytest.approx(participation_ratio(sigma), rel=1e-12)


def test_aggregates_of_nothing_and_of_what_is_not_finite():
    zero = dict(zip(AGGREGATES, aggregates([0, 0]).tolist(), strict=True))
    assert (zero["nuclear"], zero["operator"], zero["k90"], zero["k99"]) == (0, 0, 0, 0)
    assert math.isnan(zero["entropy"])
    assert math.isnan(stable_rank_from(0, 0))
    assert math.isnan(participation_ratio_from(0, 0))
    broken = dict(zip(AGGREGATES, aggregates([math.nan, 1]).tolist(), strict=True))
    assert math.isnan(broken["nuclear"])
    assert math.isnan(broken["entropy"])
    assert broken["k99"] == 0


def test_all_of_a_small_spectrum_is_drawn():
    assert drawn_indices(0).tolist() == []
    assert drawn_indices(96).tolist() == list(range(96))


@given(st.integers(97, 100_000))
def test_of_a_large_spectrum_the_head_and_an_even_rest_are_drawn(count: int):
    index = drawn_indices(count)
    gaps = np.diff(index[31:])
    assert len(index) == 96
    assert index[:32].tolist() == list(range(32))
    assert index[-1] == count - 1
    assert gaps.min() >= 1
    assert np.ptp(gaps[1:]) <= 1


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        drawn_indices(-1)
