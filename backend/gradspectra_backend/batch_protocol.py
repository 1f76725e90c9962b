"""HTTP as uvicorn reads it, but for a short batch that comes whole: it is stored and answered as its bytes come."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Any, NamedTuple

from gradspectra_core.wire import CONTENT_TYPE

from gradspectra_backend.bounded_heads import BoundedHeads
from gradspectra_backend.context import Context
from gradspectra_backend.door import secured
from gradspectra_backend.routes.records import SHORT, take_now

LONGEST_HEAD = 2048
_HEAD = re.compile(
    rb"POST /api/v1/runs/(?P<run>[0-9A-Za-z_-]{1,64})/records HTTP/1\.1\r\n"
    rb"(?P<fields>(?:[A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n"
)
_NEEDED = {"accept": "application/json", "content-type": CONTENT_TYPE}
_FIELDS = {"host", "user-agent", "accept-encoding", "content-length", *_NEEDED}
_LENGTH = re.compile("[0-9]{1,6}")
_LOOPBACK = ("127.0.0.1", "::1")
_ANSWER = [b"content-type: application/json\r\n", *(b"%b: %b\r\n" % field for field in secured(())), b"\r\n"]


class BatchProtocol(BoundedHeads):
    """One connection. A batch in its plainest form passes neither the parser nor the application, nor makes a task.

    That form: all of it and nothing else in one piece, no longer than SHORT, with none but the fields that the agent
    sends, to a host name that the check of a call before has let pass, on a loopback address that asks for no token.
    What is refused, or has to wait, goes the way of all other calls, and is answered there.
    """

    _in_message = False
    _context: Context | None = None
    """Of the application, where calls on this connection may be taken so."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's."""
        super().connection_made(transport)
        context: Context = self.config.app.state.context  # type: ignore[union-attr]
        near = self.scheme == "http" and (self.server or ("",))[0] in _LOOPBACK
        if near and context.stores_at_once and not context.settings.tokens_required:
            self._context = context

    def on_message_begin(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """As uvicorn's: called by the parser."""
        self._in_message = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, for what is no plain batch."""
        answer = None if self._context is None or self._busy() else self._taken(self._context, data)
        if answer is None:
            super().data_received(data)
        else:
            self.came()
            self.transport.write(answer)
            self.on_response_complete()

    def _busy(self) -> bool:
        """Whether a call before has not come or is not answered to its end, or its answers are not read."""
        unanswered = self.cycle is not None and not self.cycle.response_complete
        return self._in_message or unanswered or self.flow.write_paused

    def _taken(self, context: Context, data: bytes) -> bytes | None:
        """The answer to a plain batch that was stored, else None."""
        end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD) + 4
        head = plain_head(bytes(data[:end])) if end > 4 else None
        if head is None or head.host not in context.hosts:
            return None
        if len(data) - end != head.length or head.length > min(SHORT, context.settings.max_body):
            return None
        body = take_now(context, head.run, data[end:])
        if body is None:
            return None
        said = [b"%b: %b\r\n" % field for field in self.server_state.default_headers]
        return b"".join((b"HTTP/1.1 200 OK\r\n", *said, b"content-length: %d\r\n" % len(body), *_ANSWER, body))


class PlainHead(NamedTuple):
    """What the head of a plain batch says: its run, the host that it was sent to, and the bytes that follow."""

    run: str
    host: str
    length: int


@lru_cache(maxsize=256)
def plain_head(head: bytes) -> PlainHead | None:
    """Read the head of a call, up to its empty line; None of all that is not plain. A job repeats the same few."""
    found = _HEAD.fullmatch(head)
    if found is None:
        return None
    lines = found["fields"].decode("ascii").split("\r\n")[:-1]
    fields: dict[str, Any] = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if len(fields) < len(lines) or not fields.keys() <= _FIELDS or not fields.items() >= _NEEDED.items():
        return None
    length = fields.get("content-length", "")
    if not _LENGTH.fullmatch(length) or "host" not in fields:
        return None
    return PlainHead(found["run"].decode("ascii"), fields["host"], int(length))
