"""The production dispatcher: asks Celery workers to derive, through Redis, and never holds up who asks."""

from __future__ import annotations

import logging
import threading
import time
from functools import cache
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from gradspectra_worker.app import DERIVE, make_app
from gradspectra_worker.redis_urls import for_redis

FLAG_SECONDS = 30
"""A run whose request is on its way is not asked for again for this long, should the request be lost."""

_log = logging.getLogger(__name__)


class DirectDispatcher:
    """Sends a task for each request at once, whatever is on its way: for the sweep, whose requests must not be
    held back by the flag of a lost one.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    def request(self, run: str) -> None:
        """Send the task. Raises kombu's OperationalError where Redis is away."""
        self._app.send_task(DERIVE, (run,), retry=False)

    def start(self) -> None:
        """Nothing to start."""

    def stop(self, timeout: float = 10.0) -> None:
        """Nothing to stop."""


class CeleryDispatcher:
    """Sends requests from a thread of its own; a run that is already asked for is not asked for twice.

    With Redis away requests are dropped with one warning: the watermark stays, and the workers' sweep finds it.
    """

    def __init__(self, redis_url: str) -> None:
        self._direct = DirectDispatcher(make_app(redis_url))
        self._redis = _client(redis_url)
        self._waiting: dict[str, None] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._away = False
        self._thread = threading.Thread(target=self._loop, name="gradspectra-dispatch", daemon=True)

    def request(self, run: str) -> None:
        """Ask for a run to be derived; returns at once."""
        with self._wake:
            self._waiting[run] = None
            self._wake.notify()

    def start(self) -> None:
        """Start the sending thread."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Send what waits, for at most `timeout` seconds, and stop."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stopping:
                    self._wake.wait()
                if not self._waiting:
                    return
                run = next(iter(self._waiting))
                del self._waiting[run]
            self._send(run)

    def _send(self, run: str) -> None:
        try:
            if self._redis.set(_flag(run), time.time(), nx=True, ex=FLAG_SECONDS):
                self._direct.request(run)
            self._away = False
        except (redis.RedisError, OperationalError, OSError) as error:
            if not self._away:
                _log.warning("Redis cannot be reached, the sweep will find what is to derive: %s", error)
            self._away = True


def send_or_leave(app: Celery, task: str, *args: str, expires: float | None = None) -> None:
    """Send a task; with Redis away it is left to the sweep, which sends it again. expires: seconds it may wait."""
    try:
        app.send_task(task, args, retry=False, expires=expires)
    except OperationalError as error:
        _log.warning("%s was not sent, the sweep will: %s", task, error)


def clear_flag(redis_url: str, run: str) -> None:
    """Let a run be asked for again: a derive task's first act, before it reads. A Redis that is away is no error."""
    try:
        _client(redis_url).delete(_flag(run))
    except redis.RedisError as error:
        _log.warning("the flag of run %s stays until it expires: %s", run, error)


def hold_back(redis_url: str, run: str) -> None:
    """Leave a run that could not be derived to the sweep for a while: each new batch of it would fail the same way."""
    try:
        _client(redis_url).set(_flag(run), time.time(), ex=FLAG_SECONDS)
    except redis.RedisError as error:
        _log.warning("run %s is not held back: %s", run, error)


def _flag(run: str) -> str:
    return f"gradspectra:derive:{run}"


@cache
def _client(url: str) -> Any:
    return redis.Redis.from_url(for_redis(url), socket_timeout=3.0, socket_connect_timeout=3.0)
