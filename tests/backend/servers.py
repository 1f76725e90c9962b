"""The real server as a process of its own, as a user starts it."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest.mock import patch

from gradspectra_backend.commands import register

MAIN = "import argparse, sys; from gradspectra_backend.commands import register; p = argparse.ArgumentParser(); "
MAIN += "register(p.add_subparsers(required=True)); o = p.parse_args(); sys.exit(o.run(o))"


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without its settings, and with those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADSPECTRA_")}
    return clean | {f"GRADSPECTRA_{name.upper()}": value for name, value in settings.items()}


@dataclass(frozen=True)
class Done:
    """What a command that has ended leaves."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, **settings: str) -> Done:
    """Run a command of the server to its end, in this process: a new one would only import everything again."""
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment(**settings), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        options = parser.parse_args(arguments)
        try:
            status = int(options.run(options))
        except Exception:
            traceback.print_exc()
            status = 1
    return Done(status, out.getvalue(), err.getvalue())


@dataclass
class Running:
    """A server that listens. url: its root; log: what it says beside."""

    process: subprocess.Popen[str]
    url: str
    log: IO[str]

    def stopped(self, number: int) -> tuple[int, str]:
        """Send a signal and wait for the end. Returns the exit status and the log."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.log.seek(0)
        return status, self.log.read()


@contextmanager
def serving(data: Path, *arguments: str, **settings: str) -> Iterator[Running]:
    """A server on a free port until the end of the block."""
    started = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--data", str(data), *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(started, env=environment(**settings), stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+:\d+", line)
            assert found is not None, f"the server said {line!r}"
            yield Running(process, found.group(), log)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@contextmanager
def working(database_url: str, redis_url: str, *options: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A Celery worker with one process of its own until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "worker", "--concurrency", "1", *options],
        env=environment(database_url=database_url, redis_url=redis_url, **settings),
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
