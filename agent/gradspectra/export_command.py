"""`gradspectra export`: every recorded step of a run as a file, or on the standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gradspectra.client import Client
from gradspectra.errors import ServerAway
from gradspectra.files import EXPORT_FORMATS, write_whole


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("export", help="write every recorded step of a run as CSV, JSON, Parquet or Arrow")
    parser.add_argument("run_id", metavar="RUN", help="id of the run")
    parser.add_argument("--format", choices=EXPORT_FORMATS, help="default: by the end of FILE, else csv")
    parser.add_argument("--what", choices=("series", "layers", "spectra"), default="series", help="default: series")
    parser.add_argument("--names", metavar="A,B", help="series or statistics (default: all)")
    parser.add_argument("--layers", metavar="A,B", help="names of layers (default: all)")
    parser.add_argument("--pattern", metavar="REGEX", help="layers in whose names this is found")
    parser.add_argument("--role", metavar="A,B", help="layers of these roles, as q,k,v")
    parser.add_argument(
        "--depth", metavar="RANGES", help="layers of these depths, as 0,4-7; --depth=-1 is outside of blocks"
    )
    parser.add_argument("--of", choices=("gradient", "weight", "update"), help="spectra of this (default: all)")
    parser.add_argument("--start", type=int, metavar="STEP", help="first step")
    parser.add_argument("--stop", type=int, metavar="STEP", help="step to stop before")
    parser.add_argument("--attempt", type=int, metavar="N", help="this attempt by itself (default: joined)")
    parser.add_argument(
        "--skip-damaged", action="store_const", const="true", help="leave out what cannot be read back, do not fail"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument("--server", help="address of the server (default: GRADSPECTRA_SERVER)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    form = options.format or _by_name(options.output)
    run = Client(options.server).run(options.run_id)
    if run.info.get("retired_at") and options.what != "series":
        print("Of this run only coarse layer values and some of the spectra are left.", file=sys.stderr)
    given = ("what", "names", "layers", "pattern", "role", "depth", "of", "start", "stop", "attempt", "skip_damaged")
    parts = run.export_parts(format=form, **{name: getattr(options, name) for name in given})
    if options.output is None:
        if form in ("parquet", "arrow") and sys.stdout.isatty():
            raise ValueError(f"{form} is not for a terminal; name a file by -o FILE")
        for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return 0
    try:
        size = write_whole(options.output, parts)
    except ServerAway:
        raise
    except OSError as error:
        raise ValueError(f"cannot write {options.output}: {error.strerror or error}") from None
    print(f"wrote {size:,} bytes to {options.output}")
    return 0


def _by_name(output: Path | None) -> str:
    suffix = "" if output is None else output.suffix.removeprefix(".").lower()
    return suffix if suffix in EXPORT_FORMATS else "csv"
