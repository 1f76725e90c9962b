"""What the agent asks the server when it makes or resumes a run; kept beside the spool, to be asked again later."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import operator
import os
import platform
import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gradspectra_core import __version__
from gradspectra_core.jsonform import json_number

MAX_NAME = 200
MAX_TAGS = 64
MAX_NOTES = 64 << 10
MAX_JSON = 256 << 10
MAX_DEPTH = 20


def plain_json(value: Any, depth: int = 0) -> Any:
    """Return value as plain JSON: mappings, lists, strings, numbers, true/false and null; NaN and ±inf as strings.

    Numbers and arrays of numpy or torch become numbers and lists, dataclasses and namespaces objects; of anything
    else the text form is kept.
    """
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return json_number(value)
    if depth >= MAX_DEPTH:
        return _text(str(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_text(str(key)): plain_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(item, depth + 1) for item in value]
    if hasattr(value, "tolist") and getattr(value, "ndim", None) is not None:
        return plain_json(value.tolist(), depth + 1)
    if type(value).__name__ == "Namespace" and hasattr(value, "__dict__"):
        return plain_json(vars(value), depth + 1)
    return _text(str(value))


def _text(value: str) -> str:
    """The same, with a question mark for each half of a character: of file names that are no UTF-8, say."""
    return value.encode(errors="replace").decode()


def describe_environment() -> dict[str, Any]:
    """Return plain facts about the machine and the software of this process (no paths, no arguments)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "process": os.getpid(),
        "gradspectra": __version__,
        "modules": {name: str(sys.modules[name].__version__) for name in ("numpy", "torch") if name in sys.modules},
    }


def checked_name(argument: str, value: str) -> str:
    """Return value; raises ValueError unless it is printable text of 1 to 200 characters."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, got {value!r}")
    if not value.strip() or not value.isprintable() or len(value) > MAX_NAME:
        shown = value if len(value) <= 60 else f"{value[:60]}… ({len(value)} characters)"
        raise ValueError(f"{argument} must be printable text of 1 to {MAX_NAME} characters, got {shown!r}")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class RunRequest:
    """The body of POST /runs. session_key: made here, so that the same request twice gives the same run and session."""

    project: str
    name: str | None
    config: dict[str, Any]
    tags: list[str]
    notes: str
    total_steps: int | None
    resume: str | None
    start_step: int
    environment: dict[str, Any]
    rank: int
    session_key: str
    version: str = __version__

    @classmethod
    def of(
        cls,
        project: str,
        name: str | None,
        config: object,
        tags: Sequence[str],
        notes: str,
        total_steps: int | None,
        resume: str | None,
        start_step: int,
        environment: Mapping[str, Any] | None,
        rank: int,
    ) -> RunRequest:
        """Check the arguments of `watch` and `Recorder`; raises ValueError or TypeError that names the bad one."""
        plain_config = {} if config is None else plain_json(config)
        if not isinstance(plain_config, dict):
            raise TypeError(f"config must be a mapping of names to values, got {config!r}")
        if len(json.dumps(plain_config)) > MAX_JSON:
            raise ValueError(f"config must be at most {MAX_JSON} bytes as JSON, got {len(json.dumps(plain_config))}")
        if not isinstance(notes, str):
            raise TypeError(f"notes must be text, got {notes!r:.80}")
        if len(notes) > MAX_NOTES or "\x00" in notes or notes.encode(errors="replace").decode() != notes:
            raise ValueError(f"notes must be text of at most {MAX_NOTES} characters, got {len(notes)} in {notes!r:.60}")
        if isinstance(tags, str) or not isinstance(tags, Collection):
            raise TypeError(f"tags must be a list of strings, got {tags!r:.80}")
        if len(tags) > MAX_TAGS:
            raise ValueError(f"tags must be at most {MAX_TAGS}, got {len(tags)}")
        known = total_steps is None or isinstance(total_steps, numbers.Real)
        if not known:
            raise TypeError(f"total_steps must be a number of steps or None, got {total_steps!r:.80}")
        if total_steps is not None and not 1 <= total_steps < math.inf:
            raise ValueError(f"total_steps must be at least 1 or None, got {total_steps!r}")
        try:
            start_step = operator.index(start_step)
        except TypeError:
            raise TypeError(f"start_step must be a whole number, got {start_step!r:.80}") from None
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step!r}")
        return cls(
            project=checked_name("project", project),
            name=None if name is None else checked_name("run", name),
            config=plain_config,
            tags=[checked_name("tags", tag) for tag in tags],
            notes=notes,
            total_steps=None if total_steps is None else int(total_steps),
            resume=None if resume is None else checked_name("resume", resume),
            start_step=int(start_step),
            environment=plain_json({**describe_environment(), **(environment or {})}),
            rank=int(rank),
            session_key=uuid.uuid4().hex,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the body of POST /runs; of the rank only what is not 0."""
        members = dataclasses.asdict(self)
        if not self.rank:
            del members["rank"]
        return members

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> RunRequest:
        """Read what to_json wrote; raises ValueError if members are missing or unknown."""
        try:
            return cls(**{"rank": 0, **members})
        except TypeError as error:
            raise ValueError(f"not a run request: {error}") from None
