"""Version 0003: the step at which a job is asked to stop."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; no run is asked to stop."""
    column = sa.Column(
        "stop_at_step", sa.BigInteger(), comment="step at which a job that agreed to it is asked to stop"
    )
    op.add_column("runs", column)


def downgrade() -> None:
    """Take it away again."""
    op.drop_column("runs", "stop_at_step")
