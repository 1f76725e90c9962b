"""The versions of a run's layer table: which layers the rows of its segments are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.records import Bool, Int64

from gradspectra_store.errors import StoreDamaged
from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import derived_segments, layer_tables, segments

_of_run = Prepared(
    sa.select(*(layer_tables.c[name] for name in ("position", "digest", "since_step", "spectra")))
    .where(layer_tables.c.run == sa.bindparam("of_run"))
    .order_by(layer_tables.c.position)
)


@dataclass(frozen=True, slots=True)
class KnownTable:
    """A table that a run has. size: number of layers; spectra: one bit per layer that has ever had a spectrum."""

    size: int
    spectra: bytes


def known_table(conn: sa.Connection, run: str, digest: str) -> KnownTable | None:
    """Return what is known of a table, None where the run does not have it."""
    columns = layer_tables.c.size, layer_tables.c.spectra
    of_table = layer_tables.c.run == run, layer_tables.c.digest == digest
    row = conn.execute(sa.select(*columns).where(*of_table)).one_or_none()
    return None if row is None else KnownTable(row.size, row.spectra)


def store_table(conn: sa.Connection, run: str, table: LayerTable, since_step: int) -> None:
    """Keep a layer table of a run that does not have it."""
    newest = sa.select(sa.func.max(layer_tables.c.position)).where(layer_tables.c.run == run)
    last = conn.execute(newest).scalar_one()
    conn.execute(
        sa.insert(layer_tables).values(
            run=run,
            digest=table.digest,
            position=0 if last is None else last + 1,
            since_step=since_step,
            size=len(table),
            spectra=bytes((len(table) + 7) // 8),
            content=table.to_json(),
        )
    )


def note_spectra(conn: sa.Connection, run: str, digest: str, known: KnownTable, members: bytes) -> None:
    """Remember that the layers in `members` (one bit each) have had a spectrum; costs nothing where all had.

    known: as it was read with the run, which PostgreSQL locks afterwards: another session may have added to it.
    """
    have = int.from_bytes(known.spectra, "little")
    more = have | int.from_bytes(members, "little")
    if more != have:
        now = known_table(conn, run, digest) or known
        more |= int.from_bytes(now.spectra, "little")
        of_table = layer_tables.c.run == run, layer_tables.c.digest == digest
        spectra = more.to_bytes(len(known.spectra), "little")
        conn.execute(sa.update(layer_tables).where(*of_table).values(spectra=spectra))


@dataclass(frozen=True, slots=True)
class RunTable:
    """A table of a run: since which step it holds, and which of its layers have ever had a spectrum, (L,)."""

    table: LayerTable
    since_step: int
    spectra: Bool


def run_tables(conn: sa.Connection, run: str) -> dict[str, RunTable]:
    """Return the run's tables by digest, in order of arrival."""
    found = {}
    rows = _of_run.rows(conn, {"of_run": run})
    kept = unbroken(row[:2] for row in rows)
    for _, digest, since, bits in rows[: len(kept)]:
        table = read_table(conn, run, digest)
        spectra = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(table), bitorder="little").view(np.bool_)
        found[digest] = RunTable(table, since, spectra)
    return found


@dataclass(frozen=True, slots=True)
class RunLayers:
    """Every layer of a run in order of arrival, each as the newest table has it, and where the tables' rows belong.

    order: the place of each layer by its name; places: of the layers of each table, by its digest, (L,) each, None of a
    table that has the run's first layers in the run's order.
    """

    layers: tuple[Layer, ...]
    order: dict[str, int]
    places: dict[str, Int64 | None]


def run_layers(conn: sa.Connection, run: str) -> RunLayers:
    """Return the run's layers. What is made of the same tables before is kept, whichever run they were of."""
    return layers_of(conn, run, unbroken(row[:2] for row in _of_run.rows(conn, {"of_run": run})))


def unbroken(rows: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Return the digests of tables in order of arrival, up to the first that the disk has lost.

    rows: positions and digests. Where blocks have the layers that came after a lost table nobody can tell.
    """
    return tuple(digest for place, (position, digest) in enumerate(sorted(rows)) if position == place)


def layers_of(conn: sa.Connection, run: str, digests: tuple[str, ...]) -> RunLayers:
    """As `run_layers`, of the tables with these digests, in order of arrival."""
    found = _made.get(digests)
    if found is None:
        found = _made_of({digest: read_table(conn, run, digest) for digest in digests})
        if len(_made) >= _PARSED:
            _made.clear()
        _made[digests] = found
    return found


def _made_of(tables: dict[str, LayerTable]) -> RunLayers:
    newest = {layer.name: layer for table in tables.values() for layer in table.layers}
    order = {name: at for at, name in enumerate(newest)}
    places: dict[str, Int64 | None] = {}
    for digest, table in tables.items():
        own = [order[name] for name in table.names]
        places[digest] = None if own == list(range(len(own))) else np.array(own, np.int64)
    return RunLayers(tuple(newest.values()), order, places)


def layer_count(conn: sa.Connection, run: str) -> int:
    """Return how many layers the run has ever had."""
    return len(run_layers(conn, run).layers)


def layer_list(conn: sa.Connection, run: str) -> list[dict[str, Any]]:
    """Return every layer the run has ever had, in order of arrival.

    Each as name, role, depth, shape (those of the newest table that has it), since_step, and spectra: whether
    there is a spectrum of it.
    """
    found: dict[str, dict[str, Any]] = {}
    for table in run_tables(conn, run).values():
        for layer, spectra in zip(table.table.layers, table.spectra.tolist(), strict=True):
            old = found.get(layer.name, {"since_step": table.since_step, "spectra": False})
            shown = {"name": layer.name, "role": layer.role, "depth": layer.depth, "shape": list(layer.shape)}
            since = min(old["since_step"], table.since_step)
            found[layer.name] = shown | {"since_step": since, "spectra": old["spectra"] or spectra}
    return list(found.values())


def read_table(conn: sa.Connection, run: str, digest: str) -> LayerTable:
    """Return one table of a run; raises StoreDamaged where it is gone, as only a disk takes it away."""
    table = _parsed.get(digest)
    if table is None:
        query = sa.select(layer_tables.c.content).where(layer_tables.c.run == run, layer_tables.c.digest == digest)
        entries = conn.execute(query).scalar_one_or_none()
        if entries is None:
            raise StoreDamaged(f"the layer table {digest} of run {run!r} is gone")
        table = LayerTable(
            tuple(Layer(entry["name"], entry["role"], entry["depth"], tuple(entry["shape"])) for entry in entries)
        )
        if len(_parsed) >= _PARSED:
            _parsed.clear()
        _parsed[digest] = table
    return table


def lost_tables(conn: sa.Connection) -> list[str]:
    """Return the runs of which a table is gone that others came after, or that numbers are of."""
    positions = sa.select(layer_tables.c.run).group_by(layer_tables.c.run)
    gaps = positions.having(sa.func.max(layer_tables.c.position) >= sa.func.count())
    found = set(conn.execute(gaps).scalars())
    for table in (segments, derived_segments):
        known = sa.exists().where(layer_tables.c.run == table.c.run, layer_tables.c.digest == table.c.digest)
        found.update(
            conn.execute(sa.select(table.c.run).distinct().where(table.c.digest.is_not(None), ~known)).scalars()
        )
    return sorted(found)


_PARSED = 64
_made: dict[Sequence[str], RunLayers] = {}
_parsed: dict[str, LayerTable] = {}  # a digest tells the whole content of a table, whichever run it is of
