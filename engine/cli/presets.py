"""`t2i presets`: the presets that there are, and what each chooses.

`--json` prints an object for each: event (preset), name, values (by the names of flags), problem (null, or a sentence).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from engine.cli.console import DONE, write
from engine.request import RequestError
from engine.text import printable, some_of

MAX_VALUE = 60  # characters


def list_presets(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each on stdout.")] = False,
) -> Callable[[], int]:
    """List what --preset takes: choices under a name, a TOML file each in the configuration folder."""

    def work() -> int:
        from engine import presets

        names = presets.names()
        for name in names:
            values: dict[str, Any] = {}
            problem = None
            try:
                values = presets.read(name)
            except RequestError as error:
                problem = str(error)
            if as_json:
                write(json.dumps({"event": "preset", "name": name, "values": values, "problem": problem}))
            else:
                chosen = some_of(f"{key} {str(value)[:MAX_VALUE]}" for key, value in values.items())
                write(printable(f"{name}: {problem or chosen or 'nothing'}"))
        if not names and not as_json:
            write(f"there are no presets; {presets.how()}")
        return DONE

    return work
