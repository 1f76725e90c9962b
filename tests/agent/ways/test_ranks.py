"""Several processes that train one model: rank 0 measures, without any exchange of its own."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from agent.watched_training import KeepingTransport, attention, loss_of, watched
from agent.ways.plain import Plain
from agent.ways.ranks import EXAMPLES, RANKS, Alerts, Plan, group, part_loss, second_rank, train, weight_sum, wrapped
from agent.ways.way import way
from gradspectra import together
from gradspectra.errors import InstabilityError

PLANS = {
    "one pass": Plan(),
    "one pass, buckets as gradients, clipped": Plan(bucket_view=True, clip=0.05),
    "no_sync": Plan(parts=2, no_sync=True),
    "no_sync, buckets as gradients": Plan(parts=2, no_sync=True, bucket_view=True),
    "exchanged in each pass": Plan(parts=2),
}


@way("DistributedDataParallel, with or without no_sync, watched by rank 0")
@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_rank_0_measures_the_step_of_all_ranks(name, kept, the_way, tmp_path):
    plan, expected = PLANS[name], []
    parts = plan.parts * RANKS
    with second_rank(tmp_path, plan) as told, group(tmp_path, 0):
        inner = attention()
        plain, model = Plain(inner), wrapped(inner, plan)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def share(rank, step, part):
            return lambda m: part_loss(m, rank, step, part, plan) / RANKS

        @contextmanager
        def around(step):
            losses = [share(rank, step, part) for rank in range(RANKS) for part in range(plan.parts)]
            expected.append(plain.step(inner, *losses))
            yield
            expected[-1].after = plain.weights(inner)

        with watched(model, optimizer) as watch:
            train(model, optimizer, watch, 0, plan, around)
            state = watch.state_dict()
    assert told["sum"] == weight_sum(inner)
    assert (told["enabled"], told["spooled"]) == (False, [])
    assert "gradspectra-sender" not in told["threads"]
    assert (state["step"], state["tokens"]) == (plan.steps, 7 * parts * plan.steps)
    assert len(kept()) == plan.steps
    for record, step in zip(kept(), expected, strict=True):
        own = [{n: None if h is None else RANKS * h for n, h in part.items()} for part in step.parts[: plan.parts]]
        the_way.check(record, replace(step, parts=own), rel=1e-4, parts=True)
        assert (record.counts["parts"], record.counts["examples"]) == (parts, EXAMPLES * parts)
        assert record.counts["tokens"] == 7 * parts
        assert record.scalars["noise_w"] == pytest.approx((1 - 1 / parts) / EXAMPLES)
        assert record.scalars["noise_w2"] == pytest.approx(1 / parts / EXAMPLES)


@pytest.mark.slow
def test_all_ranks_hear_of_an_alert_and_stop_at_the_same_step(kept, tmp_path):
    plan, alerts = Plan(steps=20_000, stops=True), Alerts()
    with second_rank(tmp_path, plan) as told, group(tmp_path, 0):
        model = wrapped(attention(), plan)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer, every=1000, **alerts.options) as watch:
            alerts.watch = watch
            with pytest.raises(InstabilityError, match="step 3: ") as raised:
                train(model, optimizer, watch, 0, plan, lambda _: nullcontext())
            step = watch.state_dict()["step"]
        total = weight_sum(model)
    assert raised.value.alerts[0]["opened_step"] == 3
    assert (told["step"], told["sum"]) == (step, total)
    assert told["stopped"] == f"rank 0 stops: {raised.value}"
    assert step >= 3 + together.AHEAD_STEPS
    assert told["alerts"] == alerts.called == [[step, "nonfinite", 3]]
    assert (told["enabled"], told["spooled"]) == (False, [])
    assert kept()[-1].step == step


def test_with_ranks_whose_exchange_is_not_known_the_noise_is_left_out(kept, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for step in range(2):
            for part in range(2):
                loss_of(model, 4, 2 * step + part).backward()
                watch.log(loss=1.0, examples=4)
            optimizer.step()
            optimizer.zero_grad()
        assert any("pass the model that is wrapped in DDP" in reason for reason in watch.status()["not_measured"])
    assert KeepingTransport.last.started
    for record in kept():
        assert "noise_w" not in record.scalars
        assert "parts" not in record.counts
        assert not record.present[record.statistics.index("part_sq")].any()
        assert record.present[record.statistics.index("grad_sq")].any()


@pytest.mark.usefixtures("kept")
def test_a_rank_that_only_follows_the_steps_says_so(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 1)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, stop_on="critical") as watch:
        for step in range(2):
            loss_of(model, 4, step).backward()
            optimizer.step()
        status = watch.status()
    assert (status["enabled"], status["step"]) == (False, 2)
    assert len(status["not_measured"]) == 2
    assert status["not_measured"][0].startswith("nothing is measured on this rank: it follows the steps, to act at")
    assert not any("second_tier" in reason for reason in status["not_measured"])
