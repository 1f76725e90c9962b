"""The tables. Numbers measured per step live in segments as arrays, never as one row per point."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

LONG = sa.BigInteger()
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MAX_NAME = 200

_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=_NAMING)


class JsonText(sa.types.TypeDecorator[Any]):
    """JSON kept as text, because NaN, ±inf and \\u0000 must survive and the databases' own JSON types refuse them."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Write compact ASCII JSON; None stays NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:  # noqa: ARG002
        """Read it back."""
        return None if value is None else json.loads(value)


def run_column(**options: Any) -> sa.Column[str]:
    """The column of the run that a row belongs to and is deleted with."""
    key = sa.ForeignKey("runs.id", ondelete="CASCADE")
    return sa.Column("run", sa.String(32), key, nullable=False, **options)


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("project", sa.String(MAX_NAME), nullable=False),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("health", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("last_step", LONG, nullable=False),
    sa.Column("last_batch", LONG, nullable=False, comment="number of the run's newest batch, from 1"),
    sa.Column("total_steps", LONG),
    sa.Column("stop_at_step", LONG, comment="step at which a job that agreed to it is asked to stop"),
    sa.Column("open_alerts", sa.Integer, nullable=False),
    sa.Column("overhead", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("config", JsonText, nullable=False),
    sa.Column("environment", JsonText, nullable=False),
    sa.Column("notes", sa.Text, nullable=False),
    sa.Column("sparkline", JsonText, nullable=False, comment="bucket width, steps and losses, at most 60 points"),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false(), comment="retention leaves it alone"),
    sa.Index(None, "project", "name"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "updated_at", "id"),
    sa.Index(None, "state"),
)

run_tags = sa.Table(
    "run_tags",
    metadata,
    run_column(primary_key=True),
    sa.Column("tag", sa.String(MAX_NAME), primary_key=True),
    sa.Index(None, "tag"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    run_column(primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first_step", LONG, nullable=False, comment="hides older attempts' steps from this one on"),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("config", JsonText, nullable=False),
    sa.Column("environment", JsonText, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    run_column(),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("session_key", sa.String(MAX_NAME), unique=True),
    sa.Column("last_sequence", LONG, nullable=False),
    sa.Column("last_step", LONG, nullable=False),
    sa.Column("complete_through", LONG, nullable=False),
    sa.Column("names_digest", sa.String(32), nullable=False, comment="of the names in the newest batch"),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("last_seen", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Index(None, "run", "attempt"),
)

layer_tables = sa.Table(
    "layer_tables",
    metadata,
    run_column(primary_key=True),
    sa.Column("digest", sa.String(16), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False, comment="order of arrival in the run, from 0"),
    sa.Column("since_step", LONG, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("spectra", sa.LargeBinary, nullable=False, comment="one bit per layer that has ever had a spectrum"),
    sa.Column("content", JsonText, nullable=False),
)

names = sa.Table(
    "names",
    metadata,
    run_column(primary_key=True),
    sa.Column("scope", sa.String(8), primary_key=True, comment="run or layer"),
    sa.Column("name", sa.String(512), primary_key=True),
    sa.Column("derived", sa.Boolean, nullable=False),
    sa.Column(
        "whole", sa.Boolean, nullable=False, server_default=sa.false(), comment="has only ever come as whole numbers"
    ),
)

segments = sa.Table(
    "segments",
    metadata,
    sa.Column("id", SERIAL, primary_key=True),
    run_column(),
    sa.Column("kind", sa.String(8), nullable=False, comment="scalars, layers or spectra"),
    sa.Column("batch", LONG, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("first_step", LONG, nullable=False),
    sa.Column("last_step", LONG, nullable=False),
    sa.Column("digest", sa.String(16), comment="of the layer table"),
    sa.Column("session", sa.String(32), nullable=False),
    sa.Column("sequence", LONG, nullable=False),
    sa.Column("members", sa.LargeBinary, comment="spectra: one bit per layer of the table that has one here"),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("checksum", LONG, comment="CRC-32 of the payload; none of one from before there were any"),
    sa.UniqueConstraint("run", "batch", "kind"),
    sa.Index(None, "run", "kind", "last_step", "first_step"),
    sa.Index(
        "ix_segments_spectra",
        *("run", "kind", "last_step", "first_step", "attempt", "rank", "digest", "members", "id"),
        sqlite_where=sa.text("kind = 'spectra'"),
        postgresql_where=sa.text("kind = 'spectra'"),
    ),
    sqlite_autoincrement=True,
)

derived_segments = sa.Table(
    "derived_segments",
    metadata,
    sa.Column("id", SERIAL, primary_key=True),
    run_column(),
    sa.Column("kind", sa.String(8), nullable=False, comment="scalars or layers"),
    sa.Column("batch", LONG, nullable=False, comment="the batch it was derived from"),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("first_step", LONG, nullable=False),
    sa.Column("last_step", LONG, nullable=False),
    sa.Column("digest", sa.String(16)),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("checksum", LONG, comment="CRC-32 of the payload; none of one from before there were any"),
    sa.UniqueConstraint("run", "batch", "kind", "part"),
    sa.Index(None, "run", "kind", "last_step", "first_step"),
    sqlite_autoincrement=True,
)

gaps = sa.Table(
    "gaps",
    metadata,
    sa.Column("id", SERIAL, primary_key=True),
    run_column(index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("session", sa.String(32), nullable=False),
    sa.Column("first", LONG, nullable=False),
    sa.Column("last", LONG, nullable=False),
    sa.Column("what", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

cursors = sa.Table(
    "cursors",
    metadata,
    run_column(primary_key=True),
    sa.Column("batch", LONG, nullable=False, comment="all batches up to this one are derived"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("derived_step", LONG, nullable=False),
    sa.Column("suggestions_step", LONG, nullable=False),
    sa.Column("state", JsonText),
    sa.Column("states_turned", sa.Boolean, nullable=False, server_default=sa.false(), comment="states lie below zero"),
)

derive_states = sa.Table(
    "derive_states",
    metadata,
    run_column(primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", LONG, primary_key=True, autoincrement=False),
    sa.Column("state", JsonText, nullable=False),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    run_column(),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("incident", sa.String(32), nullable=False),
    sa.Column("rule", sa.String(64), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("layers", JsonText, nullable=False),
    sa.Column("first_layer", sa.Text),
    sa.Column("opened_step", LONG, nullable=False),
    sa.Column("last_step", LONG, nullable=False),
    sa.Column("closed_step", LONG),
    sa.Column("opened_at", sa.Double, nullable=False),
    sa.Column("acknowledged_at", sa.Double),
    sa.Column("value", JsonText),
    sa.Column("threshold", JsonText),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("meaning", sa.Text, nullable=False),
    sa.Column("remedy", sa.Text, nullable=False),
    sa.Column("evidence", JsonText, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("superseded", sa.Boolean, nullable=False, comment="closed because a newer attempt hides it"),
    sa.Index(None, "run", "state"),
    sa.Index(None, "opened_at", "id"),
)

mutes = sa.Table(
    "mutes",
    metadata,
    run_column(primary_key=True),
    sa.Column("rule", sa.String(64), primary_key=True),
    sa.Column("created_at", sa.Double, nullable=False),
)

suggestions = sa.Table(
    "suggestions",
    metadata,
    run_column(primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", JsonText, nullable=False),
)

channels = sa.Table(
    "channels",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("min_severity", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", SERIAL, primary_key=True),
    sa.Column("alert", sa.String(32), sa.ForeignKey("alerts.id", ondelete="CASCADE"), nullable=False),
    sa.Column("channel", sa.String(32), sa.ForeignKey("channels.id", ondelete="CASCADE"), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, comment="due, sent or failed"),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Double, nullable=False),
    sa.Column("status", sa.Integer, comment="HTTP status of the last try"),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("sent_at", sa.Double),
    sa.UniqueConstraint("alert", "channel", "severity"),
    sa.Index(None, "state", "next_at"),
    sqlite_autoincrement=True,
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True, comment="SHA-256 of the plain token"),
    sa.Column("scopes", JsonText, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)

browser_sessions = sa.Table(
    "browser_sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True, comment="SHA-256 of the cookie"),
    sa.Column("token", sa.String(32), sa.ForeignKey("tokens.id", ondelete="CASCADE")),
    sa.Column("scopes", JsonText, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
