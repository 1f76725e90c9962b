"""Blocks of fused tensors, and the matrix that a layer's spectrum is taken of."""

import numpy as np
import pytest
from gradspectra_core.identity import block_shape, fused_blocks, matrix_shape
from gradspectra_core.layers import Layer
from hypothesis import given
from hypothesis import strategies as st

THIRDS = (("[q]", 0, 0, 64), ("[k]", 0, 64, 128), ("[v]", 0, 128, 192))
COLUMNS = (("[q]", 1, 0, 64), ("[k]", 1, 64, 128), ("[v]", 1, 128, 192))
EXPERTS = (("[0]", 0, 0, 1), ("[1]", 0, 1, 2), ("[2]", 0, 2, 3))
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
        ("model.layers.3.mlp.experts.gate_up_proj", (3, 192, 64), "Qwen3MoeExperts", EXPERTS),
        ("model.layers.3.mlp.experts.down_proj", (3, 64, 96), "", EXPERTS),
        ("layers.1.moe.experts.w2", (3, 64, 96), "GroupedExperts", EXPERTS),
        ("layers.1.local_experts.weights.0", (3, 64, 96), "", EXPERTS),
        ("block_sparse_moe.input_linear.weight", (3, 64, 96), "GraniteMoeParallelExperts", EXPERTS),
        ("layers.1.w1", (3, 64, 96), "SparseMoE", EXPERTS),
        ("layers.1.w1", (3, 64, 96), "SwitchMoeLayer", EXPERTS),
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
        ("mlp.experts.gate_up_proj_bias", (3, 192)),
        ("mlp.experts.w1", (192, 64)),
        ("mlp.experts.w1", (2, 3, 192, 64)),
        ("mlp.experts.w1", (1, 192, 64)),
        ("mlp.experts.w1", (3, 0, 64)),
        ("mlp.experts.3.heads", (4, 16, 64)),
        ("heads.projections", (4, 16, 64)),
    ],
)
def test_other_tensors_stay_whole(name: str, shape: tuple[int, ...]):
    assert fused_blocks(name, shape) == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlp.experts.conv.weight", "Conv1d"),
        ("mlp.experts.up.weight", "ConvTranspose1d"),
        ("mlp.experts.depthwise_conv", "Experts"),
        ("mlp.experts.up_bias", "Experts"),
        ("mlp.experts.position_embeddings", "Experts"),
        ("mlp.experts.weight", "ExpertNorm"),
        ("self_attn.heads", "Qwen3MoeAttention"),
    ],
)
def test_three_dimensions_alone_make_no_experts(name: str, kind: str):
    assert fused_blocks(name, (3, 4, 5), kind) == ()


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
        (Layer("layers.0.w1[3]", "gate", 0, (1, 32, 16)), (32, 16)),
        (Layer("pos_embed", "embedding", -1, (1, 197, 64)), (197, 64)),
        (Layer("narrow.weight", "conv", -1, (1, 3, 5)), (1, 15)),
        (Layer("heads", "other", -1, (4, 3, 5)), (4, 15)),
        (Layer("wte.weight", "embedding", -1, (50257, 768)), (50257, 768)),
        (Layer("value_head.weight", "linear", -1, (1, 5)), (1, 5)),
        (Layer("fc.bias", "bias", -1, (10,)), None),
        (Layer("scale", "other", -1, ()), None),
        (Layer("empty", "linear", -1, (0, 5)), None),
    ],
)
def test_the_matrix_of_a_layer(layer: Layer, shape: tuple[int, int] | None):
    assert matrix_shape(layer) == shape
