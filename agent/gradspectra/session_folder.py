"""The directory of one session below the spool folder: run.json, the spool's files, the lock, refused batches."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradspectra.lock import DirectoryLock
from gradspectra.run_request import RunRequest
from gradspectra.settings import temporary_spool

RUN_FILE, CLOSED_FILE, REFUSED = "run.json", "closed.json", "refused"


class SessionFolder:
    """A session's directory, locked by this process. `path` names it; `release` gives it free, `remove` deletes it.

    Raises OSError where it cannot be opened, DirectoryInUse where another sender has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = DirectoryLock(path)

    @classmethod
    def make(cls, spool: Path, request: RunRequest, server: str) -> SessionFolder:
        """Make the directory of a new session below `spool` and write down what is needed to send it later."""
        label = re.sub(r"[^A-Za-z0-9.-]+", "-", request.name or request.project)[:40].strip(".-") or "run"
        now = time.time()
        moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{int(now % 1 * 1000):03d}"
        path = spool / f"{moment}-{label}-{request.session_key[:8]}"
        path.mkdir(parents=True, mode=0o700)
        folder = cls(path)
        try:
            folder._write(RUN_FILE, {"server": server, "request": request.to_json()})
        except OSError:
            folder.release()
            shutil.rmtree(path, ignore_errors=True)
            raise
        return folder

    def set_closed(self, state: str) -> None:
        """Remember how the run ended, for whoever sends the rest; a disk that is full forgets it."""
        with suppress(OSError):
            self._write(CLOSED_FILE, {"state": state})

    def closed_state(self) -> str | None:
        """Return how the run ended, None if the job did not come to say so."""
        try:
            state = json.loads((self.path / CLOSED_FILE).read_bytes())["state"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return state if state in ("finished", "failed") else None

    def release(self) -> None:
        """Give the directory free."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the directory, unless refused batches are kept in it."""
        self.release()
        if not (self.path / REFUSED).exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, members: dict[str, Any]) -> None:
        new = self.path / f"{name}.new"
        new.write_text(json.dumps(members), encoding="utf-8")
        os.replace(new, self.path / name)


def request_of(path: Path) -> tuple[str, RunRequest]:
    """Return server and run request of a session's directory; raises ValueError where it has none that can be read."""
    try:
        members = json.loads((path / RUN_FILE).read_bytes())
        return str(members["server"]), RunRequest.from_json(members["request"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / RUN_FILE} does not say which run this is: {error}") from None


def make_folder(spool: Path, request: RunRequest, server: str) -> tuple[SessionFolder | None, str]:
    """Make the session's directory below `spool`, or below the system's temporary folder where that fails.

    Returns the folder (None where neither can be written) and why it is not below `spool` ("" if it is).
    """
    why = ""
    for place in filter(None, (spool, temporary_spool())):
        try:
            return SessionFolder.make(place, request, server), why
        except OSError as error:
            why = why or f"the spool folder {spool} cannot be written ({error.strerror or error})"
    return None, why


def session_directories(path: Path) -> Iterator[Path]:
    """Give `path` itself if it is a session's directory, else the session directories in it, oldest first.

    Raises ValueError for a folder that is there and cannot be read.
    """
    try:
        if (path / RUN_FILE).exists():
            yield path
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            yield from sorted(entry for entry in path.iterdir() if (entry / RUN_FILE).exists())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
