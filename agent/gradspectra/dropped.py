"""What was noted of a gradient that the step does not take: it was clipped, and then dropped, or added to."""

from __future__ import annotations

from collections.abc import Sequence

from gradspectra.backward import Backward
from gradspectra.clipping import Clipped, StepClips
from gradspectra.inventory import WatchedTensor
from gradspectra.measure import FirstTier
from gradspectra.step import OpenStep

NOBODY: frozenset[int] = frozenset()


def note_clip(step: OpenStep, parameters: frozenset[int], tensors: Sequence[WatchedTensor], backward: Backward) -> None:
    """Gradients of these parameters, by identity, are about to be clipped. tensors: all, small ones first."""
    for tensor in tensors:
        if id(tensor.parameter) in parameters and tensor.parameter.grad is not None:
            passes = backward.passes, backward.dropped
            step.clips.noted.append(Clipped(tensor.parameter, tensor.parameter.grad, parameters, passes))
            return


def forget_clips(step: OpenStep, backward: Backward, tier: FirstTier, clipped_now: frozenset[int] = NOBODY) -> bool:
    """Forget the clips of the open step if they were of another gradient, and what was measured before them.

    That is so where a backward pass has come after them, and the gradient is not the one of then (a script leaves out a
    batch whose norm is too large), or is clipped anew. Once one of several optimizers has stepped nothing is forgotten:
    it may have been its gradient. clipped_now: identities of the parameters that are about to be clipped. Returns
    whether they were forgotten.
    """
    clips, passes = step.clips, (backward.passes, backward.dropped)
    if clips.stepped or not clips.noted:
        return False
    for own in clips.noted:
        another = own.parameter.grad is not own.gradient or not clipped_now.isdisjoint(own.parameters)
        if own.passes == passes or not another:
            return False
    if clips.early:
        tier.finish()
    step.clips = StepClips()
    step.spectra.clear()
    step.grams.clear()
    step.beside.clear()
    return True
