"""HTTP as uvicorn reads it, but of a request's head no more than a bound, and for no longer than a while."""

from __future__ import annotations

import asyncio

from gradspectra_backend.paced_bodies import PacedBodies

LONGEST_FIELDS = 256 << 10
"""Bytes of a head after the piece in which it begins (256 KiB at most). An address has a bound of 64 KiB of its own."""
HEAD_SECONDS = 60.0


class BoundedHeads(PacedBodies):
    """One connection. It is closed where a head goes on beyond the bound, or has not come whole in time.

    The parser gathers a head piece by piece, and copies what it has of a field at each: one of 50 MB would hold up
    the event loop for minutes, and nobody needs a token to send it. The same holds of the fields behind a body that
    comes in chunks.
    """

    _in_head = False
    _begun = 0
    """Heads, and chunks, that have begun on this connection."""
    _length = 0
    """Bytes of the head that is read now, without its first piece."""
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's; the time for the first head begins."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self.came()
        super().connection_lost(exc)

    def came(self) -> None:
        """A head has come whole: no more time is counted."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def on_message_begin(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_head, self._length = True, 0
        self._begun += 1
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_head = False
        self.came()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Called by the parser: what follows is a chunk, or the fields behind the last one."""
        self._in_head, self._length = True, 0
        self._begun += 1

    def on_body(self, body: bytes) -> None:
        """As uvicorn's: called by the parser."""
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_head = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, up to the bound."""
        begun = self._begun
        super().data_received(data)
        if not self._in_head or self._begun != begun or self.transport.is_closing():
            return
        self._length += len(data)
        if self._length > LONGEST_FIELDS:
            self.send_400_response("The head of the request is too long.")
