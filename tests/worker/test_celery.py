"""Real Celery worker processes on a real Redis: kills, lost and doubled messages, a Redis that restarts."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
import sqlalchemy as sa
from billiard import pool as billiard_pool
from databases import postgres
from gradspectra_store import Store
from gradspectra_store.channels import add_channel, delete_channel
from gradspectra_store.compaction import compactable_runs
from gradspectra_store.deliveries import list_deliveries
from gradspectra_store.derived import behind
from gradspectra_store.retention import adopt_retention
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import delete_run
from gradspectra_store.schema import cursors, segments
from gradspectra_worker import tasks
from gradspectra_worker.announce import LIVE_CHANNEL, RedisAnnouncer
from gradspectra_worker.app import DELIVER, DERIVE, HEARD_SECONDS, RETAIN_DUE, SWEEP, make_app
from gradspectra_worker.celery_dispatch import CeleryDispatcher, DirectDispatcher
from gradspectra_worker.derive import derive
from gradspectra_worker.redis_urls import for_celery, for_redis
from kombu.utils.imports import symbol_by_name
from store.compacting import a_plain_run
from store.retaining import KEPT, asked, ended
from worker.receiver import receiving
from worker.redis_server import redis_running
from worker.synthetic import batches, faulty, numbers, outcome, start, take_in

COMMAND = (
    *(sys.executable, "-m", "celery", "-A", "gradspectra_worker.app", "worker", "--pool", "prefork", "-c", "2"),
    *("--without-gossip", "--without-mingle", "-l", "warning"),
)

AGAIN_WHERE_IT_TAKES_LONG = pytest.mark.parametrize(
    "url", [pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"], indirect=True
)
"""Workers of a test's own take seconds to start: on the database of production, and on the other in the slow suite."""


class Worker:
    """One `celery worker` with two child processes."""

    def __init__(self, url: str, redis_url: str, log: Path) -> None:
        environment = {
            **os.environ,
            "GRADSPECTRA_DATABASE_URL": url,
            "GRADSPECTRA_REDIS_URL": redis_url,
            "GRADSPECTRA_ALERT_ALLOW_HOSTS": "127.0.0.1",
        }
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                COMMAND, env=environment, cwd=log.parent, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL to the parent and its children at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> int:
        """SIGTERM, as a supervisor sends it; returns the exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.kill()


@pytest.fixture
def workers(url: str, redis_server, tmp_path: Path) -> Iterator:
    """Starts workers; what is still running at the end is killed."""
    running: list[Worker] = []

    def begin() -> Worker:
        running.append(Worker(url, redis_server.url, tmp_path / "worker.log"))
        return running[-1]

    yield begin
    for worker in running:
        worker.end()


@dataclass(frozen=True)
class Standing:
    """A worker that stands for all tests of its database, which make runs of their own in it."""

    store: Store
    redis_url: str


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def standing(request, empty_database: Path, tmp_path_factory) -> Iterator[Standing]:
    """One worker on each database; it stops as it was told to."""
    folder = tmp_path_factory.mktemp("standing")
    with ExitStack() as stack:
        if request.param == "postgresql":
            url = stack.enter_context(postgres())
        else:
            url = f"sqlite:///{shutil.copy(empty_database, folder / 'store.db')}"
        store, server = Store.open(url), stack.enter_context(redis_running(folder))
        worker = Worker(url, server.url, folder / "worker.log")
        stack.callback(worker.end)
        yield Standing(store, server.url)
        assert worker.stop() == 0
        store.close()


@contextmanager
def dispatching(redis_url: str) -> Iterator[CeleryDispatcher]:
    dispatcher = CeleryDispatcher(redis_url)
    dispatcher.start()
    yield dispatcher
    dispatcher.stop()


def wait_until(condition, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.05)


def is_derived(store, run: str) -> bool:
    with store.read() as conn:
        return not behind(conn, run)


def undisturbed(store, **options) -> dict:
    started = start(store)
    take_in(store, started, batches(faulty(**options), started.session))
    derive(store, started.run)
    return outcome(store, started.run)


@AGAIN_WHERE_IT_TAKES_LONG
def test_two_workers_derive_announce_and_stop_cleanly(store, redis_server, workers):
    started = start(store)
    with redis.Redis.from_url(redis_server.url) as client, client.pubsub() as heard:
        heard.subscribe(LIVE_CHANNEL)
        assert heard.get_message(timeout=60.0)["type"] == "subscribe"
        pair = [workers(), workers()]
        with dispatching(redis_server.url) as dispatcher:
            for batch in batches(faulty(), started.session):
                take_in(store, started, [batch])
                dispatcher.request(started.run)
            wait_until(lambda: is_derived(store, started.run))
        messages = []
        while (message := heard.get_message(ignore_subscribe_messages=True, timeout=1.0)) is not None:
            messages.append(json.loads(message["data"]))
    assert outcome(store, started.run) == undisturbed(store)
    assert max(m["derived_step"] for m in messages if m["type"] == "run") == 400
    assert {m["alert"]["rule"] for m in messages if m["type"] == "alert"} == {
        "loss_spike", "gradient_spike", "dead_layer",
    }  # fmt: skip
    assert [worker.stop() for worker in pair] == [0, 0]


@AGAIN_WHERE_IT_TAKES_LONG
def test_killed_at_any_moment_and_started_again_the_workers_derive_the_same(store, redis_server, workers):
    chooser = random.Random(5)
    started = start(store)
    stream = batches(faulty(), started.session, per_batch=4)
    app = make_app(redis_server.url)
    with dispatching(redis_server.url) as dispatcher:
        worker, killed = workers(), 0
        for at, batch in enumerate(stream):
            take_in(store, started, [batch])
            dispatcher.request(started.run)
            if at % 25 == 24:
                wait_until(lambda: not _untouched(store, started.run))
                time.sleep(chooser.uniform(0.0, 0.05))
                worker.kill()
                killed += 1
                worker = workers()
    assert killed == 4
    app.send_task(SWEEP)
    wait_until(lambda: is_derived(store, started.run))
    expected = start(store)
    take_in(store, expected, batches(faulty(), expected.session, per_batch=4))
    derive(store, expected.run)
    assert outcome(store, started.run) == outcome(store, expected.run)


def _untouched(store, run: str) -> bool:
    """Whether no worker has derived anything of the run yet (a fresh worker takes seconds to start)."""
    return not outcome(store, run)["numbers"]


def test_lost_and_doubled_messages_change_nothing(standing):
    store, app = standing.store, make_app(standing.redis_url)
    lost, doubled = start(store), start(store)
    for one in (lost, doubled):
        take_in(store, one, batches(faulty(), one.session))
    with redis.Redis.from_url(standing.redis_url) as client:
        client.set(f"gradspectra:derive:{lost.run}", 1, ex=3600)  # asked for, and the message is gone
    with dispatching(standing.redis_url) as dispatcher:
        dispatcher.request(lost.run)
    for _ in range(5):
        app.send_task(DERIVE, (doubled.run,))
    wait_until(lambda: is_derived(store, doubled.run))
    assert not is_derived(store, lost.run)
    app.send_task(SWEEP)
    wait_until(lambda: is_derived(store, lost.run))
    assert outcome(store, lost.run) == outcome(store, doubled.run) == undisturbed(store)


@AGAIN_WHERE_IT_TAKES_LONG
def test_a_redis_that_restarts_and_loses_its_data_holds_nothing_up_for_good(store, redis_server, workers, caplog):
    workers()
    started = start(store)
    stream = batches(faulty(), started.session)
    with dispatching(redis_server.url) as dispatcher:
        take_in(store, started, stream[:20])
        dispatcher.request(started.run)
        wait_until(lambda: is_derived(store, started.run))
        redis_server.stop()
        take_in(store, started, stream[20:])
        dispatcher.request(started.run)
        wait_until(lambda: "Redis cannot be reached" in caplog.text)
        redis_server.start()
        make_app(redis_server.url).send_task(SWEEP)
        wait_until(lambda: is_derived(store, started.run))
    assert outcome(store, started.run) == undisturbed(store)


def test_a_worker_delivers_the_alerts_it_found(standing):
    store = standing.store
    with receiving() as receiver:
        with store.write() as conn:
            channel = add_channel(conn, url=receiver.url, now=0.0)["id"]
        started = start(store)
        take_in(store, started, batches(faulty(), started.session))
        DirectDispatcher(make_app(standing.redis_url)).request(started.run)

        def sent() -> bool:
            with store.read() as conn:
                return [entry["state"] for entry in list_deliveries(conn)[0]] == ["sent"] * 3

        wait_until(sent)
        assert len(set(receiver.keys)) == len(receiver.got) == 3
        with store.write() as conn:
            assert delete_channel(conn, channel)


def test_requests_for_one_run_are_sent_once_until_a_worker_takes_them(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        with dispatching(redis_server.url) as dispatcher:
            for _ in range(20):
                dispatcher.request("a")
                dispatcher.request("b")
                time.sleep(0.01)
        assert client.llen("celery") == 2
        assert 0 < client.ttl("gradspectra:derive:a") <= 30


def test_with_redis_away_requests_and_announcements_warn_and_go_on(redis_server, caplog):
    redis_server.stop()
    with dispatching(redis_server.url) as dispatcher:
        dispatcher.request("a")
        dispatcher.request("b")
    announcer = RedisAnnouncer(redis_server.url)
    announcer({"type": "run", "run": "a"})
    announcer.close()
    assert caplog.text.count("the sweep will find what is to derive") == 1
    assert caplog.text.count("live listeners are told nothing until Redis is back") == 1
    redis_server.start()


def test_the_app_sends_small_safe_messages():
    conf = make_app("unix:///tmp/r.sock").conf
    assert conf.broker_url == "redis+socket:///tmp/r.sock"
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost, conf.worker_prefetch_multiplier) == (True, True, 1)
    assert (conf.task_ignore_result, conf.accept_content, conf.result_backend) == (True, ["json"], None)
    assert conf.task_time_limit < conf.broker_transport_options["visibility_timeout"]
    assert conf.broker_connection_max_retries is None


def test_a_process_of_a_worker_that_no_longer_listens_waits_two_seconds_for_it(monkeypatch):
    """billiard's own 30 s are as long as docker-compose.yml gives a worker to stop."""
    make_app("unix:///tmp/r.sock")
    naps: list[float] = []
    monkeypatch.setattr(billiard_pool.time, "sleep", naps.append)
    unheard = SimpleNamespace(on_ready_counter=SimpleNamespace(value=0))
    assert not billiard_pool.Worker._ensure_messages_consumed(unheard, completed=1)
    assert sum(naps) == pytest.approx(HEARD_SECONDS)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "GRADSPECTRA_REDIS_URL is not set"),
        ("amqp://guest:s3cret@mq//", "GRADSPECTRA_REDIS_URL='mq//': must start with redis://, rediss:// or unix://"),
    ],
)
def test_without_a_redis_worker_and_beat_say_what_is_wrong(url, said):
    environment = os.environ | {"GRADSPECTRA_REDIS_URL": url}
    for command in (COMMAND, (*COMMAND[:5], "beat")):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert said in done.stderr


@pytest.mark.parametrize(
    ("url", "celery", "client"),
    [
        ("redis://h:1/2", "redis://h:1/2", "redis://h:1/2"),
        ("unix:///r.sock", "redis+socket:///r.sock", "unix:///r.sock"),
        ("redis+socket:///r.sock", "redis+socket:///r.sock", "unix:///r.sock"),
    ],
)
def test_an_address_of_redis_is_spelt_as_each_client_wants_it(url, celery, client):
    assert (for_celery(url), for_redis(url)) == (celery, client)


def test_a_short_run_is_derived_as_soon_as_it_is_asked_for_without_a_sweep(standing):
    store = standing.store
    with dispatching(standing.redis_url) as dispatcher:
        for _ in range(2):
            started = start(store)
            take_in(store, started, batches(numbers(8), started.session))
            dispatcher.request(started.run)
            wait_until(lambda run=started.run: is_derived(store, run))


def test_the_sweep_has_derived_runs_compacted(standing):
    store = standing.store
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    derive(store, started.run)
    before = outcome(store, started.run)
    make_app(standing.redis_url).send_task(SWEEP)
    wait_until(lambda: started.run not in _compactable(store))
    with store.read() as conn:
        left = sa.select(sa.func.count()).where(segments.c.run == started.run, segments.c.kind != "spectra")
        assert conn.execute(left).scalar_one() == 6
    assert outcome(store, started.run) == before


def test_beat_has_the_runs_retired_that_are_due(standing):
    store = standing.store
    run, young = a_plain_run(store, 1000), a_plain_run(store, 1000)
    ended(store, run)
    ended(store, young, time.time())
    with store.write() as conn:
        adopt_retention(conn, KEPT, 0.0)
    app = make_app(standing.redis_url)
    assert {entry["task"] for entry in app.conf.beat_schedule.values()} == {SWEEP, RETAIN_DUE}
    for _ in range(2):
        app.send_task(RETAIN_DUE)
    wait_until(lambda: _of_run(store, run)["retired_at"] is not None)
    assert asked(store, run, "grad_norm", columns=10_000).retired == ((1, 511, 8),)
    assert _of_run(store, young)["retired_at"] is None


def _of_run(store, run: str) -> dict:
    with store.read() as conn:
        return get_run(conn, run)


def _compactable(store) -> list[str]:
    with store.read() as conn:
        return compactable_runs(conn)


def test_a_run_that_cannot_be_derived_is_left_to_the_sweep_and_holds_up_no_other(standing):
    store = standing.store
    spoiled, fine = start(store), start(store)
    for one in (spoiled, fine):
        take_in(store, one, batches(faulty(), one.session))
    with store.write() as conn:
        conn.execute(sa.update(cursors).where(cursors.c.run == spoiled.run).values(state={"version": 1}))
    direct, flag = DirectDispatcher(make_app(standing.redis_url)), f"gradspectra:derive:{spoiled.run}"
    with redis.Redis.from_url(standing.redis_url) as client:
        for one in (spoiled, fine):
            direct.request(one.run)
        wait_until(lambda: client.exists(flag))
        assert 0 < client.ttl(flag) <= 30
    wait_until(lambda: is_derived(store, fine.run))
    assert outcome(store, fine.run) == undisturbed(store)
    with store.write() as conn:
        delete_run(conn, spoiled.run)


def test_beat_says_in_one_line_that_redis_is_away(redis_server, caplog):
    app = make_app(redis_server.url)
    scheduler = symbol_by_name(app.conf.beat_scheduler)(app, lazy=True)
    redis_server.stop()
    with app.connection_for_write() as connection:
        entry = scheduler.Entry(name="sweep", task=SWEEP, schedule=10.0, app=app)
        scheduler.apply_entry(entry, producer=app.amqp.Producer(connection, auto_declare=False))
    redis_server.start()
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.getMessage().startswith("Couldn't apply scheduled task sweep: ")
    assert record.exc_info is None


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_a_sweep_asks_for_does_not_pile_up_while_workers_are_busy(url, redis_server, monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_DATABASE_URL", url)
    monkeypatch.setenv("GRADSPECTRA_REDIS_URL", redis_server.url)
    make_app(redis_server.url).set_current()
    opened = tasks._store, tasks._announcer, tasks._living
    for one in opened:
        one.cache_clear()
    with redis.Redis.from_url(redis_server.url) as client:
        tasks.sweep_runs()
        (asked,) = (json.loads(message)["headers"] for message in client.lrange("celery", 0, -1))
    for one in opened:
        one(os.getpid()).close()
        one.cache_clear()
    assert (asked["task"], asked["expires"] is None) == (DELIVER, False)


def test_a_task_says_in_one_line_that_the_database_is_away(monkeypatch, caplog):
    monkeypatch.setenv("GRADSPECTRA_DATABASE_URL", "postgresql+psycopg://nobody:s3cret@127.0.0.1:9/none")
    tasks._store.cache_clear()
    try:
        tasks.deliver_alerts()
    finally:
        tasks._store.cache_clear()
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.getMessage().startswith(
        "left for later: the database postgresql+psycopg://nobody:***@127.0.0.1:9/none"
    )
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
