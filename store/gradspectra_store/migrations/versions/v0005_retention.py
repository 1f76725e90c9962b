"""Version 0005: pinned runs, what is kept for how long, and what is left of runs that were retired."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the column and the tables, empty: no run is pinned, and nothing is retired before a server says so."""
    alone = "retention leaves it alone"
    op.add_column("runs", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false(), comment=alone))
    one = "1: there is one row"
    op.create_table(
        "retention",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False, comment=one),
        sa.Column("days", sa.Double(), nullable=False, comment="0: off"),
        sa.Column("level", sa.Integer(), nullable=False, comment="of the pyramid, the finest that is left"),
        sa.Column("spectra", sa.Integer(), nullable=False, comment="left of each layer and matrix"),
        sa.Column("since", sa.Double(), nullable=False, comment="seconds since 1970"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retention")),
    )
    later = "seconds since 1970; what came later is not retired"
    op.create_table(
        "retirements",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False, comment=later),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("spectra", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_retirements_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_retirements")),
    )
    stands = "steps that one number left stands for"
    op.create_table(
        "retired",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False, comment="layers or spectra"),
        sa.Column("derived", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(512), nullable=False, comment="statistic or metric; empty: spectra"),
        sa.Column("width", sa.BigInteger(), autoincrement=False, nullable=False, comment=stands),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False, comment="of these steps nothing finer is left"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_retired_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "kind", "derived", "attempt", "rank", "name", "width", name=op.f("pk_retired")),
    )


def downgrade() -> None:
    """Take them away; what was retired stays so, and nothing tells of it."""
    for table in ("retired", "retirements", "retention"):
        op.drop_table(table)
    op.drop_column("runs", "pinned")
