"""What a parameter tensor does and how deep it lies, told from its name, shape and kind of module."""

from __future__ import annotations

import re
from collections.abc import Sequence

ROLES = ("q", "k", "v", "o", "up", "gate", "down", "embedding", "head", "conv", "linear", "norm", "bias", "other")

_BY_NAME = {
    "q": "q q_proj query wq to_q q_lin q_a_proj q_b_proj query_proj",
    "k": "k k_proj key wk to_k k_lin key_proj",
    "v": "v v_proj value wv to_v v_lin value_proj",
    "o": "o o_proj out_proj wo to_out out_lin",
    "up": "up up_proj c_fc fc1 w3 fc_in dense_h_to_4h wi wi_1 linear1 lin1 intermediate",
    "gate": "gate_proj w1 wi_0 gate_up_proj w12",
    "down": "down down_proj fc2 w2 fc_out dense_4h_to_h linear2 lin2",
    "embedding": "wte wpe embed embedding embeddings embed_tokens embed_positions embed_in word_embeddings "
    "position_embeddings token_type_embeddings tok_embeddings token_embedding position_embedding pos_embed "
    "pos_embedding cls_token shared relative_attention_bias relative_position_bias_table",
    "head": "lm_head head classifier score embed_out output_projection unembed unembedding",
}
_ROLE_OF_TOKEN = {token: role for role, tokens in _BY_NAME.items() for token in tokens.split()}
_ATTENTION = re.compile(r"attn|attention|mha|mixer")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|dense_?relu_?dense|expert")
_NORM_TOKEN = re.compile(r"norm|^(ln|bn|gn)(_?\d+|_?[a-z])?$|^ln_|^bn_")
_BIAS_TOKEN = re.compile(r"^(bias|.*_bias|bias_.*|b_[qkvo])$")
_EMBEDDING = re.compile(r"(^|_)emb(ed\w*)?$|embedding")
_WRAPPERS = frozenset(("weight", "weight_orig", "weight_v", "weight_g", "base_layer", "original0", "original1"))
_ADAPTER = re.compile(r"^lora_(a|b|embedding_a|embedding_b|magnitude_vector)$")
_BLOCK = re.compile(r"\[(\w+)\]$")
_NUMBER = re.compile(r"[0-9]{1,6}")
_NUMBERED = re.compile(r"(?:layer|block)_?([0-9]{1,6})$")
_STAGED = frozenset(("blocks", "layers", "resnets", "attentions"))
"""Containers of blocks that may stand inside a numbered stage."""


def role_of(name: str, shape: Sequence[int], module_kind: str = "") -> str:
    """Role of a parameter tensor, or of a named block of one; one of ROLES.

    name: full parameter name, or a block as in `…qkv.weight[q]`. shape: of the tensor. module_kind: class name of
    the module that holds it (`Linear`, `LayerNorm`), which decides where names do not. An adapter (`lora_A`) has
    the role of the projection that it adapts. Never fails: what nothing tells is `linear`, `conv` or `other`.
    """
    block = _BLOCK.search(name)
    if block and block[1] in ROLES:
        return block[1]
    tokens = _tokens(name)
    kind = module_kind.lower()
    if tokens and _BIAS_TOKEN.match(tokens[-1]) and tokens[-1] != "relative_attention_bias":
        return "bias"
    tokens = _without_wrappers(tokens)
    if "norm" in kind or (len(shape) <= 1 and any(map(_NORM_TOKEN.search, tokens[-2:]))):
        return "norm"
    if "embedding" in kind:
        return "embedding"
    return _named_role(tokens, shape) or _role_by_shape(tokens, shape, kind)


def _tokens(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", _BLOCK.sub("", name))
    return [token.lower() for token in spaced.split(".") if token]


def _without_wrappers(tokens: list[str]) -> list[str]:
    """Drop what stands after the module's own name: `weight`, adapters and their names, trailing indices."""
    for position, token in enumerate(tokens):
        if _ADAPTER.match(token):
            tokens = tokens[:position]
            break
    while tokens and (tokens[-1] in _WRAPPERS or tokens[-1] == "default"):
        tokens = tokens[:-1]
    tail = [token.removesuffix("_weight") for token in tokens]
    while len(tail) > 1 and tail[-1].isdigit() and tail[-2] in _ROLE_OF_TOKEN:
        tail = tail[:-1]
    return tail


def _named_role(tokens: list[str], shape: Sequence[int]) -> str | None:
    if not tokens or (len(shape) < 2 and _ROLE_OF_TOKEN.get(tokens[-1]) != "embedding"):
        return None
    last, before = tokens[-1], ".".join(tokens[:-1])
    if len(shape) >= 4 and _ROLE_OF_TOKEN.get(last) != "embedding":
        return "conv"
    if last in ("dense", "proj", "c_proj", "output"):
        return _projection(last, before, len(tokens))
    if last == "wo" and _FEED_FORWARD.search(before):
        return "down"
    if last == "gate":
        # A router is narrow (one row per expert); the gate of a gated feed-forward is at least as tall as wide.
        return "gate" if shape[0] >= shape[-1] else "other"
    if last == "out_proj" and before.endswith("classifier"):
        return "head"
    return _ROLE_OF_TOKEN.get(last)


def _projection(last: str, before: str, depth: int) -> str | None:
    """Role of a projection whose own name does not tell it, from the names of the modules around it."""
    if _FEED_FORWARD.search(before) and not before.endswith(("attn", "attention")):
        return "down"
    if before.endswith("intermediate"):
        return "up"
    if _ATTENTION.search(before):
        return "o"
    if before.endswith("output"):
        return "down"
    return "head" if last == "output" and depth == 1 else None


def _role_by_shape(tokens: list[str], shape: Sequence[int], kind: str) -> str:
    conv = "conv" in kind and kind != "conv1d"
    if conv or (len(shape) >= 3 and any("conv" in token for token in tokens[-2:])) or len(shape) >= 4:
        return "conv"
    if kind == "conv1d" and len(shape) == 3:
        return "conv"
    if len(shape) == 2:
        return "embedding" if tokens and _EMBEDDING.search(tokens[-1]) else "linear"
    return "other"


def depth_of(name: str) -> int:
    """Index of the repeated block that `name` lies in; -1 where it lies in none.

    It is the first part that is a whole number (`h.3`), else the number that ends a part (`encoder_layer_3`). In
    a network of stages (`layer2.0.conv1`) this is the index within the stage; `depths_of` counts through.
    """
    return _place(name)[2]


def depths_of(names: Sequence[str]) -> tuple[int, ...]:
    """Depth of each name in one model, counted through its stages.

    As `depth_of`, but where blocks stand in numbered stages (`layer1.0`, `layer2.0` or `layers.0.blocks.1`), the
    blocks of a stage follow on those of the stage before it.
    """
    places = [_place(name) for name in names]
    sizes: dict[tuple[str, tuple[int, ...]], int] = {}
    for family, stage, index in places:
        if index >= 0:
            sizes[family, stage] = max(sizes.get((family, stage), 0), index + 1)
    starts: dict[tuple[str, tuple[int, ...]], int] = {}
    taken: dict[str, int] = {}
    for key in sorted(sizes):
        starts[key] = taken.get(key[0], 0)
        taken[key[0]] = starts[key] + sizes[key]
    return tuple(starts[family, stage] + index if index >= 0 else -1 for family, stage, index in places)


def _place(name: str) -> tuple[str, tuple[int, ...], int]:
    """Family of repeated blocks (names with their numbers taken out), the stage in it and the index in the stage."""
    parts = name.split(".")
    end = next((position for position, part in enumerate(parts) if _NUMBER.fullmatch(part)), -1)
    if end < 0:
        found = next(filter(None, map(_NUMBERED.search, parts)), None)
        return (
            ("", (), -1) if found is None else (_NUMBER.sub("#", name[: name.index(found.string)]), (), int(found[1]))
        )
    while end + 2 < len(parts) and parts[end + 1] in _STAGED and _NUMBER.fullmatch(parts[end + 2]):
        end += 2
    path = ".".join(parts[:end])
    return _NUMBER.sub("#", path), tuple(map(int, _NUMBER.findall(path))), int(parts[end])
