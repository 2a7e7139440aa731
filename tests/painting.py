"""One picture of a request, by the engine and by diffusers: what tests and benchmarks compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray
from PIL import Image

from engine import Engine, ImageSaved, Request
from engine.images.save import plan_output

Prompt = tuple[torch.Tensor, torch.Tensor]  # T5's sequence and CLIP's pooled output
TOKENS = 32  # of the demo's tokenizers, which the tiny models share


def painted(engine: Engine, request: Request) -> NDArray[np.uint8]:
    """The picture that the engine saves: uint8 [H, W, 3]. Raises `RuntimeError` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        *_, last = engine.generate(request, plan_output(Path(folder), 1))
        if not isinstance(last, ImageSaved):
            raise RuntimeError(f"{request}: {last}")
        with Image.open(last.path) as image:
            return np.asarray(image.convert("RGB"))


def open_pipeline(folder: Path) -> FluxPipeline:
    """A model folder as diffusers opens it, in fp32."""
    pipeline = FluxPipeline.from_pretrained(folder).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def painted_by_diffusers(pipeline: FluxPipeline, request: Request, **options: Any) -> NDArray[np.uint8]:
    """The same request's picture by `FluxPipeline`: uint8 [H, W, 3]. The request must be complete."""
    assert request.seed is not None
    result = pipeline(
        request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance or 0.0,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        max_sequence_length=TOKENS,
        output_type="np",
        **options,
    )
    picture: NDArray[np.uint8] = np.round(result.images[0] * 255).astype(np.uint8)
    return picture


def latents_by_diffusers(pipeline: FluxPipeline, prompt: Prompt, request: Request) -> None:
    """The pipeline's loop alone, for a prompt that is encoded. The request must be complete."""
    assert request.seed is not None
    pipeline(
        prompt_embeds=prompt[0],
        pooled_prompt_embeds=prompt[1],
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance or 0.0,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="latent",
    )


def largest_difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    """Of any channel of any pixel, in levels of 255."""
    return int(np.abs(first.astype(int) - second.astype(int)).max())
