"""Text to image with FLUX.1: an `Engine` paints what a `Request` asks for and says in events what it does.

Names are looked up at first use, so that `import engine` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.events import (
        Cancelled,
        Encoded,
        Event,
        Failed,
        ImageSaved,
        LatentsRestored,
        LoadProgress,
        MemoryUse,
        Noticed,
        PhaseFinished,
        PhasePlan,
        PhaseStarted,
        Plan,
        Planned,
        Preview,
        Simulated,
        StepFinished,
        Turnaround,
    )
    from engine.request import Option, Request, RequestError

    __version__: str

__all__ = [
    "Cancelled",
    "Encoded",
    "Engine",
    "Event",
    "Failed",
    "ImageSaved",
    "LatentsRestored",
    "LoadProgress",
    "MemoryUse",
    "Noticed",
    "Option",
    "PhaseFinished",
    "PhasePlan",
    "PhaseStarted",
    "Plan",
    "Planned",
    "Preview",
    "Request",
    "RequestError",
    "Simulated",
    "StepFinished",
    "Turnaround",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("engine.version").engine_version()
    elif name in __all__:
        modules = map(import_module, ("engine.request", "engine.events", "engine.engine"))  # lightest first
        value = next(vars(module)[name] for module in modules if name in vars(module))
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
