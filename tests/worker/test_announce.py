"""Announcements over Redis: dropped while it is away, and nobody waits for them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from gradspectra_worker import announce
from gradspectra_worker.announce import LIVE_CHANNEL, RedisAnnouncer

AWAY = "live listeners are told nothing until Redis is back"


@contextmanager
def hanging_up() -> Iterator[tuple[str, list[int]]]:
    """An address where each connection is closed at once. Yields it, and the port of each that came."""
    came: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, (_, port) = server.accept()
            except OSError:
                return
            came.append(port)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0", came
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def test_a_redis_that_is_away_is_tried_once_and_then_left_alone_for_some_seconds(caplog):
    with hanging_up() as (url, came):
        announcer = RedisAnnouncer(url)
        for batch in range(20):
            announcer({"type": "run", "run": "a", "batch": batch})
        announcer.close()
        assert len(came) == 1
    assert caplog.text.count(AWAY) == 1


def test_announcements_are_heard_again_once_redis_is_back(redis_server, monkeypatch, caplog):
    monkeypatch.setattr(announce, "AWAY_SECONDS", 0.0)
    announcer = RedisAnnouncer(redis_server.url)
    announcer({"type": "run", "run": "before"})
    for outage in (1, 2):
        redis_server.stop()
        for _ in range(3):
            announcer({"type": "run", "run": "lost"})
        assert caplog.text.count(AWAY) == outage
        redis_server.start()
        with redis.Redis.from_url(redis_server.url) as client, client.pubsub() as heard:
            heard.subscribe(LIVE_CHANNEL)
            assert heard.get_message(timeout=60.0)["type"] == "subscribe"
            announcer({"type": "run", "run": "after"})
            assert json.loads(heard.get_message(timeout=60.0)["data"]) == {"type": "run", "run": "after"}
    announcer.close()
