"""The server's commands of the `gradspectra` command line: serve, worker, migrate, token, derive, doctor and others."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from gradspectra_backend.settings import Settings, SettingsError, load_settings

CANNOT = 2
"""Exit status where a command cannot start; nothing was changed."""

Parsers = Any
"""What argparse's add_subparsers gives; it has no public name."""


def register(subparsers: Parsers) -> None:
    """Add the server's commands; each parser's default `run` takes the options and returns the exit status."""
    _serve(subparsers)
    _demo(subparsers)
    _worker(subparsers)
    migrate = _add(subparsers, "migrate", "bring the database to this version's schema", _run_migrate)
    _data_option(migrate)
    _token(subparsers)
    _derive(subparsers)
    _retention(subparsers)
    doctor = _add(subparsers, "doctor", "check settings, database, Redis, free space and versions", _run_doctor)
    doctor.add_argument("--repair", action="store_true", help="mend in the database what needs no guessing")
    _data_option(doctor)
    _json_option(doctor)


def _add(
    subparsers: Parsers, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.set_defaults(run=_explained(parser.prog, run))
    return parser


def _explained(called: str, run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn what a user can mend into one line on stderr and exit status 2."""

    def guarded(options: argparse.Namespace) -> int:
        from gradspectra_store import StoreError

        from gradspectra_backend.start import CannotStart

        try:
            return run(options)
        except (SettingsError, CannotStart, StoreError) as error:
            print(f"{called}: {error}", file=sys.stderr)
            return CANNOT

    return guarded


def _settings(options: argparse.Namespace) -> Settings:
    names = ("host", "port", "data", "processes", "retention_days")
    return load_settings(**{name: getattr(options, name, None) for name in names})


def _data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of the embedded database (GRADSPECTRA_DATA)")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _serve(subparsers: Parsers) -> None:
    parser = _add(subparsers, "serve", "run the server and its dashboard", _run_serve)
    parser.add_argument("--host", help="address to listen on (GRADSPECTRA_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (GRADSPECTRA_PORT, default 7117)")
    parser.add_argument("--processes", type=int, help="server processes; more than one needs Redis")
    _data_option(parser)


def _run_serve(options: argparse.Namespace) -> int:
    settings = _settings(options)  # before all that takes a second to import
    from gradspectra_backend.serve import serve

    return serve(settings)


def _demo(subparsers: Parsers) -> None:
    from gradspectra_backend import demo

    demo.add_arguments(_add(subparsers, "demo", "run the server beside a small real training job", demo.run))


def _worker(subparsers: Parsers) -> None:
    parser = _add(subparsers, "worker", "run a Celery worker that derives and delivers; needs Redis", _run_worker)
    parser.add_argument("--concurrency", type=int, default=2, help="processes of this worker (default 2)")
    parser.add_argument("--beat", action="store_true", help="also send the periodic jobs; in exactly one worker")


def _run_worker(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if settings.redis_url is None:
        raise SettingsError(
            "a worker takes its jobs from Redis: set GRADSPECTRA_REDIS_URL; without Redis `gradspectra serve` derives "
            "by itself and needs no worker"
        )
    if options.concurrency < 1:
        raise SettingsError(f"--concurrency must be at least 1, got {options.concurrency}")
    os.environ["GRADSPECTRA_DATABASE_URL"] = settings.database
    command = [sys.executable, "-m", "celery", "-A", "gradspectra_worker.app", "worker", "--without-gossip"]
    command += ["--without-mingle", "--without-heartbeat", "--loglevel", settings.log_level]
    command += ["--concurrency", str(options.concurrency)]
    if options.beat:
        command += ["--beat", "--schedule", str(settings.data.expanduser() / "beat-schedule")]
        settings.data.expanduser().mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _run_migrate(options: argparse.Namespace) -> int:
    from gradspectra_store import migrate

    from gradspectra_backend.start import check_data_folder

    settings = _settings(options)
    check_data_folder(settings)
    print(f"the database has schema version {migrate(settings.database)}")
    return 0


def _token(subparsers: Parsers) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("token", help="make, list and revoke tokens")
    actions = parser.add_subparsers(required=True, metavar="create|list|revoke")
    create = _add(actions, "create", "make a token and show it, this once", _run_token_create)
    create.add_argument("name", help="what the token is for")
    create.add_argument(
        "--scope",
        action="append",
        choices=("ingest", "read", "admin"),
        help="what it may do, several times for several; default: ingest and read",
    )
    listing = _add(actions, "list", "list tokens; never the tokens themselves", _run_token_list)
    revoke = _add(actions, "revoke", "revoke a token", _run_token_revoke)
    revoke.add_argument("id", help="identity of the token, as `gradspectra token list` shows it")
    for action in (create, listing, revoke):
        _data_option(action)
        _json_option(action)


def _run_token_create(options: argparse.Namespace) -> int:
    from gradspectra_store.tokens import create_token

    scopes = list(dict.fromkeys(options.scope or ["ingest", "read"]))
    with _store(options) as store, store.write() as conn:
        identity, plain = create_token(conn, options.name, scopes, time.time())
    if options.json:
        print(json.dumps({"id": identity, "name": options.name, "scopes": scopes, "token": plain}))
    else:
        print(plain)
        print(f"Token {identity} for {', '.join(scopes)}; it is not shown again.", file=sys.stderr)
    return 0


def _run_token_list(options: argparse.Namespace) -> int:
    from gradspectra_store.tokens import list_tokens

    with _store(options) as store, store.read() as conn:
        tokens = list_tokens(conn)
    if options.json:
        print(json.dumps(tokens))
        return 0
    for token in tokens:
        made = datetime.fromtimestamp(token["created_at"]).isoformat(" ", "minutes")
        state = "revoked" if token["revoked_at"] is not None else ",".join(token["scopes"])
        print(f"{token['id']}  {made}  {state:<18}  {token['name']}")
    if not tokens:
        print("There is no token yet.", file=sys.stderr)
    return 0


def _run_token_revoke(options: argparse.Namespace) -> int:
    from gradspectra_store.tokens import revoke_token

    from gradspectra_backend.start import CannotStart

    with _store(options) as store, store.write() as conn:
        if not revoke_token(conn, options.id, time.time()):
            raise CannotStart(f"there is no token {options.id!r} to revoke; see `gradspectra token list`")
    print(json.dumps({"id": options.id, "revoked": True}) if options.json else f"Token {options.id} is revoked.")
    return 0


def _store(options: argparse.Namespace) -> Any:
    from contextlib import closing

    from gradspectra_store import Store

    from gradspectra_backend.start import check_data_folder

    settings = _settings(options)
    check_data_folder(settings)
    return closing(Store.open(settings.database, synchronous=settings.sqlite_synchronous))


def _derive(subparsers: Parsers) -> None:
    parser = _add(subparsers, "derive", "derive a run up to its last batch, or all of it again", _run_derive)
    parser.add_argument("id", metavar="RUN", help="identity of the run")
    parser.add_argument("--again", action="store_true", help="all of it another time, in place of what it has")
    _data_option(parser)
    _json_option(parser)


def _run_derive(options: argparse.Namespace) -> int:
    from gradspectra_backend.derive_command import run

    with _store(options) as store:
        return run(store, _settings(options), options)


def _retention(subparsers: Parsers) -> None:
    parser = _add(subparsers, "retention", "show what of old runs is to go, or let it go now", _run_retention)
    days = "as if runs kept every number so long (GRADSPECTRA_RETENTION_DAYS)"
    parser.add_argument("--days", type=float, dest="retention_days", help=days)
    parser.add_argument("--apply", action="store_true", help="retire the runs that are due now, without more notice")
    _data_option(parser)
    _json_option(parser)


def _run_retention(options: argparse.Namespace) -> int:
    from gradspectra_backend.retention_command import run

    with _store(options) as store:
        return run(store, _settings(options).retention, options)


def _run_doctor(options: argparse.Namespace) -> int:
    from gradspectra_backend.doctor import examine, report

    findings = examine(lambda: _settings(options), repair=options.repair)
    print(json.dumps({"findings": findings}) if options.json else report(findings))
    return 1 if any(finding["status"] == "failed" for finding in findings) else 0
