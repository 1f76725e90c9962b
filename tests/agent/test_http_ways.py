"""The ways that lead to a server: proxies, TLS with an authority of one's own, IPv6; and connections that broke."""

from __future__ import annotations

import base64
import contextlib
import http.client
import multiprocessing
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from agent.records import scalar_record
from agent.scripted_server import Handler, ScriptedServer
from gradspectra.errors import ServerAway
from gradspectra.http_client import HttpClient
from gradspectra.proxies import proxy_of
from gradspectra.settings import server_address
from gradspectra.transport import Transport


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


class Proxy(ThreadingHTTPServer):
    """A proxy that takes every host for one server. asked: what it was asked for; known: who it was told asks."""

    daemon_threads = True

    def __init__(self, server: ScriptedServer) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.near = ("127.0.0.1", int(urlsplit(server.url).port or 0))
        self.asked: list[str] = []
        self.known: list[str | None] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A tunnel that is closed is no error."""


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def note(self) -> None:
        self.server.asked.append(self.path)
        self.server.known.append(self.headers["Proxy-Authorization"])

    def do_POST(self) -> None:
        self.note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        connection = http.client.HTTPConnection(*self.server.near)
        connection.request("POST", urlsplit(self.path).path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def do_CONNECT(self) -> None:
        self.note()
        with socket.create_connection(self.server.near) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=pump, args=(far, self.connection))
            back.start()
            pump(self.connection, far)
            back.join(60)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until there is no more, or nobody who takes it."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(server: ScriptedServer) -> Iterator[Proxy]:
    proxy = Proxy(server)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    thread.join(60)


def sent(server: ScriptedServer, address: str, spool: Path) -> None:
    """Send two steps to this address and see that they arrive."""
    transport = Transport(server=address, project="p", spool=spool)
    transport.start()
    for step in (1, 2):
        transport.record(scalar_record(step))
    server.wait_for(lambda: server.steps() == [1, 2])
    transport.close()
    assert len(server.finished) == 1


def test_the_proxy_of_the_environment_is_asked_and_told_who_asks(
    server: ScriptedServer, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:a%20b@{proxy.address}")
    sent(server, "http://gradspectra.test:7117", tmp_path)
    assert proxy.asked[0] == "http://gradspectra.test:7117/api/v1/runs"
    assert set(proxy.known) == {f"Basic {base64.b64encode(b'me:a b').decode()}"}


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    with pytest.raises(ServerAway, match=r"no answer from https://gradspectra\.test by the proxy 127\.0\.0\.1:9: "):
        HttpClient("https://gradspectra.test").call("GET", "/health")


@pytest.mark.parametrize(
    ("scheme", "host", "settings", "found"),
    [
        ("http", "far.test", {"HTTP_PROXY": "http://proxy:3128"}, "proxy:3128"),
        ("https", "far.test", {"HTTPS_PROXY": "proxy"}, "proxy:80"),
        ("https", "far.test", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http", "far.test", {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "x,.test"}, None),
        ("http", "localhost", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http", "127.0.0.1", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http", "::1", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http", "far.test", {"HTTP_PROXY": "socks5://proxy:1080"}, None),
        ("http", "far.test", {"HTTP_PROXY": ""}, None),
    ],
)
def test_which_proxy_leads_to_a_host(
    scheme: str, host: str, settings: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_of(scheme, host)
    assert (proxy and str(proxy)) == found


def test_a_proxy_without_a_port_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:none")
    with pytest.raises(ValueError, match="HTTP_PROXY must be an address like http://proxy:3128"):
        HttpClient("http://far.test")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of this machine that nobody knows; its key lies beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the certificate")
    names = "subjectAltName=DNS:gradspectra.test,IP:127.0.0.1"
    made = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2", "-subj", "/CN=x", "-addext", names, *made]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return tmp_path / "cert.pem"


@pytest.fixture
def secure(certificate: Path) -> Iterator[ScriptedServer]:
    server = ScriptedServer(away=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    server.listen()
    yield server
    server.stop()


def test_a_certificate_of_one_s_own_is_trusted_where_ssl_cert_file_names_it(
    secure: ScriptedServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = secure.url.replace("http:", "https:")
    with pytest.raises(ServerAway, match=r"certificate verify failed.*; SSL_CERT_FILE names the certificates that are"):
        HttpClient(address).call("POST", "/runs", {})
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    sent(secure, address, tmp_path / "spool")


def test_tls_goes_through_the_tunnel_of_a_proxy(
    secure: ScriptedServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    proxy = Proxy(secure)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    try:
        sent(secure, "https://gradspectra.test", tmp_path / "spool")
        assert set(proxy.asked) == {"gradspectra.test:443"}
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(60)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("http://[::1]", ("::1", 80)),
        ("https://[2001:db8::5]/base", ("2001:db8::5", 443)),
        ("http://[::1]:7117", ("::1", 7117)),
        ("http://example.org", ("example.org", 80)),
    ],
)
def test_an_address_of_ipv6_needs_no_port(address: str, found: tuple[str, int]) -> None:
    connection = HttpClient(address)._connection
    assert (connection.host, connection.port) == found


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".test"])
def test_a_host_name_that_cannot_be_is_refused_as_an_address(host: str) -> None:
    with pytest.raises(ValueError, match="server must be an address like"):
        server_address(f"http://{host}")


def test_after_an_interrupt_the_next_request_gets_its_own_answer(server: ScriptedServer) -> None:
    client = HttpClient(server.url)
    client.call("POST", "/runs", {"session_key": "a"})
    held = threading.Event()

    def late(_: Handler) -> bool:
        held.wait(60)
        return False

    def interrupt() -> None:
        raise KeyboardInterrupt

    server.on_make_run = late
    with pytest.raises(KeyboardInterrupt):
        client.call("POST", "/runs", {"session_key": "b"}, interrupt)
    server.on_make_run = None
    assert client.call("POST", "/runs", {"session_key": "a"})["id"] == "run1"
    held.set()
    client.close()


def test_a_request_that_is_given_up_is_not_sent_again(server: ScriptedServer) -> None:
    client = HttpClient(server.url)
    client.call("POST", "/runs", {"session_key": "a"})
    held = threading.Event()

    def late(_: Handler) -> bool:
        held.wait(60)
        return False

    def over() -> None:
        raise ServerAway("the run is closed")

    server.on_make_run = late
    with pytest.raises(ServerAway, match=r"^the run is closed$"):
        client.call("POST", "/runs", {"session_key": "b"}, over)
    assert len(server.requests) == 2
    held.set()


def _ask(client: HttpClient, key: str) -> None:
    inherited = client._connection.sock.getsockname()
    client.call("POST", "/runs", {"session_key": key})
    os._exit(0 if client._connection.sock.getsockname() != inherited else 1)


def test_a_forked_child_asks_over_a_connection_of_its_own(server: ScriptedServer) -> None:
    client = HttpClient(server.url)
    client.call("POST", "/runs", {"session_key": "a"})
    child = multiprocessing.get_context("fork").Process(target=_ask, args=(client, "b"))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    own = client._connection.sock
    assert client.call("POST", "/runs", {"session_key": "c"})["id"] == "run3"
    assert client._connection.sock is own, "the child's end left the parent's connection as it was"
    client.close()


def test_a_proxy_s_own_limit_is_said_with_the_remedy(server: ScriptedServer) -> None:
    def too_large(handler: Handler) -> bool:
        handler.send_response(413)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    server.on_make_run = too_large
    answer = HttpClient(server.url).request("POST", "/runs", b"{}")
    assert str(answer.problem()) == (
        "the server answered 413: a proxy takes no body so large — raise its limit (client_max_body_size)"
    )
