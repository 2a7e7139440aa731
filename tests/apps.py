"""The real app for tests: without a terminal, with the real engine or with none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import textual.app
import textual.pilot
from textual._context import active_app
from textual.pilot import Pilot

from engine.events import Event
from engine.process import JobEvent
from tui.app import T2IApp
from tui.client import Received
from tui.launch import open_app

PATIENCE = 120  # seconds; what takes longer hangs


async def idle(min_sleep: float = 0, max_sleep: float = 1) -> None:
    """Wait until the app has nothing left to do or to draw: only the engine, a thread or the person moves it on.

    Textual itself waits until the process takes little CPU for 20 ms, twice for a key. Here the event loop tells: at
    once, and also on a machine so busy that the process gets no CPU.
    """
    loop, app = asyncio.get_running_loop(), cast("Any", active_app.get())
    deadline = loop.time() + max_sleep
    await asyncio.sleep(0)
    while loop.time() < deadline:
        if loop._ready:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        elif app._resize_timer is not None:  # more sizes may come
            await asyncio.sleep(0.001)
        elif app._screen_stack and app.screen._update_timer._active.is_set():  # it would draw at the next 1/60 s
            app.screen._on_timer_update()
            await asyncio.sleep(0)
        else:
            return


textual.app.wait_for_idle = textual.pilot.wait_for_idle = idle  # type: ignore[attr-defined]


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

    def at_rest() -> bool:
        return all(worker.is_finished or worker.name == "engine" for worker in app.workers)

    await pilot.pause()  # what was asked for last may begin one, and so may the results of another
    while not at_rest():
        await until(pilot, at_rest)


def notes(app: T2IApp) -> list[str]:
    """The sentences that were shown to the person."""
    return [text for _, text in app.shared.said]


def screen_text(app: T2IApp) -> str:
    """What is on the screen, as text, line by line."""
    strips = app.screen._compositor.render_strips(app.size)
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)
