"""What clipping multiplied each layer's gradient by, against a product parameter by parameter."""

from __future__ import annotations

import math
import random

import pytest
import torch
from gradspectra.clipping import Clip, StepClips
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from torch import nn


def slowly(clips, totals, parameter, after):
    """The definition: every clip that the gradient had seen when it was measured, one after the other."""
    late = after and parameter not in clips.spoiled
    seen = len(clips.clips) if late else clips.early.get(parameter, len(clips.clips))
    found = 1.0
    for clip, total in zip(clips.clips[:seen], totals[:seen], strict=True):
        if parameter in clip.parameters:
            found *= math.nan if math.isnan(total) else min(1.0, clip.limit / (total + 1e-6))
    return 1.0 if math.isnan(found) and not after else found


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_factors_are_the_product_of_the_clips_that_a_gradient_had_seen(seed, after):
    draw = random.Random(seed)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    inventory = take_inventory({"": model}, [], choice_of(None))
    own = sorted(inventory.parameters)
    clips = StepClips()
    for _ in range(draw.randrange(4)):
        which = own if draw.random() < 0.5 else draw.sample(own, draw.randrange(1, len(own)))
        clips.clips.append(Clip(frozenset(which), torch.zeros(()), draw.choice([0.5, 1.0, 2.0]), True))
    clips.early = {one: draw.randrange(len(clips.clips) + 1) for one in own if draw.random() < 0.4}
    clips.spoiled = {one for one in own if draw.random() < 0.3}
    totals = [draw.choice([0.25, 1.5, 8.0, math.inf, math.nan]) for _ in clips.clips]
    found = clips.factors(inventory, totals, after)
    expected = [slowly(clips, totals, id(tensor.parameter), after) for tensor in inventory.tensors]
    assert found.tolist() == pytest.approx(expected, nan_ok=True)
