"""Whether anybody looks: at this process or, as told within the last seconds, at another."""

from __future__ import annotations

import asyncio

from gradspectra_backend.audience import BELIEVE_SECONDS, Audience
from gradspectra_backend.live import Hub


def test_there_is_an_audience_while_a_stream_is_open_here():
    async def scenario() -> None:
        hub = Hub()
        audience = Audience(hub)
        assert not audience.present
        listener = hub.subscribe(["a"])
        assert audience.present
        hub.unsubscribe(listener)
        assert not audience.present

    asyncio.run(scenario())


def test_what_another_process_told_is_believed_for_some_seconds():
    now = 100.0
    audience = Audience(Hub(), lambda: now)
    audience.heard()
    now += BELIEVE_SECONDS - 0.1
    assert audience.present
    now += 0.2
    assert not audience.present
