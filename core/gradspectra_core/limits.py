"""How large a batch may be, and the one error that a batch from outside can raise."""

from __future__ import annotations

from dataclasses import dataclass


class WireError(ValueError):
    """A batch that cannot be accepted. field: where it is wrong, as in `layers.steps`; message: what is wrong there."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one batch; a batch beyond any of them is refused whole.

    max_header: bytes of the JSON header. max_name: characters of a name. The rest count entries. The size of the
    body itself is bounded by whoever reads it from the network.
    """

    max_header: int = 4 << 20
    max_steps: int = 4096
    max_layers: int = 10_000
    max_name: int = 512
    max_scalars: int = 256
    max_statistics: int = 64
    max_spectra: int = 20_000
    max_gaps: int = 1024


DEFAULT_LIMITS = Limits()


_SHOWN: dict[object, str] = {None: "null", True: "true", False: "false"}
_KINDS: dict[type[object], str] = {dict: "an object", list: "a list", tuple: "a list"}


def shown(value: object) -> str:
    """Return a value from outside as an error message may quote it: short, whatever it is, and called as in JSON."""
    if isinstance(value, str):
        return repr(value[:80])
    if value is None or isinstance(value, bool):
        return _SHOWN[value]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 1 << 64 else "a number beyond 64 bits"
    return _KINDS.get(type(value), f"a {type(value).__name__}")
