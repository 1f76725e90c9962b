"""Version 0012: which runs are derived again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the table; no run was derived again so far."""
    op.create_table(
        "rederivations",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("heard_at", sa.Double(), nullable=False, comment="seconds since 1970; once done, when that was"),
        sa.Column("state", sa.String(16), nullable=False, comment="working, done, told (live listeners too) or left"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_rederivations_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_rederivations")),
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("rederivations")
