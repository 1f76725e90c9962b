"""Version 0010: checksums of segments, and which segments were found damaged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

SEGMENTS = ("segments", "derived_segments")


def upgrade() -> None:
    """Add the columns, empty for what is there: it is read as before. No segment is known to be damaged."""
    comment = "CRC-32 of the payload; none of one from before there were any"
    for table in SEGMENTS:
        op.add_column(table, sa.Column("checksum", sa.BigInteger(), comment=comment))
    op.create_table(
        "damaged",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("derived", sa.Boolean(), nullable=False),
        sa.Column("segment", sa.BigInteger(), autoincrement=False, nullable=False, comment="its id"),
        sa.Column("kind", sa.String(8), nullable=False, comment="scalars, layers or spectra"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_damaged_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "derived", "segment", name=op.f("pk_damaged")),
    )


def downgrade() -> None:
    """Take them away; segments that were found damaged are found again."""
    op.drop_table("damaged")
    for table in SEGMENTS:
        op.drop_column(table, "checksum")
