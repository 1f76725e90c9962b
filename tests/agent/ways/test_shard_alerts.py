"""Alerts where parameters are sharded over two ranks: both are told of them, and stop, at the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent.watched_training import attention, watched
from agent.ways.ranks import Alerts, Plan, group, optimizer_of, second_rank, train, wrapped
from agent.ways.shards import gathering
from gradspectra import together
from gradspectra.errors import InstabilityError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
]


@pytest.mark.parametrize("plan", [Plan(), Plan(parts=2, no_sync=True, adamw=True, clip=0.05, budget=0.01)])
def test_all_ranks_hear_of_an_alert_and_stop_at_the_same_step(plan, kept, tmp_path):
    plan, alerts = replace(plan, shards=True, steps=20_000, stops=True), Alerts()
    with second_rank(tmp_path, plan) as told, group(tmp_path, 0):
        model = wrapped(attention(), plan)
        optimizer = optimizer_of(model, plan)
        with watched(model, optimizer, **plan.options, **alerts.options) as watch:
            alerts.watch = watch
            with pytest.raises(InstabilityError, match="step 3: ") as raised:
                train(model, optimizer, watch, 0, plan, gathering(plan)(model))
            step = watch.state_dict()["step"]
    assert raised.value.alerts[0]["opened_step"] == 3
    assert told["stopped"] == f"rank 0 stops: {raised.value}"
    assert told["step"] == step >= 3 + together.AHEAD_STEPS
    assert told["alerts"] == alerts.called == [[step, "nonfinite", 3]]
    assert [record.step for record in kept()] == list(range(1, step + 1))
