"""Send the alerts that are due to their channels, signed, and note in the outbox how each try went."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Collection
from typing import Any, NamedTuple

import httpx2
from gradspectra_store import Store
from gradspectra_store.deliveries import due_deliveries, record_delivery

from gradspectra_worker.destinations import ForbiddenDestination, destination

AT_ONCE = 5
"""Deliveries taken at a time: even where each runs into its time limits they are done before they fall due again."""

TIMEOUT = httpx2.Timeout(5.0, connect=3.0)
SIGNATURE_HEADER = "X-Gradspectra-Signature"


class Outcome(NamedTuple):
    """How a try went. status: of the answer, None without one; error: empty where it went well."""

    ok: bool
    status: int | None
    error: str


def deliver_due(
    store: Store, *, now: float, client: httpx2.Client | None = None, allow_hosts: Collection[str] = ()
) -> int:
    """Send all deliveries that are due at `now` (seconds since 1970); return how many tries were made.

    A delivery is taken for a minute in one transaction, sent outside of any, and its outcome recorded in another:
    killed between these it is sent again, so a receiver may see it twice, with the same X-Gradspectra-Delivery.
    """
    own = client
    tries = 0
    try:
        while True:
            with store.write() as conn:
                due = due_deliveries(conn, now, AT_ONCE)
            for delivery in due:
                if own is None:  # made where there is something to send: reading the certificates takes a while
                    own = httpx2.Client(timeout=TIMEOUT, follow_redirects=False, trust_env=False)
                outcome = send(own, delivery, now, allow_hosts)
                with store.write() as conn:
                    record_delivery(conn, delivery["id"], outcome.ok, outcome.status, outcome.error, now)
                tries += 1
            if len(due) < AT_ONCE:
                return tries
    finally:
        if own is not None and client is None:
            own.close()


def send(client: httpx2.Client, delivery: dict[str, Any], now: float, allow_hosts: Collection[str] = ()) -> Outcome:
    """Post one alert to its channel's webhook; every failure becomes an outcome."""
    channel = delivery["channel"]
    body = json.dumps(message(delivery, now), separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "gradspectra",
        "X-Gradspectra-Delivery": delivery["key"],
    }
    if channel["secret"]:
        headers[SIGNATURE_HEADER] = signature(channel["secret"], body)
    try:
        url, addresses = destination(channel["url"], allow_hosts)
        answer = _post(client, url, addresses, body, headers)
    except (ForbiddenDestination, httpx2.HTTPError) as error:
        return Outcome(False, None, f"{type(error).__name__}: {error}")
    if answer.is_redirect:
        return Outcome(False, answer.status_code, "the answer is a redirect, which is not followed; give its target")
    if not answer.is_success:
        return Outcome(False, answer.status_code, f"answered {answer.status_code}")
    return Outcome(True, answer.status_code, "")


def message(delivery: dict[str, Any], now: float) -> dict[str, Any]:
    """Return the body of a delivery: {"type", "delivery", "sent_at", "text", "alert"}; `text` is one line for chats."""
    alert = delivery["alert"]
    text = f"[{delivery['severity']}] {alert['rule']} in run {alert['run']}: {alert['message']}"
    return {"type": "alert", "delivery": delivery["key"], "sent_at": now, "text": text, "alert": alert}


def signature(secret: str, body: bytes) -> str:
    """Return the signature of a body: `sha256=` and the hexadecimal HMAC-SHA256 keyed with the channel's secret."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _post(
    client: httpx2.Client, url: httpx2.URL, addresses: list[str], body: bytes, headers: dict[str, str]
) -> httpx2.Response:
    """Connect to the addresses that were checked, in turn; the name goes into Host and into TLS's check of it."""
    headers = {**headers, "Host": url.netloc.decode("ascii")}
    for address in addresses[:-1]:
        try:
            return _post_to(client, url, address, body, headers)
        except httpx2.ConnectError:
            continue
    return _post_to(client, url, addresses[-1], body, headers)


def _post_to(
    client: httpx2.Client, url: httpx2.URL, address: str, body: bytes, headers: dict[str, str]
) -> httpx2.Response:
    target = url.copy_with(host=address)
    request = client.build_request("POST", target, content=body, headers=headers, extensions={"sni_hostname": url.host})
    answer = client.send(request, stream=True)
    answer.close()
    return answer
