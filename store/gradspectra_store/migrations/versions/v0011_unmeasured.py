"""Version 0011: what a training job said that it does not measure."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table; of jobs so far nothing is known."""
    op.create_table(
        "unmeasured",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("not_measured", sa.Text(), nullable=False),
        sa.Column("norms_that_disagreed", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_unmeasured_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "attempt", name=op.f("pk_unmeasured")),
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("unmeasured")
