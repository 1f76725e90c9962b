"""`gradspectra retention`: what is kept for how long, what that would free, and freeing it now."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from gradspectra_store import Store
from gradspectra_store.freeing import bytes_of
from gradspectra_store.retention import Retention, retention_in_force
from gradspectra_worker.retain import due, retain

from gradspectra_backend.retention_view import retention_object

AT_ONCE = 500
UNITS = ("B", "KiB", "MiB", "GiB")


def run(store: Store, wanted: Retention, options: argparse.Namespace) -> int:
    """Show what retention comes to, or apply it; returns the exit status."""
    now = time.time()
    if options.apply:
        return _apply(store, wanted, now, as_json=options.json)
    with store.read() as conn:
        found = retention_in_force(conn)
    if found is not None and replace(found, since=0.0) == wanted:
        wanted = found
    shown = _whole(store, wanted)
    if options.json:
        print(json.dumps(shown))
        return 0
    print(sentence(wanted))
    for item in shown["items"]:
        print(_line(item))
    ready = [item for item in shown["items"] if item["updated_at"] + wanted.days * 86_400 <= now]
    freed = sum(item["bytes"] - item["bytes_after"] for item in ready)
    count = f"{len(shown['items'])} run{'s' * (len(shown['items']) != 1)} to come"
    print(f"{count}; --apply would take {len(ready)} of them now and free {size(freed)}.")
    return 0


def sentence(wanted: Retention) -> str:
    """What is kept, in words."""
    if not wanted.days:
        return "Retention is off: every number is kept for ever."
    return (
        f"{wanted.days:g} days after a run ended, its layer values are kept in buckets of {wanted.width} steps, and "
        f"{wanted.spectra} spectra of each layer and matrix; series in full. Pinned runs are left alone."
    )


def size(count: int) -> str:
    """Bytes with a fitting unit."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def _line(item: dict[str, Any]) -> str:
    day = datetime.fromtimestamp(item["retires_at"]).date()
    sizes = f"{size(item['bytes']):>10} → {size(item['bytes_after']):>10}"
    return f"{day}  {item['run']}  {sizes}  {item['project']}/{item['name']} ({item['state']})"


def _whole(store: Store, wanted: Retention) -> dict[str, Any]:
    """All pages in one."""
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        with store.read() as conn:
            page = retention_object(conn, wanted, cursor, AT_ONCE)
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return page | {"items": items}


def _apply(store: Store, wanted: Retention, now: float, *, as_json: bool) -> int:
    done: list[dict[str, Any]] = []
    for identity in _due(store, wanted, now):
        before = _bytes(store, identity)
        retain(store, identity, wanted, now)
        after = _bytes(store, identity)
        done.append({"run": identity, "bytes": before, "bytes_after": after})
        if not as_json:
            print(f"{identity}  {size(before):>10} → {size(after):>10}", flush=True)
    if as_json:
        print(json.dumps({"items": done}))
    else:
        freed = sum(item["bytes"] - item["bytes_after"] for item in done)
        print(f"{len(done)} retired, {size(freed)} freed inside of the database.", file=sys.stderr)
    return 0


def _due(store: Store, wanted: Retention, now: float) -> Iterator[str]:
    """Runs that are due, each once, until there are no more."""
    seen: set[str] = set()
    while found := [run for run in due(store, now, wanted)[1] if run not in seen]:
        seen.update(found)
        yield from found


def _bytes(store: Store, run: str) -> int:
    with store.read() as conn:
        return bytes_of(conn, run)
