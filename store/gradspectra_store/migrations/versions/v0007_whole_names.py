"""Version 0007: which names have only ever come as counts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; what came before counts as numbers, since that is how some of it was kept."""
    comment = "has only ever come as whole numbers"
    op.add_column("names", sa.Column("whole", sa.Boolean(), server_default=sa.false(), nullable=False, comment=comment))


def downgrade() -> None:
    """Take it away again."""
    op.drop_column("names", "whole")
