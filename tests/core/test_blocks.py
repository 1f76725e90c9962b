"""Blocks: every bit comes back, damage is seen wherever it is, and real statistics get small."""

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest
from gradspectra_core.blocks import DamagedBlock, Recorded, pack_level, pack_recorded, unpack_level, unpack_recorded
from gradspectra_core.planes import CodingError, decode, encode
from gradspectra_core.pyramid import coarser, joined, leaves
from gradspectra_core.widths import ladder, width_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = st.sampled_from([np.float32, np.float64, np.int64])


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@given(st.data(), DTYPES, st.integers(0, 50), st.booleans())
def test_any_bits_come_back(data: st.DataObject, dtype: type, length: int, based: bool):
    words = hnp.arrays(f"u{np.dtype(dtype).itemsize}", length)
    array, base = (data.draw(words).view(dtype) for _ in range(2))
    coded = b"before" + encode(array, base if based else None) + b"after"
    back, end = decode(memoryview(coded), 6, np.dtype(dtype), base if based else None)
    assert coded[end:] == b"after"
    assert (bits(back) == bits(array)).all()


@given(st.data(), DTYPES, st.integers(1, 50), st.booleans())
def test_bits_that_all_lie_on_one_side_of_others_come_back(data: st.DataObject, dtype: type, length: int, below: bool):
    words = hnp.arrays(f"u{np.dtype(dtype).itemsize}", (2, length))
    array, base = np.sort(data.draw(words), axis=0)[:: 1 if below else -1].view(dtype)
    coded = encode(array, base)
    back, end = decode(memoryview(coded), 0, np.dtype(dtype), base)
    assert end == len(coded)
    assert (bits(back) == bits(array)).all()


@pytest.mark.parametrize("bound", ["low", "high"])
def test_numbers_on_one_side_of_others_keep_no_sign(bound: str):
    values = np.random.default_rng(3).lognormal(sigma=0.1, size=(40, 4000)).astype(np.float32)
    level = coarser(leaves(np.arange(4000), values, None, last=False), dtype=np.dtype(np.float32))
    mean, own = level.mean.reshape(-1), getattr(level, bound).reshape(-1)
    coded = encode(own, mean)
    lowest, plain = coded[6], 1
    assert lowest == plain  # with the same sign in all, an eighth of this plane would be deflated away
    crossing = own.copy()
    crossing[0] = mean[0] * (2 if bound == "low" else 0.5)
    assert encode(crossing, mean)[6] != plain
    assert abs(len(coded) - len(encode(crossing, mean))) < 0.01 * len(coded)
    with pytest.raises(CodingError, match="no array"):
        decode(memoryview(coded), 0, np.dtype(np.float32))


@given(DTYPES, st.integers(-(2**62), 2**62), st.integers(-(2**40), 2**40), st.integers(1, 600))
def test_numbers_at_even_distances_come_back_and_take_little_room(dtype: type, first: int, apart: int, length: int):
    word = np.dtype(f"u{np.dtype(dtype).itemsize}")
    array = ((first + apart * np.arange(length)).view(np.uint64)).astype(word).view(dtype)
    coded = b"before" + encode(array) + b"after"
    back, end = decode(memoryview(coded), 6, np.dtype(dtype))
    assert coded[end:] == b"after"
    assert len(back) == length
    assert (bits(back) == bits(array)).all()
    assert len(coded) <= 11 + 6 + word.itemsize * 11


@given(st.data(), DTYPES, st.integers(0, 4), st.integers(0, 20), st.booleans())
def test_recorded_numbers_come_back_in_place(data: st.DataObject, dtype: type, rows: int, count: int, full: bool):
    values = data.draw(hnp.arrays(f"u{np.dtype(dtype).itemsize}", (rows, count))).view(dtype).reshape(rows, count)
    steps = np.cumsum(data.draw(hnp.arrays(np.int64, count, elements=st.integers(1, 2**50))))
    present = None if full else data.draw(hnp.arrays(np.bool_, (rows, count)))
    back = unpack_recorded(pack_recorded(Recorded(steps, values, present)))
    assert (back.steps == steps).all()
    there = np.ones(values.shape, np.bool_) if present is None else present
    assert (back.present is None) == full
    assert full or (back.present == present).all()
    assert (bits(back.values)[there] == bits(values)[there]).all()


@given(st.data(), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 2, 34, 66, 3]), st.booleans())
def test_levels_come_back_whole(data: st.DataObject, dtype: type, number: int, last: bool):
    steps = np.array(sorted(data.draw(st.sets(st.integers(1, 3000), min_size=1, max_size=40))))
    values = data.draw(hnp.arrays(dtype, (3, len(steps))))
    level = leaves(steps, values, data.draw(hnp.arrays(np.bool_, values.shape)), last=last)
    width = 1
    for step in ladder(number):
        level = coarser(level, width_of(step) // width, np.dtype(dtype))
        width = width_of(step)
    level = replace(level, lost=data.draw(st.none() | hnp.arrays(np.int64, (2, 3))))
    back = unpack_level(pack_level(number, level))
    assert (back.lost is None) == (level.lost is None)
    assert level.lost is None or (back.lost == level.lost).all()
    for name in ("numbers", "first", "mean", "low", "high", "finite"):
        np.testing.assert_array_equal(getattr(back, name), getattr(level, name))
    assert (back.last is None) == (not last)
    if last:
        np.testing.assert_array_equal(back.last, level.last)
    for name in ("nan", "up", "down"):
        kept, was = getattr(back, name), getattr(level, name)
        assert (kept is None) == (was is None or not was.any())
        if kept is not None:
            np.testing.assert_array_equal(kept, was)


@pytest.mark.parametrize("bare", [False, True])
def test_counts_that_are_the_same_in_all_rows_are_kept_once(bare: bool):
    values = np.random.default_rng(0).lognormal(size=(40, 250)).astype(np.float32)
    present = np.arange(250) % 7 != 3
    present[8:16] &= not bare
    level = coarser(leaves(np.arange(250), values, np.tile(present, (40, 1)), last=False), dtype=np.dtype(np.float32))
    level = replace(level, finite=np.array(level.finite))
    payload = pack_level(1, level)
    back = unpack_level(payload)
    assert back.finite.strides[0] == 0
    for name in ("numbers", "first", "mean", "low", "high", "finite"):
        np.testing.assert_array_equal(getattr(back, name), getattr(level, name))
    other = np.array(level.finite)
    other[7, 2] -= 1
    apart = pack_level(1, replace(level, finite=other))
    assert len(apart) > len(payload) + 50
    np.testing.assert_array_equal(unpack_level(apart).finite, other)


def test_what_is_lost_goes_with_buckets_that_are_cut_chosen_and_joined():
    level = coarser(leaves(np.arange(64), np.ones((3, 64)), None, last=False))
    first = replace(level.cut(slice(0, 4)), lost=np.array([[3], [9]]))
    whole = joined([first.select(np.array([1])), level.cut(slice(4, 8)).select(np.array([1]))])
    assert whole.lost is not None
    assert whole.lost.tolist() == [[3], [9]]
    both = joined([first, replace(level.cut(slice(4, 8)), lost=np.array([[40, 50], [41, 60]]))])
    assert both.lost is not None
    assert both.lost.tolist() == [[3, 40, 50], [9, 41, 60]]
    assert level.lost is None


EARLIER = (
    "XLDjPHYlkv0A>IJ0000m000012rvKu00031000620RR9100031000000RR9100031000000RR9100031000000RR91009JG00001U;qF"
    "B09ZW!g6w0~Y)G!quSt!erD+HKDQ9!_la~u8bF(S=6BoAB2CT})lm-lpWWw5#aCitF>ZoWAX>|wnFXt=QakW_w|F?bly>pwdod?chcyd"
    "yH^2i!Q`Xp))I^0-B0bl?C001j3jl)%DQ~^CievVT~3R?Izy@euj*|<cuA3;qN^q;}?)i70;(ogMz`+7n`pUyWtN$w;kU#@Us9A<ShvU"
    "3aotBV_v{)!yv&3c{~`d5L;h;I?AC<0novDrAjJpx()000HSF$%;W5Czb{q|!!+!W1hj$-*}<#fQPdZ9ULlbB~qxHW>Z?(~^QnNJX#VG"
    "^|Oq8}*1HF<0~k&IO~7OLGb$Ar<`$r}Z_7_l?&PWskX{x6bc^(Z{I|0tx^C0IO#Jg8F&}S^)q"
)
EARLIER_LEVEL = (
    "XLDjPNjLu10cHXM00007000012nPTF00IR7003iP0s{a50RR9100031000000RR9100031000000RR9100031000000RR91009UG0000"
    "21^@s6V`5|g0RR92000000096100001000000096100001000000096100001000000SFEN0006F0002vVPOCQULGa}Am9Z600961000"
    "010000000961000010000000961000010000000961000394gdfE0tNs80ApfgKmq^&0RR9100031000000RR9100031000000RR9100"
    "031000000RR91009IJ000014gdfEqSEt6oo*Nyg2hA3%3c8u0000seO|Lk-IeBG`yKT3+W`&$004Q=r*@Pe%$)`^O=V}Z0S*8F0Dk}g0"
    "RRC200032009621P%ZI009mF005x@A%O|20H>vYS@rDz0S*8F05-<^m!rf07tZQJBbWdI4gdfEc_5;X9<2asa?3A;w*UYE000000R#>J"
    "0003F0002`F#0h3h5+z<NXnQP009mF003e<WZp&f0N>tvGc%q50S*8F0GASmk4l>WH8PE1cAEeI0RR9100"
)


def test_blocks_written_before_sparse_planes_are_read_as_they_were():
    values = np.exp(np.sin(np.arange(96).reshape(2, 48) / 7)).astype(np.float32)
    values[0, 5] = np.nan
    steps = np.arange(1, 49)
    kept = unpack_recorded(base64.b85decode(EARLIER))
    assert (bits(kept.values) == bits(values)).all()
    assert kept.steps.tolist() == steps.tolist()
    made = coarser(leaves(steps, values, None, last=False), dtype=np.dtype(np.float32))
    level = unpack_level(base64.b85decode(EARLIER_LEVEL))
    for name in ("numbers", "first", "mean", "low", "high", "finite", "nan"):
        np.testing.assert_array_equal(getattr(level, name), getattr(made, name))


def payloads() -> list[bytes]:
    values = np.random.default_rng(1).lognormal(size=(4, 64)).astype(np.float32)
    level = coarser(leaves(np.arange(64), values, None, last=False), dtype=np.dtype(np.float32))
    return [pack_recorded(Recorded(np.arange(64), values, values > 0.5)), pack_level(1, level)]


@pytest.mark.parametrize(("place", "unpack"), [(0, unpack_recorded), (1, unpack_level)])
def test_a_changed_or_missing_byte_anywhere_is_damage(place: int, unpack):
    payload = payloads()[place]
    for at in range(len(payload)):
        with pytest.raises(DamagedBlock):
            unpack(payload[:at] + bytes([payload[at] ^ 0x10]) + payload[at + 1 :])
        with pytest.raises(DamagedBlock):
            unpack(payload[:at])
    with pytest.raises(DamagedBlock, match="of level"):
        unpack(payloads()[1 - place])
    for other in (None, "text", 5):
        with pytest.raises(DamagedBlock, match="a block is bytes"):
            unpack(other)


@pytest.mark.parametrize(("place", "unpack"), [(0, unpack_recorded), (1, unpack_level)])
def test_bytes_with_a_right_checksum_that_no_block_has_are_damage_too(place: int, unpack):
    payload = payloads()[place]
    rng = np.random.default_rng(2)
    for _ in range(300):
        body = bytearray(payload[8:])
        body[rng.integers(len(body))] = rng.integers(256)
        try:
            unpack(payload[:4] + zlib.crc32(body).to_bytes(4, "little") + bytes(body))
        except DamagedBlock:
            continue


def test_a_deflated_plane_cannot_blow_up():
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = coder.compress(bytes(10_000_000)) + coder.flush()
    head = bytes([1, 1]) + (100).to_bytes(4, "little") + bytes([2]) + len(bomb).to_bytes(4, "little")
    with pytest.raises(CodingError, match="101 bytes instead of 100"):
        decode(memoryview(head + bomb), 0, np.dtype(np.uint8))


def test_what_hardly_changes_takes_hardly_any_room():
    zeros = pack_recorded(Recorded(np.arange(1, 513), np.zeros((200, 512), np.int64), None))
    assert len(zeros) < 200
    slow = (1 + 1e-4 * np.arange(512) + np.arange(200)[:, None]).astype(np.float32)
    assert len(pack_recorded(Recorded(np.arange(1, 513), slow, None))) < 2.0 * slow.size


def test_statistics_that_wander_as_real_ones_do_take_at_most_three_bytes():
    walk = np.random.default_rng(0).normal(scale=0.1, size=(100, 512)).cumsum(1)
    values = np.exp(walk).astype(np.float32)
    assert len(pack_recorded(Recorded(np.arange(512), values, None))) < 3.0 * values.size
