"""An engine's process that stands still where a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engine.events import Event, PhaseStarted
from engine.folders import state_dir
from engine.process import serve


def serve_and_stand_still(phase: str, connection: Connection, log: Path) -> None:
    """As `serve`, but the first job of all processes that enters `phase` says so and comes no further."""
    from engine.engine import Engine

    generate, stood = Engine.generate, state_dir() / "stood still"

    def standing_still(engine: Engine, *arguments: Any) -> Iterator[Event]:
        for event in generate(engine, *arguments):
            stands = isinstance(event, PhaseStarted) and event.phase == phase and not stood.exists()
            if stands:
                stood.touch()  # before anybody hears of it and kills this process
            yield event
            if stands:
                threading.Event().wait()

    Engine.generate = standing_still  # type: ignore[assignment, method-assign]
    serve(connection, log)
