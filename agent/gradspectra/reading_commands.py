"""`gradspectra runs`, `alerts` and `show`: what the server knows, in a terminal or as JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from gradspectra_core.jsonform import json_array

from gradspectra.client import Client, Run
from gradspectra.errors import ServerAway, ServerRefused

COMMANDS = ("runs", "alerts", "show")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
SHOWN = ("loss", "grad_norm", "learning_rate", "noise_scale")
FOLLOW_EVERY = 2.0

Json = dict[str, Any]


def register(subparsers: Any) -> None:
    """Add the commands."""
    runs = _add(subparsers, "runs", "list runs", _runs)
    runs.add_argument("--project", help="only of this project")
    runs.add_argument("--state", choices=("running", "finished", "failed", "lost"))
    runs.add_argument("--health", choices=("ok", "warning", "critical"))
    runs.add_argument("--search", metavar="TEXT", help="part of a name, a project or the notes")
    runs.add_argument("--limit", type=int, default=50, help="at most so many (default 50)")
    alerts = _add(subparsers, "alerts", "list alerts", _alerts)
    alerts.add_argument("--run", dest="run_id", metavar="RUN", help="only of this run")
    alerts.add_argument("--state", choices=("open", "acknowledged", "closed"))
    alerts.add_argument("--since", type=since, metavar="TIME", help="as 30m, 2h, 1d, a date and time, or Unix seconds")
    alerts.add_argument("--limit", type=int, default=100, help="at most so many (default 100)")
    alerts.add_argument("--follow", action="store_true", help="go on with new and changed alerts until Ctrl-C")
    show = _add(subparsers, "show", "show one run: its state, last numbers and open alerts", _show)
    show.add_argument("run_id", metavar="RUN", help="id of the run")
    show.add_argument("--around", type=int, metavar="STEP", help="show the steps around this one")
    show.add_argument("--window", type=int, default=10, metavar="N", help="so many steps to each side (default 10)")


def _add(subparsers: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text)
    parser.add_argument("--server", help="address of the server (default: GRADSPECTRA_SERVER)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def since(text: str, now: float | None = None) -> float:
    """Read a time as seconds since 1970: `30m` ago, an ISO date and time (local), or the seconds themselves."""
    span = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if span:
        return max(0.0, (time.time() if now is None else now) - float(span[1]) * SECONDS[span[2]])
    try:
        return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be like 30m, 2h, 2026-11-21T12:00 or 1795000000, got {text!r}"
        ) from None


def _runs(options: argparse.Namespace) -> int:
    runs = Client(options.server).runs(
        project=options.project,
        state=options.state,
        health=options.health,
        search=options.search,
        limit=options.limit,
    )
    if options.json:
        _print_json({"items": [run.info for run in runs]})
        return 0
    rows = [
        (run.id, run.project, run.name, run.state, run.health, _progress(run), _moment(run.info["updated_at"]))
        for run in runs
    ]
    _print_table(("id", "project", "name", "state", "health", "step", "updated"), rows)
    return 0


def _alerts(options: argparse.Namespace) -> int:
    client = Client(options.server)

    def read(after: float | None) -> list[Json]:
        if options.run_id is not None:
            return client.run(options.run_id).alerts(state=options.state, since=after, limit=options.limit)
        return client.alerts(state=options.state, since=after, limit=options.limit)

    alerts = read(options.since)
    if not options.follow:
        if options.json:
            _print_json({"items": alerts})
        else:
            _print_alerts(alerts)
        return 0
    seen: dict[str, tuple[str, str]] = {}
    while True:
        for alert in reversed(alerts):
            if seen.get(alert["id"]) != (alert["state"], alert["severity"]):
                seen[alert["id"]] = alert["state"], alert["severity"]
                print(json.dumps(alert) if options.json else _alert_line(alert), flush=True)
        time.sleep(FOLLOW_EVERY)
        alerts = _patiently(lambda: read(options.since))


def _patiently(read: Callable[[], list[Json]]) -> list[Json]:
    """Read, again and again while the server is away or busy, which is said once."""
    said = False
    while True:
        try:
            return read()
        except (ServerAway, ServerRefused) as error:
            if isinstance(error, ServerRefused) and error.status not in (429, 503):
                raise
            if not said:
                print(f"gradspectra alerts: {error}; trying again", file=sys.stderr)
            said = True
            time.sleep(FOLLOW_EVERY)


def _show(options: argparse.Namespace) -> int:
    run = Client(options.server).run(options.run_id)
    if options.around is None:
        start, stop = max(0, run.last_step - 2 * options.window), None
        alerts = run.alerts(state="open")
    else:
        start, stop = max(0, options.around - options.window), options.around + options.window + 1
        alerts = [alert for alert in run.alerts() if alert["opened_step"] < stop and _last(alert) >= start]
    series = run.series(start=start, stop=stop)
    suggestions = [suggestion for suggestion in run.suggestions() if suggestion["enough_evidence"]]
    if options.json:
        values = {name: json_array(series.mean[name], series.present[name]) for name in series.names}
        numbers = {"x": series.steps.tolist(), "series": values}
        _print_json({"run": run.info, "series": numbers, "alerts": alerts, "suggestions": suggestions})
        return 0
    total = run.info["total_steps"]
    print(f"{run.project}/{run.name} ({run.id}): {run.state}, {run.health}, step {run.last_step}", end="")
    print(f" of {total}" if total else "", end="\n\n")
    names = [name for name in SHOWN if name in series.mean]
    rows = [
        (("> " if step == options.around else "  ") + str(step), *(_number(series.mean[name][at]) for name in names))
        for at, step in enumerate(series.steps.tolist())
    ]
    _print_table(("step", *names), rows)
    if alerts:
        print()
        _print_alerts(alerts)
    for suggestion in suggestions:
        print(f"\n{suggestion['layer'] or 'run'}: {suggestion['text']} (confidence: {suggestion['confidence']})")
    return 0


def _last(alert: Json) -> int:
    return int(alert["closed_step"] or alert["last_step"])


def _progress(run: Run) -> str:
    total = run.info["total_steps"]
    return f"{run.last_step}/{total}" if total else str(run.last_step)


def _print_alerts(alerts: Sequence[Json]) -> None:
    for alert in alerts:
        print(_alert_line(alert))
    if not alerts:
        print("no alerts")


def _alert_line(alert: Json) -> str:
    where = f" {alert['first_layer']}" if alert["first_layer"] else ""
    muted = " (muted)" if alert.get("muted") else ""
    return (
        f"{_moment(alert['opened_at'])}  {alert['severity']:<8}  {alert['state']:<12}  {alert['run']}  "
        f"step {alert['opened_step']}  {alert['rule']}{where}: {alert['message']}{muted}"
    )


def _moment(seconds: float) -> str:
    """Date and time, or the number where no calendar has it: a job's clock may say anything."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _print_json(members: Json) -> None:
    print(json.dumps(members))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        print("nothing found")
        return
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
