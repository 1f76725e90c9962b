"""Every part of production killed, halted or cut off while a job records: all comes once, as where nothing happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import psutil
import pytest
import sqlalchemy as sa
from databases import postgres
from gradspectra import transport
from gradspectra.recorder import Recorder
from system.services import (
    BIN,
    Process,
    Rest,
    Webhook,
    clean_environment,
    eventually,
    free_port,
    redis_command,
    socket_answers,
)

pytestmark = pytest.mark.slow

SEED = 20
LAYERS = ("embedding.weight", "layers.0.weight", "layers.1.weight", "head.weight")
DOWN, UP = 40, 20
"""Steps that the job takes while something is away, and before the next thing is."""
STEP_SECONDS = 0.02
PATIENCE = 180.0
"""Seconds at most until all is as it should be: a delivery in the hands of a killed worker is free after 60."""


class Act(NamedTuple):
    """Something that happens, and what ends it."""

    begin: Callable[[], Any]
    end: Callable[[], Any] = lambda: None


class Parts:
    """The processes of a set-up, by name; each can be killed, halted and started again on the same port."""

    def __init__(self, folder: Path, environment: dict[str, str], commands: dict[str, list[str]]) -> None:
        self._folder, self._environment, self._commands = folder, environment, commands
        self._processes: dict[str, Process] = {}

    def start(self, name: str) -> None:
        self._processes[name] = Process(
            self._commands[name], self._folder / f"{name}.log", self._environment, self._folder
        )

    def kill(self, name: str) -> None:
        """As the kernel kills one process: those that it started have to see for themselves that it is gone."""
        self._processes[name].child.kill()
        self._processes[name].child.wait()

    def kill_child(self, name: str) -> None:
        """Kill the first process that one has started."""
        psutil.Process(self._processes[name].child.pid).children()[0].kill()

    def end(self, name: str) -> None:
        """End one in order."""
        self._processes[name].stop()

    def send(self, name: str, number: int) -> None:
        """Send a signal to one and to those that it started."""
        os.killpg(self._processes[name].child.pid, number)

    def close(self) -> None:
        """Leave nothing running."""
        for process in self._processes.values():
            for number in (signal.SIGCONT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.child.pid, number)
            process.child.wait()

    def output(self) -> str:
        """The ends of what all have printed."""
        return "\n".join(f"--- {name}\n{process.output()[-3000:]}" for name, process in self._processes.items())


class Database:
    """One database of a PostgreSQL that goes on for others."""

    def __init__(self, url: str) -> None:
        self._name = sa.make_url(url).database
        self._server = sa.create_engine(sa.make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")

    def connections(self, allowed: bool) -> None:
        """Take connections from now on, or end all there are and take no new ones."""
        with self._server.connect() as conn:
            conn.execute(sa.text(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS {allowed}"))
            if not allowed:
                query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                conn.execute(sa.text(query), {"name": self._name})

    def close(self) -> None:
        """Leave the server."""
        self._server.dispose()


@dataclass
class SetUp:
    """A server that answers, the acts that can be played on it, and where its alerts are delivered."""

    rest: Rest
    folder: Path
    webhook: Webhook
    acts: dict[str, Act] = field(default_factory=dict)


@contextmanager
def set_up(
    folder: Path, commands: dict[str, list[str]], port: int, environment: dict[str, str]
) -> Iterator[tuple[SetUp, Parts]]:
    """A set-up of these processes, started in order, with a channel; what they printed is shown where it fails."""
    rest, webhook = Rest(f"http://127.0.0.1:{port}"), Webhook()
    parts = Parts(folder, environment, commands)
    try:
        for name in commands:
            parts.start(name)
            if name == "redis":
                eventually(lambda: socket_answers(int(commands["redis"][2])), 60, "Redis listens")
            if name == "server":
                eventually(rest.up, 60, "the server answers")
        rest.send("POST", "/channels", {"name": "test", "url": webhook.url, "min_severity": "info"})
        yield SetUp(rest, folder, webhook), parts
    except BaseException:
        print(parts.output())
        raise
    finally:
        parts.close()
        webhook.close()


@contextmanager
def production(folder: Path) -> Iterator[SetUp]:
    """A server of two processes, two workers, beat, Redis, and a database of PostgreSQL."""
    with postgres() as url, ExitStack() as stack:
        port, broker = free_port(), free_port()
        environment = clean_environment(
            GRADSPECTRA_DATABASE_URL=url,
            GRADSPECTRA_REDIS_URL=f"redis://127.0.0.1:{broker}/0",
            GRADSPECTRA_ALERT_ALLOW_HOSTS="127.0.0.1",
            GRADSPECTRA_PROCESSES="2",
        )
        gradspectra, celery = str(BIN / "gradspectra"), [str(BIN / "celery"), "-A", "gradspectra_worker.app"]
        worker = [gradspectra, "worker", "--concurrency", "1"]
        commands = {
            "redis": redis_command(broker),
            "server": [gradspectra, "serve", "--port", str(port)],
            "worker 1": worker,
            "worker 2": worker,
            "beat": [*celery, "beat", "--schedule", str(folder / "schedule"), "--pidfile", ""],
        }
        made, parts = stack.enter_context(set_up(folder, commands, port, environment))
        database = Database(url)
        stack.callback(database.close)
        eventually(made.rest.ready, 60, "database, Redis, workers and beat are ready")
        made.acts |= {f"{name} is killed": killed(parts, name) for name in commands}
        made.acts |= {f"{name} stands still": halted(parts, name) for name in commands if name != "beat"}
        made.acts |= {
            f"a process of {name} is killed": Act(lambda name=name: parts.kill_child(name))  # type: ignore[misc]
            for name in ("server", "worker 1")
        }
        made.acts["the server is ended"] = Act(lambda: parts.end("server"), lambda: parts.start("server"))
        made.acts["the database is away"] = Act(lambda: database.connections(False), lambda: database.connections(True))
        yield made


def killed(parts: Parts, name: str) -> Act:
    return Act(lambda: parts.kill(name), lambda: parts.start(name))


def halted(parts: Parts, name: str) -> Act:
    return Act(lambda: parts.send(name, signal.SIGSTOP), lambda: parts.send(name, signal.SIGCONT))


@contextmanager
def embedded(folder: Path) -> Iterator[SetUp]:
    """One process with its file."""
    port = free_port()
    environment = clean_environment(GRADSPECTRA_DATA=str(folder), GRADSPECTRA_ALERT_ALLOW_HOSTS="127.0.0.1")
    commands = {"server": [str(BIN / "gradspectra"), "serve", "--port", str(port)]}
    with set_up(folder, commands, port, environment) as (made, _):
        yield made


def stream(steps: int) -> list[dict[str, Any]]:
    """What the job records at each step: a loss that falls, with spikes, NaN and layers that die and live again."""
    rng = np.random.default_rng(SEED)
    recorded = []
    for step in range(1, steps + 1):
        spike = step % 97 == 0
        loss = (50.0 if spike else 1.0) * (2 + 2 / step**0.5) * rng.uniform(0.99, 1.01)
        numbers: dict[str, Any] = {
            "loss": float("nan") if step % 211 == 0 else loss,
            "tokens": int(rng.integers(2**60)),
        }
        numbers |= {"grad_norm": float(rng.uniform(0.9, 1.1)) * (20 if step % 89 == 0 else 1), "time": 1e9 + step / 7}
        layers = np.float32(rng.lognormal(size=len(LAYERS)))
        numbers["layers"] = {"grad_sq": layers, "grad_max": np.where(step % 400 > 250, 0, 1) * layers}
        if step % 20 == 0:
            numbers["spectra"] = {LAYERS[1]: rng.lognormal(size=8)}
        recorded.append(numbers)
    return recorded


def record(on: SetUp, recorded: list[dict[str, Any]], at: Callable[[int], None]) -> str:
    """Record the stream on a set-up; at: is called before each step. Returns the run, once all of it is derived and
    delivered."""
    told: list[dict[str, Any]] = []
    recorder = Recorder(
        run="chaos", layers=LAYERS, server=on.rest.address, spool=on.folder / "spool", on_alert=told.append
    )
    for step, numbers in enumerate(recorded, 1):
        at(step)
        recorder.record(step, **numbers)
    recorder.close(timeout=PATIENCE)
    assert (recorder.status()["waiting_steps"], recorder.status()["last_error"]) == (0, None)
    assert max(Counter(alert["id"] for alert in told).values()) == 1
    assert recorder.run_id is not None
    run = recorder.run_id
    eventually(lambda: on.rest.get(f"/runs/{run}")["derived_step"] == len(recorded), PATIENCE, "all is derived")
    eventually(lambda: not pending(on.rest), PATIENCE, "all is delivered")
    return run


def pending(rest: Rest) -> list[Any]:
    return [item for item in rest.get("/deliveries", limit=500)["items"] if item["state"] == "due"]


def play(acts: dict[str, Act], rest: Rest) -> tuple[int, Callable[[int], None]]:
    """How many steps of the job it takes to play each act once, in an order by chance; and what plays them."""
    names = sorted(acts)
    random.Random(SEED).shuffle(names)

    def at(step: int) -> None:
        act, beyond = divmod(step - 1, DOWN + UP)
        if act < len(names) and beyond == 0:
            print(f"step {step}: {names[act]}")
            acts[names[act]].begin()
        if act < len(names) and beyond == DOWN:
            acts[names[act]].end()
            eventually(rest.up, 60, f"the server answers after: {names[act]}")
        time.sleep(STEP_SECONDS)

    return len(names) * (DOWN + UP), at


def exported(rest: Rest, run: str, **what: str) -> list[str]:
    """The lines of an export in full resolution."""
    answer = httpx2.get(
        f"{rest.address}/api/v1/runs/{run}/export", params={"format": "json", **what}, timeout=60,
        trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.text.splitlines()


def alerts(rest: Rest, run: str) -> list[dict[str, Any]]:
    """All that is said of the alerts of a run, but for what names them and for the time of the clock."""
    left = {"id", "run", "incident", "updated_at"}
    items = rest.get(f"/runs/{run}/alerts", limit=500)["items"]
    found = [{key: value for key, value in item.items() if key not in left} for item in items]
    return sorted(found, key=lambda alert: (alert["opened_step"], alert["rule"], alert["layers"]))


def delivered(on: SetUp) -> list[str]:
    """What tells apart the deliveries that were asked for; each has been sent, and has come."""
    items = on.rest.get("/deliveries", limit=500)["items"]
    assert {item["state"] for item in items} == {"sent"}
    keys = [f"{item['alert']}-{item['channel']}-{item['severity']}" for item in items]
    assert len(keys) == len(set(keys))
    assert {headers["X-Gradspectra-Delivery"] for headers, _ in on.webhook.calls} == set(keys)
    return keys


def test_what_happens_to_production_changes_no_number_and_delivers_each_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "UNVIEWED_REST", 0.2)  # more batches in the same time
    for name in ("calm", "chaos"):
        (tmp_path / name).mkdir()
    with production(tmp_path / "chaos") as chaos, embedded(tmp_path / "calm") as calm:
        steps, at = play(chaos.acts, chaos.rest)
        recorded = stream(steps)
        there, here = record(calm, recorded, lambda _: None), record(chaos, recorded, at)
        for what in (
            {"what": "series"},
            {"what": "layers", "names": "grad_sq,grad_max,stable_rank"},
            {"what": "spectra"},
        ):
            assert exported(chaos.rest, here, **what) == exported(calm.rest, there, **what), what
        rows = [json.loads(line.strip("[],")) for line in exported(chaos.rest, here, what="series") if "step" in line]
        for name in ("loss", "grad_norm", "tokens", "time"):
            kept = [float(row[name]) if name != "tokens" else row[name] for row in rows]
            np.testing.assert_array_equal(kept, [numbers[name] for numbers in recorded])
        assert alerts(chaos.rest, here) == alerts(calm.rest, there)
        assert len(delivered(chaos)) == len(delivered(calm)) >= steps // 97
        # one in the hands of a worker that dies, or loses the database, comes once more under the same name
        risks = sum("worker" in name or "database" in name for name in chaos.acts)
        assert len(chaos.webhook.calls) <= len(delivered(chaos)) + 2 * risks
