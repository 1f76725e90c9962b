"""The real server as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MAIN = "import argparse, sys; from gradspectra_backend.commands import register; p = argparse.ArgumentParser(); "
MAIN += "register(p.add_subparsers(required=True)); o = p.parse_args(); sys.exit(o.run(o))"


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without its settings, and with those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADSPECTRA_")}
    return clean | {f"GRADSPECTRA_{name.upper()}": value for name, value in settings.items()}


def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the server to its end."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass
class Running:
    """A server that listens. url: its root."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def serving(data: Path, *arguments: str, **settings: str) -> Iterator[Running]:
    """A server on a free port until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", "--port", "0", "--data", str(data), *arguments],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found is not None, f"the server said {line!r}"
        yield Running(process, found.group())
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def working(database_url: str, redis_url: str) -> Iterator[subprocess.Popen[str]]:
    """A Celery worker with one process of its own until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "worker", "--concurrency", "1"],
        env=environment(database_url=database_url, redis_url=redis_url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
