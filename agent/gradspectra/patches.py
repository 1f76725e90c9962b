"""Wrappers around functions of torch, in place while a watch is open and gone with the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Observer = TypeVar("Observer")
Function = Callable[..., Any]


class Patch(Generic[Observer]):
    """Replaces attributes of a module or class by wrappers that tell every observer.

    wrap(name, original) makes the wrapper, for the observers of this time: one that others wrapped is left behind, and
    must not tell those who come later. places are (owner, attribute) pairs, those that this torch lacks are left.
    """

    def __init__(self, places: list[tuple[Any, str]], wrap: Callable[[str, Function], Function]) -> None:
        self._places = [(owner, name) for owner, name in places if hasattr(owner, name)]
        self._wrap = wrap
        self._installed: list[tuple[Any, str, Function, Function]] = []
        self.observers: list[Observer] = []

    def open(self, observer: Observer) -> None:
        """Add an observer; the first one puts the wrappers in place."""
        if not self.observers:
            self.observers = []
            for owner, name in self._places:
                original = getattr(owner, name)
                wrapper = self._wrap(name, original)
                setattr(owner, name, wrapper)
                self._installed.append((owner, name, original, wrapper))
        self.observers.append(observer)

    def close(self, observer: Observer) -> None:
        """Take an observer away; with the last one the originals come back, but where others wrapped them since."""
        if observer not in self.observers:
            return
        self.observers.remove(observer)
        if not self.observers:
            for owner, name, original, wrapper in self._installed:
                if getattr(owner, name) is wrapper:
                    setattr(owner, name, original)
            self._installed.clear()
