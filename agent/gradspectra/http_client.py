"""One kept-alive HTTP connection to the server, by the standard library alone."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gradspectra_core import __version__

from gradspectra.errors import ServerAway, ServerRefused
from gradspectra.proxies import proxy_of
from gradspectra.slow_lines import PIECE, unsent

API = "/api/v1"
JSON = "application/json"
WAIT_SLICE = 0.1
PART_BYTES = 1 << 18
JOINED_BYTES = 1 << 16
_HEAD = re.compile(
    rb"HTTP/1\.1 (?P<status>20[0-3]|[45][0-9]{2}) (?P<reason>[ -~]*)\r\n"
    rb"(?P<fields>(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n"
)
"""The head of an answer in its plainest form."""
_LENGTH = re.compile("[0-9]{1,15}")
_NOT_PLAIN = frozenset(("transfer-encoding", "connection"))
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


_ALSO_WITHOUT_REASON = frozenset((400, 408, 431, 500, 502, 503, 504))
"""What a server of ours, or a proxy before it, answers in plain text too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered. retry_after: seconds it asks to wait, None where it does not say."""

    status: int
    body: bytes
    content_type: str
    retry_after: float | None

    def json(self) -> Any:
        """Return the body as JSON; raises ServerAway where it is none (not our server, or a broken proxy)."""
        try:
            return json.loads(self.body)
        except ValueError:
            shown = self.body[:80].decode("utf-8", "replace")
            raise ServerAway(
                f"the answer ({self.status}) is not JSON but {shown!r}; is this a gradspectra server?"
            ) from None

    def problem(self) -> ServerRefused:
        """Return the problem document of an answer that is not 2xx as an error to raise or look at."""
        try:
            members = json.loads(self.body)
        except ValueError:
            members = {}
        if not isinstance(members, dict):
            members = {}
        if 300 <= self.status < 400:
            members = {"detail": "a redirect", "remedy": "set GRADSPECTRA_SERVER to the address it leads to"}
        if self.status == 413 and not members:
            members = {"detail": "a proxy takes no body so large", "remedy": "raise its limit (client_max_body_size)"}
        unknown = self.status in (404, 405) and "type" not in members
        foreign = unknown or members.keys().isdisjoint(("type", "title", "detail"))
        if foreign and self.status not in _ALSO_WITHOUT_REASON:
            members |= {"remedy": "is GRADSPECTRA_SERVER the URL of a gradspectra server?"}
        return ServerRefused(self.status, members)


class _Response(http.client.HTTPResponse):
    """Reads the head of an answer as our server writes it, at a fraction of what the library's parser of mail takes.

    Any other head (not there whole yet, without a length, with folded lines) is left to the library.
    """

    def begin(self) -> None:
        """As the library's own."""
        here = self.fp.peek() if isinstance(self.fp, io.BufferedReader) else b""
        found = _HEAD.match(here)
        if found is None:
            super().begin()
            return
        fields = [line.split(": ", 1) for line in found["fields"].decode("latin-1").split("\r\n")[:-1]]
        named = {name.lower(): value for name, value in fields}
        length = named.get("content-length", "")
        if len(named) < len(fields) or not _LENGTH.fullmatch(length) or named.keys() & _NOT_PLAIN:
            super().begin()
            return
        self.fp.read(found.end())
        self.code = self.status = int(found["status"])
        self.reason, self.version = found["reason"].decode("latin-1"), 11
        self.headers = self.msg = http.client.HTTPMessage()
        for name, value in fields:
            self.headers.add_header(name, value)
        self.chunked, self.will_close, self.length = False, False, int(length)


class _Connection(http.client.HTTPConnection):
    """Sends the head of a request together with its body, where that is short.

    The server wakes for each part that comes; to copy a short body takes less time than that.
    """

    response_class = _Response
    _held: list[bytes] | None = None

    def request(self, *args: Any, **options: Any) -> None:
        """As the library's own."""
        self._held = []
        try:
            super().request(*args, **options)
            self._send_held()
        finally:
            self._held = None

    def send(self, data: Any) -> None:
        """As the library's own, but at the end of the request, or before what is long."""
        if self._held is None:
            super().send(data)
        elif isinstance(data, bytes) and len(data) <= JOINED_BYTES:
            self._held.append(data)
        else:  # in pieces: a timeout is for all that is sent at once, however slow the line is
            self._send_held()
            for begin in range(0, len(data), PIECE):
                super().send(memoryview(data)[begin : begin + PIECE])

    def _send_held(self) -> None:
        held, self._held = self._held, None
        if held:
            super().send(b"".join(held))


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class HttpClient:
    """Requests to one server over one connection, kept alive. Not for use by several threads at once.

    server: address as from settings.server_address. timeout: seconds without a byte after which a request fails. The
    way leads by the proxy that the environment names.
    """

    def __init__(self, server: str, token: str | None = None, timeout: float = 10.0) -> None:
        parts = urlsplit(server)
        secure, host = parts.scheme == "https", str(parts.hostname)
        port = parts.port or (443 if secure else 80)  # else the library takes the end of an IPv6 address for one
        proxy = proxy_of(parts.scheme, host)
        near = (host, port) if proxy is None else (proxy.host, proxy.port)
        self._connection = (_SecureConnection if secure else _Connection)(*near, timeout=timeout)
        self._base = parts.path.rstrip("/") + API
        self._headers = {"User-Agent": f"gradspectra/{__version__}", "Accept": JSON}
        if proxy is not None and secure:
            self._connection.set_tunnel(host, port, proxy.headers)
        elif proxy is not None:
            self._base = f"http://{parts.netloc.rpartition('@')[2]}{self._base}"
            self._headers |= proxy.headers
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._by = "" if proxy is None else f" by the proxy {proxy}"
        self._process = os.getpid()
        self.server = server
        self.timeout = timeout

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = JSON,
        while_waiting: Callable[[], None] | None = None,
    ) -> Answer:
        """Send one request and return the answer, whatever its status; raises ServerAway where none came.

        path: below /api/v1, with its query. while_waiting is called about every 0.1 s until the answer begins. A
        connection that the server closed while idle is opened again once: all requests here may be repeated.
        """
        if self._process != os.getpid():  # after a fork the connection is the parent's
            self._process = os.getpid()
            self.close()
        kept = self._connection.sock is not None
        try:
            return self._exchange(method, path, body, content_type, while_waiting)
        except ServerAway as away:
            if not kept or not isinstance(away.__cause__, (ConnectionError, http.client.BadStatusLine)):
                raise
        return self._exchange(method, path, body, content_type, while_waiting)

    def call(self, method: str, path: str, members: Any = None, while_waiting: Callable[[], None] | None = None) -> Any:
        """Send and receive JSON; raises ServerRefused for an answer that is not 2xx, ServerAway where none came."""
        body = None if members is None else json.dumps(members, allow_nan=False).encode()
        answer = self.request(method, path, body, while_waiting=while_waiting)
        if not 200 <= answer.status < 300:
            raise answer.problem()
        return answer.json() if answer.body else None

    def parts(self, path: str) -> Iterator[bytes]:
        """Give the body of a GET as it comes, for answers too large to hold.

        Raises ServerRefused for an answer that is not 2xx, and ServerAway where none came or it broke off before its
        end. No other request may be made until the body has ended.
        """
        begun = False
        try:
            self._connection.request("GET", self._base + path, headers=self._headers)
            response = self._connection.getresponse()
            begun = True
            if not 200 <= response.status < 300:
                content_type = response.headers.get_content_type()
                raise Answer(response.status, response.read(), content_type, None).problem()
            while part := response.read(PART_BYTES):
                yield part
        except (OSError, http.client.HTTPException) as error:
            broken = f"{self.server} broke off before the end of its answer: {error}"
            raise ServerAway(broken if begun else self._why(error)) from error
        finally:
            self.close()

    def set_timeout(self, timeout: float) -> None:
        """Bound the requests from now on to timeout seconds without a byte."""
        self.timeout = self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()

    def abort(self) -> None:
        """Break off a request that another thread is waiting in; that thread gets ServerAway."""
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _exchange(
        self, method: str, path: str, body: bytes | None, content_type: str, while_waiting: Callable[[], None] | None
    ) -> Answer:
        try:
            return self._ask(method, path, body, content_type, while_waiting)
        except BaseException as error:  # also an interrupt: its answer would be taken for that of the next request
            self.close()
            if isinstance(error, ServerAway) or not isinstance(error, (OSError, http.client.HTTPException)):
                raise
            raise ServerAway(self._why(error)) from error

    def _ask(
        self, method: str, path: str, body: bytes | None, content_type: str, while_waiting: Callable[[], None] | None
    ) -> Answer:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = content_type
        # A server that refuses a large body answers and closes while we still send: its answer is there to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, self._base + path, body=body, headers=headers)
        if while_waiting is not None or (body is not None and len(body) > JOINED_BYTES):
            self._wait(while_waiting or (lambda: None))
        response = self._connection.getresponse()
        content = response.read()
        return Answer(
            response.status, content, response.headers.get_content_type(), _seconds(response.getheader("Retry-After"))
        )

    def _wait(self, while_waiting: Callable[[], None]) -> None:
        """Wait until the answer begins; raises TimeoutError after `timeout` seconds in which nothing went out."""
        sock = self._connection.sock
        if sock is None:
            return
        end, left = time.monotonic() + self.timeout, unsent(sock)
        with _Selector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            while not selector.select(WAIT_SLICE):
                while_waiting()
                now, before, left = time.monotonic(), left, unsent(sock)
                end = now + self.timeout if left < before else end
                if now >= end:
                    raise TimeoutError(f"timed out after {self.timeout:g} s")

    def _why(self, error: Exception) -> str:
        remedy = "; SSL_CERT_FILE names the certificates that are trusted"
        known = not isinstance(error, ssl.SSLCertVerificationError)
        return f"no answer from {self.server}{self._by}: {str(error) or type(error).__name__}{'' if known else remedy}"


def _seconds(retry_after: str | None) -> float | None:
    """Read Retry-After in its form of seconds; the form of a date is not used by our server."""
    try:
        return max(0.0, float(retry_after)) if retry_after is not None else None
    except ValueError:
        return None
