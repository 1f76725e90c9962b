"""Live events between processes through outages of Redis."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from gradspectra_backend import pump as pump_module
from gradspectra_backend.live import Hub
from gradspectra_backend.news import AlertNews
from gradspectra_backend.pump import Pump
from worker.redis_server import redis_running

GOOD = {"type": "run", "run": "a", "batch": 1, "step": 1, "state": "running"}


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not look():
            await asyncio.sleep(0.01)


def test_the_log_tells_each_outage_of_redis_and_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "PAUSE_SECONDS", 0.01)

    async def outages() -> None:
        pump = Pump(server.url, Hub(), lambda _: None, lambda: None)
        pump.start()
        await until(lambda: pump.connected)
        for _ in range(2):
            await asyncio.to_thread(server.stop)
            await until(lambda: not pump.connected)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
            await until(lambda: pump.connected)
        await pump.stop()

    with redis_running(tmp_path) as server, caplog.at_level(logging.WARNING, pump_module.__name__):
        asyncio.run(outages())
    said = [record.getMessage().partition(",")[0] for record in caplog.records if record.name == pump_module.__name__]
    assert said == ["live events of other processes are away", "live events of other processes are back"] * 2


@pytest.mark.parametrize("junk", [b"{", b"1", b"[]", b"{}", b'{"type": "alert"}'])
def test_what_is_no_announcement_is_logged_and_the_next_one_is_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, junk: bytes
) -> None:
    heard: list[Any] = []
    news = AlertNews()

    async def listen() -> None:
        pump = Pump(server.url, Hub(), lambda said: (news.heard(said), heard.append(said)), lambda: None)
        pump.start()
        await until(lambda: pump.connected)
        async with redis.asyncio.from_url(server.url) as client:
            for said in (junk, json.dumps(GOOD)):
                await client.publish(pump_module.CHANNEL, said)
        await until(lambda: GOOD in heard)
        await pump.stop()

    with redis_running(tmp_path) as server:
        asyncio.run(listen())
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "not an announcement on gradspectra:live"
    ]
