"""The container of the binary form: what goes in comes out, others can read it, and bad bytes only raise WireError."""

import json
import struct

import numpy as np
import pytest
from core.batches import same_bits
from gradspectra_core import container
from gradspectra_core.limits import Limits, WireError
from gradspectra_core.wire import pack, unpack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

ARRAYS = st.sampled_from((np.float32, np.float64, np.int64, np.uint8)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


def body(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header(**blocks: object) -> dict[str, object]:
    return {"__metadata__": {"format": "gradspectra/1", "gradspectra": "{}"}, **blocks}


@given(st.dictionaries(st.text(min_size=1), ARRAYS.map(np.asarray), max_size=5))
def test_what_is_packed_comes_out_bit_by_bit(blocks: dict[str, np.ndarray]):
    blocks.pop("__metadata__", None)
    meta, found = unpack(pack({"a": [1, None, "µ"]}, blocks))
    assert meta == {"a": [1, None, "µ"]}
    assert set(found) == set(blocks)
    for name, block in blocks.items():
        same_bits(found[name], block)


def test_the_safetensors_package_reads_our_bytes():
    blocks = {
        "bits": np.array([1, 2, 255], np.uint8),
        "norms": np.array([[1.5, np.nan], [np.inf, -0.0]], np.float32),
        "steps": np.array([1, 2**62], np.int64),
        "none": np.zeros((0, 3), np.float64),
    }
    found = load(pack({"session": "s"}, blocks))
    assert set(found) == set(blocks)
    for name, block in blocks.items():
        same_bits(found[name], block)


def test_every_block_starts_at_a_multiple_of_its_item_size():
    _, found = unpack(pack({}, {"a": np.ones(3, np.uint8), "b": np.ones(1, np.float32), "c": np.ones(2)}))
    assert all(block.flags.aligned for block in found.values())


def test_blocks_are_views_of_the_body():
    buf = bytearray(pack({}, {"a": np.array([1.0, 2.0])}))
    _, found = unpack(buf)
    buf[-8:] = struct.pack("<d", 7.0)
    assert found["a"].tolist() == [1.0, 7.0]


def test_big_endian_and_strided_arrays_are_packed_as_what_they_mean():
    _, found = unpack(pack({}, {"a": np.array([1, 2], ">i8"), "b": np.arange(6.0).reshape(2, 3).T}))
    assert found["a"].tolist() == [1, 2]
    assert found["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_dtype_without_a_place_in_the_format_is_refused_by_name():
    with pytest.raises(WireError, match=r"a: dtype must be float32, float64, int64 or uint8, got bool"):
        pack({}, {"a": np.array([True])})


ONE = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("buf", "field", "message"),
    [
        (b"", "body", "must be at least 8 bytes long, got 0"),
        (struct.pack("<Q", 2**40), "header", "must be at most 4194304 bytes long"),
        (struct.pack("<Q", 9) + b"{}", "header", "is cut off: 9 bytes announced, 2 there"),
        (body(b"\xff\xfe"), "header", "is not JSON"),
        (body(b"[" * 100_000), "header", "is not JSON"),
        (body(b"[]"), "header", "must be a JSON object, got list"),
        (body({}), "header.__metadata__", 'must be an object with "format": "gradspectra/1"'),
        (body({"__metadata__": {"format": "gradspectra/2"}}), "header.__metadata__", "gradspectra/1"),
        (body({"__metadata__": {"format": "gradspectra/1"}}), "header.__metadata__.gradspectra", "must be a string"),
        (body(header(a=3)), "a", "must be an object"),
        (body(header(a={**ONE, "dtype": "F16"}), b"8" * 8), "a.dtype", "must be one of F32, F64, I64, U8, got 'F16'"),
        (body(header(a={**ONE, "dtype": []}), b"8" * 8), "a.dtype", "got a list"),
        (body(header(a={**ONE, "shape": [True]}), b"8" * 8), "a.shape", "whole numbers"),
        (body(header(a={**ONE, "shape": [-1]}), b"8" * 8), "a.shape", "whole numbers"),
        (body(header(a={**ONE, "shape": [0, 2**62]}), b"8" * 8), "a.shape", "is too large"),
        (body(header(a={**ONE, "shape": [2]}), b"8" * 8), "a.data_offsets", "must span the 16 bytes of the shape"),
        (body(header(a={**ONE, "data_offsets": [0, 8, 9]}), b"8" * 8), "a.data_offsets", "must be two whole numbers"),
        (body(header(a={**ONE, "data_offsets": [8, 16]}), b"8" * 16), "a", "must begin where the block before it ends"),
        (body(header(a=ONE, b=ONE), b"8" * 8), "b", r"must begin where the block before it ends \(8\), begins at 0"),
        (body(header(a=ONE), b"8" * 7), "a", "is cut off: ends at 8, the body has 7 bytes"),
        (body(header(a=ONE), b"8" * 9), "body", "has 1 bytes that belong to no block"),
        (body(header(**{str(i): ONE for i in range(257)})), "header", "must name at most 256 blocks, got 257"),
    ],
)
def test_a_bad_body_is_refused_with_the_place_and_the_reason(buf: bytes, field: str, message: str):
    with pytest.raises(WireError, match=message) as caught:
        unpack(buf)
    assert caught.value.field == field


def test_numbers_that_json_does_not_have_are_refused_in_the_metadata():
    text = '{"a": NaN}'
    with pytest.raises(WireError, match="NaN is not a JSON number"):
        unpack(body({"__metadata__": {"format": "gradspectra/1", "gradspectra": text}}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack({"a": float("nan")}, {})


def test_the_header_may_be_as_long_as_the_limits_say():
    buf = pack({"text": "x" * 1000}, {})
    assert unpack(buf)[0]["text"] == "x" * 1000
    with pytest.raises(WireError, match="must be at most 100 bytes long"):
        unpack(buf, limits=Limits(max_header=100))


def test_a_header_that_says_more_of_its_metadata_at_its_end_is_read_whole():
    body = pack({"a": 1}, {"x": np.zeros(2, np.float32)})
    (length,) = struct.unpack_from("<Q", body)
    head = body[8 : 8 + length].rstrip()
    assert unpack(body)[0] == {"a": 1}
    other = head[:-1] + b',"__metadata__":{"format":"gradspectra/1","gradspectra":"{\\"a\\":2}"}}'
    assert unpack(struct.pack("<Q", len(other)) + other + body[8 + length :])[0] == {"a": 2}
    within = head.replace(b'},"x"', b',"gradspectra":"{\\"a\\":3}"},"x"', 1)
    assert unpack(struct.pack("<Q", len(within)) + within + body[8 + length :])[0] == {"a": 3}


def test_blocks_of_one_shape_do_not_share_their_header_with_those_of_another():
    for shape in ((2, 3), (3, 2), (6,), (2, 3)):
        for dtype in (np.float32, np.int64):
            sent = np.arange(6, dtype=dtype).reshape(shape)
            assert np.array_equal(unpack(pack({}, {"x": sent}))[1]["x"], sent)
            assert unpack(pack({}, {"x": sent}))[1]["x"].dtype == dtype
    assert unpack(pack({}, {})) == ({}, {})


def test_the_blocks_of_a_layout_seen_before_are_not_parsed_again():
    before = container._layout.cache_info()
    for number in (1, 2, 3):
        unpack(pack({"a": number}, {"never_before": np.zeros(2, np.float32)}))
    after = container._layout.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 1)


def object_body(text: str) -> bytes:
    return body({"__metadata__": {"format": "gradspectra/1", "gradspectra": text}})


def test_bodies_of_one_session_are_read_each_with_its_own_numbers():
    container._common.cache_clear()
    for session, sequence in (("a", 1), ("a", 2), ("b-_9", 3)):
        meta = {"session": session, "sequence": sequence, "complete_through": 5 * sequence, "scalars": ["loss", "µ"]}
        assert unpack(pack(meta, {}))[0] == meta
    assert container._common.cache_info().misses == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"session":"a","sequence":1,"complete_through":2,"session":"b","sequence":3}',
        '{"session":"a","sequence":1,"complete_through":2}',
        '{"session":"","sequence":1,"complete_through":2,"scalars":[]}',
        '{"session":"a","sequence":12345678901234567890123,"complete_through":2,"scalars":[]}',
        '{"session":"a","sequence":1,"complete_through":-2,"scalars":[]}',
        '{"session":"a","sequence":1.5,"complete_through":2,"scalars":[]}',
    ],
)
def test_an_object_means_what_json_says_whatever_it_begins_with(text: str):
    assert unpack(object_body(text))[0] == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"session":"a","sequence":01,"complete_through":2,"scalars":[]}',
        '{"session":"a","sequence":1,"complete_through":2,}',
        '{"session":"a","sequence":1,"complete_through":2,"scalars":[NaN]}',
        '{"session":"a","sequence":1,"complete_through":2,"scalars":[]',
    ],
)
def test_an_object_that_is_no_json_is_refused_whatever_it_begins_with(text: str):
    with pytest.raises(WireError) as refused:
        unpack(object_body(text))
    assert refused.value.field == "header.__metadata__.gradspectra"


@given(st.dictionaries(st.text(min_size=1), ARRAYS.map(np.asarray), max_size=5))
def test_a_body_packed_alike_is_that_of_pack(blocks: dict[str, np.ndarray]):
    blocks.pop("__metadata__", None)
    meta = {"digest": "0", "statistics": ["µ", '"']}
    for _ in range(2):
        assert container.pack_alike(container.object_text(meta), blocks) == pack(meta, blocks)
