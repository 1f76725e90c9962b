"""Version 0013: which of the kept states are those of a run that was derived again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

COMMENT = "states lie below zero"


def upgrade() -> None:
    """Add the column; all that is kept lies under the attempts' own numbers."""
    own_numbers = sa.false()
    op.add_column(
        "cursors",
        sa.Column("states_turned", sa.Boolean(), server_default=own_numbers, nullable=False, comment=COMMENT),
    )


def downgrade() -> None:
    """Put the states of each run under the attempts' own numbers, without those beside them, and take it away."""
    turned = "run IN (SELECT run FROM cursors WHERE states_turned)"
    op.execute(f"DELETE FROM derive_states WHERE attempt > 0 AND {turned}")
    op.execute(f"DELETE FROM derive_states WHERE attempt < 0 AND NOT {turned}")
    op.execute("UPDATE derive_states SET attempt = -attempt WHERE attempt < 0")
    op.drop_column("cursors", "states_turned")
