"""The models that the agent's cost is measured on: the demo's byte-level GPT, two larger ones, and a CNN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from gradspectra.demo.model import ByteGPT
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Task:
    """A model, its data of one step as parts, and the loss of one part. examples: of one part."""

    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    parts: int
    examples: int


class SmallCNN(nn.Module):
    """Ten convolutions with batch norm, 2.4 million parameters, for images of 32 × 32."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 32, 64, 64, 128, 128, 256, 256, 256, 256)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.head = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = functional.relu(norm(conv(x)))
            if index in (1, 3, 5):
                x = functional.max_pool2d(x, 2)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def _text(examples: int, context: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        windows = torch.randint(0, 256, (examples, context + 1), generator=generator)
        return windows[:, :-1], windows[:, 1:]

    return draw


def _images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator)


def _next_byte(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _label(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


TASKS = {
    "demo": Task(ByteGPT, _text(16, 64), _next_byte, parts=2, examples=16),
    "gpt-10m": Task(lambda: ByteGPT(384, 6, 6, 128), _text(4, 128), _next_byte, parts=1, examples=4),
    "gpt-85m": Task(lambda: ByteGPT(768, 12, 12, 512), _text(16, 512), _next_byte, parts=1, examples=16),
    "cnn": Task(SmallCNN, _images, _label, parts=1, examples=16),
}
