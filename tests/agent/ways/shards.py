"""Trains as rank 0 beside another rank, sharded by fully_shard, and the same step in plain float64 around it."""

from __future__ import annotations

from contextlib import contextmanager

from agent.watched_training import watched
from agent.ways.plain import Plain
from agent.ways.ranks import (
    RANKS,
    broken,
    gathered,
    group,
    handed,
    made,
    optimizer_of,
    part_loss,
    second_rank,
    train,
    weight_sum,
    wrapped,
)


def run(plan, folder, look):
    """Train as rank 0 beside the other rank; returns what that told, the own weights' sum and the watch's status."""
    with second_rank(folder, plan) as told, group(folder, 0):
        model = wrapped(made(plan), plan)
        optimizer = optimizer_of(model, plan)
        around = look(model)
        with broken(plan, 0), watched(model, optimizer, enabled=plan.watch, **plan.options) as watch:
            train(model, optimizer, watch, 0, plan, around)
            status, state = watch.status(), watch.state_dict()
        if plan.resumed:
            with watched(model, optimizer, **plan.options) as watch:
                watch.load_state_dict(handed(folder, 0, state, plan))
                train(model, optimizer, watch, 0, plan, around)
        total = weight_sum(model)
    return told, total, status


def gathering(plan, expected=None):
    """What is to be done around the steps of a model: gather it where the other rank does; expected gets each step."""
    inner = made(plan)
    plain = Plain(inner)

    def look(model):
        @contextmanager
        def around(step):
            gathered(model, inner)
            losses = [
                lambda m, r=rank, j=part: part_loss(m, r, step, j, plan) / RANKS
                for rank in range(RANKS)
                for part in range(plan.parts)
            ]
            if expected is not None:
                outputs = {}
                with watched_outputs(plain.twin, outputs):
                    expected.append(plain.step(inner, *losses))
                expected[-1].outputs = outputs
            yield
            gathered(model, inner)
            if expected is not None:
                expected[-1].after = plain.weights(inner)

        return around

    return look


@contextmanager
def watched_outputs(model, found):
    """Keeps the largest output of each module without children, over all forward passes."""

    def keep(name):
        def hook(_, __, output):
            found[name] = max(found.get(name, 0.0), float(output.detach().abs().max()))

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if not list(m.children())]
    yield
    for handle in handles:
        handle.remove()
