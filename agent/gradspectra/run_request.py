"""What the agent asks the server when it makes or resumes a run; kept beside the spool, to be asked again later."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gradspectra_core import __version__
from gradspectra_core.jsonform import json_number

from gradspectra.arguments import MAX_STEP, is_real, shown, whole

MAX_NAME = 200
MAX_TAGS = 64
MAX_NOTES = 64 << 10
MAX_JSON = 256 << 10
MAX_DEPTH = 20


class TooMuch(ValueError):
    """A value that would be more than MAX_JSON bytes as JSON."""


def plain_json(value: Any) -> Any:
    """Return value as plain JSON: mappings, lists, strings, numbers, true/false and null; NaN and ±inf as strings.

    Numbers and arrays of numpy or torch become numbers and lists, dataclasses and namespaces objects; of anything
    else the text form is kept. Raises TooMuch for more entries than MAX_JSON bytes can hold.
    """
    return _plain(value, 0, [MAX_JSON])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """left: how many bytes at least are left."""
    left[0] -= 1
    if left[0] < 0:
        raise TooMuch(f"more than {MAX_JSON}")
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 1 << 64:
        return int(value)
    if isinstance(value, float):
        return json_number(float(value))
    if depth >= MAX_DEPTH:
        return told(value)
    try:
        inner = _inner(value, left[0])
    except TooMuch:
        raise
    except Exception as error:  # a tensor without numbers, a mapping of which an entry must be given first
        if not depth:
            raise ValueError(f"config must be a mapping that can be read, and failed: {error!r}") from error
        return told(value)
    if isinstance(inner, dict):
        return {told(key): _plain(item, depth + 1, left) for key, item in inner.items()}
    if isinstance(inner, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1, left) for item in inner]
    return told(value) if inner is value else _plain(inner, depth + 1, left)


def _inner(value: Any, left: int) -> Any:
    """What a value holds, as a dictionary, a list or a number; the value itself where it is none of what is known."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value.items())
    if hasattr(value, "tolist") and getattr(value, "ndim", None) is not None:
        if math.prod(value.shape) > left:
            raise TooMuch(f"more than {MAX_JSON}")
        return value.tolist()
    if type(value).__name__ == "Namespace" and hasattr(value, "__dict__"):
        return vars(value)
    return value


def told(value: object) -> str:
    """The text form of a value; its type where it has none."""
    try:
        return _text(str(value))
    except Exception:
        return f"a {type(value).__name__}"


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
    """Return value; raises TypeError or ValueError unless it is printable text of 1 to 200 characters."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, got {shown(value)}")
    if not value.strip() or not value.isprintable() or len(value) > MAX_NAME:
        raise ValueError(f"{argument} must be printable text of 1 to {MAX_NAME} characters, got {shown(value)}")
    return _text(value)


def _checked_config(config: object) -> dict[str, Any]:
    """The argument as a JSON object; raises TypeError or ValueError for what is none, or too much."""
    too_much = f"config must be at most {MAX_JSON} bytes as JSON, got"
    try:
        plain = {} if config is None else plain_json(config)
    except TooMuch as error:
        raise ValueError(f"{too_much} {error}: leave out what is no setting, such as arrays and data sets") from None
    if not isinstance(plain, dict):
        raise TypeError(f"config must be a mapping of names to values, got {shown(config)}")
    if (size := len(json.dumps(plain))) > MAX_JSON:
        raise ValueError(f"{too_much} {size}")
    return plain


def _checked_tags(tags: Any) -> list[str]:
    if isinstance(tags, str | bytes | Mapping) or not isinstance(tags, Collection) or getattr(tags, "ndim", 1) != 1:
        raise TypeError(f"tags must be a list of strings, got {shown(tags)}")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"tags must be at most {MAX_TAGS}, got {len(tags)}")
    return [checked_name("tags", tag) for tag in tags]


def _checked_notes(notes: object) -> str:
    if not isinstance(notes, str):
        raise TypeError(f"notes must be text, got {shown(notes)}")
    text = _text(notes)
    if len(text) > MAX_NOTES:
        raise ValueError(f"notes must be text of at most {MAX_NOTES} characters, got {len(text)}")
    if "\x00" in text or text != notes:
        raise ValueError(f"notes must be text without NUL and halves of characters, got {shown(notes)}")
    return text


def _checked_total(total_steps: Any) -> int | None:
    if total_steps is None:
        return None
    if not is_real(total_steps):
        raise TypeError(f"total_steps must be a number of steps or None, got {shown(total_steps)}")
    if not 1 <= total_steps <= MAX_STEP:
        raise ValueError(f"total_steps must be from 1 to {MAX_STEP}, or None, got {shown(total_steps)}")
    return int(total_steps)


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
        return cls(
            project=checked_name("project", project),
            name=None if name is None else checked_name("run", name),
            config=_checked_config(config),
            tags=_checked_tags(tags),
            notes=_checked_notes(notes),
            total_steps=_checked_total(total_steps),
            resume=None if resume is None else checked_name("resume", resume),
            start_step=whole("start_step", start_step, 0),
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
