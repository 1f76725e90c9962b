"""Checks that the arguments of several public functions share: each error names the argument, the value, the remedy."""

from __future__ import annotations

import inspect
import numbers
import threading
from collections.abc import Mapping, Sequence
from typing import Any

MAX_STEP = 1 << 53
"""The server takes no step beyond: not every one of them is a float64."""
MAX_EXAMPLES, MAX_PARTS = 1 << 40, 1 << 16
"""Of a part, and of a step: what the sums of a step hold on any number of ranks."""


def shown(value: object, most: int = 100) -> str:
    """A value as an error message quotes it, in at most so many characters; its type where it cannot be told."""
    if isinstance(value, str | bytes) and len(value) > most:
        return f"{value[:most]!r}… ({len(value)} characters)"
    try:
        text = repr(value)
    except Exception:  # a whole number of 10,000 digits, say
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


def whole(name: str, value: Any, least: int, also: str = "", most: int = MAX_STEP) -> int:
    """Return value as an int; raises TypeError or ValueError unless it is a whole number from least to most.

    also: what else the argument may be, in words that end in "or ".
    """
    if not is_whole(value):
        raise TypeError(f"{name} must be {also}a whole number, got {shown(value)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be {also}at least {least}, got {shown(number)}")
    if number > most:
        raise ValueError(f"{name} must be {also}at most {most}, got {shown(number)}")
    return number


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_text(value: object, *texts: str) -> bool:
    """Whether a value is one of these texts; asks an array, which compares entry by entry, for nothing."""
    return isinstance(value, str) and value in texts


def one_of(name: str, value: Any, choices: Sequence[str], also: str = "") -> str:
    """Return value; raises ValueError unless it is one of the choices. also: as of `whole`."""
    if not is_text(value, *choices):
        raise ValueError(f"{name} must be {also}one of {', '.join(choices)}, got {shown(value)}")
    return str(choices[choices.index(value)])


def is_called(function: object) -> bool:
    """Whether a call of this does what it is for: not where it is to be awaited."""
    return callable(function) and not inspect.iscoroutinefunction(function)


def takes_one(function: object) -> bool:
    """Whether a function can be called with one argument, as far as it says what it takes."""
    if not is_called(function):
        return False
    try:
        inspect.signature(function).bind(None)  # type: ignore[arg-type]
    except TypeError:
        return False
    except ValueError:  # a built-in function may not say
        return True
    return True


def checked_state(state: Any) -> int:
    """Return the steps of what watch.state_dict() gave; raises ValueError for a state of another kind."""
    known = isinstance(state, Mapping) and is_whole(state.get("version")) and state["version"] == 1
    known = known and isinstance(state.get("drift", {}), Mapping) and is_whole(state.get("tokens", 0))
    step: Any = state.get("step") if known else None
    if not is_whole(step) or not 0 <= step <= MAX_STEP:
        raise ValueError(f"state must come from watch.state_dict(), got {shown(state, 200)}")
    return int(step)


def seconds(name: str, value: Any) -> float:
    """Return value as a number of seconds, no more than a thread can wait; raises TypeError or ValueError.

    More than that, and inf, is as long as it takes; below 0 is 0.
    """
    if not is_real(value) or value != value:
        raise TypeError(f"{name} must be a number of seconds, got {shown(value)}")
    return float(min(max(value, 0), threading.TIMEOUT_MAX))


def end_of_run(state: Any) -> str:
    """Return state; raises ValueError unless a run can end so."""
    if not is_text(state, "finished", "failed"):
        raise ValueError(f'state must be "finished" or "failed", got {shown(state)}')
    return str(state)
