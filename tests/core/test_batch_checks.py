"""What every batch must keep to, in either form: each rule broken once, and the bounds on sizes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from core.batches import full_batch
from gradspectra_core.checks import check_batch
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.limits import Limits, WireError
from gradspectra_core.records import Batch, Columns, Gap

GOOD = full_batch()
assert GOOD.layers is not None
assert GOOD.spectra is not None


def layers(**changes: Any) -> Batch:
    return replace(GOOD, layers=replace(GOOD.layers, **changes))


def spectra(**changes: Any) -> Batch:
    return replace(GOOD, spectra=replace(GOOD.spectra, **changes))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def with_aggregate(column: int, value: float) -> np.ndarray:
    changed = GOOD.spectra.aggregates.copy()
    changed[0, column] = value
    return changed


def named(*names: str) -> Columns:
    return Columns(names, np.zeros((len(names), 3)), np.ones((len(names), 3), np.bool_))


@pytest.mark.parametrize(
    ("batch", "field", "message"),
    [
        (replace(GOOD, session="x" * 65), "session", "must have 1 to 64 characters, got 65"),
        (replace(GOOD, session="\ud800"), "session", "must hold printable characters only"),
        (replace(GOOD, session="a\x00"), "session", "must hold printable characters only"),
        (replace(GOOD, sequence=0), "sequence", f"must be between 1 and {2**63 - 1}, got 0"),
        (replace(GOOD, complete_through=2**63), "complete_through", "must be between 0"),
        (replace(GOOD, steps=ints(0, 7, 9)), "steps", "count from 1, got 0"),
        (replace(GOOD, steps=ints(5, 9, 9)), "steps", "must increase strictly, got 9 and then 9"),
        (replace(GOOD, times=np.array([1, np.inf, 2])), "times", "must be finite"),
        (replace(GOOD, scalars=named("a", "a")), "scalars", "must be unique, 'a' occurs twice"),
        (replace(GOOD, scalars=named("x" * 513)), "scalars", "must have 1 to 512 characters, got 513"),
        (replace(GOOD, scalars=named("tokens")), "counts", "must not repeat the name of a scalar, got 'tokens'"),
        (layers(digest="ABC"), "layers.digest", "must be 16 hexadecimal digits, got 'ABC'"),
        (layers(statistics=("a", "a")), "layers.statistics", "must be unique"),
        (layers(count_statistics=("grad_sq",)), "layers.count_statistics", "must not repeat the name of a statistic"),
        (layers(steps=ints(5, 6)), "layers.steps", "must all be among the steps of the batch"),
        (layers(steps=ints(5, 7, 9, 11)), "layers.steps", "must all be among the steps of the batch"),
        (layers(steps=ints(9, 5)), "layers.steps", "must increase strictly, got 9 and then 5"),
        (layers(steps=ints(9, 11)), "layers.steps", "must all be among the steps of the batch"),
        (
            layers(values=np.zeros((2, 2, 3), np.float32)),
            "layers.values",
            "must be of the 2 layers of the table, got 3",
        ),
        (spectra(digest=""), "spectra.digest", "must be 16 hexadecimal digits"),
        (spectra(of=("gradient", "loss")), "spectra.of", "must be one of gradient, weight, update, got 'loss'"),
        (spectra(method=("svd", "")), "spectra.method", "must have 1 to 64 characters"),
        (spectra(step=ints(0, 1)), "spectra.step", "must be at least 1, got 0"),
        (spectra(layer=ints(0, 2)), "spectra.layer", "must be at most 1, got 2"),
        (spectra(layer=ints(-1, 1)), "spectra.layer", "must be at least 0, got -1"),
        (spectra(rows=ints(0, 1)), "spectra.rows", "must be at least 1, got 0"),
        (spectra(columns=ints(1 << 41, 1)), "spectra.columns", "must be at most"),
        (spectra(length=ints(4, 1)), "spectra.length", "must be at most 3, got 4"),
        (spectra(index=np.array([[0, 1, 3], [0, 2, 0]])), "spectra.index", "must lie between 0 and the smaller side"),
        (spectra(index=np.array([[0, 1, 1], [0, 2, 0]])), "spectra.index", "must increase strictly"),
        (spectra(values=np.array([[3, 2, -1], [2, 1, 0]])), "spectra.values", "must not be negative"),
        (spectra(aggregates=with_aggregate(5, np.nan)), "spectra.k90", "must be whole numbers from 0"),
        (spectra(aggregates=with_aggregate(6, 1.5)), "spectra.k99", "must be whole numbers from 0"),
        (spectra(aggregates=with_aggregate(6, 4)), "spectra.k99", "to the smaller side of the matrix"),
        (
            spectra(values=np.zeros((2, 97), np.float32), index=np.zeros((2, 97), np.int64)),
            "spectra.values",
            "must be at most 96 a spectrum, got 97",
        ),
        (replace(GOOD, gaps=(Gap(1, 2, "some", "r"),)), "gaps.what", "must be one of all, layers, spectra, got 'some'"),
    ],
)
def test_a_batch_that_breaks_a_rule_is_refused_by_field(batch: Batch, field: str, message: str):
    with pytest.raises(WireError, match=message) as caught:
        check_batch(batch, Limits())
    assert caught.value.field == field
    assert str(caught.value) == f"{field}: {caught.value.message}"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_steps=2), "steps: must be at most 2, got 3"),
        (Limits(max_scalars=1), "scalars: must have at most 1 entries, got 2"),
        (Limits(max_statistics=1), "layers.statistics: must have at most 1 entries, got 2"),
        (Limits(max_layers=1), "layers.values: must be of at most 1 layers, got 2"),
        (Limits(max_spectra=1), "spectra: must be at most 1, got 2"),
        (Limits(max_name=5), "scalars: must have 1 to 5 characters, got 6"),
    ],
)
def test_each_size_has_a_bound(limits: Limits, message: str):
    with pytest.raises(WireError) as caught:
        check_batch(GOOD, limits)
    assert str(caught.value) == message


def test_a_batch_that_just_meets_its_bounds_is_accepted():
    limits = Limits(max_steps=3, max_scalars=2, max_statistics=2, max_layers=2, max_spectra=2, max_name=14)
    assert check_batch(GOOD, limits) is GOOD


def test_padding_beyond_a_spectrums_length_means_nothing():
    index = np.array([[0, 1, 2], [0, 2, -9]])
    values = np.array([[3, 2, 1], [2, 1, -9]], np.float32)
    batch = spectra(index=index, values=values)
    assert check_batch(batch, Limits()) is batch


def test_a_batch_without_steps_may_carry_late_spectra_and_gaps():
    nothing = Columns((), np.zeros((0, 0)), np.zeros((0, 0), np.bool_))
    batch = replace(GOOD, steps=ints(), times=np.zeros(0), scalars=nothing, counts=nothing, layers=None)
    assert check_batch(batch, Limits()) is batch


def test_a_table_that_layers_do_not_speak_of_bounds_nothing():
    other = LayerTable.of((Layer("a", "other", -1, (1,)),))
    batch = replace(GOOD, layer_table=other)
    assert check_batch(batch, Limits()) is batch


def test_a_layer_name_that_occurs_twice_is_named():
    with pytest.raises(ValueError, match="layer names must be unique, 'a' occurs twice"):
        LayerTable.of(Layer(name, "other", -1, ()) for name in ("b", "a", "c", "a"))


def test_the_digest_changes_with_any_part_of_a_layer():
    layer = Layer("a", "q", 0, (2, 3))
    variants = [replace(layer, **{field: value}) for field, value in
                (("name", "b"), ("role", "k"), ("depth", 1), ("shape", (3, 2)))]  # fmt: skip
    digests = {LayerTable((one,)).digest for one in (layer, *variants)}
    assert len(digests) == 5
    assert LayerTable((replace(layer),)).digest == LayerTable((layer,)).digest
