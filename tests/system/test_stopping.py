"""A worker that is told to stop while Redis answers nothing and closes nothing, as where its machine is gone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from gradspectra_store import Store
from gradspectra_worker.heartbeat import LivingWorkers
from system.services import BIN, clean_environment, eventually, free_port, redis_command, running, socket_answers

pytestmark = pytest.mark.slow


def test_a_worker_stops_while_redis_says_nothing(tmp_path: Path) -> None:
    port, database = free_port(), f"sqlite:///{tmp_path / 'a.db'}"
    url = f"redis://127.0.0.1:{port}/0"
    Store.open(database).close()
    environment = clean_environment(GRADSPECTRA_DATABASE_URL=database, GRADSPECTRA_REDIS_URL=url)
    with running(redis_command(port), tmp_path / "redis.log", clean_environment(), tmp_path) as redis:
        eventually(lambda: socket_answers(port), 60, "Redis listens")
        command = [str(BIN / "gradspectra"), "worker", "--concurrency", "1"]
        with running(command, tmp_path / "worker.log", environment) as worker:
            living = LivingWorkers(url)
            eventually(living.count, 60, "the worker lives")
            living.close()
            redis.child.send_signal(signal.SIGSTOP)
            try:
                worker.stop(signal.SIGTERM, within=120)
            finally:
                redis.child.send_signal(signal.SIGCONT)
            assert worker.child.returncode == 0
