"""Layer values as they are sent: quick ways of writing them say what the slow one does, and ETags tell all apart."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from gradspectra_backend import forms
from gradspectra_backend.answers import dumps, layers_object, wide_dumps
from gradspectra_core.views import LayerSeries
from starlette.requests import Request
from starlette.responses import Response

MEAN = np.array([[1.0, 0.1, -2.5e-7], [4.0, 5.0, float(np.float32(0.1))]])


def values(mean: np.ndarray = MEAN, **others: Any) -> LayerSeries:
    rows, count = mean.shape
    own: dict[str, Any] = {
        "statistic": "grad_norm",
        "axis": "step",
        "x": np.arange(count),
        "layers": tuple(f"layers.{row}.weight" for row in range(rows)),
        "roles": ("linear",) * rows,
        "depths": tuple(range(rows)),
        "mean": mean,
        "min": mean,
        "max": mean,
        "nonfinite": np.zeros(mean.shape, np.int64),
        "present": np.ones(mean.shape, np.bool_),
    }
    return LayerSeries(**own | others)


def answered(of: LayerSeries, form: str = forms.JSON, **headers: str) -> Response:
    given = {"accept": form} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})
    return forms.answer_layers(request, of, np.asarray(of.x))


def changed(array: np.ndarray, value: Any) -> np.ndarray:
    found = array.copy()
    found[-1, -1] = value
    return found


@pytest.mark.parametrize("nonfinite", [0, 3])
@pytest.mark.parametrize("high", [MEAN, MEAN + 1.0, changed(MEAN, np.inf)])
def test_arrays_that_are_one_are_written_as_those_that_are_alike(nonfinite: int, high: np.ndarray):
    counts = changed(np.zeros(MEAN.shape, np.int64), nonfinite)
    found = json.loads(dumps(layers_object(values(max=high, nonfinite=counts))))
    apart = values(MEAN.copy(), min=MEAN.copy(), max=high.copy(), nonfinite=counts)
    assert found == json.loads(dumps(layers_object(apart)))
    assert (found["mean"], found["min"], found["nonfinite"]) == (MEAN.tolist(), MEAN.tolist(), counts.tolist())
    assert found["max"] == [["Infinity" if np.isinf(one) else one for one in row] for row in high.tolist()]


def read_back(numbers: list[list[Any]], dtype: type) -> np.ndarray:
    words = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf, None: 77.0}
    return np.array(
        [[words.get(one, one) if one is None or isinstance(one, str) else one for one in row] for row in numbers], dtype
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [3, 7, 40])
def test_numbers_read_back_the_same_whatever_lies_among_them(rows: int, dtype: type):
    rng = np.random.default_rng(rows)
    mean = rng.lognormal(0, 20, (rows, 1500)).astype(dtype).astype(np.float64)
    present = np.ones(mean.shape, np.bool_)
    mean[rows // 2, [3, 4, 5]] = np.nan, np.inf, -np.inf
    present[-1, [0, 4, 1499]] = False
    present[rows // 2, 7] = False
    found = json.loads(bytes(answered(values(mean, present=present)).body))
    expected = np.where(present, mean, 77.0).astype(dtype)
    for part in ("mean", "min", "max"):
        np.testing.assert_array_equal(read_back(found[part], dtype), expected)
    assert [found["mean"][rows // 2][at] for at in (3, 4, 5, 7)] == ["NaN", "Infinity", "-Infinity", None]


def test_numbers_that_are_float32_are_as_short_as_that_allows():
    narrow = np.array([[0.1, 1 / 3, np.nan], [16777216.0, 3e-7, np.inf]], np.float32).astype(np.float64)
    found = json.loads(answered(values(narrow, max=narrow * 0.7)).body)
    assert found["mean"] == found["min"] == [[0.1, 0.33333334, "NaN"], [16777216.0, 3e-7, "Infinity"]]
    assert found["max"][0][:2] == (narrow * 0.7)[0, :2].tolist()


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (0, 3)])
def test_no_layers_and_no_buckets_are_written_too(shape: tuple[int, int]):
    found = json.loads(answered(values(np.empty(shape))).body)
    assert (found["mean"], found["nonfinite"]) == ([[]] * shape[0], [[]] * shape[0])


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([0, 1, 3])},
        {"mean": changed(MEAN, 7.0)},
        {"min": changed(MEAN, 7.0)},
        {"max": changed(MEAN, np.nan)},
        {"nonfinite": changed(np.zeros(MEAN.shape, np.int64), 1)},
        {"present": changed(np.ones(MEAN.shape, np.bool_), False)},
        {"layers": ("layers.0.weight", "layers.2.weight")},
        {"damaged": ((1, 2),)},
        {"retired": ((1, 2, 8),)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_an_etag_tells_whatever_is_written(form: str, other: dict[str, Any]):
    if form == forms.ARROW:
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
    tag = answered(values(), form).headers["etag"]
    assert answered(values(), form).headers["etag"] == tag
    assert answered(values(**other), form, if_none_match=tag).status_code == 200


def test_each_form_has_an_etag_of_its_own():
    tag = answered(values()).headers["etag"]
    for form in forms.FORMS[1:]:
        if form == forms.ARROW:
            pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
        assert answered(values(), form, if_none_match=tag).status_code == 200


def test_what_the_caller_has_is_not_written_at_all(monkeypatch: pytest.MonkeyPatch):
    tag = answered(values()).headers["etag"]
    monkeypatch.setattr(forms, "layers_object", lambda _: pytest.fail("written for nothing"))
    assert answered(dataclasses.replace(values()), if_none_match=tag).status_code == 304


def test_what_is_written_already_comes_last_in_an_object():
    of = values(MEAN, max=MEAN + 1.0)
    assert json.loads(bytes(wide_dumps(layers_object(of)))) == json.loads(dumps(layers_object(of)))
    alone = {"mean": layers_object(of)["mean"], "min": layers_object(of)["min"]}
    assert json.loads(bytes(wide_dumps(alone))) == {"mean": MEAN.tolist(), "min": MEAN.tolist()}
    assert json.loads(bytes(wide_dumps({"x": 1}))) == {"x": 1}
