"""The real app for tests: without a terminal, with the real engine or with none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

from textual.pilot import Pilot

from engine.events import Event
from engine.process import JobEvent
from tui.app import T2IApp
from tui.client import Received
from tui.launch import open_app

PATIENCE = 120  # seconds; what takes longer hangs


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test to its end."""
    asyncio.run(test)


@asynccontextmanager
async def running(
    size: tuple[int, int] = (80, 24), *, engine: bool = True, **flags: object
) -> AsyncIterator[tuple[T2IApp, Pilot[None]]]:
    """The app at this size, with its engine ready; or with an engine that never says anything."""
    app = open_app({"color": "truecolor", "preview": "high", **flags})
    if not engine:
        app.client.start = lambda opening: None  # type: ignore[method-assign]
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: not engine or app.session.engine_state in ("ready", "refused"))
        yield app, pilot


async def engine_says(app: T2IApp, pilot: Pilot[None], *events: Event) -> None:
    """What the engine would say of the running job, where there is none to say it."""
    assert app.session.running is not None
    job_id = app.session.running.id
    for event in events:
        app.post_message(Received(cast("Any", None), JobEvent(job_id, event)))
        await pilot.pause()


async def until(pilot: Pilot[None], done: Callable[[], object]) -> None:
    """Wait for something that the engine or a thread does."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        await pilot.pause(0.01)
    await pilot.pause()


async def settled(pilot: Pilot[None], app: T2IApp) -> None:
    """Wait until every thread worker but the engine's reader has ended, and its results are shown."""
    await until(pilot, lambda: all(worker.is_finished or worker.name == "engine" for worker in app.workers))


def notes(app: T2IApp) -> list[str]:
    """The sentences that were shown to the person."""
    return [text for _, text in app.said]


def screen_text(app: T2IApp) -> str:
    """What is on the screen, as text, line by line."""
    strips = app.screen._compositor.render_strips(app.size)
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)
