"""The kernels of one device: compiled in a thread that nobody waits for, and used once they have proved right there."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from concurrent.futures import Future
from functools import cache
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from gradspectra.device_proof import proved
from gradspectra.device_table import ROW, WORDS, DeviceLayout, Kinds, Spec
from gradspectra.readout import Readout

CHUNKS_AT_ONCE = 1 << 10
WARPS = 8
SAMPLE_AT_ONCE = 1 << 10
OPTIONS = {"enable_fp_fusion": True}
"""Said in words, since Triton warns of what it would choose itself."""


class Kernels:
    """Launches the kernels on the stream of the training. To make it imports Triton, which takes a second."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kernels = importlib.import_module("gradspectra.triton_kernels")

    def warm(self, specs: frozenset[Spec]) -> None:
        """Compile for these, without the device; what was compiled is kept on disk by Triton."""
        whole, wide, narrow = torch.int64, torch.float64, torch.float32
        with _on(self._device):
            for kinds, width, rule in specs:
                constants = {"WIDTH": width, "RULE": rule, "num_warps": WARPS} | self._kinds(kinds)
                self._kernels.sums.warmup(whole, wide, whole, narrow, 2, 2, grid=(1,), **constants, **OPTIONS)
                self._kernels.samples.warmup(
                    whole,
                    whole,
                    narrow,
                    2,
                    KIND=self._type(kinds[3]),
                    BLOCK_OF_SAMPLE=SAMPLE_AT_ONCE,
                    grid=(1,),
                    **OPTIONS,
                )
            for rule in {rule for _, _, rule in specs}:
                arguments = whole, wide, whole, narrow, 2, narrow, wide, 2, narrow, 2
                constants = {"RULE": rule, "BLOCK_OF_CHUNKS": CHUNKS_AT_ONCE}
                self._kernels.layers.warmup(*arguments, grid=(1,), **constants, **OPTIONS)

    def measure(
        self, layout: DeviceLayout, words: Tensor, rule: int, results: Tensor, finite: Tensor, second: Tensor
    ) -> None:
        """Measure the layers of a layout: one launch for each kind of chunk, and one that adds the chunks up.

        words: (n · WORDS,). results: (5, L) float32 and finite: (2, L) float64, of AcceleratorRows. second: (7, n)
        float32; left as it is where the rule is GRADIENT_ALONE.
        """
        numbers, count = words.view(torch.float64), len(words) // WORDS
        partials = torch.empty(len(ROW) * layout.chunks, dtype=torch.float32, device=self._device)
        for launch in layout.launches:
            arguments = words, numbers, layout.table, partials, launch.first, layout.chunks
            constants = {"WIDTH": launch.width, "RULE": rule, "num_warps": WARPS} | self._kinds(launch.kinds)
            self._launch(self._kernels.sums, (launch.count,), *arguments, **constants)
        self._launch(
            self._kernels.layers,
            (count,),
            *(words, numbers, layout.pieces, partials, layout.chunks, results, finite, results.shape[1], second, count),
            RULE=rule,
            BLOCK_OF_CHUNKS=CHUNKS_AT_ONCE,
        )

    def samples(self, words: Tensor, chosen: Tensor, most: int, kind: torch.dtype) -> Tensor:
        """Samples of second moments of n layers, (n, most) float32, infinity after the end of each.

        chosen: (n, 3) layer, numbers of its sample, and how far apart they lie; kind: of the moments.
        """
        sample = torch.empty(len(chosen), most, dtype=torch.float32, device=self._device)
        grid = len(chosen), -(-most // SAMPLE_AT_ONCE)
        constants = {"KIND": self._type(kind), "BLOCK_OF_SAMPLE": SAMPLE_AT_ONCE}
        self._launch(self._kernels.samples, grid, words, chosen, sample, most, **constants)
        return sample

    def _launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        with _on(self._device):
            kernel[grid](*arguments, **constants, **OPTIONS)

    def _kinds(self, kinds: Kinds) -> dict[str, Any]:
        names = "GRADIENT", "WEIGHT", "FIRST", "SECOND"
        return {name: self._type(kind) for name, kind in zip(names, kinds, strict=True)}

    def _type(self, kind: torch.dtype) -> Any:
        return getattr(self._kernels.tl, str(kind).removeprefix("torch."))


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the device that is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Build:
    """The kernels of a device, as far as they are ready. What fails once is not tried again: torch measures."""

    def __init__(self, device: torch.device) -> None:
        self.kernels: Kernels | None = None
        self.failure = ""
        self._device = device
        self._ready: set[Spec] = set()
        self._warming: tuple[frozenset[Spec], Future[Kernels]] | None = None
        self._checking: tuple[frozenset[Spec], Readout, Tensor] | None = None
        if importlib.util.find_spec("triton") is None:
            self.failure = "Triton is not installed"

    @property
    def in_use(self) -> bool:
        """Whether some kernels are ready."""
        return bool(self._ready) and not self.failure

    @property
    def state(self) -> str:
        """In words: by Triton, being compiled, or why torch measures."""
        if self.failure:
            return f"not compiled: {self.failure}"
        going_on = self._warming is not None or self._checking is not None
        return "compiled by Triton" if self.in_use and not going_on else "being compiled"

    def fail(self, error: Exception) -> None:
        """Leave everything to torch from now on."""
        self.failure = str(error) if isinstance(error, NotRight) else repr(error)

    def ready(self, wanted: frozenset[Spec]) -> bool:
        """Whether there are kernels for all of these; goes on towards those that are missing, and waits for nothing."""
        if not self.failure and not wanted <= self._ready:
            try:
                self._go_on(wanted - self._ready)
            except Exception as error:
                self.fail(error)
        return not self.failure and wanted <= self._ready

    def _go_on(self, missing: frozenset[Spec]) -> None:
        if self._checking is not None:
            specs, readout, right = self._checking
            if readout.ready():
                self._checking = None
                if not readout.arrays()[id(right)]:
                    raise NotRight("it does not measure made-up numbers as torch does")
                self._ready |= specs
        elif self._warming is None:
            future: Future[Kernels] = Future()
            self._warming = missing, future
            Thread(target=self._warm, args=(missing, future), name="gradspectra-triton", daemon=True).start()
        elif self._warming[1].done():
            specs, future = self._warming
            self._warming = None
            self.kernels = future.result()
            right = proved(self.kernels, sorted(specs, key=str), self._device)
            self._checking = specs, Readout([right]), right

    def _warm(self, specs: frozenset[Spec], future: Future[Kernels]) -> None:
        try:
            kernels = self.kernels or Kernels(self._device)
            kernels.warm(specs)
            future.set_result(kernels)
        except Exception as error:
            future.set_exception(error)


class NotRight(Exception):
    """The kernels were compiled, and measure wrong."""


@cache
def build_on(device: torch.device) -> Build:
    """The kernels of a device, the same for all watches of this process."""
    return Build(device)
