"""Webhooks: signed, retried, logged; never to an address inside."""

import hashlib
import hmac
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from gradspectra_core.alerts import Finding
from gradspectra_core.catalogue import RULES
from gradspectra_store.alerts import apply_findings
from gradspectra_store.channels import add_channel
from gradspectra_store.deliveries import due_deliveries, list_deliveries
from gradspectra_store.runs import RunRequest, start_run
from gradspectra_worker.deliver import deliver_due
from gradspectra_worker.destinations import ForbiddenDestination, destination
from worker.receiver import Receiver, receiving
from worker.synthetic import start


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def at(now: float) -> Callable[[], float]:
    """A clock that stands still."""
    return lambda: now


def alarm(store, severity: str = "warning", change: str = "open") -> str:
    """An alert of rule loss_spike, opened at step 12 of the run."""
    run = start(store).run
    finding = Finding("loss_spike", change, severity, 12, 12, value=9.0, message="loss 9: 3 times its recent median")
    with store.write() as conn:
        (alert,) = apply_findings(conn, run, 1, [(finding, 1.7e9)], RULES)
    return alert["id"]


def channel(store, url: str, **options: str) -> str:
    with store.write() as conn:
        return add_channel(conn, url=url, now=0.0, **options)["id"]


def log(store) -> list[dict]:
    with store.read() as conn:
        return list_deliveries(conn)[0]


def test_a_webhook_gets_the_alert_signed(store, receiver):
    channel(store, receiver.url, secret="s3cret")
    alert = alarm(store)
    assert deliver_due(store, clock=at(100.0), allow_hosts=["127.0.0.1"]) == 1
    ((headers, body),) = receiver.got
    assert headers["X-Gradspectra-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == receiver.url.split("/")[2]
    sent = json.loads(body)
    assert (sent["type"], sent["sent_at"], sent["alert"]["id"], sent["alert"]["opened_step"]) == (
        "alert",
        100.0,
        alert,
        12,
    )
    assert sent["delivery"] == headers["X-Gradspectra-Delivery"]
    run = sent["alert"]["run"]
    assert sent["run"] == {"id": run, "project": "p", "name": "n"}
    assert sent["text"] == f"[warning] loss_spike in p/n ({run}): loss 9: 3 times its recent median"
    (entry,) = log(store)
    assert (entry["state"], entry["status"], entry["tries"], entry["sent_at"]) == ("sent", 204, 1, 100.0)
    assert deliver_due(store, clock=at(1e6), allow_hosts=["127.0.0.1"]) == 0


def test_a_channel_without_a_secret_gets_no_signature(store, receiver):
    channel(store, receiver.url)
    alarm(store)
    deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"])
    assert "X-Gradspectra-Signature" not in receiver.got[0][0]


def test_failed_tries_are_repeated_later_with_the_same_key_and_logged(store, receiver):
    channel(store, receiver.url)
    alarm(store)
    receiver.answers = [500, 503]
    now, waits = 0.0, []
    for status in (500, 503, 204):
        assert deliver_due(store, clock=at(now), allow_hosts=["127.0.0.1"]) == 1
        (entry,) = log(store)
        assert entry["status"] == status
        assert deliver_due(store, clock=at(now + 9.0), allow_hosts=["127.0.0.1"]) == 0
        waits.append(entry["next_at"] - now)
        now = entry["next_at"]
    assert 10.0 <= waits[0] <= 12.5
    assert 40.0 <= waits[1] <= 50.0
    assert (entry["state"], entry["tries"]) == ("sent", 3)
    assert len({headers["X-Gradspectra-Delivery"] for headers, _ in receiver.got}) == 1


def test_a_delivery_is_given_up_after_six_tries(store, receiver):
    channel(store, receiver.url)
    alarm(store)
    receiver.answers = [500] * 10
    for round_ in range(10):
        deliver_due(store, clock=at(1e5 * (round_ + 1)), allow_hosts=["127.0.0.1"])
    (entry,) = log(store)
    assert (entry["state"], entry["tries"], entry["error"], len(receiver.got)) == ("failed", 6, "answered 500", 6)


def test_a_redirect_is_not_followed(store, receiver):
    channel(store, receiver.url)
    alarm(store)
    receiver.answers = [307]
    deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"])
    (entry,) = log(store)
    assert (entry["state"], entry["status"], len(receiver.got)) == ("due", 307, 1)
    assert entry["error"] == "the answer is a redirect, which is not followed; give its target"


def test_an_address_inside_is_refused_and_said_so_in_the_log(store, receiver):
    channel(store, receiver.url)
    alarm(store)
    assert deliver_due(store, clock=at(0.0)) == 1
    (entry,) = log(store)
    assert receiver.got == []
    assert "127.0.0.1 is 127.0.0.1, which is not a public address" in entry["error"]
    assert "GRADSPECTRA_ALERT_ALLOW_HOSTS=127.0.0.1" in entry["error"]


def test_a_server_that_is_away_is_an_outcome_not_an_error(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        channel(store, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        alarm(store)
        assert deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"]) == 1
    (entry,) = log(store)
    assert (entry["state"], entry["status"]) == ("due", None)
    assert entry["error"].startswith("ConnectError")


def test_an_answer_that_drips_is_broken_off(store, monkeypatch):
    monkeypatch.setattr("gradspectra_worker.deliver.LONGEST_TRY", 0.3)
    ended = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            for letter in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 600:
                try:
                    connection.sendall(bytes([letter]))
                except OSError:
                    ended.set()
                    return
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        channel(store, f"http://127.0.0.1:{listener.getsockname()[1]}/hook")
        alarm(store)
        assert deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"]) == 1
    (entry,) = log(store)
    assert entry["error"].startswith("no answer within 0.3 s: ")
    assert ended.wait(10), "the connection was closed long before the last letter"


def test_a_delivery_taken_by_a_process_that_died_is_due_again_after_a_minute(store, receiver):
    channel(store, receiver.url)
    alarm(store)
    with store.write() as conn:
        assert len(due_deliveries(conn, 0.0)) == 1
    assert deliver_due(store, clock=at(59.0), allow_hosts=["127.0.0.1"]) == 0
    assert deliver_due(store, clock=at(61.0), allow_hosts=["127.0.0.1"]) == 1


def test_many_deliveries_are_all_sent(store, receiver):
    channel(store, receiver.url)
    for _ in range(12):
        alarm(store)
    assert deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"]) == 12
    assert len(receiver.got) == 12


def test_the_connection_goes_to_the_address_that_was_checked_under_the_name(monkeypatch, store):
    resolved = []

    def resolve(host: str, port: int, **_: object) -> list:
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200)

    channel(store, "https://hooks.example.org:8443/x?y=1")
    alarm(store)
    with httpx2.Client(transport=httpx2.MockTransport(answer)) as client:
        assert deliver_due(store, clock=at(0.0), client=client) == 1
    assert resolved == ["hooks.example.org"]
    assert str(requests[0].url) == "https://93.184.216.34:8443/x?y=1"
    assert requests[0].headers["Host"] == "hooks.example.org:8443"
    assert requests[0].extensions["sni_hostname"] == "hooks.example.org"
    assert log(store)[0]["state"] == "sent"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:127.0.0.1]/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://0/",
        "http://100.64.0.1/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://[fe80::1]/",
        "http://[fec0::1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://224.0.0.1/",
        "http://example.org@127.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://",
        "http://[bad",
        "",
        "http://no-such-host.invalid/",
    ],
)
def test_a_destination_inside_or_unreadable_is_forbidden(url):
    with pytest.raises(ForbiddenDestination):
        destination(url)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d822"])
def test_a_public_address_may_be_sent_to(address):
    url = f"https://[{address}]/" if ":" in address else f"https://{address}/"
    assert destination(url)[1] == [address]


def test_one_private_address_among_public_ones_forbids_the_name(monkeypatch):
    def resolve(_host: str, port: int, **_: object) -> list:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ForbiddenDestination, match=r"is 10\.0\.0\.1, which is not a public address"):
        destination("https://hooks.example.org/")
    assert destination("https://hooks.example.org/", ["HOOKS.example.org"])[1] == ["93.184.216.34", "10.0.0.1"]


def test_where_nothing_is_due_no_certificates_are_read(store, monkeypatch):
    monkeypatch.delattr("httpx2.Client")
    assert deliver_due(store, clock=at(1000.0)) == 0


def test_a_delivery_is_nobody_elses_while_it_is_sent_however_long_those_before_it_took(store, receiver):
    channel(store, receiver.url)
    for _ in range(4):
        alarm(store)
    now, others = 0.0, []

    def slow() -> None:
        nonlocal now
        now += 40.0
        due = [entry for entry in log(store) if entry["state"] == "due" and entry["next_at"] <= now]
        others.append([f"{entry['alert']}-{entry['channel']}-{entry['severity']}" for entry in due])

    receiver.meanwhile = slow
    assert deliver_due(store, clock=lambda: now, allow_hosts=["127.0.0.1"]) == 3
    assert len(set(receiver.keys)) == 3
    assert [key for key, due in zip(receiver.keys, others, strict=True) if key in due] == []
    assert [len(due) for due in others] == [3, 2, 1]


def test_a_call_ends_after_two_minutes_and_the_next_one_sends_the_rest(store, receiver):
    channel(store, receiver.url)
    for _ in range(4):
        alarm(store)
    now = 0.0

    def slow() -> None:
        nonlocal now
        now += 59.0

    receiver.meanwhile = slow
    assert deliver_due(store, clock=lambda: now, allow_hosts=["127.0.0.1"]) == 3
    assert deliver_due(store, clock=lambda: now, allow_hosts=["127.0.0.1"]) == 1
    assert len(set(receiver.keys)) == 4


def test_a_channel_that_fails_holds_up_no_other(store, receiver):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        away = channel(store, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        channel(store, receiver.url)
        for _ in range(3):
            alarm(store)
        for now, tried in ((1.0, 1), (9.0, 1), (31.5, 2), (45.0, 2), (62.0, 3)):
            deliver_due(store, clock=at(now), allow_hosts=["127.0.0.1"])
            assert len(receiver.got) == 3
            assert sum(entry["tries"] for entry in log(store) if entry["channel"] == away) == tried


def test_who_gives_up_says_so_in_the_log_and_nothing_that_is_logged_has_the_address(store, receiver, caplog):
    caplog.set_level(logging.INFO)
    where = channel(store, receiver.url)
    alarm(store)
    receiver.answers = [500] * 6
    for call in range(6):
        assert "gave up" not in caplog.text
        deliver_due(store, clock=at(1e5 * call), allow_hosts=["127.0.0.1"])
    run = json.loads(receiver.got[0][1])["alert"]["run"]
    said = f"gave up delivering loss_spike of run {run} to channel {where}: answered 500"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [said]
    assert "a=b" not in caplog.text


@pytest.mark.parametrize(
    ("asks", "least", "most"),
    [("90", 90, 90), ("999999", 3600, 3600), (None, 10, 12.5), ("Sun, 22 Nov 2026 10:00:00 GMT", 10, 12.5)],
)
def test_a_receiver_that_asks_to_be_left_alone_is(store, receiver, asks, least, most):
    channel(store, receiver.url)
    alarm(store)
    alarm(store)
    receiver.answers, receiver.asks = [429], asks
    assert deliver_due(store, clock=at(100.0), allow_hosts=["127.0.0.1"]) == 1
    other, tried = log(store)
    assert least <= tried["next_at"] - 100.0 <= most
    assert other["next_at"] - 100.0 == max(least, 30.0)


def test_the_text_is_one_line_that_calls_nobody_whatever_run_and_layer_are_called(store, receiver):
    channel(store, receiver.url)
    with store.write() as conn:
        run = start_run(conn, RunRequest("a\nb", "gpt <!channel>")).run
        message = "the gradient of @all\u202egpj is exactly zero"
        finding = Finding("dead_layer", "open", "warning", 12, 12, value=0.0, message=message)
        apply_findings(conn, run, 1, [(finding, 1.7e9)], RULES)
    deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"])
    sent = json.loads(receiver.got[0][1])
    assert sent["text"] == (
        f"[warning] dead_layer in a b/gpt ‹!channel› ({run}): the gradient of ＠all gpj is exactly zero"
    )
    assert (sent["run"]["name"], sent["alert"]["message"]) == ("gpt <!channel>", message)


def test_of_an_alert_that_closed_before_it_was_delivered_the_text_says_so(store, receiver):
    channel(store, receiver.url)
    run = start(store).run
    with store.write() as conn:
        for change, step in (("open", 12), ("close", 20)):
            finding = Finding("loss_spike", change, "warning", 12, step, message="loss 9")
            apply_findings(conn, run, 1, [(finding, 1.7e9)], RULES)
    deliver_due(store, clock=at(0.0), allow_hosts=["127.0.0.1"])
    assert json.loads(receiver.got[0][1])["text"] == f"[warning, closed since] loss_spike in p/n ({run}): loss 9"


@contextmanager
def silent(port: int) -> Iterator[None]:
    """127.0.0.2 answers no more connections at the port: its queue of them is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", port))
        yield


def test_where_an_address_does_not_answer_the_next_one_is_tried(store, receiver, monkeypatch):
    monkeypatch.setattr("gradspectra_worker.deliver.TIMEOUT", httpx2.Timeout(5.0, connect=0.3))
    port = receiver.server.server_port
    resolved(monkeypatch, "127.0.0.2", "127.0.0.1")
    channel(store, f"http://hooks.test:{port}/")
    alarm(store)
    with silent(port):
        deliver_due(store, clock=at(0.0), allow_hosts=["hooks.test"])
    assert (log(store)[0]["state"], len(receiver.got)) == ("sent", 1)


def test_addresses_that_do_not_answer_take_no_longer_than_a_try(store, receiver, monkeypatch):
    monkeypatch.setattr("gradspectra_worker.deliver.TIMEOUT", httpx2.Timeout(5.0, connect=0.3))
    monkeypatch.setattr("gradspectra_worker.deliver.LONGEST_TRY", 0.2)
    port = receiver.server.server_port
    resolved(monkeypatch, "127.0.0.2", "127.0.0.1")
    channel(store, f"http://hooks.test:{port}/")
    alarm(store)
    with silent(port):
        deliver_due(store, clock=at(0.0), allow_hosts=["hooks.test"])
    (entry,) = log(store)
    assert entry["error"].startswith("no answer within 0.2 s: ConnectTimeout")
    assert receiver.got == []


def resolved(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Names that end in .test have these addresses."""
    known = socket.getaddrinfo

    def resolve(host: str, port: int, *rest: int, **more: int) -> list:
        if not host.endswith(".test"):
            return known(host, port, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Key and certificate for the name hooks.test, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    file = tmp_path / "hooks.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test", "-days", "2"]
    done = subprocess.run(
        [*command, "-keyout", file, "-out", tmp_path / "own.pem"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with file.open("a") as out:
        out.write((tmp_path / "own.pem").read_text())
    return file


@pytest.mark.parametrize(
    ("name", "trusted", "error"),
    [
        ("hooks.test", True, ""),
        ("hooks.test", False, "certificate verify failed: self-signed certificate"),
        ("other.test", True, "certificate verify failed: Hostname mismatch"),
    ],
)
def test_the_certificate_must_be_trusted_and_of_the_name(store, monkeypatch, certificate, name, trusted, error):
    resolved(monkeypatch, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with receiving(context) as receiver:
        channel(store, f"https://{name}:{receiver.server.server_port}/")
        alarm(store)
        verify = ssl.create_default_context(cafile=certificate) if trusted else True
        with httpx2.Client(verify=verify, trust_env=False) as client:
            deliver_due(store, clock=at(0.0), client=client, allow_hosts=["hooks.test", "other.test"])
    (entry,) = log(store)
    assert (entry["state"], len(receiver.got)) == (("due", 0) if error else ("sent", 1))
    assert error in entry["error"]
