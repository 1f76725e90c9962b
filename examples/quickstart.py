"""The smallest watched training loop: a network learns which of two spirals a point lies on. About half a minute."""

import math

import gradspectra
import torch
from torch import nn
from torch.nn import functional


def spirals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.randint(2, (count,))
    radius = torch.rand(count)
    angle = 3 * math.pi * radius + math.pi * label
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points + 0.02 * torch.randn(count, 2), label


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

watch = gradspectra.watch(model, optimizer, project="quickstart", run="two-spirals", total_steps=2000)
for _ in range(2000):
    points, label = spirals(256)
    loss = functional.cross_entropy(model(points), label)
    loss.backward()
    watch.log(loss=loss, examples=len(points))
    optimizer.step()
    optimizer.zero_grad()
watch.close()
print(f"final loss {loss.item():.3f}; the run is at {watch.url}")
