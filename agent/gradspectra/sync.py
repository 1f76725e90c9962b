"""Sends later what a job left in its spool: `gradspectra sync`. Never twice, and never beside a live job."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from gradspectra.http_client import HttpClient
from gradspectra.lock import DirectoryInUse
from gradspectra.sender import Sender
from gradspectra.session_folder import REFUSED, SessionFolder, session_directories
from gradspectra.settings import access_token, server_address
from gradspectra.spool import Spool

GIVE_UP_AFTER = 5
"""Failures in a row after which a sync gives up."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one session's directory.

    status: "sent" (all of it; the directory is gone), "in use" (a running job sends it itself), "failed" (the rest
    stays, `error` says why). steps: in the spool before and with the server now; left: still in the spool.
    """

    directory: str
    status: str
    run: str | None = None
    url: str | None = None
    steps: int = 0
    left: int = 0
    refused: int = 0
    error: str | None = None


def sync(path: str | os.PathLike[str], server: str | None = None, token: str | None = None) -> list[Synced]:
    """Send the session in directory `path`, or all sessions in the spool folder `path`, oldest first.

    server: default is GRADSPECTRA_SERVER, else the one that the job sent to. Raises ValueError where `path` holds no
    session. A second call sends nothing again: the server knows the session by its key.
    """
    directories = list(session_directories(Path(path).expanduser()))
    if not directories:
        raise ValueError(f"{path} holds no spooled session (no run.json in it or in a directory of it)")
    return [_sync_directory(directory, server, token) for directory in directories]


def _sync_directory(path: Path, server: str | None, token: str | None) -> Synced:
    try:
        folder = SessionFolder(path)
    except DirectoryInUse as error:
        return Synced(str(path), "in use", error=str(error))
    except OSError as error:
        return Synced(str(path), "failed", error=str(error))
    try:
        made_for, request = folder.request()
        address = server_address(server or os.environ.get("GRADSPECTRA_SERVER") or made_for)
        spool = Spool(path)
        http = HttpClient(address, access_token(token))
        sender = Sender(http, spool, request, _ignore, path / REFUSED, "it stays in the spool", anew=True)
    except (OSError, ValueError) as error:
        folder.release()
        return Synced(str(path), "failed", error=str(error))
    before = spool.waiting_steps
    _send_all(sender)
    state = folder.closed_state()
    left, done = spool.waiting_steps, sender.run is not None and not spool.waiting_bytes
    if done and state is not None:
        done = sender.finish(state)
    spool.close()
    http.close()
    if done:
        folder.remove()
    else:
        folder.release()
    run = sender.run or {}
    return Synced(
        directory=str(path),
        status="sent" if done else "failed",
        run=run.get("id"),
        url=run.get("url") or (f"{address}/runs/{run['id']}" if run else None),
        steps=before - left,
        left=left,
        refused=sender.refused,
        error=None if done else sender.last_error,
    )


def _send_all(sender: Sender) -> None:
    """Send until the spool is empty, or the server has turned us away or failed five times in a row."""
    failures = 0
    while failures < GIVE_UP_AFTER:
        if sender.advance():
            failures = 0
        elif sender.last_error is None or sender.turned_away:
            return
        else:
            failures += 1
            if failures < GIVE_UP_AFTER:
                time.sleep(max(0.0, min(sender.next_try - time.monotonic(), 10.0)))
                sender.retry_now()


def _ignore(_: dict[str, object]) -> None:
    """Alerts in the answers are for a running job."""
