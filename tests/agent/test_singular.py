"""Singular values against a float64 SVD: also of matrices whose small values a Gram matrix loses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gradspectra.singular import GRAM, SVD, gram_of, measured, resolved, singular_values
from gradspectra_core.spectrum import aggregates, effective_rank
from hypothesis import given, settings
from hypothesis import strategies as st


def exact(matrix):
    return torch.linalg.svdvals(matrix.double()).numpy()


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10), st.floats(-12, 12))
def test_singular_values_are_those_of_a_float64_svd(rows, columns, rank, power):
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    left = torch.randn(rows, rank + 1, generator=generator, dtype=torch.float64)
    matrix = (left @ torch.randn(rank + 1, columns, generator=generator, dtype=torch.float64) * 10.0**power).float()
    found = singular_values(matrix)
    assert found.shape == (min(rows, columns),)
    assert np.all(np.diff(found) <= 0)
    assert np.allclose(found, exact(matrix), rtol=1e-9, atol=2e-8 * exact(matrix)[0])


def of_values(rows, columns, values, generator):
    """A float32 matrix with about these singular values."""
    count = len(values)
    left = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64)).Q
    return (left * torch.from_numpy(values) @ right.t()).float()


KINDS = {
    "gaussian": lambda r, c, g: torch.randn(r, c, generator=g),
    "each row twice": lambda r, c, g: torch.randn(r, c, generator=g)[torch.arange(r) // 2],
    "rank one": lambda r, c, g: torch.randn(r, 1, generator=g) @ torch.randn(1, c, generator=g),
    "rank three": lambda r, c, g: torch.randn(r, 3, generator=g) @ torch.randn(3, c, generator=g),
    "columns of zeros": lambda r, c, g: torch.randn(r, c, generator=g) * (torch.arange(c) % 3 == 0),
    "one large": lambda r, c, g: of_values(r, c, np.r_[1.0, np.full(min(r, c) - 1, 1e-7)], g),
} | {
    f"down to 1e-{power}": lambda r, c, g, power=power: of_values(r, c, np.logspace(0, -power, min(r, c)), g)
    for power in (2, 4, 6, 8, 10, 12)
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60, 60), (200, 60), (64, 128), (128, 512), (384, 384)])
def test_nuclear_norm_and_effective_rank_come_within_1e_7_whatever_the_condition(kind, shape):
    matrix = KINDS[kind](*shape, torch.Generator().manual_seed(5))
    found, expected = singular_values(matrix), exact(matrix)
    assert found.sum() == pytest.approx(expected.sum(), rel=1e-7)
    assert effective_rank(found) == pytest.approx(effective_rank(expected), rel=1e-7)
    assert aggregates(found) == pytest.approx(aggregates(expected), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_a_matrix_as_training_has_it_comes_by_its_gram_matrix_and_one_of_rank_one_does_not(scale):
    generator = torch.Generator().manual_seed(0)
    usual = of_values(96, 200, np.logspace(0, -4, 96), generator) * scale
    assert measured(usual, GRAM)[1] == GRAM
    values, method = measured(torch.randn(96, 1, generator=generator) @ torch.full((1, 200), scale), GRAM)
    assert method == SVD
    assert effective_rank(values) == pytest.approx(1.0, abs=1e-4)
    assert resolved(exact(usual))
    assert not resolved(values)


@pytest.mark.parametrize("shape", [(7, 7), (100, 300), (300, 100), (257, 130)])
def test_the_lower_triangle_of_the_gram_matrix_is_made_piece_by_piece(shape, monkeypatch):
    monkeypatch.setattr("gradspectra.singular.AT_ONCE", 1 << 10)
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    wide = matrix.double() if shape[0] <= shape[1] else matrix.double().t()
    assert torch.allclose(gram_of(matrix).tril(), (wide @ wide.t()).tril(), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("shape", [(20, 500), (500, 20), (33, 34)])
def test_the_svd_of_a_long_matrix_is_made_piece_by_piece(shape, monkeypatch):
    monkeypatch.setattr("gradspectra.singular.AT_ONCE", 1)
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    assert measured(matrix, SVD)[0] == pytest.approx(exact(matrix), rel=1e-12)


def test_a_matrix_with_a_number_that_is_not_finite_has_none():
    matrix = torch.ones(3, 4)
    matrix[1, 2] = math.nan
    assert np.isnan(singular_values(matrix)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_widened(dtype):
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert singular_values(matrix) == pytest.approx(exact(matrix), rel=1e-10)
