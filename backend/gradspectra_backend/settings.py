"""Every setting of the server, read from GRADSPECTRA_*: one name, one default, one sentence, one clear error."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from gradspectra_store.retention import Retention
from gradspectra_worker.redis_urls import checked
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "GRADSPECTRA_"
AGENT_VARIABLES = ("GRADSPECTRA_SERVER", "GRADSPECTRA_TOKEN", "GRADSPECTRA_SPOOL", "GRADSPECTRA_FUSED")
"""Read by the agent and the reading commands, not by the server."""

KEPT = Retention()
_PASSWORD = re.compile(r"(://[^:/@]*):.*@")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it, its value and what to do."""


def default_data_folder() -> Path:
    """Where the embedded database lies when nothing else is said: the platform's folder for a user's data."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gradspectra"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "gradspectra"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "gradspectra"


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address to bind) can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """The server's settings. Each field is the environment variable GRADSPECTRA_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on; any but a loopback address demands tokens.")
    port: int = Field(7117, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data: Path = Field(default_factory=default_data_folder, description="Folder of the embedded SQLite database.")
    database_url: str | None = Field(None, description="Database to use in place of the one in the data folder.")
    redis_url: str | None = Field(None, description="Redis of the Celery workers; without it the server works alone.")
    processes: int = Field(1, ge=1, le=64, description="Server processes; more than one needs Redis.")
    auth: Literal["auto", "tokens"] = Field(
        "auto", description="`tokens` demands tokens on a loopback address too, as behind a proxy on the same machine."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Host names to answer to, separated by commas, besides the loopback ones."
    )
    session_days: float = Field(14.0, gt=0, le=365, description="Days that a browser stays signed in.")
    max_body: int = Field(
        32 * 2**20,
        ge=2**16,
        le=2**30,
        description="Largest batch in bytes, also after decompression; other calls take 2 MiB at most.",
    )
    max_listeners: int = Field(1000, ge=1, le=4000, description="Live streams that one process keeps open.")
    sqlite_synchronous: Literal["NORMAL", "FULL"] = Field(
        "NORMAL", description="`FULL` keeps what was acknowledged through a power cut too, at the cost of speed."
    )
    alert_allow_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hosts inside your network that webhooks may reach, separated by commas."
    )
    retention_days: float = Field(
        KEPT.days, ge=0, le=36_500, description="Days after its end that a run keeps every number; 0 is for ever."
    )
    retention_level: int = Field(
        KEPT.level, ge=1, le=6, description="Level that layer values then keep: buckets of 8, 64, 512 … steps."
    )
    retention_spectra: int = Field(
        KEPT.spectra, ge=2, le=100_000, description="Spectra that each layer and matrix then keeps."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="How much the server logs.")

    @field_validator("allowed_hosts", "alert_allow_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if "*" in host and not (host == "*" or (host.startswith("*.") and "*" not in host[1:])):
                raise ValueError(f"a pattern must look like *.example.com, got {host!r}")
        return value

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str | None) -> str | None:
        if not value:
            return None
        if value.startswith(("postgresql://", "postgres://")):
            return "postgresql+psycopg://" + value.split("://", 1)[1]
        if value.startswith(("sqlite:///", "postgresql+psycopg://")):
            return value
        raise ValueError("must start with sqlite:/// or postgresql://")

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        return checked(value) if value else None

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.processes > 1 and self.redis_url is None:
            raise ValueError(
                f"{PREFIX}PROCESSES={self.processes} needs {PREFIX}REDIS_URL: several processes share live events and "
                "jobs through Redis; set it, or run one process"
            )
        return self

    @property
    def database(self) -> str:
        """URL of the database in use."""
        return self.database_url or f"sqlite:///{self.data.expanduser().absolute() / 'gradspectra.db'}"

    @property
    def retention(self) -> Retention:
        """What is kept of runs that ended long ago."""
        return Retention(self.retention_days, self.retention_level, self.retention_spectra)

    @property
    def embedded(self) -> bool:
        """Whether this process derives by itself, without Redis and Celery."""
        return self.redis_url is None

    @property
    def tokens_required(self) -> bool:
        """Whether a caller must sign in: wherever someone else than this machine's own users could call."""
        return self.auth == "tokens" or not is_loopback(self.host) or bool(self.allowed_hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host headers to answer to; a loopback server keeps to loopback names, against DNS rebinding."""
        if not self.allowed_hosts and not is_loopback(self.host):
            return ("*",)
        own = (self.host,) if is_loopback(self.host) and ":" not in self.host else ()  # as 127.0.0.2
        return tuple(dict.fromkeys(("localhost", "127.0.0.1", "[::1]", *own, *self.allowed_hosts)))


def load_settings(**overrides: Any) -> Settings:
    """Read the environment, with `overrides` before it; raises SettingsError naming the variable and its value."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(dict(entry)) for entry in error.errors())) from None


def _sentence(entry: dict[str, Any]) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ")
    if not entry["loc"]:
        return message
    given = _PASSWORD.sub(r"\1:***@", repr(entry["input"]))
    return f"{PREFIX}{str(entry['loc'][0]).upper()}={given}: {message[0].lower()}{message[1:]}"


def unknown_variables(environment: dict[str, str]) -> list[str]:
    """GRADSPECTRA_* variables that no setting reads: mostly misspelt names."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | set(AGENT_VARIABLES)
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
