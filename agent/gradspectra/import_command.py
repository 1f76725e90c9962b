"""`gradspectra import`: a log of TensorBoard, W&B, CSV or JSON lines becomes a run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradspectra.client import Client
from gradspectra.errors import ServerRefused
from gradspectra.importing import BadLog, Imported, Log, Plan, plans_of, send
from gradspectra.importing_text import TextLog
from gradspectra.run_request import RunRequest

READERS = {
    "tensorboard": "event files are read by tensorboard, which is not installed: ",
    "wandb": "W&B's log files are read by wandb, which is not installed: ",
}


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("import", help="make a run of a log of TensorBoard, W&B, CSV or JSON lines")
    parser.add_argument("kind", choices=("tensorboard", "csv", "jsonl", "wandb"), help="what the log is")
    parser.add_argument("path", type=Path, metavar="PATH", help="a file; for tensorboard and wandb also a folder")
    parser.add_argument("--project", default="default", help="project of the run (default: default)")
    parser.add_argument("--run", dest="run_name", metavar="NAME", help="name of the run (default: by the path)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="RUN", help="a new attempt of this run, or of that of this name"
    )
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="tag of the run; may be repeated")
    parser.add_argument("--columns", metavar="A,B", help="only these series")
    parser.add_argument(
        "--rename", action="append", default=[], type=_pair, metavar="OLD=NEW", help="import a series by this name"
    )
    parser.add_argument("--step-column", default="step", metavar="NAME", help="csv, jsonl: the step (default: step)")
    parser.add_argument("--time-column", metavar="NAME", help="csv, jsonl: seconds since 1970, or a date and time")
    parser.add_argument(
        "--step-offset", type=int, metavar="N", help="added to each step (default: 1 if they start at 0)"
    )
    parser.add_argument("--numbers-only", action="store_true", help="csv, jsonl: leave out what is no number")
    parser.add_argument("--server", help="address of the server (default: GRADSPECTRA_SERVER)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.rpartition("=")
    if not equals or not old or not new:
        raise argparse.ArgumentTypeError(f"must be OLD=NEW, got {text!r}")
    return old, new


def _run(options: argparse.Namespace) -> int:
    columns = None if options.columns is None else tuple(filter(None, options.columns.split(",")))
    logs = _logs(options, columns)
    if len(logs) > 1 and options.resume not in (None, "auto"):
        raise BadLog(f"{options.path}: holds {len(logs)} runs, which cannot all be attempts of {options.resume}")
    surveyed = [(log, log.survey()) for log in logs]
    plans = plans_of(surveyed, dict(options.rename), columns or (), options.step_offset)
    requests = [_request(options, log, planned, alone=len(logs) == 1) for log, _, planned in plans]
    _ask_the_server(options)
    for log, survey in surveyed:
        if not survey.names:
            print(f"gradspectra import: {log.path} holds no numbers by step and is left out", file=sys.stderr)
    results: list[Imported] = []
    try:
        for request, (log, survey, planned) in zip(requests, plans, strict=True):
            results.append(send(log, survey, planned, request, options.server))
    finally:  # where one of several fails, those before it are there all the same
        if results:
            _show(results, as_json=options.json)
    return 1 if any(result.refused for result in results) else 0


def _ask_the_server(options: argparse.Namespace) -> None:
    """Tell what will not work before anything is made: no server, or no run to resume."""
    with Client(options.server) as client:
        client.get("/health")
        if options.resume in (None, "auto"):
            return
        try:
            client.run(options.resume)
        except ServerRefused as error:
            if error.status != 403:  # a token may be allowed to send but not to read
                raise


def _request(options: argparse.Namespace, log: Log, planned: Plan, *, alone: bool) -> RunRequest:
    name = options.run_name or log.name
    if options.run_name and not alone:
        name = "/".join((options.run_name, *log.path.relative_to(options.path).parts))
    return RunRequest.of(
        project=options.project,
        name=name,
        config=log.config,
        tags=options.tag,
        notes=f"Imported from {log.path.resolve().name}.",
        total_steps=None,
        resume=options.resume,
        start_step=planned.first_step - 1,
        environment=None,
        rank=0,
    )


def _logs(options: argparse.Namespace, columns: tuple[str, ...] | None) -> Sequence[Log]:
    if not options.path.exists():
        raise BadLog(f"{options.path}: there is no such file or folder")
    if options.kind not in READERS:
        if not options.path.is_file():
            what = "a folder" if options.path.is_dir() else "a pipe or a device, and a log is read twice"
            raise BadLog(f"{options.path}: is {what}; name a {options.kind} file")
        return [
            TextLog(options.path, options.kind, options.step_column, options.time_column, columns, options.numbers_only)
        ]
    try:
        if options.kind == "wandb":
            from gradspectra.importing_wandb import wandb_logs

            return wandb_logs(options.path, columns)
        from gradspectra.importing_tensorboard import tensorboard_logs

        return tensorboard_logs(options.path, columns)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != options.kind:
            raise
        raise BadLog(f"{READERS[options.kind]}pip install 'gradspectra[{options.kind}]'") from None


def _show(results: Sequence[Imported], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"items": [dataclasses.asdict(result) for result in results]}))
        return
    for result in results:
        print(f"imported {result.steps:,} steps of {result.path} as {result.url}")
        for old, new in result.renamed.items():
            print(f"  {old} is {new}")
        for remark in result.remarks:
            print(f"  {remark}")
        if result.refused:
            print(f"  {result.refused} batches of up to 64 steps were refused; the run shows them as gaps")
