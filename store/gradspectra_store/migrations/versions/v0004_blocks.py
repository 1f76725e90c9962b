"""Version 0004: blocks and the pyramid, what lies in them, and how far each run is compacted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_PLACE = ["run", "kind", "derived", "attempt", "rank", "name", "level", "first", "stop"]


def upgrade() -> None:
    """Make the tables, empty: segments become blocks when the worker comes to them."""
    serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "blocks",
        sa.Column("id", serial, nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False, comment="scalars or layers"),
        sa.Column("derived", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(512), nullable=False, comment="series, statistic or metric; empty: times"),
        sa.Column("level", sa.Integer(), nullable=False, comment="0: as recorded; n: buckets of 8^n steps"),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False, comment="all that is compacted of these steps lies here"),
        sa.Column("entries", sa.Integer(), nullable=False, comment="steps or buckets in it"),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_blocks_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blocks")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_blocks_place", "blocks", _PLACE)
    op.create_table(
        "extents",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("derived", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False, comment="of the segments that became blocks"),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column(
            "through", sa.BigInteger(), nullable=False, comment="the pyramid has all whole buckets below this step"
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_extents_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "kind", "derived", "attempt", "rank", name=op.f("pk_extents")),
    )
    left = "nothing is left to compact of batches up to this one"
    rounds = "transactions that compacted; who finds another number gives up"
    op.create_table(
        "compactions",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False, comment=left),
        sa.Column("rounds", sa.BigInteger(), nullable=False, comment=rounds),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_compactions_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_compactions")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE blocks ALTER COLUMN payload SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Take the tables away, with all that was compacted."""
    for table in ("compactions", "extents", "blocks"):
        op.drop_table(table)
