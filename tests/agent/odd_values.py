"""Values that somebody may hand to any argument, and what of the process an argument that is refused may not touch."""

from __future__ import annotations

import decimal
import enum
import fractions
import math
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as modules


class Text(str):
    __slots__ = ()


class Kind(enum.StrEnum):
    AUTO = "auto"


class Number(enum.IntEnum):
    ONE = 1


class Silent:
    """Nothing can be asked of it: no text, no truth, no comparison."""

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, _: object) -> bool:
        raise RuntimeError("no comparison")


class Unreadable(dict[str, Any]):
    """A mapping of which an entry must be given first."""

    def items(self) -> Any:
        raise RuntimeError("give x first")


async def awaited(_: object) -> None:
    """A function that does nothing when it is called."""


def circle() -> dict[str, Any]:
    """A mapping that holds itself three times."""
    found: dict[str, Any] = {}
    found |= {"a": found, "b": found, "c": found}
    return found


def odd_values(folder: pathlib.Path) -> dict[str, Any]:
    """The values by name. folder: a folder with a file named `file`."""
    numbers = {
        "true": True,
        "false": False,
        "nan": math.nan,
        "inf": math.inf,
        "minus": -1,
        "zero": 0,
        "one": 1,
        "half": 0.5,
        "1e300": 1e300,
        "1e30 whole": 10**30,
        "400 digits": 10**400,
        "5000 digits": 10**5000,
        "numpy int": np.int64(2),
        "numpy float": np.float32(0.5),
        "enum int": Number.ONE,
        "decimal": decimal.Decimal(1),
        "fraction": fractions.Fraction(1, 2),
        "complex": 1j,
    }
    texts = {
        "empty": "",
        "blank": " ",
        "x": "x",
        "(": "(",
        "new line": "a\nb",
        "nul": "a\0b",
        "emoji": "😀",
        "10,000 characters": "n" * 10_000,
        "half a character": "\udc80",
        "bytes": b"x",
        "numpy text": np.str_("auto"),
        "text": Text("auto"),
        "enum text": Kind.AUTO,
        "file": str(folder / "file"),
        "below a file": str(folder / "file" / "x"),
        "folder": str(folder / "new"),
        "path": folder / "new",
    }
    several = {
        "array": np.array([1.0, 2.0]),
        "tensor": torch.tensor(1),
        "tensors": torch.ones(2),
        "no data": torch.ones(2, device="meta"),
        "large tensor": torch.zeros(1).expand(1 << 40),
        "generator": (letter for letter in "a"),
        "no list": [],
        "numbers": [1],
        "texts": ["a"],
        "none within": [None],
        "bytes within": [b"a"],
        "1000 texts": ["t"] * 1000,
        "tuple": (),
        "set": frozenset("a"),
        "mapping": {},
        "nan within": {"a": math.nan},
        "circle": circle(),
        "unreadable": Unreadable(x=1),
    }
    objects = {
        "none": None,
        "object": object(),
        "silent": Silent(),
        "type": int,
        "module": nn.Linear(2, 2),
        "module type": nn.Linear,
        "scaler type": torch.amp.GradScaler,
        "of one": lambda _: True,
        "of none": lambda: True,
        "awaited": awaited,
        "expression": re.compile("x"),
        "bytes expression": re.compile(b"x"),
        "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1),
    }
    return numbers | texts | several | objects


def traces(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """What hangs on the process, a model and its optimizer: hooks, threads, functions of torch."""
    yield from (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks))
    yield from (len(p._backward_hooks or ()) for p in model.parameters())
    yield from (len(modules._global_forward_pre_hooks), len(modules._global_forward_hooks))
    yield from (nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_, torch.amp.GradScaler.step)
    yield {thread.name for thread in threading.enumerate() if thread.name.startswith("gradspectra")}
