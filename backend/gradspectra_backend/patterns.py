"""Which names fit a regular expression, in bounded time whatever the expression."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache

from gradspectra_backend.problems import Problem

MAX_PATTERN = 500
CPU_SECONDS = 1
WALL_SECONDS = 10.0
AT_ONCE = 2
WAIT_SECONDS = 5.0

_HARMLESS = re.compile(r"(?:[^\\()\[\]{}*+?]|\\[.\[\]])*")
"""Nothing is repeated and nothing nested: one look at each character of a name, for each alternative."""

_CHILD = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
except ImportError:
    pass
pattern, names = json.load(sys.stdin)
try:
    found = re.compile(pattern).search
except (re.error, ValueError, OverflowError, RecursionError) as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps([place for place, name in enumerate(names) if found(name)]))
"""
_slots = threading.Semaphore(AT_ONCE)


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names in which the expression (Python's syntax) is found anywhere, in their order.

    An expression that could run away is tried in a process of its own, which may take 1 s of CPU. Raises Problem 422
    that names the expression where it is none or takes longer, 503 where too many are being tried already.
    """
    if len(pattern) > MAX_PATTERN:
        raise _refused(f"must have at most {MAX_PATTERN} characters, got {len(pattern)}")
    if _HARMLESS.fullmatch(pattern):
        found = re.compile(pattern).search
        return [name for name in names if found(name)]
    return [names[place] for place in _tried(pattern, tuple(names))]


@lru_cache(maxsize=32)
def _tried(pattern: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Places of the names that fit, as a process of its own finds them."""
    if not _slots.acquire(timeout=WAIT_SECONDS):
        raise Problem("unavailable", "too many regular expressions are being tried", headers={"Retry-After": "2"})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([pattern, names]).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _runs_away(pattern) from None
    finally:
        _slots.release()
    if done.returncode < 0:
        raise _runs_away(pattern)
    answer = json.loads(done.stdout)
    if isinstance(answer, str):
        raise _refused(f"is not a regular expression: {answer}, in {pattern[:80]!r}")
    return tuple(answer)


def _runs_away(pattern: str) -> Problem:
    return _refused(
        f"takes more than {CPU_SECONDS} s over the run's layer names: {pattern[:80]!r}",
        remedy="Take out repeats inside repeats such as (a+)+, or name the layers by `layers`.",
    )


def _refused(why: str, remedy: str | None = None) -> Problem:
    return Problem("bad-request", f"pattern: {why}", field="pattern", remedy=remedy)
