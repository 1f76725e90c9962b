"""Blocks of fused tensors, and the matrix that a layer's spectrum is taken of."""

import numpy as np
import pytest
from gradspectra_core.identity import block_shape, fused_blocks, matrix_shape
from gradspectra_core.layers import Layer
from hypothesis import given
from hypothesis import strategies as st

THIRDS = (("[q]", 0, 0, 64), ("[k]", 0, 64, 128), ("[v]", 0, 128, 192))
COLUMNS = (("[q]", 1, 0, 64), ("[k]", 1, 64, 128), ("[v]", 1, 128, 192))
GROUPED = (("[q]", 0, 0, 64), ("[k]", 0, 64, 80), ("[v]", 0, 80, 96))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "blocks"),
    [
        ("transformer.h.3.attn.c_attn.weight", (192, 64), "Linear", THIRDS),
        ("transformer.h.3.attn.c_attn.weight", (64, 192), "Conv1D", COLUMNS),
        ("transformer.h.3.attn.c_attn.weight", (64, 192), "", COLUMNS),
        ("self_attn.in_proj_weight", (192, 64), "MultiheadAttention", THIRDS),
        ("in_proj_weight", (192, 64), "MultiheadAttention", THIRDS),
        ("blocks.4.attn.qkv.weight", (192, 64), "Linear", THIRDS),
        ("attn.to_qkv.weight", (192, 100), "Linear", THIRDS),
        ("transformer.blocks.0.attn.Wqkv.weight", (192, 64), "Linear", THIRDS),
        ("unet.attention.qkv.weight", (192, 64, 1), "Conv1d", THIRDS),
        ("model.layers.3.self_attn.qkv_proj.weight", (96, 64), "Linear", GROUPED),
        ("transformer.h.0.attn.c_attn.weight", (96, 64), "Linear", GROUPED),
        ("attn.kv_proj.weight", (8, 64), "Linear", (("[k]", 0, 0, 4), ("[v]", 0, 4, 8))),
        ("mlp.gate_up_proj.weight", (8, 64), "Linear", (("[gate]", 0, 0, 4), ("[up]", 0, 4, 8))),
    ],
)
def test_fused_tensors_are_split(name: str, shape: tuple[int, ...], kind: str, blocks: tuple[object, ...]):
    assert fused_blocks(name, shape, kind) == blocks


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attn.q_proj.weight", (192, 64)),
        ("attn.c_attn.bias", (192,)),
        ("attn.in_proj_bias", (192,)),
        ("attention.query_key_value.weight", (192, 64)),
        ("mixer.in_proj.weight", (192, 64)),
        ("attn.c_attn.lora_A.default.weight", (8, 192)),
        ("attn.qkv.weight", (191, 64)),
        ("attn.c_attn.weight", (64, 64)),
        ("self_attn.qkv_proj.weight", (224, 64)),
        ("attn.qkv.weight", (0, 64)),
        ("mlp.gate_up_proj.weight", (7, 64)),
    ],
)
def test_other_tensors_stay_whole(name: str, shape: tuple[int, ...]):
    assert fused_blocks(name, shape) == ()


@given(
    st.sampled_from([f"{fused}.weight" for fused in ("attn.c_attn", "attn.qkv", "qkv_proj", "Wqkv", "kv", "w12")]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["", "Linear", "Conv1D"]),
)  # fmt: skip
def test_blocks_cover_the_tensor_once(name: str, shape: tuple[int, int], kind: str):
    covered = np.zeros(shape, np.int64)
    for block in (blocks := fused_blocks(name, shape, kind)):
        _, axis, start, stop = block
        rows = covered[start:stop] if axis == 0 else covered[:, start:stop]
        rows += 1
        assert rows.shape == block_shape(shape, block)
    assert (covered == bool(blocks)).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Layer("fc.weight", "linear", -1, (10, 20)), (10, 20)),
        (Layer("conv1.weight", "conv", -1, (64, 3, 7, 7)), (64, 147)),
        (Layer("stem.weight", "conv", -1, (8, 3, 5)), (8, 15)),
        (Layer("mlp.experts.down_proj", "down", 0, (64, 32, 16)), (32, 16)),
        (Layer("wte.weight", "embedding", -1, (50257, 768)), (50257, 768)),
        (Layer("value_head.weight", "linear", -1, (1, 5)), (1, 5)),
        (Layer("fc.bias", "bias", -1, (10,)), None),
        (Layer("scale", "other", -1, ()), None),
        (Layer("empty", "linear", -1, (0, 5)), None),
    ],
)
def test_the_matrix_of_a_layer(layer: Layer, shape: tuple[int, int] | None):
    assert matrix_shape(layer) == shape
