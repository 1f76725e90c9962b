"""The Celery application, started by `celery -A gradspectra_worker.app worker --without-gossip --without-mingle`."""

from __future__ import annotations

import os
from typing import Any

from billiard import pool as billiard_pool
from celery import Celery, bootsteps, signals
from gradspectra_store import StoreError
from kombu.transport import redis as redis_transport
from redis.backoff import NoBackoff
from redis.retry import Retry

from gradspectra_worker.heartbeat import BEAT_SECONDS, Heartbeat
from gradspectra_worker.redis_urls import checked, for_celery
from gradspectra_worker.retain import RETAIN_SECONDS
from gradspectra_worker.starting import await_schema

DERIVE = "gradspectra.derive"
COMPACT = "gradspectra.compact"
DELIVER = "gradspectra.deliver"
SWEEP = "gradspectra.sweep"
RETAIN = "gradspectra.retain"
RETAIN_DUE = "gradspectra.retain_due"

SWEEP_SECONDS = 10.0
TASK_SECONDS = 300
"""A task is stopped after this; derived chunks are kept and the sweep asks for the rest."""

VISIBILITY_SECONDS = 600
"""A message that was taken and not finished is given out again after this; longer than any task."""

HEARD_SECONDS = 2.0
"""How long a process that ends waits for the worker to hear of its last task. A worker told to stop between giving a
task out and hearing that it was begun never listens, and billiard would wait 30 s; the sweep asks for the task again.
"""

SILENT_SECONDS = 5.0
"""How long Redis may take for one answer: a worker would wait for ever for one that is gone without a word."""


class _Deliveries(redis_transport.QoS):
    """Messages in hand. kombu 5.7 ends the worker when one is acknowledged, rejected or put back over a connection
    that broke meanwhile; here such a message is dropped, since the sweep asks again for whatever it was about.
    """

    restore_at_shutdown = False

    def ack(self, delivery_tag: str) -> None:
        if not self.channel.closed:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not self.channel.closed:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]


class _Channel(redis_transport.Channel):
    """kombu's, but for a command that is not answered being tried once more; redis-py would try it ten times more."""

    QoS = _Deliveries

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[no-untyped-call]
        return found | {"retry": Retry(NoBackoff(), 1)}


class _Living(bootsteps.StartStopStep):  # type: ignore[misc]
    """Says every few seconds, out of the loop in which the worker takes its jobs, that it lives."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        self._heartbeat: Heartbeat | None = None
        self._timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """Begin, connected to Redis; again after each lost connection."""
        self._heartbeat = Heartbeat(consumer.app.conf.broker_url, f"{consumer.hostname} {consumer.pid}")
        self._heartbeat.beat()
        self._timer = consumer.timer.call_repeatedly(BEAT_SECONDS, self._heartbeat.beat)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002
        """End, once."""
        if self._heartbeat is not None:
            self._timer.cancel()
            self._heartbeat.end()
            self._heartbeat = None

    shutdown = stop


def make_app(redis_url: str) -> Celery:
    """Make the application on a Redis. It keeps no results: what matters is in the database."""
    redis_transport.Transport.Channel = _Channel
    looks = HEARD_SECONDS / billiard_pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    billiard_pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(looks)
    made = Celery("gradspectra", broker=for_celery(redis_url), include=["gradspectra_worker.tasks"])
    made.conf.update(
        accept_content=["json"],
        beat_schedule={
            "sweep": {"task": SWEEP, "schedule": SWEEP_SECONDS, "options": {"expires": SWEEP_SECONDS}},
            "retain": {"task": RETAIN_DUE, "schedule": RETAIN_SECONDS, "options": {"expires": RETAIN_SECONDS}},
        },
        beat_scheduler="gradspectra_worker.scheduler:Scheduler",
        broker_connection_max_retries=None,  # else a worker ends after about three quarters of an hour without Redis
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_SECONDS,
            "socket_connect_timeout": 3.0,
            "socket_keepalive": True,
            "socket_timeout": SILENT_SECONDS,
        },
        task_acks_late=True,
        task_ignore_result=True,
        task_reject_on_worker_lost=True,
        task_serializer="json",
        task_time_limit=TASK_SECONDS,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
    )
    made.steps["consumer"].add(_Living)
    return made


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _see_database(**_: Any) -> None:
    """End a worker that could do nothing: celery itself would let each of its tasks fail."""
    url = os.environ.get("GRADSPECTRA_DATABASE_URL", "")
    if not url:
        raise SystemExit("GRADSPECTRA_DATABASE_URL is not set: the worker reads and writes the server's database")
    try:
        await_schema(url)
    except StoreError as error:
        raise SystemExit(str(error)) from None


def _from_environment() -> Celery:
    url = os.environ.get("GRADSPECTRA_REDIS_URL", "")
    if not url:
        raise SystemExit(
            "GRADSPECTRA_REDIS_URL is not set: the worker takes its jobs from Redis, e.g. redis://127.0.0.1"
        )
    try:
        checked(url)
    except ValueError as error:
        shown = url.rpartition("@")[2]  # without the password
        raise SystemExit(f"GRADSPECTRA_REDIS_URL={shown!r}: {error}") from None
    return make_app(url)


def __getattr__(name: str) -> Celery:
    """Make `app` when it is first asked for, so that importing this module needs no Redis."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = made = _from_environment()
    return made
