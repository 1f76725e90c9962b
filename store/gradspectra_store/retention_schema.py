"""The tables of retention: what is kept for how long, which runs were retired, and what is left of their steps."""

from __future__ import annotations

import sqlalchemy as sa

from gradspectra_store.schema import LONG, metadata, run_column

retention = sa.Table(
    "retention",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False, comment="1: there is one row"),
    sa.Column("days", sa.Double, nullable=False, comment="0: off"),
    sa.Column("level", sa.Integer, nullable=False, comment="of the pyramid, the finest that is left"),
    sa.Column("spectra", sa.Integer, nullable=False, comment="left of each layer and matrix"),
    sa.Column("since", sa.Double, nullable=False, comment="seconds since 1970"),
)

retirements = sa.Table(
    "retirements",
    metadata,
    run_column(primary_key=True),
    sa.Column("at", sa.Double, nullable=False, comment="seconds since 1970; what came later is not retired"),
    sa.Column("level", sa.Integer, nullable=False),
    sa.Column("spectra", sa.Integer, nullable=False),
)

retired = sa.Table(
    "retired",
    metadata,
    run_column(primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True, comment="layers or spectra"),
    sa.Column("derived", sa.Boolean, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(512), primary_key=True, comment="statistic or metric; empty: spectra"),
    sa.Column("width", LONG, primary_key=True, autoincrement=False, comment="steps that one number left stands for"),
    sa.Column("first", LONG, nullable=False),
    sa.Column("stop", LONG, nullable=False, comment="of these steps nothing finer is left"),
)
