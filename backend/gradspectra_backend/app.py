"""Puts the rooms together: one FastAPI application over the store, the dispatcher, the live hub and the page."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI
from gradspectra_core import __version__
from gradspectra_store import Store
from gradspectra_store.retention import adopt_retention
from gradspectra_worker.announce import RedisAnnouncer
from gradspectra_worker.celery_dispatch import CeleryDispatcher
from gradspectra_worker.dispatch import InlineDispatcher
from gradspectra_worker.heartbeat import LivingWorkers
from gradspectra_worker.redis_urls import for_redis

from gradspectra_backend import door, manual, openapi, pages, problems, store_problems
from gradspectra_backend.audience import Audience
from gradspectra_backend.context import Context
from gradspectra_backend.door import RequestBounds, SecurityHeaders, TrustedHosts
from gradspectra_backend.live import Hub
from gradspectra_backend.memory import give_back_freed
from gradspectra_backend.meters import Meters
from gradspectra_backend.methods import HeadAsGet
from gradspectra_backend.news import AlertNews
from gradspectra_backend.pump import Pump
from gradspectra_backend.routes import API, OPERATION
from gradspectra_backend.settings import Settings, load_settings
from gradspectra_backend.short_way import ShortWay
from gradspectra_backend.start import has_token

log = logging.getLogger(__name__)

DESCRIPTION = (
    "Training dynamics of neural networks: layer-wise gradient norms, noise, spectra, suggestions and alerts. "
    'In JSON, NaN and ±inf are the strings "NaN", "Infinity" and "-Infinity"; null means only missing.'
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. settings: read from the environment where not given; raises SettingsError then."""
    settings = settings or load_settings()
    app = FastAPI(
        title="gradspectra",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry={"auto_configure": False},
    )
    app.state.settings = settings
    app.state.hub = Hub()
    problems.install(app)
    store_problems.install(app)
    door.install(app)
    for router in (*API, *OPERATION):
        app.include_router(router)
    manual.install(app)
    pages.install(app)
    openapi.install(app)
    app.add_middleware(ShortWay)
    app.add_middleware(RequestBounds, max_body=settings.max_body)
    app.state.passed_hosts = set()
    app.add_middleware(TrustedHosts, hosts=settings.hosts, passed=app.state.passed_hosts)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SecurityHeaders)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    hub: Hub = app.state.hub
    give_back_freed()
    hub.open(asyncio.get_running_loop())
    restore = _close_on_signals(hub)
    store, _ = await asyncio.gather(asyncio.to_thread(_opened, settings), asyncio.to_thread(pages.prepare))
    try:
        await asyncio.to_thread(_check_tokens, settings, store)
        if settings.redis_url is None:
            async with _embedded(app, settings, store, hub):
                yield
        else:
            async with _with_redis(app, settings, store, hub, settings.redis_url):
                yield
    finally:
        hub.close()
        restore()
        await asyncio.to_thread(store.close)


def _opened(settings: Settings) -> Store:
    """The store, with the retention of the settings in force."""
    store = Store.open(settings.database, synchronous=settings.sqlite_synchronous)
    with store.write() as conn:
        adopt_retention(conn, settings.retention, time.time())
    return store


def _check_tokens(settings: Settings, store: Store) -> None:
    if settings.tokens_required and not has_token(store):
        log.warning("every call is refused until there is a token: gradspectra token create me --scope admin")


@asynccontextmanager
async def _embedded(app: FastAPI, settings: Settings, store: Store, hub: Hub) -> AsyncIterator[None]:
    """This process derives by itself and tells its own streams."""
    news = AlertNews()

    def announce(announcement: dict[str, Any]) -> None:
        news.heard(announcement)
        hub.announce(announcement)

    dispatcher = InlineDispatcher(store, announce, allow_hosts=settings.alert_allow_hosts)
    app.state.context = Context(
        *(settings, store, hub, dispatcher, announce, Meters(), news, Audience(hub), lambda: None),
        hosts=app.state.passed_hosts,
    )
    dispatcher.start()
    try:
        yield
    finally:
        hub.close()
        await asyncio.to_thread(dispatcher.stop, 10.0)


@asynccontextmanager
async def _with_redis(app: FastAPI, settings: Settings, store: Store, hub: Hub, url: str) -> AsyncIterator[None]:
    """Workers derive; announcements go over Redis to the streams of all processes, this one included."""
    news = AlertNews()
    announcer = RedisAnnouncer(for_redis(url))
    dispatcher = CeleryDispatcher(url)
    audience = Audience(hub)
    pump = Pump(for_redis(url), hub, news.heard, audience.heard)
    workers = LivingWorkers(url)
    app.state.context = Context(
        settings, store, hub, dispatcher, announcer, Meters(), news, audience, pump.problem, workers
    )
    dispatcher.start()
    pump.start()
    telling = asyncio.create_task(audience.tell(announcer), name="audience")
    try:
        yield
    finally:
        hub.close()
        telling.cancel()
        await pump.stop()
        await asyncio.to_thread(dispatcher.stop, 5.0)
        announcer.close()
        workers.close()


def _close_on_signals(hub: Hub) -> Any:
    """Close the live streams as soon as a stop is asked for: a server waits for its connections to end.

    Returns a function that puts the former handlers back. Does nothing outside of the main thread, where signals
    are not handled.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, frame: FrameType | None) -> None:
        hub.close_soon()
        before = former[signal.Signals(number)]
        if callable(before):
            before(number, frame)

    for number in former:
        signal.signal(number, handler)

    def restore() -> None:
        for number, before in former.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before)

    return restore
