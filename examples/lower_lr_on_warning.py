"""Lower the learning rate when a warning opens: `on_alert` runs in the training thread, between two steps.

From step 300 on the targets of ten batches are noise; watch the rate fall there. A few seconds on a CPU.
"""

from typing import Any

import gradspectra
import torch
from torch import nn
from torch.nn import functional

STEPS, NOISY = 600, range(300, 310)
REST = 50
"""Steps after a cut in which no other is made: one trouble opens several alerts."""

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
cuts: list[int] = []


def lower_the_rate(alert: dict[str, Any]) -> None:
    step = alert["opened_step"]
    if alert["severity"] == "info" or (cuts and step < cuts[-1] + REST):
        return
    cuts.append(step)
    for group in optimizer.param_groups:
        group["lr"] /= 2
    print(f"step {step}: {alert['rule']} ({alert['severity']}); the learning rate is now {group['lr']:g}")


with gradspectra.watch(
    model, optimizer, project="examples", run="lower-lr", total_steps=STEPS, on_alert=lower_the_rate
) as watch:
    for step in range(1, STEPS + 1):
        x = torch.randn(64, 16)
        y = 5 * torch.randn(64, 1) if step in NOISY else x.sin().sum(1, keepdim=True)
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        watch.log(loss=loss, examples=len(x))
        optimizer.step()
        optimizer.zero_grad()
print(f"{len(cuts)} cuts, final loss {loss.item():.3f}; the run is at {watch.url}")
