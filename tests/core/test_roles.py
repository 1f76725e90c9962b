"""Roles and depths told from the parameter names of models in use."""

import pytest
from gradspectra_core.layers import ROLES, depth_of, depths_of, role_of
from hypothesis import given
from hypothesis import strategies as st

NANOGPT = {
    "transformer.wte.weight": ((65, 384), "embedding", -1),
    "transformer.wpe.weight": ((256, 384), "embedding", -1),
    "transformer.h.3.ln_1.weight": ((384,), "norm", 3),
    "transformer.h.3.ln_1.bias": ((384,), "bias", 3),
    "transformer.h.3.attn.c_attn.weight": ((1152, 384), "linear", 3),
    "transformer.h.3.attn.c_attn.weight[q]": ((384, 384), "q", 3),
    "transformer.h.3.attn.c_attn.bias": ((1152,), "bias", 3),
    "transformer.h.3.attn.c_proj.weight": ((384, 384), "o", 3),
    "transformer.h.3.mlp.c_fc.weight": ((1536, 384), "up", 3),
    "transformer.h.3.mlp.c_proj.weight": ((384, 1536), "down", 3),
    "transformer.ln_f.weight": ((384,), "norm", -1),
    "lm_head.weight": ((65, 384), "head", -1),
}
LLAMA = {
    "model.embed_tokens.weight": ((32000, 4096), "embedding", -1),
    "model.layers.3.self_attn.q_proj.weight": ((4096, 4096), "q", 3),
    "model.layers.3.self_attn.k_proj.weight": ((1024, 4096), "k", 3),
    "model.layers.3.self_attn.v_proj.weight": ((1024, 4096), "v", 3),
    "model.layers.3.self_attn.o_proj.weight": ((4096, 4096), "o", 3),
    "model.layers.3.self_attn.q_norm.weight": ((128,), "norm", 3),
    "model.layers.3.mlp.gate_proj.weight": ((11008, 4096), "gate", 3),
    "model.layers.3.mlp.up_proj.weight": ((11008, 4096), "up", 3),
    "model.layers.3.mlp.down_proj.weight": ((4096, 11008), "down", 3),
    "model.layers.12.input_layernorm.weight": ((4096,), "norm", 12),
    "model.norm.weight": ((4096,), "norm", -1),
}
LLAMA_AND_MIXTRAL_ORIGINAL = {
    "tok_embeddings.weight": ((32000, 4096), "embedding", -1),
    "layers.0.attention.wq.weight": ((4096, 4096), "q", 0),
    "layers.0.attention.wo.weight": ((4096, 4096), "o", 0),
    "layers.0.feed_forward.w1.weight": ((11008, 4096), "gate", 0),
    "layers.0.feed_forward.w2.weight": ((4096, 11008), "down", 0),
    "layers.0.feed_forward.w3.weight": ((11008, 4096), "up", 0),
    "output.weight": ((32000, 4096), "head", -1),
    "model.layers.3.block_sparse_moe.gate.weight": ((8, 4096), "other", 3),
    "model.layers.3.block_sparse_moe.experts.5.w2.weight": ((4096, 14336), "down", 3),
    "model.layers.3.mlp.gate.weight": ((11008, 4096), "gate", 3),
    "model.layers.3.mlp.experts.down_proj": ((64, 2048, 4096), "down", 3),
}
ENCODERS = {
    "bert.embeddings.word_embeddings.weight": ((30522, 768), "embedding", -1),
    "bert.encoder.layer.7.attention.self.query.weight": ((768, 768), "q", 7),
    "bert.encoder.layer.7.attention.output.dense.weight": ((768, 768), "o", 7),
    "bert.encoder.layer.7.attention.output.LayerNorm.weight": ((768,), "norm", 7),
    "bert.encoder.layer.7.intermediate.dense.weight": ((3072, 768), "up", 7),
    "bert.encoder.layer.7.output.dense.weight": ((768, 3072), "down", 7),
    "bert.pooler.dense.weight": ((768, 768), "linear", -1),
    "classifier.weight": ((2, 768), "head", -1),
    "classifier.out_proj.weight": ((2, 768), "head", -1),
    "encoder.layers.2.self_attn.in_proj_weight": ((1536, 512), "linear", 2),
    "encoder.layers.2.self_attn.in_proj_bias": ((1536,), "bias", 2),
    "encoder.layers.2.self_attn.out_proj.weight": ((512, 512), "o", 2),
    "encoder.layers.2.linear1.weight": ((2048, 512), "up", 2),
    "encoder.layers.2.linear2.weight": ((512, 2048), "down", 2),
    "encoder.layers.encoder_layer_3.mlp.linear_1.weight": ((3072, 768), "linear", 3),
    "encoder.block.5.layer.0.SelfAttention.q.weight": ((512, 512), "q", 5),
    "encoder.block.5.layer.0.SelfAttention.relative_attention_bias.weight": ((32, 8), "embedding", 5),
    "encoder.block.5.layer.1.DenseReluDense.wi_0.weight": ((1024, 512), "gate", 5),
    "encoder.block.5.layer.1.DenseReluDense.wi_1.weight": ((1024, 512), "up", 5),
    "encoder.block.5.layer.1.DenseReluDense.wo.weight": ((512, 1024), "down", 5),
    "gpt_neox.layers.1.attention.dense.weight": ((512, 512), "o", 1),
    "gpt_neox.layers.1.mlp.dense_4h_to_h.weight": ((512, 2048), "down", 1),
    "embed_out.weight": ((50000, 512), "head", -1),
}
VISION = {
    "patch_embed.proj.weight": ((768, 3, 16, 16), "conv", -1),
    "cls_token": ((1, 1, 768), "embedding", -1),
    "pos_embed": ((1, 197, 768), "embedding", -1),
    "blocks.4.attn.qkv.weight": ((2304, 768), "linear", 4),
    "blocks.4.attn.proj.weight": ((768, 768), "o", 4),
    "blocks.4.mlp.fc1.weight": ((3072, 768), "up", 4),
    "blocks.4.mlp.fc2.weight": ((768, 3072), "down", 4),
    "conv1.weight": ((64, 3, 7, 7), "conv", -1),
    "bn1.weight": ((64,), "norm", -1),
    "layer1.0.conv1.weight": ((64, 64, 3, 3), "conv", 0),
    "layer1.0.bn1.bias": ((64,), "bias", 0),
    "layer2.1.downsample.0.weight": ((128, 64, 1, 1), "conv", 1),
    "fc.weight": ((1000, 512), "linear", -1),
    "0.weight": ((32, 10), "linear", 0),
    "backbone.layers.0.mixer.conv1d.weight": ((1792, 1, 4), "conv", 0),
    "attn1.to_out.0.weight": ((320, 320), "o", 0),
    "lstm.weight_ih_l0": ((512, 128), "linear", -1),
    "lstm.bias_ih_l0": ((512,), "bias", -1),
    "logit_scale": ((), "other", -1),
}
ADAPTERS = {
    "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight": ((8, 4096), "q", 3),
    "base_model.model.model.layers.3.self_attn.v_proj.lora_B.default.weight": ((1024, 8), "v", 3),
    "base_model.model.model.layers.3.mlp.down_proj.lora_A.weight": ((8, 11008), "down", 3),
    "base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight": ((4096, 4096), "q", 3),
}
ALL = {**NANOGPT, **LLAMA, **LLAMA_AND_MIXTRAL_ORIGINAL, **ENCODERS, **VISION, **ADAPTERS}


@pytest.mark.parametrize("name", ALL)
def test_role_and_depth_of_names_in_use(name: str):
    shape, role, depth = ALL[name]
    assert (role_of(name, shape), depth_of(name)) == (role, depth)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "role"),
    [
        ("layer2.0.downsample.1.weight", (128,), "BatchNorm2d", "norm"),
        ("layer2.0.downsample.1.bias", (128,), "BatchNorm2d", "bias"),
        ("scale", (64,), "RMSNorm", "norm"),
        ("table.weight", (100, 8), "Embedding", "embedding"),
        ("stem.weight", (8, 3, 5), "Conv1d", "conv"),
        ("h.0.mlp.c_fc.weight", (384, 1536), "Conv1D", "up"),
        ("h.0.attn.c_proj.weight", (384, 384), "Conv1D", "o"),
        ("something.weight", (8, 3), "Conv1D", "linear"),
    ],
)
def test_the_kind_of_module_decides_where_names_do_not(name: str, shape: tuple[int, ...], kind: str, role: str):
    assert role_of(name, shape, kind) == role


@given(st.text(max_size=40), st.lists(st.integers(0, 9), max_size=5), st.text(max_size=10))
def test_any_name_has_a_role_and_a_depth(name: str, shape: list[int], kind: str):
    assert role_of(name, shape, kind) in ROLES
    assert depth_of(name) >= -1
    assert depths_of([name])[0] >= -1


def test_depths_count_through_the_stages_of_a_network():
    resnet = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0", "layer2.1.bn1",
              "layer3.0.conv1", "fc"]  # fmt: skip
    assert depths_of([f"{name}.weight" for name in resnet]) == (-1, 0, 1, 2, 2, 3, 4, -1)
    swin = ["layers.0.blocks.0.a", "layers.0.blocks.1.a", "layers.1.blocks.0.a", "layers.1.blocks.5.a", "norm.weight"]
    assert depths_of(swin) == (0, 1, 2, 7, -1)


def test_depths_are_the_blocks_own_numbers_elsewhere():
    assert depths_of(["m.layers.3.a", "m.layers.7.a", "m.layers.5.mlp.experts.3.w1"]) == (3, 7, 5)
    t5 = ["encoder.block.0.layer.0.a", "encoder.block.0.layer.1.a", "encoder.block.1.layer.0.a", "decoder.block.0.a"]
    assert depths_of(t5) == (0, 0, 1, 0)


def test_a_number_too_long_to_be_an_index_is_none():
    assert depth_of("h.9999999.weight") == -1
