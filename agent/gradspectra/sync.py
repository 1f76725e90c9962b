"""Sends what a job left in its spool, or a running one has there so far: `gradspectra sync`. Nothing arrives twice."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gradspectra.claims import Claim, held_claims
from gradspectra.http_client import HttpClient
from gradspectra.lock import DirectoryInUse, DirectoryLock
from gradspectra.sender import Sender
from gradspectra.session_folder import REFUSED, SessionFolder, request_of, session_directories
from gradspectra.settings import access_token, server_address
from gradspectra.spool import Spool

GIVE_UP_AFTER = 5
"""Failures in a row after which a sync gives up."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one session's directory.

    status: "sent" (all of it; the directory is gone), "running" (all that is there so far; the job goes on), "in use"
    (by another sync), "failed" (the rest stays, `error` says why). steps: in the spool before and with the server now;
    left: not with the server yet.
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
    except DirectoryInUse:
        return _sync_running(path, server, token)
    except OSError as error:
        return Synced(str(path), "failed", error=str(error))
    try:
        sender = _sender(path, path, server, token)
    except (OSError, ValueError) as error:
        folder.release()
        return Synced(str(path), "failed", error=str(error))
    before = sender.spool.waiting_steps
    _send_all(sender)
    state = folder.closed_state()
    done = sender.run is not None and not sender.spool.waiting_bytes
    if done and state is not None:
        done = sender.finish(state)
    result = _result(path, sender, before, "sent" if done else "failed")
    if done:
        folder.remove()
    else:
        folder.release()
    return result


def _sync_running(path: Path, server: str | None, token: str | None) -> Synced:
    """Send what the spool of a running job holds by now, from a copy."""
    try:
        lock = DirectoryLock(path, "syncing", "another sync")
    except DirectoryInUse as error:
        return Synced(str(path), "in use", error=str(error))
    except OSError as error:
        return Synced(str(path), "failed", error=str(error))
    try:
        with tempfile.TemporaryDirectory() as place:
            return _send_copy(path, _copied(path, Path(place), server, token))
    except (OSError, ValueError) as error:
        return Synced(str(path), "failed", error=str(error))
    finally:
        lock.release()


def _copied(path: Path, copy: Path, server: str | None, token: str | None) -> Sender:
    """What sends a copy of the spool, made here, and written down so that the job changes nothing of it any more."""
    with held_claims(path) as claims:
        if not claims.locked:
            raise OSError(f"{path} cannot be locked just now; it is tried again by a later sync")
        for name in ("batches", "acknowledged"):
            (copy / name).write_bytes((path / name).read_bytes())
        sender, stored = _sender(path, copy, server, token), claims.read().stored
        last = sender.spool.next_sequence - 1
        claims.write(Claim(last, stored))
    if sender.spool.acknowledged < stored <= last:
        sender.spool.acknowledge(stored)
    return sender


def _send_copy(path: Path, sender: Sender) -> Synced:
    before = sender.spool.waiting_steps
    _send_all(sender)
    done = sender.run is not None and not sender.spool.waiting_bytes
    if sender.run is not None:
        with held_claims(path) as claims:
            if claims.locked:
                claims.write(Claim(sender.spool.attempted, sender.spool.acknowledged))
    return _result(path, sender, before, "running" if done else "failed")


def _sender(path: Path, spool: Path, server: str | None, token: str | None) -> Sender:
    """What sends the session in `path` from the files in `spool`; raises OSError or ValueError."""
    made_for, request = request_of(path)
    address = server_address(server or os.environ.get("GRADSPECTRA_SERVER") or made_for)
    http = HttpClient(address, access_token(token))
    return Sender(http, Spool(spool), request, _ignore, path / REFUSED, "it stays in the spool", anew=True)


def _result(path: Path, sender: Sender, before: int, status: str) -> Synced:
    """What has become of a session of which so many steps waited before; closes its spool."""
    sender.spool.close()
    sender.http.close()
    run, left = sender.run or {}, sender.spool.waiting_steps
    return Synced(
        directory=str(path),
        status=status,
        run=run.get("id"),
        url=run.get("url") or (f"{sender.http.server}/runs/{run['id']}" if run else None),
        steps=before - left,
        left=left,
        refused=sender.refused,
        error=sender.last_error if status == "failed" else None,
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
