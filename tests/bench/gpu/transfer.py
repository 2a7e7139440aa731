"""How fast weights come from their file to the card, beside plain reading of that file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.bench.gpu.card import synchronize
from tests.bench.gpu.pictures import nothing, opened, request_of
from tests.bench.models import forget_pages

BLOCK_BYTES = 16 * 2**20


def file_to_card(spec: dict[str, Any]) -> dict[str, Any]:
    """Bytes a second of plain sequential reading and of the engine's load phase, from the disk and from RAM."""
    file = next(Path(spec["model"], "transformer").glob("*.safetensors"))
    found: dict[str, Any] = {"file_bytes": file.stat().st_size}
    with opened(spec, "auto") as engine:
        runtime, request = engine.runtime(), engine.resolve(request_of(spec))
        placement = runtime.plan(request).placements["transformer"]
        for source in ("cold", "warm"):
            for way in ("read", "load"):
                if source == "cold":
                    forget(file)
                if way == "read":
                    found[f"{source}_read"] = read_plainly(file)
                    continue
                runtime.components.clear()
                runtime.components.begin_job()
                start = time.perf_counter()
                with runtime.components.lend("transformer", request.form, placement, nothing) as loan:
                    for _ in loan.load():
                        pass
                    synchronize(spec["device"])
                    seconds = time.perf_counter() - start
                found[f"{source}_load"] = runtime.components.traffic.disk_bytes / seconds
    return found | {f"{source}_ratio": found[f"{source}_load"] / found[f"{source}_read"] for source in ("cold", "warm")}


def read_plainly(file: Path) -> float:
    """Bytes a second of one reader with large blocks."""
    block = bytearray(BLOCK_BYTES)
    start, done = time.perf_counter(), 0
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            done += count
    return done / (time.perf_counter() - start)


def forget(file: Path) -> None:
    """Out of the system's page cache."""
    with file.open("rb") as stream:
        forget_pages(stream.fileno())
