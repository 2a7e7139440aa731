"""The engine paints what diffusers' FluxPipeline paints with the same weights, seed and steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Engine, Request
from tests.painting import largest_difference, painted, painted_by_diffusers
from tests.tiny import save_tiny

PROMPT = "a large red circle above a small blue square on a white background"


@pytest.mark.parametrize("guided", [False, True], ids=["schnell", "dev"])
@pytest.mark.parametrize(("width", "height", "steps"), [(128, 128, 4), (192, 96, 5), (64, 160, 1)])
def test_every_pixel_is_within_one_level_of_diffusers(
    guided: bool, width: int, height: int, steps: int, tmp_path: Path
) -> None:
    request = Request(PROMPT, steps=steps, seed=42, width=width, height=height, guidance=2.5 if guided else None)
    theirs = painted_by_diffusers(save_tiny(tmp_path, guided), request)
    with Engine.open(tmp_path, device="cpu") as engine:
        ours = painted(engine, request)
    assert ours.std() > 1, "a flat picture would prove nothing"
    assert largest_difference(ours, theirs) <= 1
