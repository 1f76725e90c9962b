"""A small model whose experts lie in tensors of three dimensions, as Transformers keeps them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPERTS = 5


class Experts(nn.Module):
    """Gated experts in two tensors, by their first dimension: wide matrices in one, tall ones in the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * inner, width) / width**0.5)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, width, inner) / inner**0.5)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        gate, up = torch.einsum("...oi,...i->...o", self.gate_up_proj[chosen], x).chunk(2, -1)
        return torch.einsum("...oi,...i->...o", self.down_proj[chosen], nn.functional.silu(gate) * up)


class Mixture(nn.Module):
    """Each token goes to the expert of its number, but none to the last one. Also a convolution of three dimensions."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.mlp = nn.ModuleDict({"experts": Experts(width, 4)})
        self.c_attn = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.mlp["experts"](x, tokens % (EXPERTS - 1))
        q, k, v = self.c_attn(x).chunk(3, -1)
        found: Tensor = self.head(x + torch.softmax(q @ k.transpose(-1, -2), -1) @ v)
        return found


def mixture(seed: int = 0) -> Mixture:
    torch.manual_seed(seed)
    return Mixture()


def split(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers of `Mixture` by name: its tensors, those of experts and the fused one in blocks."""
    found = {}
    for name, tensor in named.items():
        if "experts" in name:
            found |= {f"{name}[{expert}]": own for expert, own in enumerate(tensor)}
        elif name == "c_attn.weight":
            found |= {f"{name}[{part}]": own for part, own in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    return found


def matrices(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that have a spectrum, in two dimensions and in float64."""
    return {name: own.double().flatten(1) for name, own in split(named).items() if own.dim() > 1}
