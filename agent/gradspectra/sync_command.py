"""`gradspectra sync`: send what a job left in its spool."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from gradspectra.session_folder import session_directories
from gradspectra.settings import spool_folder
from gradspectra.sync import Synced, sync


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("sync", help="send records that a job left in its spool")
    parser.add_argument("directory", nargs="?", help="of one session, or the spool folder (default: GRADSPECTRA_SPOOL)")
    parser.add_argument("--server", help="address of the server (default: GRADSPECTRA_SERVER, else the job's own)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    folder: Any = options.directory or spool_folder()
    nothing = not options.directory and not any(session_directories(folder))
    results = [] if nothing else sync(folder, options.server)
    if options.json:
        print(json.dumps({"items": [dataclasses.asdict(result) for result in results]}))
    elif nothing:
        print(f"nothing to send: {folder} holds no spooled session")
    else:
        for result in results:
            print(_line(result))
    return 1 if any(result.status == "failed" for result in results) else 0


def _line(result: Synced) -> str:
    if result.status in ("sent", "running"):
        refused = f", {result.refused} batches refused (kept in {result.directory}/refused)" if result.refused else ""
        goes_on = "; the job goes on" if result.status == "running" else ""
        return f"sent {result.steps} steps to {result.url}{refused}{goes_on}"
    if result.status == "in use":
        return f"left alone: {result.error}"
    stays = f"{result.left} steps stay in" if result.left else "not sent:"
    return f"{stays} {result.directory}: {result.error}"
