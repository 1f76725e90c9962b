"""Send the alerts that are due to their channels, signed, and note in the outbox how each try went."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import httpx2
from gradspectra_store import Store
from gradspectra_store.deliveries import LONGEST_WAIT, due_deliveries, record_delivery

from gradspectra_worker.destinations import ForbiddenDestination, destination
from gradspectra_worker.time_limit import TimeLimit

MOST_SECONDS = 120.0
"""A call takes no more deliveries after so long: well before its task would be stopped in the middle of one."""

TIMEOUT = httpx2.Timeout(5.0, connect=3.0)
LONGEST_TRY = 15.0
"""Seconds that a try takes at most, however the receiver spreads its answer over them."""
NOT_KEPT = httpx2.Limits(max_keepalive_connections=0)
SIGNATURE_HEADER = "X-Gradspectra-Signature"

_log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each URL, and who has a chat's URL may write there


_CALLS = str.maketrans("<>@", "‹›＠")
"""Chats take `<!channel>` and `@all` for a call to everyone, and who names a run or a layer could make one."""


class Outcome(NamedTuple):
    """How a try went. status: of the answer, None without one; error: empty where it went well; wait: seconds asked."""

    ok: bool
    status: int | None
    error: str
    wait: float = 0.0


def deliver_due(
    store: Store,
    *,
    clock: Callable[[], float] = time.time,
    client: httpx2.Client | None = None,
    allow_hosts: Collection[str] = (),
) -> int:
    """Send the deliveries that are due, one after the other; return how many tries were made.

    clock: says the time in seconds since 1970.

    A delivery is taken for a minute in one transaction, sent outside of any, and its outcome recorded in another:
    killed between these it is sent again, so a receiver may see it twice, with the same X-Gradspectra-Delivery. A
    channel that fails is left alone for a while, so that the others do not wait for it again and again.
    """
    own = client
    tries, until = 0, clock() + MOST_SECONDS
    failed: set[str] = set()
    try:
        while (now := clock()) < until:
            with store.write() as conn:
                due = due_deliveries(conn, now, 1, without=failed)
            if not due:
                break
            if own is None:  # made where there is something to send: reading the certificates takes a while
                own = httpx2.Client(timeout=TIMEOUT, limits=NOT_KEPT, follow_redirects=False, trust_env=False)
            if not _try(store, own, due[0], clock, allow_hosts):
                failed.add(due[0]["channel"]["id"])
            tries += 1
        return tries
    finally:
        if own is not None and client is None:
            own.close()


def _try(
    store: Store, client: httpx2.Client, delivery: dict[str, Any], clock: Callable[[], float], hosts: Collection[str]
) -> bool:
    """Send a delivery that was taken and record how that went; says whether it went well."""
    outcome = send(client, delivery, clock(), hosts)
    with store.write() as conn:
        given_up = record_delivery(conn, delivery["id"], *outcome[:3], clock(), outcome.wait)
    if given_up:
        alert, channel = delivery["alert"], delivery["channel"]["id"]
        _log.error(
            "gave up delivering %s of run %s to channel %s: %s", alert["rule"], alert["run"], channel, outcome.error
        )
    return outcome.ok


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
    limit = TimeLimit(LONGEST_TRY)
    try:
        url, addresses = destination(channel["url"], allow_hosts)
        with limit:
            answer = _post(client, url, addresses, body, headers, limit)
    except (ForbiddenDestination, httpx2.HTTPError) as error:
        late = f"no answer within {LONGEST_TRY:g} s: " if limit.exceeded else ""
        return Outcome(False, None, f"{late}{type(error).__name__}: {error}")
    if answer.is_redirect:
        return Outcome(False, answer.status_code, "the answer is a redirect, which is not followed; give its target")
    if not answer.is_success:
        return Outcome(False, answer.status_code, f"answered {answer.status_code}", _asked_wait(answer))
    return Outcome(True, answer.status_code, "")


def message(delivery: dict[str, Any], now: float) -> dict[str, Any]:
    """Return the body of a delivery: {"type", "delivery", "sent_at", "text", "run", "alert"}; `text` is for chats."""
    alert, run = delivery["alert"], delivery["run"]
    state = ", closed since" if alert["state"] == "closed" else ""
    text = f"[{delivery['severity']}{state}] {alert['rule']} in {run['project']}/{run['name']} ({run['id']}): "
    text = _one_line(text + alert["message"])
    return {"type": "alert", "delivery": delivery["key"], "sent_at": now, "text": text, "run": run, "alert": alert}


def signature(secret: str, body: bytes) -> str:
    """Return the signature of a body: `sha256=` and the hexadecimal HMAC-SHA256 keyed with the channel's secret."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _one_line(text: str) -> str:
    """Text of printable characters on one line, in which nothing calls anybody."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split()).translate(_CALLS)


def _asked_wait(answer: httpx2.Response) -> float:
    """Seconds for which the receiver asks to be left alone by Retry-After; a date in it is not read."""
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isascii() and asked.isdecimal() else 0.0


def _post(
    client: httpx2.Client, url: httpx2.URL, addresses: list[str], body: bytes, headers: dict[str, str], limit: TimeLimit
) -> httpx2.Response:
    """Connect to the addresses that were checked, in turn; the name goes into Host and into TLS's check of it."""
    headers = {**headers, "Host": url.netloc.decode("ascii")}
    for address in addresses[:-1]:
        try:
            return _post_to(client, url, address, body, headers, limit)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            if limit.exceeded:
                raise
    return _post_to(client, url, addresses[-1], body, headers, limit)


def _post_to(
    client: httpx2.Client, url: httpx2.URL, address: str, body: bytes, headers: dict[str, str], limit: TimeLimit
) -> httpx2.Response:
    target = url.copy_with(host=address)
    extensions = {"sni_hostname": url.host, "trace": limit.trace}
    request = client.build_request("POST", target, content=body, headers=headers, extensions=extensions)
    answer = client.send(request, stream=True)
    answer.close()
    return answer
