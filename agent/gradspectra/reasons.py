"""Kinds of the sentences that say what a watch does not measure."""

from __future__ import annotations


class LikelyMistake(str):
    """Such a sentence where the cause is most likely a mistake: a watch warns of it when it is made."""

    __slots__ = ()
