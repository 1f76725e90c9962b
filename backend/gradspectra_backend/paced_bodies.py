"""HTTP as uvicorn reads it, but a request's body is waited for only while enough of it comes."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gradspectra_backend.door import secured
from gradspectra_backend.problems import MEDIA_TYPE, Problem

BODY_SECONDS = 60.0
LEAST_BYTES = 30_000
"""Of a body that is not there to its end, so many bytes have to come in each BODY_SECONDS: 4 kbit/s."""
LAST_SECONDS = 2.0
"""So long a server that is to stop waits for the end of a body: less than for calls in hand."""

_log = logging.getLogger(__name__)


class PacedBodies(HttpToolsProtocol):
    """One connection. Where a body comes too slowly, or stops, the answer is 408 and the connection is closed.

    What comes while the server itself does not read is not asked for; a body that came in time costs nothing.
    """

    _in_body = False
    _came = 0
    """Bytes of the body since the last look."""
    _look: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._stop_looking()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_body, self._came = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As uvicorn's: called by the parser."""
        self._came += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_body = False
        self._stop_looking()
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; where a body has begun and not ended, the time for the next part of it begins."""
        super().data_received(data)
        if self._in_body and self._look is None and not self.transport.is_closing():
            self._look = self.loop.call_later(BODY_SECONDS, self._look_at_body)

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_at_body(self) -> None:
        self._look = None
        if self.transport.is_closing():
            return
        if self._came >= LEAST_BYTES or self.flow.read_paused:
            self._came = 0
            self._look = self.loop.call_later(BODY_SECONDS, self._look_at_body)
            return
        _log.info("a body from %s came too slowly: %d bytes in %g s", self.client, self._came, BODY_SECONDS)
        said = f"of the body came fewer than {LEAST_BYTES:,} bytes in {BODY_SECONDS:g} s, and not its end"
        self._break_off(Problem("too-slow", said))

    def shutdown(self) -> None:
        """As uvicorn's: called where the server is to stop."""
        super().shutdown()
        if self._in_body and not self.transport.is_closing():
            self._stop_looking()
            problem = Problem("unavailable", "the server stops, and the body has not come to its end")
            self._look = self.loop.call_later(LAST_SECONDS, self._break_off, problem)

    def _break_off(self, problem: Problem) -> None:
        self._stop_looking()
        if self.transport.is_closing():
            return
        if not self.pipeline and not self.cycle.response_started:
            self.transport.write(last_answer(problem))
        self.transport.close()
        self.cycle.disconnected = True  # now: until the connection is lost, the application could answer once more
        self.cycle.message_event.set()


def last_answer(problem: Problem) -> bytes:
    """The whole answer to a body that is waited for no more; the connection is closed after it."""
    body = orjson.dumps(problem.document())
    fields = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    head = b"".join(b"%b: %b\r\n" % field for field in secured(fields))
    status = HTTPStatus(problem.kind.status)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, status.phrase.encode(), head, body)
