"""The engine paints what diffusers' FluxPipeline paints with the same weights, seed and steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Engine, ImageSaved, Request
from engine.images.save import plan_output
from tests.tiny import save_tiny

PROMPT = "a large red circle above a small blue square on a white background"


@pytest.mark.parametrize("guided", [False, True], ids=["schnell", "dev"])
@pytest.mark.parametrize(("width", "height", "steps"), [(128, 128, 4), (192, 96, 5), (64, 160, 1)])
def test_every_pixel_is_within_one_level_of_diffusers(
    guided: bool, width: int, height: int, steps: int, tmp_path: Path
) -> None:
    pipeline = save_tiny(tmp_path / "model", guided)
    reference = pipeline(
        PROMPT,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=2.5 if guided else 0.0,
        generator=torch.Generator("cpu").manual_seed(42),
        max_sequence_length=32,
        output_type="np",
    ).images[0]
    (tmp_path / "out").mkdir()
    with Engine.open(tmp_path / "model", device="cpu") as engine:
        request = Request(PROMPT, steps=steps, seed=42, width=width, height=height, guidance=2.5 if guided else None)
        events = list(engine.generate(request, plan_output(tmp_path / "out", 1)))
    saved = events[-1]
    assert isinstance(saved, ImageSaved), saved
    ours = np.asarray(Image.open(saved.path), dtype=np.int64)
    theirs = np.round(reference * 255).astype(np.int64)
    assert ours.std() > 1, "a flat picture would prove nothing"
    assert np.abs(ours - theirs).max() <= 1
