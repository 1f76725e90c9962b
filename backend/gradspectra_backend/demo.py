"""`gradspectra demo`: the embedded server and a real training job beside it, each a process, until Ctrl-C."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import FrameType

HOST = "127.0.0.1"
READY_SECONDS = 30.0
TRAINING_STOPS_WITHIN = 2.0
SERVER_STOPS_WITHIN = 0.8


class CannotShow(Exception):
    """The demo cannot start; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gradspectra demo`."""
    parser.add_argument("--data", type=Path, default=Path("demo-data"), help="folder of the data (default ./demo-data)")
    parser.add_argument("--port", type=int, default=7117, help="port to listen on, 0 for a free one (default 7117)")
    parser.add_argument("--replay", action="store_true", help="replay the bundled recording also where torch is there")
    parser.add_argument("--open", action="store_true", help="open the dashboard in the browser")
    parser.add_argument("job", nargs="*", metavar="-- OPTION", help="further options of the training job")


def run(options: argparse.Namespace) -> int:
    """Run the demo until Ctrl-C, SIGTERM or the end of the server. Returns the exit status."""
    stop = threading.Event()

    def heard(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), heard)
    children: list[subprocess.Popen[bytes]] = []
    try:
        folder = _data_folder(options.data)
        port = _free_port(options.port)
        environment = _environment(folder, port)
        serve = [
            sys.executable,
            "-m",
            "gradspectra.cli",
            "serve",
            "--host",
            HOST,
            "--port",
            str(port),
            "--data",
            str(folder),
        ]
        server = _start(serve, environment, quiet=True)
        children.append(server)
        if not _wait_until_ready(server, port, stop):
            return 0
        _tell(options, folder, port)
        job = _start(_job_command(options), environment)
        children.append(job)
        return _watch_over(server, job, stop)
    except CannotShow as error:
        print(f"gradspectra demo: {error}", file=sys.stderr)
        return 1
    finally:
        _stop_all(children)


def _data_folder(path: Path) -> Path:
    folder = path.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise CannotShow(f"cannot write in {folder} ({error.strerror}); choose another folder with --data") from None
    return folder


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise CannotShow(f"cannot listen on port {port} ({error}); choose another with --port, 0 for any") from None
        return int(probe.getsockname()[1])


def _environment(folder: Path, port: int) -> dict[str, str]:
    """The environment of both processes: nothing of a server or a token that the user has set for other work."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADSPECTRA_")}
    return clean | {
        "GRADSPECTRA_SERVER": f"http://{HOST}:{port}",
        "GRADSPECTRA_SPOOL": str(folder / "spool"),
        "GRADSPECTRA_LOG_LEVEL": "warning",
    }


def _start(command: list[str], environment: dict[str, str], quiet: bool = False) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches the demo alone, which then stops it in order."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True)


def _job_command(options: argparse.Namespace) -> list[str]:
    """The training job where torch is installed, else the replay of a recording of it."""
    if options.replay or importlib.util.find_spec("torch") is None:
        return [sys.executable, "-m", "gradspectra.demo.replay", *options.job]
    return [sys.executable, "-m", "gradspectra.demo.training", *options.job]


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, stop: threading.Event) -> bool:
    """Wait for the server's health; False where the user stopped the demo meanwhile. Raises CannotShow."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and not stop.is_set():
        if server.poll() is not None:
            raise CannotShow(f"the server ended with status {server.returncode}; its message stands above")
        with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/api/v1/health", timeout=2):
            return True
        stop.wait(0.05)
    if stop.is_set():
        return False
    raise CannotShow(f"the server did not answer within {READY_SECONDS:.0f} s")


def _tell(options: argparse.Namespace, folder: Path, port: int) -> None:
    address = f"http://{HOST}:{port}/"
    replay = "replay" in _job_command(options)[2]
    job = "A recorded training job is replayed" if replay else "A GPT of a million parameters learns Python's sources"
    print(
        f"\n  Dashboard  {address}\n"
        f"  Data       {folder}, kept when you stop\n\n"
        f"  {job}. About 50 s in, the learning rate\n"
        "  jumps by mistake: watch the alert open. Ctrl-C stops everything.\n",
        flush=True,
    )
    if options.open:
        import webbrowser

        webbrowser.open(address)


def _watch_over(server: subprocess.Popen[bytes], job: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """Wait for Ctrl-C; say so when the job ends. Returns 0, or 1 where the server ended by itself."""
    ended = False
    while not stop.wait(0.1):
        if server.poll() is not None:
            raise CannotShow(f"the server ended with status {server.returncode}")
        if not ended and job.poll() is not None:
            ended = True
            how = "has ended" if job.returncode == 0 else f"failed with status {job.returncode}"
            print(f"The training job {how}; the dashboard stays until Ctrl-C.", flush=True)
    print("\nStopping.", flush=True)
    return 0


def _stop_all(children: list[subprocess.Popen[bytes]]) -> None:
    """End the job first, so that it can still send its last records, then the server; kill what does not obey."""
    for child, patience in reversed(list(zip(children, (SERVER_STOPS_WITHIN, TRAINING_STOPS_WITHIN), strict=False))):
        child.terminate()
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
