"""A server that takes every record and does nothing with it, in a process of its own: what sending costs the agent.

It speaks just enough HTTP to cost next to nothing itself: what it takes of the machine would look like the agent's.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

RUN = {"id": "benchmark", "attempt": 1, "session": "one", "next_sequence": 1, "url": "http://sink"}
STORED = {"status": "stored", "next_sequence": 1, "alerts": [], "stop_at_step": None}
VIEWED = b"-viewed"
"""Runs whose name has this in it are told that somebody looks at them."""


def _answer(status: str, members: dict[str, Any]) -> bytes:
    body = json.dumps(members).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


MADE = _answer("201 Created", RUN)
TAKEN = {viewed: _answer("200 OK", STORED | {"viewed": viewed}) for viewed in (False, True)}


def _talk(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    viewed = False
    while True:
        while b"\r\n\r\n" not in received:
            received += (piece := connection.recv(1 << 20))
            if not piece:
                return
        head, received = received.split(b"\r\n\r\n", 1)
        wanted = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        while len(received) < wanted:
            received += (piece := connection.recv(1 << 20))
            if not piece:
                return
        body, received = received[:wanted], received[wanted:]
        makes_run = head.split(b" ", 2)[1].endswith(b"/runs")
        viewed = VIEWED in body if makes_run else viewed
        connection.sendall(MADE if makes_run else TAKEN[viewed])


def _serve(pipe: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        while True:
            threading.Thread(target=_talk, args=(server.accept()[0],), daemon=True).start()


def start_sink() -> tuple[multiprocessing.process.BaseProcess, str]:
    """Start the server; gives its process (to be terminated by the caller) and its address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    return process, f"http://127.0.0.1:{here.recv()}"
