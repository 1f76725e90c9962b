"""What must hold before the server starts; each failure says what to do, and nothing is left half started."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradspectra_store import Store, StoreError
from gradspectra_store.tokens import list_tokens

from gradspectra_backend.settings import Settings


class CannotStart(Exception):
    """The server cannot start; the message says why and what to do."""


def check_data_folder(settings: Settings) -> None:
    """Make the data folder where it is used; raises CannotStart where nothing can be written in it."""
    if settings.database_url is not None:
        return
    folder = settings.data.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        database = folder / "gradspectra.db"
        if database.exists() and not os.access(database, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CannotStart(
            f"the data folder {folder} cannot be written: {error.strerror or error}; choose another with --data or "
            "GRADSPECTRA_DATA, or change its permissions"
        ) from None


def bind(host: str, port: int) -> socket.socket:
    """Take the address to listen on; raises CannotStart where it is taken, not ours, or not allowed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotStart(f"{host!r} is no address of this machine ({error.strerror}); see --host") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise CannotStart(_why_not_bound(host, port, error)) from None
    listener.set_inheritable(True)
    return listener


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken, perhaps by another gradspectra; stop that one, or choose another port: "
            f"gradspectra serve --port {port + 1 if port < 65535 else 7118} (0 for any free one)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; choose one above 1023 with --port"
    return f"cannot listen on {host} port {port}: {error.strerror}; see --host and --port"


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Keep other servers off an SQLite file meanwhile: what one takes in, the pages of the other do not hear.

    Servers that all have Redis hear of each other by it, and share the file. Raises CannotStart, which names the file
    and the other process.
    """
    file = database_file(settings)
    if file is None or sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        lock = Path(f"{file}.lock").open("a+")  # noqa: SIM115
    except OSError:  # told in full where the database is opened
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_NB | (fcntl.LOCK_EX if settings.redis_url is None else fcntl.LOCK_SH))
        except BlockingIOError:
            lock.seek(0)
            raise CannotStart(
                f"the database {file} is in use by another gradspectra serve (process {lock.read() or 'unknown'}); "
                "stop that one, choose another folder with --data, or let both work over Redis (GRADSPECTRA_REDIS_URL)"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def open_once(settings: Settings) -> None:
    """Open and migrate the database, and see that a server others can reach has a token; raises CannotStart."""
    try:
        store = Store.open(settings.database, synchronous=settings.sqlite_synchronous)
    except StoreError as error:
        raise CannotStart(str(error)) from None
    try:
        if not settings.tokens_required or has_token(store):
            return
    finally:
        store.close()
    raise CannotStart(
        f"listening on {settings.host} demands tokens, and there is none yet; make one first: "
        "gradspectra token create me --scope admin"
    )


def has_token(store: Store) -> bool:
    """Whether there is a token that has not been revoked."""
    with store.read() as conn:
        return any(token["revoked_at"] is None for token in list_tokens(conn))


def database_file(settings: Settings) -> Path | None:
    """File of the SQLite database, None for PostgreSQL."""
    prefix = "sqlite:///"
    return Path(settings.database.removeprefix(prefix)) if settings.database.startswith(prefix) else None
