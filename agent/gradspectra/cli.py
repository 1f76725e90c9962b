"""The `gradspectra` command line: reading and sending on a base install, the server's commands by entry points."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from gradspectra_core import __version__

from gradspectra import export_command, import_command, reading_commands, sync_command
from gradspectra.errors import ServerAway, ServerRefused

ENTRY_POINTS = "gradspectra.commands"
OWN_COMMANDS = (*reading_commands.COMMANDS, "export", "import", "sync", "version")
SERVER_COMMANDS = {
    "serve": "run the server and its dashboard",
    "demo": "run the server beside a small real training job",
    "worker": "run a Celery worker that derives and delivers",
    "migrate": "bring the database to this version's schema",
    "token": "make, list and revoke tokens",
    "derive": "derive a run up to its last batch, or all of it again",
    "retention": "show what of old runs is to go, or let it go now",
    "doctor": "check settings, database, Redis, free space and versions",
}
"""What stands in for the server's commands where the server extra is not installed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 if it failed, 2 if it was asked for wrongly."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    own = bool(given) and given[0] in OWN_COMMANDS
    parser = build_parser(server=not own)
    options, unknown = parser.parse_known_args(given)
    if unknown and options.run is not _needs_server:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to show nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except (ServerAway, ServerRefused, ValueError) as error:
        print(f"gradspectra {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has enough; what is left must not be flushed to it at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser(server: bool = True) -> argparse.ArgumentParser:
    """Return the parser with all commands. server: with those of the server, which take longer to import."""
    parser = argparse.ArgumentParser(prog="gradspectra", description="Watch a training run's gradients and layers.")
    parser.add_argument("--version", action="version", version=f"gradspectra {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    reading_commands.register(subparsers)
    export_command.register(subparsers)
    import_command.register(subparsers)
    sync_command.register(subparsers)
    version = subparsers.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    if server:
        _register_others(subparsers)
    return parser


def _version(_: argparse.Namespace) -> int:
    print(f"gradspectra {__version__}")
    return 0


def _register_others(subparsers: Any) -> None:
    """Let the other rooms (and other packages) add their commands; say which extra is missing where they cannot."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register = entry.load()
        except ImportError as error:
            if entry.name != "server":
                print(f"gradspectra: commands of {entry.value} are left out: {error}", file=sys.stderr)
            continue
        register(subparsers)
    for name, text in SERVER_COMMANDS.items():
        if name not in subparsers.choices:
            subparsers.add_parser(name, help=text, add_help=False).set_defaults(run=_needs_server)


def _needs_server(options: argparse.Namespace) -> int:
    print(
        f"gradspectra {options.command}: this needs the server extra: pip install 'gradspectra[server]'",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
