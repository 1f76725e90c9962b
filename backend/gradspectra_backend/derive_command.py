"""`gradspectra derive`: derive a run up to its last batch, or another time from its first step on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from gradspectra_store import Store
from gradspectra_store.errors import UnknownRun
from gradspectra_store.run_views import get_run
from gradspectra_worker.announce import Announcement, RedisAnnouncer
from gradspectra_worker.derive import derive
from gradspectra_worker.derive_again import derive_again

from gradspectra_backend.settings import Settings
from gradspectra_backend.start import database_file


def run(store: Store, settings: Settings, options: argparse.Namespace) -> int:
    """Derive and say what was done; returns the exit status. Raises StoreError where it cannot be."""
    before = _shown(store, options.id)
    if options.again:
        file = database_file(settings)
        folder = None if file is None else file.parent
        done = derive_again(store, options.id, folder, progress=_progress(before["last_step"]))
        said = {"run": options.id, "steps": done.steps, "derived_step": done.derived_step}
        said["alerts"] = {name: count for name, count in asdict(done).items() if name in ("new", "kept", "gone")}
    else:
        with _announcing(settings) as announce:
            batches = derive(store, options.id, announce=announce)
        after = _shown(store, options.id)
        said = {"run": options.id, "batches": batches, "derived_step": after["derived_step"]}
        said["last_step"] = after["last_step"]
    print(json.dumps(said) if options.json else _sentence(said))
    return 0


def _shown(store: Store, run: str) -> dict[str, Any]:
    with store.read() as conn:
        found = get_run(conn, run)
    if found is None:
        raise UnknownRun(run)
    return found


@contextmanager
def _announcing(settings: Settings) -> Iterator[Callable[[Announcement], None] | None]:
    if settings.redis_url is None:
        yield None
        return
    with closing(RedisAnnouncer(settings.redis_url)) as announcer:
        yield announcer


def _progress(last: int) -> Callable[[int, int], None] | None:
    """Says on a terminal where it is."""
    if not sys.stderr.isatty():
        return None
    return lambda attempt, step: print(f"attempt {attempt}, step {step} of {last}", file=sys.stderr, flush=True)


def _sentence(said: dict[str, Any]) -> str:
    if "alerts" in said:
        counts = "{new} new, {kept} that it had, {gone} that come out no more".format(**said["alerts"])
        return f"{said['steps']} steps of run {said['run']} are derived again; of alerts: {counts}."
    more = "" if said["derived_step"] == said["last_step"] else f" of {said['last_step']}"
    return f"{said['batches']} batches derived; run {said['run']} is derived up to step {said['derived_step']}{more}."
