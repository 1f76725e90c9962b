"""gradspectra: watch a training run's gradients, layers and spectra. What is not used is not imported."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradspectra_core import __version__

if TYPE_CHECKING:
    from gradspectra.client import Client
    from gradspectra.errors import InstabilityError
    from gradspectra.recorder import Recorder
    from gradspectra.watch import Watch, watch

__all__ = ["Client", "InstabilityError", "Recorder", "Watch", "__version__", "watch"]

_HOMES = {
    "Client": "gradspectra.client",
    "InstabilityError": "gradspectra.errors",
    "Recorder": "gradspectra.recorder",
    "Watch": "gradspectra.watch",
    "watch": "gradspectra.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradspectra' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the module gradspectra.watch sets the attribute `watch`; it must stay the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "watch" and isinstance(value, ModuleType):
            value = value.watch
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
