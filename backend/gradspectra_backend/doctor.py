"""`gradspectra doctor`: look at everything the server stands on, and say what is wrong and what to do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import redis
from gradspectra_core import __version__
from gradspectra_store import Store, StoreError
from gradspectra_store.agreeing import disagreements, make_agree, taken_for_derived
from gradspectra_store.checking import Checked, DamagedPlace, check_blocks, check_segments
from gradspectra_store.migrating import schema_versions
from gradspectra_store.repairing import make_again, put_right, take_back_notes
from gradspectra_store.retention import retention_in_force
from gradspectra_worker.heartbeat import LivingWorkers
from gradspectra_worker.ranks import rank_metrics
from gradspectra_worker.redis_urls import for_redis
from redis.exceptions import RedisError

from gradspectra_backend.again_advice import advice, derived_damage
from gradspectra_backend.retention_command import sentence
from gradspectra_backend.settings import Settings, SettingsError, unknown_variables
from gradspectra_backend.start import CannotStart, check_data_folder, database_file, has_token

PACKAGES = ("numpy", "torch", "fastapi", "uvicorn", "sqlalchemy", "celery", "redis", "psycopg")
LITTLE_SPACE = 2**30
CHECK_SECONDS = 10.0
"""For so long segments are read, and for as long blocks."""

MOST_NAMED = 10

Finding = dict[str, str]
"""name, status (ok, warning or failed), detail, and remedy where there is something to do."""


def examine(read_settings: Callable[[], Settings], *, repair: bool = False) -> list[Finding]:
    """Check settings, data folder, database, Redis, free space and versions; never raises for what it finds.

    repair: mend in the database what needs no guessing.
    """
    findings = [_versions()]
    misspelt = unknown_variables(dict(os.environ))
    if misspelt:
        findings.append(
            _bad("settings", "warning", f"no setting is named {', '.join(misspelt)}", "see docs/settings.md")
        )
    try:
        settings = read_settings()
    except SettingsError as error:
        return [*findings, _bad("settings", "failed", str(error), "set it as docs/settings.md says")]
    if not misspelt:
        findings.append({"name": "settings", "status": "ok", "detail": f"listens on {settings.host}:{settings.port}"})
    findings += [_folder(settings), _database(settings), _runs(settings, repair)]
    findings += [_segments(settings, repair), _blocks(settings, repair), _retention(settings)]
    findings += [_redis(settings), _space(settings)]
    return findings


def _bad(name: str, status: str, detail: str, remedy: str) -> Finding:
    return {"name": name, "status": status, "detail": detail, "remedy": remedy}


def _versions() -> Finding:
    found = [f"gradspectra {__version__}", f"python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return {"name": "versions", "status": "ok", "detail": ", ".join(found)}


def _folder(settings: Settings) -> Finding:
    if settings.database_url is not None:
        return {"name": "data folder", "status": "ok", "detail": "not used: GRADSPECTRA_DATABASE_URL is set"}
    try:
        check_data_folder(settings)
    except CannotStart as error:
        return _bad("data folder", "failed", str(error), "choose a folder that this user can write")
    return {"name": "data folder", "status": "ok", "detail": str(settings.data.expanduser().absolute())}


def _versions_of(settings: Settings) -> tuple[str | None, str]:
    """The version of the database's schema, None where it has none yet, and the one that this package makes."""
    file = database_file(settings)
    return (None, "") if file is not None and not file.exists() else schema_versions(settings.database)


@contextmanager
def _store_of(settings: Settings) -> Iterator[Store | None]:
    """The store as it is, None where there is none yet or an older one; raises StoreError where it does not answer."""
    version, own = _versions_of(settings)
    if version != own:
        yield None
        return
    store = Store.open(settings.database, migrate=False)
    try:
        yield store
    finally:
        store.close()


def _database(settings: Settings) -> Finding:
    try:
        version, own = _versions_of(settings)
        with _store_of(settings) as store:
            if store is None:
                old = f"has schema version {version}; the next `gradspectra serve` brings it to {own}"
                detail = old if version else "none yet; the first `gradspectra serve` makes it"
                return {"name": "database", "status": "ok", "detail": detail}
            token = has_token(store)
    except StoreError as error:
        damaged = "if the file is damaged, put a backup in its place: docs/operating.md"
        away = "is it running, and does GRADSPECTRA_DATABASE_URL name it?"
        return _bad("database", "failed", str(error), away if database_file(settings) is None else damaged)
    if settings.tokens_required and not token:
        remedy = "gradspectra token create me --scope admin"
        return _bad("database", "warning", "callers must bring a token, and there is none", remedy)
    return {"name": "database", "status": "ok", "detail": f"{store.dialect} answers"}


def _runs(settings: Settings, repair: bool) -> Finding:
    """See that watermarks, attempts and rows are those of the runs there are."""
    try:
        with _store_of(settings) as store:
            if store is None:
                return {"name": "runs", "status": "ok", "detail": "nothing to look at yet"}
            made, unsure = 0, []
            if repair:
                with store.write() as conn:
                    unsure, made = taken_for_derived(conn), make_agree(conn)
            with store.read() as conn:
                found = disagreements(conn)
    except StoreError:
        return _bad("runs", "warning", "not checked, the database does not answer", "see what is said of it")
    mended = f"; {made} row{'s' * (made > 1)} mended" if made else ""
    mended += f"; {advice(unsure)}" if unsure else ""
    if not found:
        return {"name": "runs", "status": "ok", "detail": f"watermarks and rows agree{mended}"}
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    remedy = "`gradspectra doctor --repair` mends watermarks, names, extents and rows of no run; a backup has the rest"
    return _bad("runs", "failed", "; ".join(found[:MOST_NAMED]) + more + mended, remedy)


def _segments(settings: Settings, repair: bool) -> Finding:
    """Read the segments, the newest first and for a while: a checksum tells of what the disk has lost."""

    def look(store: Store) -> tuple[Checked, str]:
        checked, mended = _with_rows_right(store, check_segments(store, CHECK_SECONDS), repair)
        return checked, mended + (_taken_back(store) if repair else "")

    remedy = "check the disk; `gradspectra doctor --repair` mends rows, of the rest only a backup has what they held"
    return _looked_at(settings, "segments", look, remedy)


def _taken_back(store: Store) -> str:
    """Take segments that can be read again for what they are, and say so; what is derived of spectra is made again."""
    again = take_back_notes(store, rank_metrics)
    if not again:
        return ""
    said = f"; {len(again)} can be read again"
    lasting = [one for one in again if one.kind != "spectra" and not one.derived]
    if lasting:
        named = [f"run {one.run} attempt {one.attempt} steps {one.first_step} to {one.last_step}" for one in lasting]
        more = f" and {len(lasting) - MOST_NAMED} more" if len(lasting) > MOST_NAMED else ""
        said += f"; noise scale and alerts stay derived without {', '.join(named[:MOST_NAMED])}{more}"
        said += f"; {advice(one.run for one in lasting)}"
    return said


def _blocks(settings: Settings, repair: bool) -> Finding:
    """Read the blocks, as the segments are."""

    def look(store: Store) -> tuple[Checked, str]:
        checked, mended = _with_rows_right(store, check_blocks(store, CHECK_SECONDS), repair)
        made = make_again(store, checked.damaged) if repair else set()
        left = tuple(one for one in checked.damaged if one.id not in made)
        return replace(checked, damaged=left), mended + (f"; {len(made)} made again" if made else "")

    remedy = "check the disk; `gradspectra doctor --repair` makes levels above 0 again, and rows; a backup has more"
    return _looked_at(settings, "blocks", look, remedy)


def _with_rows_right(store: Store, checked: Checked, repair: bool) -> tuple[Checked, str]:
    """Mend rows that do not fit what is whole; what is left, and what was mended."""
    right = put_right(store, checked.damaged) if repair else []
    left = tuple(one for one in checked.damaged if all(one is not other for other in right))
    return replace(checked, damaged=left), f"; {len(right)} row{'s' * (len(right) > 1)} mended" if right else ""


def _looked_at(settings: Settings, name: str, look: Callable[[Store], tuple[Checked, str]], remedy: str) -> Finding:
    """What was found damaged; `look` says too what was mended."""
    try:
        with _store_of(settings) as store:
            if store is None:
                return {"name": name, "status": "ok", "detail": "nothing to look at yet"}
            checked, mended = look(store)
            again = advice(derived_damage(store, checked.damaged))
    except StoreError:
        return _bad(name, "warning", "not checked, the database does not answer", "see what is said of it")
    read = f"{'all' if checked.all else 'the newest'} {checked.count} read"
    if not checked.damaged:
        return {"name": name, "status": "ok", "detail": f"{read}, none is damaged{mended}"}
    places = "; ".join(map(_place, checked.damaged[:MOST_NAMED]))
    remedy += f"; {again}" if again else ""
    return _bad(name, "failed", f"{read}, {len(checked.damaged)} damaged: {places}{mended}", remedy)


def _place(one: DamagedPlace) -> str:
    level = "" if one.level is None else f" level {one.level}"
    why = "" if one.misfit is None else f" ({one.misfit.why})"
    return f"run {one.run} attempt {one.attempt} {one.name}{level} steps {one.first_step} to {one.last_step}{why}"


def _retention(settings: Settings) -> Finding:
    """What was retired is no finding; settings that no server has put in force are."""
    try:
        with _store_of(settings) as store:
            if store is None:
                return {"name": "retention", "status": "ok", "detail": "nothing to look at yet"}
            with store.read() as conn:
                found = retention_in_force(conn)
    except StoreError:
        return _bad("retention", "warning", "not known, the database does not answer", "see what is said of it")
    said = sentence(settings.retention)
    if found is None or replace(found, since=0.0) == settings.retention:
        return {"name": "retention", "status": "ok", "detail": said}
    other = f"these settings say: {said} In force is: {sentence(found)}"
    return _bad("retention", "warning", other, "start every server with the same GRADSPECTRA_RETENTION_*")


def _redis(settings: Settings) -> Finding:
    if settings.redis_url is None:
        return {"name": "redis", "status": "ok", "detail": "not used: the server derives by itself"}
    try:
        with redis.Redis.from_url(for_redis(settings.redis_url), socket_timeout=3, socket_connect_timeout=3) as client:
            client.ping()
        with closing(LivingWorkers(settings.redis_url)) as workers:
            living, sweeping = workers.count(), workers.sweeping()
    except (RedisError, OSError) as error:
        return _bad("redis", "failed", str(error), "is it running, and does GRADSPECTRA_REDIS_URL name it?")
    if not living:
        return _bad("redis", "warning", "answers, but no worker lives, and nothing is derived", "gradspectra worker")
    if not sweeping:
        remedy = "celery -A gradspectra_worker.app beat"
        return _bad("redis", "warning", "answers, but nothing was swept lately: alerts may not be delivered", remedy)
    return {"name": "redis", "status": "ok", "detail": f"answers, and of workers {living}"}


def _space(settings: Settings) -> Finding:
    file = database_file(settings)
    if file is None:
        return {"name": "space", "status": "ok", "detail": "PostgreSQL keeps its own"}
    folder: Path = next(parent for parent in file.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < LITTLE_SPACE:
        return _bad("space", "warning", f"{free / 2**20:.0f} MiB free for {file}", "free some, or delete old runs")
    return {"name": "space", "status": "ok", "detail": f"{free / 2**30:.1f} GiB free"}


def report(findings: list[Finding]) -> str:
    """The findings as lines to read."""
    lines = []
    for finding in findings:
        lines.append(f"{finding['status']:<8} {finding['name']:<12} {finding['detail']}")
        if "remedy" in finding:
            lines.append(f"{'':<21} → {finding['remedy']}")
    return "\n".join(lines)
