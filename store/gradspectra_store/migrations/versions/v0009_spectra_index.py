"""Version 0009: an index that says by itself which segments have a spectrum of a layer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

COLUMNS = ["run", "kind", "last_step", "first_step", "attempt", "rank", "digest", "members", "id"]
SPECTRA = sa.text("kind = 'spectra'")


def upgrade() -> None:
    """Make the index."""
    op.create_index("ix_segments_spectra", "segments", COLUMNS, sqlite_where=SPECTRA, postgresql_where=SPECTRA)


def downgrade() -> None:
    """Take it away."""
    op.drop_index("ix_segments_spectra", "segments")
