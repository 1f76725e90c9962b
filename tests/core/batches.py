"""Batches for the tests of both forms: one with everything in it, random ones, and when two are the same."""

import numpy as np
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import AGGREGATES, SPECTRUM_OF, Batch, Columns, Gap, LayerBlock, SpectrumBlock
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 1e-42, 3.4e38)
NAMES = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=12)


def full_batch() -> Batch:
    """A batch with every kind of content: gaps in presence, NaN, ±inf, two layers, two spectra, a gap."""
    table = LayerTable.of((Layer("h.0.attn.q_proj.weight", "q", 0, (4, 3)), Layer("h.0.norm.weight", "norm", 0, (4,))))
    layers = LayerBlock(
        digest=table.digest,
        steps=np.array([5, 9], np.int64),
        statistics=("grad_sq", "weight_sq"),
        values=np.array([[[1.5, np.nan], [np.inf, 0]], [[2, 3], [4, -np.inf]]], np.float32),
        present=np.array([[[True, True], [True, False]], [[True, True], [True, True]]]),
        count_statistics=("grad_nonfinite",),
        counts=np.array([[[0, 2**40], [7, 0]]], np.int64),
        counts_present=np.array([[[True, True], [True, False]]]),
    )
    spectra = SpectrumBlock(
        digest=table.digest,
        step=np.array([5, 9], np.int64),
        layer=np.array([0, 0], np.int64),
        rows=np.array([4, 4], np.int64),
        columns=np.array([3, 3], np.int64),
        length=np.array([3, 2], np.int64),
        of=("gradient", "weight"),
        method=("gram64", "svd"),
        aggregates=np.array([[6, 14, 3, 98, 1.01, 2, 3], [3, 5, 2, 17, np.nan, 1, 2]], np.float64),
        index=np.array([[0, 1, 2], [0, 2, 0]], np.int64),
        values=np.array([[3, 2, 1], [2, 1, 0]], np.float32),
    )
    return Batch(
        session="s1",
        sequence=3,
        complete_through=8,
        steps=np.array([5, 7, 9], np.int64),
        times=np.array([100.0, 99.5, 2e9]),
        scalars=Columns(
            ("loss", "µ/rate"),
            np.array([[1.0, np.nan, np.inf], [0.1, 0.0, -np.inf]]),
            np.array([[True, True, True], [True, False, True]]),
        ),
        counts=Columns(("tokens",), np.array([[2**53 + 1, 0, -4]], np.int64), np.array([[True, False, True]])),
        layer_table=table,
        layers=layers,
        spectra=spectra,
        gaps=(Gap(1, 4, "all", "spool full"),),
    )


def assert_same(left: Batch, right: Batch) -> None:
    """Assert that two batches say the same: equal bits wherever a number is present."""
    for name in ("session", "sequence", "complete_through", "layer_table", "gaps"):
        assert getattr(left, name) == getattr(right, name), name
    same_bits(left.steps, right.steps)
    same_bits(left.times, right.times)
    for name in ("scalars", "counts"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.names == b.names
        same_where_present(a.values, a.present, b.values, b.present)
    assert (left.layers is None) == (right.layers is None)
    if left.layers is not None and right.layers is not None:
        a, b = left.layers, right.layers
        assert (a.digest, a.statistics, a.count_statistics) == (b.digest, b.statistics, b.count_statistics)
        same_bits(a.steps, b.steps)
        same_where_present(a.values, a.present, b.values, b.present)
        same_where_present(a.counts, a.counts_present, b.counts, b.counts_present)
    assert (left.spectra is None) == (right.spectra is None)
    if left.spectra is not None and right.spectra is not None:
        c, d = left.spectra, right.spectra
        assert (c.digest, c.of, c.method) == (d.digest, d.of, d.method)
        for name in ("step", "layer", "rows", "columns", "length", "aggregates", "index", "values"):
            same_bits(getattr(c, name), getattr(d, name))


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    """Assert equal dtype, shape and values, where NaN equals NaN."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    np.testing.assert_array_equal(a, b)


def same_where_present(a: np.ndarray, a_present: np.ndarray, b: np.ndarray, b_present: np.ndarray) -> None:
    """Assert equal presence, and equal values where present; how many layers nothing is said of does not count."""
    if a.size == b.size == 0:
        return
    same_bits(a_present, b_present)
    same_bits(np.where(a_present, a, 0).astype(a.dtype), np.where(b_present, b, 0).astype(b.dtype))


def _floats(width: int) -> st.SearchStrategy[float]:
    special = st.sampled_from(SPECIAL[:4]) if width == 32 else st.sampled_from(SPECIAL)
    return st.one_of(special, st.floats(width=width))


@st.composite
def _steps(draw: st.DrawFn, most: int = 4) -> np.ndarray:
    chosen = draw(st.lists(st.integers(1, 2**63 - 1), max_size=most, unique=True))
    return np.array(sorted(chosen), np.int64)


@st.composite
def _columns(draw: st.DrawFn, names: list[str], count: int, dtype: type) -> Columns:
    shape = (len(names), count)
    elements = _floats(64) if dtype is np.float64 else st.integers(-(2**63), 2**63 - 1)
    return Columns(tuple(names), draw(hnp.arrays(dtype, shape, elements=elements)), draw(hnp.arrays(np.bool_, shape)))


@st.composite
def _layer_blocks(draw: st.DrawFn, steps: np.ndarray, table: LayerTable, names: list[str]) -> LayerBlock:
    taken = steps[draw(hnp.arrays(np.bool_, steps.shape))] if len(steps) else steps
    split = draw(st.integers(0, len(names)))
    shape = (split, len(taken), len(table))
    counted = (len(names) - split, len(taken), len(table))
    return LayerBlock(
        table.digest,
        taken,
        tuple(names[:split]),
        draw(hnp.arrays(np.float32, shape, elements=_floats(32))),
        draw(hnp.arrays(np.bool_, shape)),
        tuple(names[split:]),
        draw(hnp.arrays(np.int64, counted)),
        draw(hnp.arrays(np.bool_, counted)),
    )


@st.composite
def _spectrum_blocks(draw: st.DrawFn, table: LayerTable) -> SpectrumBlock:
    count = draw(st.integers(0, 3)) if len(table) else 0
    sides = draw(hnp.arrays(np.int64, (2, count), elements=st.integers(1, 9)))
    ranks = sides.min(0, initial=9) if count else np.zeros(0, np.int64)
    kept = [sorted(draw(st.sets(st.integers(0, rank - 1)))) for rank in ranks.tolist()]
    width = max(map(len, kept), default=0)
    index, values = np.zeros((count, width), np.int64), np.zeros((count, width), np.float32)
    numbers = st.floats(0, width=32) | st.sampled_from([np.nan, np.inf])
    for row, chosen in enumerate(kept):
        index[row, : len(chosen)] = chosen
        values[row, : len(chosen)] = draw(hnp.arrays(np.float32, len(chosen), elements=numbers))
    aggregates = draw(hnp.arrays(np.float64, (count, len(AGGREGATES)), elements=_floats(64)))
    aggregates[:, 5:] = np.minimum(draw(hnp.arrays(np.int64, (count, 2), elements=st.integers(0, 9))), ranks[:, None])
    return SpectrumBlock(
        table.digest,
        draw(hnp.arrays(np.int64, count, elements=st.integers(1, 2**63 - 1))),
        draw(hnp.arrays(np.int64, count, elements=st.integers(0, max(len(table) - 1, 0)))),
        sides[0],
        sides[1],
        np.array([len(chosen) for chosen in kept], np.int64),
        tuple(draw(st.lists(st.sampled_from(SPECTRUM_OF), min_size=count, max_size=count))),
        tuple(draw(st.lists(NAMES, min_size=count, max_size=count))),
        aggregates,
        index,
        values,
    )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any valid batch, small."""
    steps = draw(_steps())
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    split = draw(st.integers(0, len(names)))
    layer_names = draw(st.lists(NAMES, max_size=3, unique=True))
    shapes = st.lists(st.integers(0, 2**40), max_size=3).map(tuple)
    table = LayerTable.of(Layer(name, draw(NAMES), draw(st.integers(-1, 99)), draw(shapes)) for name in layer_names)
    first = draw(st.integers(1, 2**62))
    gap = Gap(first, first + draw(st.integers(0, 9)), draw(st.sampled_from(("all", "layers", "spectra"))), draw(NAMES))
    return Batch(
        session=draw(NAMES),
        sequence=draw(st.integers(1, 2**63 - 1)),
        complete_through=draw(st.integers(0, 2**63 - 1)),
        steps=steps,
        times=draw(hnp.arrays(np.float64, steps.shape, elements=st.floats(allow_nan=False, allow_infinity=False))),
        scalars=draw(_columns(names[:split], len(steps), np.float64)),
        counts=draw(_columns(names[split:], len(steps), np.int64)),
        layer_table=draw(st.sampled_from([table, None])),
        layers=draw(st.none() | _layer_blocks(steps, table, draw(st.lists(NAMES, max_size=3, unique=True)))),
        spectra=draw(st.none() | _spectrum_blocks(table)),
        gaps=draw(st.sampled_from([(), (gap,)])),
    )
