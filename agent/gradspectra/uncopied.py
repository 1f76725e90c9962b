"""What stays where it was made: a watch, with hooks in this process, and a recorder, with its thread and its files."""

from __future__ import annotations

from typing import Any, NoReturn


class Uncopied:
    """Refuses to be copied and pickled, in words: what copies, saves or sends a model would take it along."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Raise TypeError."""
        name = type(self).__name__
        raise TypeError(
            f"a {name} can be neither copied nor pickled: it stays in the process that made it. Keep it outside of the "
            "models and data sets that are copied, saved or sent to workers; a checkpoint takes watch.state_dict()"
        )
