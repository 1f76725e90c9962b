"""The JSON form of a batch: round trips, NaN and ±inf as strings, null as absent, and bad JSON."""

import copy
import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from core.batches import assert_same, batches, full_batch
from core.test_wire import JSON_VALUES, paths
from gradspectra_core.jsonform import batch_from_json, batch_to_json, json_array, json_number, number_from_json
from gradspectra_core.layers import Layer
from gradspectra_core.limits import Limits, WireError
from gradspectra_core.records import Batch
from gradspectra_core.wire import decode_batch, encode_batch
from hypothesis import example, given, settings
from hypothesis import strategies as st

FORM = batch_to_json(full_batch())


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(FORM), **fields}


@given(batches())
@example(full_batch())
def test_a_batch_comes_back_through_json_text(batch: Batch):
    text = json.dumps(batch_to_json(batch), allow_nan=False)
    assert_same(batch_from_json(json.loads(text)), batch)


@given(batches())
def test_both_forms_say_the_same(batch: Batch):
    assert_same(decode_batch(encode_batch(batch)), batch_from_json(batch_to_json(batch)))


def test_the_form_is_columns_by_name():
    assert FORM["steps"] == [5, 7, 9]
    assert FORM["scalars"] == {"loss": [1.0, "NaN", "Infinity"], "µ/rate": [0.1, None, "-Infinity"]}
    assert FORM["counts"] == {"tokens": [2**53 + 1, None, -4]}
    assert FORM["layers"]["values"]["grad_sq"] == [[1.5, "NaN"], ["Infinity", None]]
    assert FORM["layers"]["counts"]["grad_nonfinite"] == [[0, 2**40], [7, None]]
    assert FORM["gaps"] == [{"first": 1, "last": 4, "what": "all", "reason": "spool full"}]
    assert FORM["spectra"][1] == {
        "step": 9, "layer": 0, "rows": 4, "columns": 3, "of": "weight", "method": "svd", "nuclear": 3.0,
        "frobenius_sq": 5.0, "operator": 2.0, "fourth": 17.0, "entropy": "NaN", "k90": 1.0, "k99": 2.0,
        "index": [0, 2], "singular_values": [2.0, 1.0],
    }  # fmt: skip


def test_a_batch_written_by_hand_needs_little():
    batch = batch_from_json(
        {
            "session": "s", "sequence": 1, "complete_through": 2, "steps": [1, 2], "times": [0, 1.5],
            "layer_table": [{"name": "h.3.attn.q_proj.weight", "shape": [8, 8]}],
            "layers": {"steps": [2], "values": {"grad_sq": [[4]]}},
            "spectra": [{
                "step": 2, "layer": 0, "rows": 2, "columns": 2, "method": "svd", "nuclear": 4, "frobenius_sq": 10,
                "operator": 3, "fourth": 82, "entropy": 0.56, "k90": 1, "k99": 2, "singular_values": [3, 1],
            }],
        }
    )  # fmt: skip
    assert batch.layer_table is not None
    assert batch.layer_table.layers == (Layer("h.3.attn.q_proj.weight", "q", 3, (8, 8)),)
    assert batch.layers is not None
    assert batch.spectra is not None
    assert batch.layers.digest == batch.spectra.digest == batch.layer_table.digest
    assert batch.spectra.index.tolist() == [[0, 1]]
    assert batch.spectra.of == ("gradient",)
    assert batch.scalars.names == batch.counts.names == ()


def test_a_value_beyond_float32_becomes_infinite_without_a_warning():
    form = changed()
    form["layers"]["values"]["grad_sq"] = [[1e300, -1e300], [1, 1]]
    layers = batch_from_json(form).layers
    assert layers is not None
    assert layers.values[0, 0].tolist() == [math.inf, -math.inf]


def test_a_singular_value_beyond_float32_becomes_infinite_without_a_warning():
    form = changed()
    form["spectra"][0] |= {"singular_values": [1e300, 1], "index": [0, 1]}
    spectra = batch_from_json(form).spectra
    assert spectra is not None
    assert spectra.values[0, :2].tolist() == [math.inf, 1]


@pytest.mark.parametrize("number", [0.0, -2.5, math.nan, math.inf, -math.inf, None])
def test_a_number_survives_json(number: float | None):
    found = number_from_json(json.loads(json.dumps(json_number(number), allow_nan=False)))
    assert found == number or (found is not None and number is not None and math.isnan(found) and math.isnan(number))


@pytest.mark.parametrize("value", [True, "nan", "1.5", [], {}, 10**400])
def test_what_is_no_number_is_refused(value: object):
    with pytest.raises(WireError, match=r"scalars\.loss: must"):
        number_from_json(value, "scalars.loss")


def test_arrays_of_any_shape_are_nested_lists():
    values = np.array([[1.0, np.nan], [np.inf, 2.0]])
    assert json_array(values) == [[1.0, "NaN"], ["Infinity", 2.0]]
    assert json_array(values, np.array([[False, True], [True, False]])) == [[None, "NaN"], ["Infinity", None]]
    assert json_array(np.array([1, 2])) == [1, 2]
    assert json_array(np.zeros((2, 0))) == [[], []]


@settings(max_examples=1000)
@given(st.sampled_from(paths(FORM)), JSON_VALUES)
def test_any_json_in_any_place_only_raises_wire_error(path: tuple[Any, ...], value: Any):
    form = copy.deepcopy(FORM)
    place: Any = form
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with suppress(WireError):
        batch_from_json(form)


@given(JSON_VALUES)
def test_any_json_at_all_only_raises_wire_error(value: Any):
    with pytest.raises(WireError):
        batch_from_json(value)


@pytest.mark.parametrize(
    ("form", "field", "message"),
    [
        ([], "body", "must be an object, got a list"),
        (changed(session=""), "session", "must have 1 to 64 characters, got 0"),
        (changed(steps=[5, 7, "9"]), "steps", "must hold whole numbers and null only"),
        (changed(steps=[5, 7, None]), "steps", "must not hold null"),
        (changed(steps=[5, 7, 2**63]), "steps", "must lie in the range of an int64"),
        (changed(steps=[5, 7, True]), "steps", "must hold whole numbers"),
        (changed(times=[1, 2]), "times", "must be a list of 3 entries"),
        (changed(times=[1, 2, None]), "times", "must not be null"),
        (changed(times=[1, 2, "NaN"]), "times", "must be finite"),
        (changed(scalars={"loss": [1, 2]}), "scalars.loss", "must be a list of 3 entries"),
        (changed(scalars={"loss": [1, 2, 10**400]}), "scalars.loss", "must lie in the range of a float64"),
        (changed(scalars={"a\nb": [1, 2, 3]}), "scalars", "must hold printable characters only"),
        (changed(counts={"tokens": [1, 2, 0.5]}), "counts.tokens", "must hold whole numbers and null only"),
        (changed(layers={"steps": [5], "values": {"a": [[1], [2]]}}), "layers.values.a", "must be a list of 1 entries"),
        (
            changed(layers={"steps": [5, 7], "values": {"a": [[1, 2], [1]]}}),
            "layers.values.a",
            "must hold lists of 2 entries, one list per step",
        ),
        (changed(layers={"steps": [5], "digest": "x", "values": {}}), "layers.digest", "16 hexadecimal digits"),
        (changed(spectra=[{"step": 1}]), "spectra[0].layer", "must be a whole number, got null"),
        (changed(spectra=[{**FORM["spectra"][0], "k90": None}]), "spectra[0]", "must not be null or left out"),
        (
            changed(spectra=[{**FORM["spectra"][0], "singular_values": [1.0] * 97}]),
            "spectra[0].singular_values",
            "must have at most 96 entries, got 97",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_value(form: Any, field: str, message: str):
    with pytest.raises(WireError, match=message) as caught:
        batch_from_json(form)
    assert caught.value.field == field


def test_a_small_body_cannot_claim_much_memory():
    rows = {"steps": list(range(1, 4097)), "values": {f"s{i}": [[1.0] * 10_000] for i in range(64)}}
    with pytest.raises(WireError, match=r"layers\.values\.s0: must be a list of 4096 entries"):
        batch_from_json(changed(steps=rows["steps"], times=[0] * 4096, scalars={}, counts={}, layers=rows))


def test_limits_are_the_callers():
    with pytest.raises(WireError, match="steps: must have at most 2 entries, got 3"):
        batch_from_json(FORM, Limits(max_steps=2))
