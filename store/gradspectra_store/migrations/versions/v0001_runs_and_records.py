"""Version 0001: runs, their records, and what is derived from these."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of runs, sessions, segments and cursors."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("health", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("last_batch", sa.BigInteger(), nullable=False, comment="number of the run's newest batch, from 1"),
        sa.Column("total_steps", sa.BigInteger()),
        sa.Column("open_alerts", sa.Integer(), nullable=False),
        sa.Column("overhead", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("sparkline", sa.Text(), nullable=False, comment="bucket width, steps and losses, at most 60 points"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_created_at_id"), "runs", ["created_at", "id"])
    op.create_index(op.f("ix_runs_project_name"), "runs", ["project", "name"])
    op.create_index(op.f("ix_runs_state"), "runs", ["state"])
    op.create_index(op.f("ix_runs_updated_at_id"), "runs", ["updated_at", "id"])
    op.create_table(
        "attempts",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "first_step", sa.BigInteger(), nullable=False, comment="hides older attempts' steps from this one on"
        ),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_attempts_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "cursors",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False, comment="all batches up to this one are derived"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("derived_step", sa.BigInteger(), nullable=False),
        sa.Column("suggestions_step", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text()),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_cursors_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_cursors")),
    )
    op.create_table(
        "derive_states",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_derive_states_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "attempt", "step", name=op.f("pk_derive_states")),
    )
    op.create_table(
        "derived_segments",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False, comment="scalars or layers"),
        sa.Column("batch", sa.BigInteger(), nullable=False, comment="the batch it was derived from"),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(16)),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_derived_segments_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_derived_segments")),
        sa.UniqueConstraint("run", "batch", "kind", "part", name=op.f("uq_derived_segments_run_batch_kind_part")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_derived_segments_run_kind_last_step_first_step"),
        "derived_segments",
        ["run", "kind", "last_step", "first_step"],
    )
    op.create_table(
        "gaps",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("session", sa.String(32), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_gaps_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gaps")),
    )
    op.create_index(op.f("ix_gaps_run"), "gaps", ["run"])
    op.create_table(
        "layer_tables",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(16), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, comment="order of arrival in the run, from 0"),
        sa.Column("since_step", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column(
            "spectra", sa.LargeBinary(), nullable=False, comment="one bit per layer that has ever had a spectrum"
        ),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_layer_tables_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "digest", name=op.f("pk_layer_tables")),
    )
    op.create_table(
        "names",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False, comment="run or layer"),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("derived", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_names_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "scope", "name", name=op.f("pk_names")),
    )
    op.create_table(
        "run_tags",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("tag", sa.String(200), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_run_tags_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "tag", name=op.f("pk_run_tags")),
    )
    op.create_index(op.f("ix_run_tags_tag"), "run_tags", ["tag"])
    op.create_table(
        "segments",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False, comment="scalars, layers or spectra"),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(16), comment="of the layer table"),
        sa.Column("session", sa.String(32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("members", sa.LargeBinary(), comment="spectra: one bit per layer of the table that has one here"),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_segments_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segments")),
        sa.UniqueConstraint("run", "batch", "kind", name=op.f("uq_segments_run_batch_kind")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_segments_run_kind_last_step_first_step"), "segments", ["run", "kind", "last_step", "first_step"]
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("session_key", sa.String(200)),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("complete_through", sa.BigInteger(), nullable=False),
        sa.Column("names_digest", sa.String(32), nullable=False, comment="of the names in the newest batch"),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_sessions_run_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("session_key", name=op.f("uq_sessions_session_key")),
    )
    op.create_index(op.f("ix_sessions_run_attempt"), "sessions", ["run", "attempt"])
    if op.get_bind().dialect.name == "postgresql":  # floats do not compress: spare the attempt
        op.execute("ALTER TABLE segments ALTER COLUMN payload SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE derived_segments ALTER COLUMN payload SET STORAGE EXTERNAL")
