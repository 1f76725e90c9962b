"""The binary form of a batch: round trips, what others can read, and random, truncated or mutated bytes."""

import gc
import json
import struct
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from core.batches import assert_same, batches, full_batch, same_bits
from gradspectra_core.limits import Limits, WireError
from gradspectra_core.records import Batch, Columns, LayerBlock
from gradspectra_core.wire import decode_batch, encode_batch, pack, unpack
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

FULL = encode_batch(full_batch())
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def refused_or_valid(buf: bytes) -> Batch | None:
    """Decode; None where it was refused. Anything but a WireError fails the test."""
    try:
        return decode_batch(buf)
    except WireError as error:
        return None if error.field and error.message else pytest.fail("a refusal without a place or a reason")


@given(batches())
@example(full_batch())
def test_a_batch_comes_back_as_it_was(batch: Batch):
    assert_same(decode_batch(encode_batch(batch)), batch)


def test_the_safetensors_package_reads_a_batch():
    found = load(FULL)
    batch = full_batch()
    assert batch.layers is not None
    same_bits(found["layers.values"], batch.layers.values)
    same_bits(found["steps"], batch.steps)
    assert np.unpackbits(found["counts.present"], bitorder="little")[:3].tolist() == [1, 0, 1]


def test_absent_and_nan_stay_apart():
    batch = decode_batch(FULL)
    assert batch.scalars.present[1].tolist() == [True, False, True]
    assert batch.scalars.present[0].all()
    assert np.isnan(batch.scalars.values[0, 1])


@given(st.binary(max_size=200))
def test_random_bytes_only_raise_wire_error(buf: bytes):
    assert refused_or_valid(buf) is None


@given(st.integers(0, len(FULL) - 1))
def test_a_truncated_body_is_refused(length: int):
    assert refused_or_valid(FULL[:length]) is None


@settings(max_examples=1500)
@given(st.lists(st.tuples(st.integers(0, len(FULL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_body_only_raises_wire_error(changes: list[tuple[int, int]]):
    buf = bytearray(FULL)
    for place, value in changes:
        buf[place] = value
    refused_or_valid(bytes(buf))


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix] * bool(prefix) + [path for key, item in inner for path in paths(item, (*prefix, key))]


META, BLOCKS = unpack(FULL)


@settings(max_examples=1000)
@given(st.sampled_from(paths(META)), JSON_VALUES)
def test_any_json_in_any_place_of_the_metadata_only_raises_wire_error(path: tuple[Any, ...], value: Any):
    meta = json.loads(json.dumps(META))
    place = meta
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    refused_or_valid(pack(meta, BLOCKS))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_a_block_that_is_missing_or_of_another_shape_or_dtype_is_named(name: str):
    without = {key: block for key, block in BLOCKS.items() if key != name}
    other = np.dtype(np.uint8) if BLOCKS[name].dtype != np.uint8 else np.dtype(np.int64)
    for blocks, message in (
        (without, "is missing"),
        ({**BLOCKS, name: BLOCKS[name][None]}, "must have shape"),
        (
            {**BLOCKS, name: np.zeros(BLOCKS[name].shape, other)},
            "must have dtype",
        ),
    ):
        with pytest.raises(WireError, match=message) as caught:
            decode_batch(pack(META, blocks))
        assert caught.value.field == name


def test_unknown_metadata_and_blocks_are_left_aside():
    buf = pack({**META, "later": {"x": 1}}, {**BLOCKS, "later": np.zeros(2)})
    assert_same(decode_batch(buf), full_batch())


def test_a_code_without_a_text_is_refused():
    with pytest.raises(WireError, match=r"spectra\.methods: has 2 entries, entry 9 is referred to"):
        decode_batch(pack(META, {**BLOCKS, "spectra.method": np.array([0, 9], np.uint8)}))


def test_a_spectrum_of_an_unknown_thing_cannot_be_encoded():
    spectra = full_batch().spectra
    assert spectra is not None
    bad = replace(full_batch(), spectra=replace(spectra, of=("gradient", "loss")))
    with pytest.raises(WireError, match=r"spectra\.of: must be one of gradient, weight, update, got 'loss'"):
        encode_batch(bad)


def test_decoded_values_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        decode_batch(FULL).steps[0] = 1


def test_a_length_field_beyond_the_body_costs_nothing():
    with pytest.raises(WireError, match="length field says"):
        decode_batch(struct.pack("<Q", 2**64 - 1) + b"{}")


def test_limits_are_the_callers():
    with pytest.raises(WireError, match="steps: must be at most 2, got 3"):
        decode_batch(FULL, limits=Limits(max_steps=2))


def of_a_model(layers: int = 200, steps: int = 16) -> Batch:
    """Steps of so many layers with 14 statistics."""
    rng = np.random.default_rng(0)
    numbers = np.arange(1, steps + 1)
    names = tuple(f"scalar_{i}" for i in range(10))
    block = LayerBlock(
        "0" * 16,
        numbers,
        tuple(f"statistic_{i}" for i in range(13)),
        rng.normal(size=(13, steps, layers)).astype(np.float32),
        rng.random((13, steps, layers)) > 0.01,
        ("grad_nonfinite",),
        np.zeros((1, steps, layers), np.int64),
        np.ones((1, steps, layers), np.bool_),
    )
    scalars = Columns(names, rng.normal(size=(10, steps)), np.ones((10, steps), np.bool_))
    counts = Columns(("tokens",), np.ones((1, steps), np.int64), np.ones((1, steps), np.bool_))
    return Batch("s", 1, steps, numbers, 1e9 + numbers.astype(np.float64), scalars, counts, None, block)


def calls_of(action: Any) -> int:
    """How many calls of functions an action makes when it is done again."""
    action()
    calls: list[Any] = []
    gc.disable()  # Hypothesis has functions called by it
    sys.setprofile(lambda _, event, called: calls.append(called) if event in ("call", "c_call") else None)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return len(calls)


def test_a_batch_of_a_large_model_is_small_and_takes_no_more_calls_than_one_of_a_small_model():
    large, small = of_a_model(), of_a_model(3, 2)
    buf, other = encode_batch(large), encode_batch(small)
    assert len(buf) < 230_000
    assert calls_of(lambda: encode_batch(large)) == calls_of(lambda: encode_batch(small)) < 200
    assert calls_of(lambda: decode_batch(buf)) == calls_of(lambda: decode_batch(other)) < 1000
