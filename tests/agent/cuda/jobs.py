"""A small training job that runs on the host, on a simulated device or on CUDA, and the records that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from agent.cuda.simulated import DEVICE, OnDevice, Simulated
from agent.watched_training import attention, tokens, watched
from gradspectra.record import StepRecord
from torch import Tensor, nn

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.03),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.03, amsgrad=True, weight_decay=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rate as a tensor": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.03)),
}


class Job:
    """Trains for some steps. place: moves a tensor to where the model is. spoil: changes gradients before clipping."""

    def __init__(self, place: Callable[[Tensor], Tensor], model: nn.Module, optimizer: str = "adamw") -> None:
        self.place = place
        self.model = model
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())
        self.clip: float | None = None
        self.spoil: Callable[[nn.Module, int], None] | None = None
        self.after: Callable[[int], None] | None = None

    def step(self, number: int, log: Callable[..., None], parts: int = 2) -> None:
        """One optimizer step of several parts, each of which is logged."""
        for part in range(parts):
            x, y = map(self.place, tokens(4, parts * number + part))
            loss = nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten()) / parts
            loss.backward()
            log(loss=loss, examples=4)
        if self.spoil is not None:
            self.spoil(self.model, number)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def run(self, steps: int, **options: Any) -> list[dict[str, Any]]:
        """Train, watched; what the status of the watch said after each step."""
        said = []
        with watched(self.model, self.optimizer, **options) as watch:
            for number in range(steps):
                self.step(number, watch.log)
                self.optimizer.zero_grad()
                said.append(watch.status())
                if self.after is not None:
                    self.after(number)
        return said


def on_host(optimizer: str = "adamw") -> Job:
    """A job on the host."""
    return Job(lambda tensor: tensor, attention(), optimizer)


def simulated(device: Simulated, optimizer: str = "adamw") -> Job:
    """The same job on the simulated device, which must be open."""
    job = Job(OnDevice, device.put(attention()), optimizer)
    for group in job.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(DEVICE)
    return job


def weights(model: nn.Module) -> list[Tensor]:
    """Copies of the model's weights on the host."""
    return [getattr(p, "host", p).detach().cpu().clone() for p in model.parameters()]


def check_alike(found: StepRecord, expected: StepRecord, rel: float = 1e-5) -> None:
    """Two records of the same step say the same, but for times, memory and the order of sums."""
    assert (found.values is None) == (expected.values is None)
    if expected.values is not None:
        _check_layers(found, expected, rel)
    untimed = [name for name in expected.scalars if not name.endswith("_seconds")]
    assert set(found.scalars) >= set(untimed)
    for name in untimed:
        np.testing.assert_allclose(found.scalars[name], expected.scalars[name], rtol=rel, err_msg=name)
    counts, wanted = ({k: v for k, v in r.counts.items() if not k.endswith("_bytes")} for r in (found, expected))
    assert counts == wanted
    assert len(found.spectra) == len(expected.spectra)
    for own, other in zip(found.spectra, expected.spectra, strict=True):
        assert (own.layer, own.method, own.rows, own.columns) == (other.layer, other.method, other.rows, other.columns)
        np.testing.assert_allclose(own.aggregates, other.aggregates, rtol=1e-4, atol=1e-12)


def _check_layers(found: StepRecord, expected: StepRecord, rel: float) -> None:
    assert found.statistics == expected.statistics
    assert found.count_statistics == expected.count_statistics
    np.testing.assert_array_equal(found.present, expected.present)
    np.testing.assert_allclose(found.values, expected.values, rtol=rel, atol=1e-9)
    np.testing.assert_array_equal(found.counts_values, expected.counts_values)
    np.testing.assert_array_equal(found.counts_present, expected.counts_present)


def spoiling(lost: float, clip: float | None) -> Callable[[Job], None]:
    """Prepare a job whose third step has 14 gradient entries that are not finite, of two layers."""

    def prepare(job: Job) -> None:
        def spoil(model: Any, number: int) -> None:
            if number == 2:
                with torch.no_grad():
                    model.qkv.weight.grad[14, 3:5] = lost
                    model.norm.bias.grad.fill_(lost)

        job.clip, job.spoil = clip, spoil

    return prepare


def check_lost(found: StepRecord) -> None:
    """Whether a step that was spoiled so counts its entries where they are."""
    counts = dict(zip(found.table.names, found.counts_values[0].tolist(), strict=True))
    assert (counts["qkv.weight[k]"], counts["norm.bias"], counts["head.weight"]) == (2, 12, 0)
