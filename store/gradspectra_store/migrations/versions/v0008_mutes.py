"""Version 0008: rules that are muted for runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table; nothing is muted."""
    op.create_table(
        "mutes",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("rule", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_mutes_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "rule", name=op.f("pk_mutes")),
    )


def downgrade() -> None:
    """Take it away, with what was muted."""
    op.drop_table("mutes")
