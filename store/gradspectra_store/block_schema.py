"""The tables of blocks: numbers as recorded and the pyramid above them, made from segments behind ingest.

Other ranks' numbers have blocks and no pyramid. What is derived is of rank 0; rows of rank 1 are what a run that is
derived again will have, or had, and nobody reads them.
"""

from __future__ import annotations

import sqlalchemy as sa

from gradspectra_store.schema import LONG, SERIAL, metadata, run_column

blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("id", SERIAL, primary_key=True),
    run_column(),
    sa.Column("kind", sa.String(8), nullable=False, comment="scalars or layers"),
    sa.Column("derived", sa.Boolean, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("name", sa.String(512), nullable=False, comment="series, statistic or metric; empty: times"),
    sa.Column("level", sa.Integer, nullable=False, comment="0: as recorded; n: buckets of 8^n steps"),
    sa.Column("first", LONG, nullable=False),
    sa.Column("stop", LONG, nullable=False, comment="all that is compacted of these steps lies here"),
    sa.Column("entries", sa.Integer, nullable=False, comment="steps or buckets in it"),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Index("ix_blocks_place", "run", "kind", "derived", "attempt", "rank", "name", "level", "first", "stop"),
    sqlite_autoincrement=True,
)

extents = sa.Table(
    "extents",
    metadata,
    run_column(primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("derived", sa.Boolean, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first_step", LONG, nullable=False, comment="of the segments that became blocks"),
    sa.Column("last_step", LONG, nullable=False),
    sa.Column("through", LONG, nullable=False, comment="the pyramid has all whole buckets below this step"),
)

compactions = sa.Table(
    "compactions",
    metadata,
    run_column(primary_key=True),
    sa.Column("batch", LONG, nullable=False, comment="nothing is left to compact of batches up to this one"),
    sa.Column("rounds", LONG, nullable=False, comment="transactions that compacted; who finds another number gives up"),
)

rederivations = sa.Table(
    "rederivations",
    metadata,
    run_column(primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("heard_at", sa.Double, nullable=False, comment="seconds since 1970; once done, when that was"),
    sa.Column("state", sa.String(16), nullable=False, comment="working, done, told (live listeners too) or left"),
)
