"""A loss that takes backward passes of its own, as those do that keep embeddings (GradCache), under Trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'gradspectra[integrations]'"
)


class Cached(nn.Module):
    """A regression whose loss takes the gradients of the two halves of a batch in a pass each, if cached."""

    def __init__(self, cached):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.cached = nn.Linear(6, 1), cached

    def forward(self, x, y):
        pairs = zip(x.chunk(2), y.chunk(2), strict=True)
        halves = [(self.layer(part) - target).square().mean() / 2 for part, target in pairs]
        if not self.cached:
            return {"loss": sum(halves)}
        loss = sum(half.detach() for half in halves).requires_grad_()
        loss.register_hook(lambda gradient: [half.backward(gradient) for half in halves] and None)
        return {"loss": loss}


def records_of(cached, accumulated, kept, tmp_path):
    from gradspectra.integrations.transformers import GradSpectraCallback

    generator = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(6, generator=generator), "y": torch.randn(1, generator=generator)} for _ in range(64)]
    arguments = {"max_steps": 4, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    given = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulated,
        **arguments,
    )
    callback = GradSpectraCallback(budget=None, spectra="off")
    transformers.Trainer(Cached(cached), given, train_dataset=rows, callbacks=[callback]).train()
    return kept()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_passes_of_a_loss_are_no_parts_of_the_step(accumulated, kept, tmp_path):
    plain = records_of(False, accumulated, kept, tmp_path)
    cached = records_of(True, accumulated, kept, tmp_path)
    for one, other in zip(plain, cached, strict=True):
        for name in ("loss", "grad_norm"):
            assert other.scalars[name] == pytest.approx(one.scalars[name], rel=1e-5)
        assert other.counts["examples"] == one.counts["examples"] == 4 * accumulated
        assert one.counts["parts"] == accumulated
        assert "noise_w" not in other.scalars
        assert "parts" not in other.counts
