"""A small server that serves the page with made-up runs: the real files, the real figures, no database."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import orjson
from gradspectra_core import catalogue
from gradspectra_core.detectors import LOCAL_RULES, default_thresholds
from gradspectra_core.views import LayerSeries, Series
from gradspectra_frontend import assets
from gradspectra_frontend.comparison_figures import Compared, curves
from gradspectra_frontend.difference_figures import difference
from gradspectra_frontend.figures import UnknownFigure, build, figure_needs
from gradspectra_frontend.sweep_figure import Trial, sweep
from gradspectra_frontend.theme import theme_named

from frontend import synthetic

SPAN = ("start", "stop")
RULES = [
    {
        **{name: getattr(rule, name) for name in ("name", "severity", "meaning", "source", "needs", "uses")},
        "thresholds": default_thresholds(rule.name),
        "in_job": rule.name in LOCAL_RULES,
    }
    for rule in catalogue.RULES.values()
]
MARKUP = "<img src=x onerror=alert(1)> <b>bold</b>"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}


def cut(view: Any, start: int | None, stop: int | None) -> Any:
    """The part of a view from start to before stop."""
    keep = (view.x >= (start or 0)) & (view.x < (stop or 10**9))
    if isinstance(view, Series):
        names = ("mean", "min", "max", "last", "nonfinite", "present")
        rows = {k: type(b)(*(getattr(b, n)[keep] for n in names)) for k, b in view.series.items()}
        return Series(view.axis, view.x[keep], rows)
    arrays = (getattr(view, n)[:, keep] for n in ("mean", "min", "max", "nonfinite", "present"))
    return LayerSeries(view.statistic, view.axis, view.x[keep], view.layers, view.roles, view.depths, *arrays)


class CannedServer:
    """Serves runs that stand at step `last`; `advance` moves them on and tells the page.

    streams: event streams opened so far. away: refuse new ones.
    """

    def __init__(self, *, runs: int = 5, last: int = 1200) -> None:
        self.listeners: list[queue.Queue[str | None]] = []
        self.begin(runs, last)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.get(self)

            def do_PATCH(self) -> None:
                outer.change(self)

            do_DELETE = do_POST = do_PUT = do_PATCH

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def begin(self, runs: int = 5, last: int = 1200) -> None:
        """Stand where a server just started stands."""
        self.drop_streams()
        self.last, self.streams, self.away = last, 0, False
        self.begun, self.announced = time.monotonic() - 60, None  # before any page was opened, however slow that is
        self.alerts = synthetic.alerts()
        self.unmeasured: dict[str, Any] = {"not_measured": [], "norms_that_disagreed": 0}
        self.damaged: tuple[tuple[int, int], ...] = ()
        self.made: dict[str, list[dict[str, Any]]] = {"tokens": [], "channels": []}
        now = time.time()
        self.runs = [self._run(i, now) for i in range(runs)]

    def _run(self, i: int, now: float) -> dict[str, Any]:
        names = ("gpt-small-lr3e-3", "gpt-small-lr1e-2", MARKUP, "vit-tiny-baseline", "gpt-small-warmup-500-cosine")
        states = ("running", "failed", "finished", "lost", "finished")
        curve = synthetic.series(self.last, every=20).series["loss"].mean
        losses = [json_number(x) for x in (np.append(curve, np.nan) if i == 1 else curve)]
        return {
            "id": f"demo{i + 1:08d}", "project": "shakespeare" if i != 3 else "imagenet", "name": names[i % 5],
            "state": states[i % 5], "health": ("critical", "critical", "ok", "warning", "ok")[i % 5],
            "attempt": 1 + (i == 4), "last_step": self.last, "total_steps": None if i == 3 else 2000,
            "derived_step": self.last, "created_at": now - 3600 * (i + 1) ** 3, "attempt_first_step": 1,
            "attempt_created_at": now - 3600 * (i + 1), "updated_at": now - 2 - 9000 * (i > 0),
            "config": {"lr": 3e-3, "optimizer": {"name": "AdamW", "betas": [0.9, 0.95]}, "note": MARKUP},
            "environment": {"torch": "2.13.0", "python": "3.11", "git": {"commit": "4f1c0de", "dirty": False}},
            "tags": ["baseline", "byte-level"] if i % 2 == 0 else [], "notes": "", "overhead": 0.0084 + 0.002 * i,
            "learning_rate": None if i == 3 else 3e-3 / (i + 1), "step_seconds": 0.052 * (i + 1),
            "open_alerts": (1, 2, 0, 1, 0)[i % 5], "sparkline": losses, "pinned": i == 1,
            "retires_at": now + 86_400 * 170 if i in (2, 3) else None, "retired_at": now - 86_400 if i == 4 else None,
        }  # fmt: skip

    def close(self) -> None:
        """Stop serving; open streams end."""
        self.drop_streams()
        self.http.shutdown()
        self.http.server_close()

    def drop_streams(self) -> None:
        """End all event streams, as a server that restarts does."""
        for listener in self.listeners:
            listener.put(None)
        self.listeners.clear()

    def advance(self, steps: int = 1) -> int:
        """Let the first run take some steps and announce it; returns its last step."""
        self.last += steps
        run = self.runs[0]
        run["last_step"] = run["derived_step"] = self.last
        self.announced = time.monotonic()
        self.announce({"run": run["id"], "batch": self.last, "step": self.last, "derived_step": self.last})
        return self.last

    def announce(self, event: dict[str, Any]) -> None:
        """Tell every page of a run."""
        for listener in self.listeners:
            listener.put(f"event: run\ndata: {json.dumps(event)}\n\n")

    def lately(self) -> dict[str, Any]:
        """What a stream begins with: seconds since the first run was announced, and since the server began."""
        now = time.monotonic()
        ages = {} if self.announced is None else {self.runs[0]["id"]: now - self.announced}
        return {"seconds": now - self.begun, "runs": ages}

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a GET."""
        parts = urlsplit(handler.path)
        path = unquote(parts.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if path == "/api/v1/live":
            return self.stream(handler)
        if path.startswith("/api/v1"):
            try:
                return reply(handler, 200, self.api(path.removeprefix("/api/v1"), query))
            except (KeyError, StopIteration):
                problem = {
                    "type": "about:blank",
                    "title": "Not found",
                    "detail": f"there is no {path}",
                    "remedy": "Look in the list of runs.",
                }
                return reply(handler, 404, problem)
        if path == assets.plotly_url():
            kept = {"Cache-Control": "public, max-age=31536000, immutable"}
            return reply(handler, 200, assets.plotly_script().read_bytes(), "text/javascript", kept)
        if path.startswith("/static/"):
            file = assets.static_dir() / assets.static_path(path.removeprefix("/static/"))[0]
            if file.is_file():
                return reply(handler, 200, file.read_bytes(), TYPES.get(file.suffix, "text/plain"))
            return reply(handler, 404, {"title": "no such file"})
        return reply(handler, 200, assets.index_html().encode(), "text/html")

    def api(self, path: str, query: dict[str, str]) -> Any:
        """The JSON answer of a call; raises KeyError or StopIteration where there is nothing."""
        if path == "/runs":
            wanted = query.get("search", "").lower()
            keep = [r for r in self.runs if wanted in r["name"].lower()]
            keep = [r for r in keep if all(r[k] == query[k] for k in ("health", "state", "project") if query.get(k))]
            return paged(keep, query.get("order", "-created_at"), int(query.get("limit", 100)), query.get("cursor"))
        if path == "/rules":
            return {"items": RULES, "next": None}
        if path == "/projects":
            return {"items": [{"name": "imagenet"}, {"name": "shakespeare"}], "next": None}
        if path == "/alerts":
            items = [a for a in self.alerts if not query.get("state") or a["state"] == query["state"]]
            return {"items": items, "next": None}
        if path == "/me":
            return {"scopes": ["admin"], "how": "local", "tokens_required": False}
        if path == "/retention":
            kept = {"on": True, "days": 180, "level": 1, "width": 8, "spectra": 100, "since": 1.79e9, "notice_days": 14}
            due = [{"run": r["id"], **{k: r[k] for k in ("name", "project", "state", "retires_at")}} for r in self.runs]
            due = [one | {"bytes": 3 << 20, "bytes_after": 1200 << 10} for one in due if one["retires_at"]]
            return {"retention": kept, "items": due, "next": None}
        if path in ("/tokens", "/channels"):
            return {"items": self.made[path.strip("/")], "next": None}
        if path.startswith("/comparisons/"):
            return self.comparison(path.removeprefix("/comparisons/"), query)
        run = next(r for r in self.runs if path.startswith(f"/runs/{r['id']}"))
        return self.of_run(run, path.removeprefix(f"/runs/{run['id']}").strip("/"), query)

    def of_run(self, run: dict[str, Any], what: str, query: dict[str, str]) -> Any:
        """The answer of a call below one run."""
        if what == "":
            return run
        if what == "alerts":
            return {"items": self.alerts if run is self.runs[0] else [], "next": None}
        if what == "suggestions":
            return {"items": synthetic.suggestions(), "next": None}
        if what in ("attempts", "gaps"):
            attempt = {"attempt": 1, "first_step": 1, "created_at": 1.79e9} | self.unmeasured
            return {"items": {"attempts": [attempt], "gaps": []}[what], "next": None}
        if what == "layers":
            rows = synthetic.layer_names()
            return {
                "items": [
                    {
                        "name": n,
                        "role": r,
                        "depth": d,
                        "shape": [128, 384] if r != "norm" else [128],
                        "spectra": r != "norm",
                    }
                    for n, r, d in rows
                ]
            }
        if what == "series":
            view = cut(synthetic.series(self.last), int(query.get("start", 0)), None)
            last = {
                n: {"last": [json_number(v) if p else None for v, p in zip(b.last, b.present, strict=True)]}
                for n, b in view.series.items()
            }
            return {"axis": "step", "x": view.x, "series": last, "available": [*view.series]}
        return self.figure(run, what.removeprefix("figures/"), query)

    def figure(self, run: dict[str, Any], name: str, query: dict[str, str]) -> Any:
        """A real figure of the made-up run."""
        try:
            needs = figure_needs(name)
        except UnknownFigure:
            raise KeyError(name) from None
        start, stop = (int(query[k]) if k in query else None for k in ("start", "stop"))
        if needs[0] == "series":
            data: Any = cut(synthetic.series(self.last), start, stop)
        elif needs[0] == "layers":
            statistic = query.get("statistic", needs[1])
            if statistic not in {"grad_norm", "weight_norm", "update_ratio", "effective_rank"}:
                raise KeyError(statistic)
            data = cut(synthetic.layers(statistic, self.last), start, stop)
        elif needs[0] == "spectra":
            data = synthetic.spectra(query["layer"], self.last, query.get("of", "gradient"))
        else:
            data = synthetic.suggestions()
        options: dict[str, Any] = {k: query[k] for k in ("order", "scale") if k in query}
        options |= {"smooth": float(query["smooth"])} if "smooth" in query else {}
        options |= {"step": int(query["step"])} if "step" in query else {}
        options |= {"layer": query["layer"].split(",")} if name == "layer_curves" and "layer" in query else {}
        return build(
            name,
            data=data,
            alerts=self.alerts if run is self.runs[0] else (),
            theme=query.get("theme", "light"),
            damaged=self.damaged if needs[0] != "suggestions" else (),
            **options,
        )

    def comparison(self, what: str, query: dict[str, str]) -> Any:
        """A real figure of made-up runs: the second and so on have a larger loss, and the gradients of the last."""
        theme, span = theme_named(query.get("theme", "light")), [int(query[k]) if k in query else None for k in SPAN]
        found = [next(r for r in self.runs if r["id"] == run) for run in query["runs"].split(",")]
        if what == "sweep":
            return sweep([Trial(r["name"], 10.0 ** (i - 3), 5.0, 2.0 + i) for i, r in enumerate(found)], theme)
        if what == "difference":
            first = cut(synthetic.layers(query["statistic"], self.last), *span)
            return difference(replace(first, mean=first.mean * 2), first, theme, order=query["order"])
        series = cut(synthetic.series(self.last), *span)
        shown = [Compared(r["id"], r["name"], series, series.x * 1024.0) for r in found]
        smooth = float(query["smooth"]) if "smooth" in query else None
        along, scale = query.get("axis", "step"), query.get("scale", "auto")
        return curves(shown, query["series"], theme, along=along, smooth=smooth, scale=scale)

    def change(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a PATCH, POST or DELETE."""
        body = json.loads(handler.rfile.read(int(handler.headers.get("content-length") or 0)) or b"{}")
        kind = handler.path.removeprefix("/api/v1/")
        if kind in self.made:
            self.made[kind].append(body | {"id": str(len(self.made[kind])), "created_at": 1.79e9, "token": "gs_secret"})
            return reply(handler, 201, self.made[kind][-1])
        if handler.path == "/login":
            right = body["token"] == "gs_right"
            if body["token"] in ("gs_right", "gs_ingest"):
                return reply(handler, 200, {"scopes": ["admin" if right else "ingest"]})
            return reply(handler, 401, {"title": "No valid token", "detail": "the token is unknown"})
        if kind.startswith("mutes/"):
            for alert in self.alerts:
                if kind == f"mutes/{alert['run']}/{alert['rule']}":
                    alert["muted"] = handler.command == "PUT"
            return reply(handler, 200, {})
        identity = unquote(handler.path.rsplit("/", 1)[1])
        for item in [*self.alerts, *self.runs]:
            if item["id"] == identity:
                item.update(body)
                if handler.command == "DELETE":
                    self.runs.remove(item)
                return reply(handler, 200, item)
        return reply(handler, 404, {"title": "Not found", "detail": f"there is no {identity}"})

    def stream(self, handler: BaseHTTPRequestHandler) -> None:
        """Server-sent events until the server closes or the page leaves."""
        if self.away:
            return reply(handler, 503, {"title": "The server is starting"})
        listener: queue.Queue[str | None] = queue.Queue()
        self.listeners.append(listener)
        self.streams += 1
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.close_connection = True
        try:
            handler.wfile.write(f"event: opened\ndata: {json.dumps(self.lately())}\n\n".encode())
            while (event := listener.get()) is not None:
                handler.wfile.write(event.encode())
        except OSError:
            pass  # the page has left


def paged(runs: list[dict[str, Any]], order: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """A page of runs: those after the one that the cursor names by order, value and id."""
    by = order.removeprefix("-")
    rows = sorted(runs, key=lambda run: (run[by], run["id"]), reverse=order.startswith("-"))
    if cursor is not None:
        asked, *place = json.loads(cursor)
        assert asked == order, "a cursor goes on in its own order"
        after = tuple(place)
        rows = [r for r in rows if ((r[by], r["id"]) < after if order.startswith("-") else (r[by], r["id"]) > after)]
    last = rows[limit - 1] if len(rows) > limit else None
    return {"items": rows[:limit], "next": last and json.dumps([order, last[by], last["id"]])}


def json_number(x: float) -> float | str:
    """NaN and inf as the interface writes them."""
    return float(x) if np.isfinite(x) else "NaN" if np.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: Any,
    content_type: str = "application/json",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Send bytes, or an object as JSON, with the page's policy."""
    data = body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    try:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Security-Policy", assets.CONTENT_SECURITY_POLICY)
        handler.end_headers()
        handler.wfile.write(data)
    except OSError:
        pass  # the page has left


if __name__ == "__main__":
    server = CannedServer()
    print(server.url, flush=True)
    while True:
        time.sleep(0.25)
        server.advance(4)
