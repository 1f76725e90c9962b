"""Databases of older schemas, made from the present one."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from gradspectra_store.engines import new_engine

_FIRST = "0001"
_OF_THE_SECOND = ("suggestions", "deliveries", "alerts", "channels", "browser_sessions", "tokens")


def emptied(url: str) -> str:
    """The database without any table."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "postgresql":
        with engine.begin() as conn:
            conn.execute(sa.text("DROP SCHEMA public CASCADE"))
            conn.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    if engine.dialect.name == "sqlite":
        Path(str(engine.url.database)).unlink(missing_ok=True)
    return url


def downgraded(url: str, version: str) -> None:
    """Bring a database back to an older version; what that had no room for is lost."""
    config, engine = Config(), new_engine(url, foreign_keys=False)
    with as_file(files("gradspectra_store") / "migrations") as folder, engine.begin() as conn:
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = conn
        command.downgrade(config, max(version, "0002"))
        if version == _FIRST:
            for table in _OF_THE_SECOND:
                conn.exec_driver_sql(f"DROP TABLE {table}")
            conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{_FIRST}'")
    engine.dispose()
