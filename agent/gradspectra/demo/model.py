"""A byte-level GPT of about one million parameters, and the text it learns: the Python standard library's sources."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256


class Attention(nn.Module):
    """Causal self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, time, width). Returns the same shape."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, time, width))
        return projected


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a feed-forward network four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 4 * width, bias=False)
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, time, width). Returns the same shape."""
        x = x + self.attn(self.attn_norm(x))
        fed: Tensor = self.down_proj(functional.gelu(self.up_proj(self.mlp_norm(x))))
        return x + fed


class ByteGPT(nn.Module):
    """Predicts the next byte of a text. 5 blocks of width 128 have 1.06 million parameters."""

    def __init__(self, width: int = 128, depth: int = 5, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                shrink = (2 * depth) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=0.02 * shrink)

    def forward(self, text: Tensor) -> Tensor:
        """text: (batch, time) int64 with time ≤ context. Returns logits (batch, time, 256)."""
        x = self.embedding(text) + self.position.weight[: text.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def source_text(limit: int = 4_000_000) -> Tensor:
    """The first `limit` bytes of the standard library's sources in order of their names: (bytes,) uint8.

    Raises FileNotFoundError where this Python was installed without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    if len(text) < 100_000:
        raise FileNotFoundError(f"no Python sources to learn from in {folder}; install the standard library's sources")
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def draw(text: Tensor, examples: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows of the text and the same windows one byte on: two of (examples, context) int64."""
    starts = torch.randint(len(text) - context, (examples, 1), generator=generator)
    windows = text[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
