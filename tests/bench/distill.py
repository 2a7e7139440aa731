"""What the demo's distilled text encoder saves, and what it costs: `python -m tests.bench.distill`.

Its size and speed beside the demo's own T5, measured in turn, and the share of held-out prompts (combinations that
neither was ever shown) that is painted right with either, same seeds, judged as `tests.bench.accuracy` judges. The last
row is painted with the empty prompt's sequence: what CLIP's pooled output does alone. Quote times from an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from engine.demo import scenes
from engine.demo.checker import check
from engine.demo.grammar import describe
from engine.demo.scenes import Scene
from engine.library.catalog import DEMO_FOLDER
from engine.weights import loading
from tests.bench.accuracy import HEADINGS, Picture, draw_scenes, row, summary
from tests.bench.speed import medians, timed
from tests.painting import TOKENS, open_pipeline

DISTILLED_FOLDER = DEMO_FOLDER / "distill_t5"
BATCH = 16  # pictures at once
VOCABULARY = 78  # of the demo's T5

Encode = Callable[[Sequence[str]], Tensor]  # prompts to the sequence [B, S, width] that the transformer reads


def encoders(pipeline: FluxPipeline, distilled: torch.nn.Module) -> dict[str, Encode]:
    """The ways to read a prompt that are compared, by name."""

    def ids(prompts: Sequence[str]) -> Tensor:
        batch = pipeline.tokenizer_2(
            list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        token_ids: Tensor = batch.input_ids
        return token_ids

    def by_t5(prompts: Sequence[str]) -> Tensor:
        sequence: Tensor = pipeline.text_encoder_2(ids(prompts)).last_hidden_state
        return sequence

    return {
        "T5": by_t5,
        "distilled": lambda prompts: distilled(ids(prompts)),
        "no text but CLIP's": lambda prompts: by_t5([""] * len(prompts)),
    }


@torch.no_grad()
def paint(pipeline: FluxPipeline, encode: Encode, chosen: Sequence[Scene], seed: int, steps: int = 4) -> list[Picture]:
    """A picture of each scene at the demo's own settings, judged; picture k has seed `seed` + k."""
    rng = np.random.default_rng(seed)
    prompts = [describe(scene, rng) for scene in chosen]
    pictures: list[Picture] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        _, pooled, _ = pipeline.encode_prompt(batch, None, max_sequence_length=TOKENS)
        images = pipeline(
            prompt_embeds=encode(batch),
            pooled_prompt_embeds=pooled,
            width=128,
            height=128,
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=[torch.Generator("cpu").manual_seed(seed + start + k) for k in range(len(batch))],
            output_type="np",
        ).images
        for scene, prompt, image in zip(chosen[start:], batch, np.round(images * 255).astype(np.uint8), strict=False):
            pictures.append(Picture(scene, prompt, image, check(image, scene)))
    return pictures


@torch.no_grad()
def encode_times(t5: torch.nn.Module, distilled: torch.nn.Module, rounds: int) -> tuple[float, float, float]:
    """Median seconds that either network takes for the ids of one prompt, in turn, and the median ratio."""
    prompts = [torch.randint(VOCABULARY, (1, TOKENS)) for _ in range(rounds)]
    for module in (t5, distilled):
        module(prompts[0])  # what the first run of a network does once
    return medians([(timed(partial(t5, ids)), timed(partial(distilled, ids))) for ids in prompts])


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=200, help="prompts that are encoded for the times")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distilled", type=Path, default=DISTILLED_FOLDER, help="the folder of another one")
    options = parser.parse_args()

    pipeline = open_pipeline(DEMO_FOLDER)
    distilled = loading.load(options.distilled, "distill_t5")
    ways = encoders(pipeline, distilled)
    rng = np.random.default_rng(options.seed)
    chosen = draw_scenes(rng, options.prompts, None, scenes.held_out)

    sizes = [sum(p.numel() for p in module.parameters()) for module in (pipeline.text_encoder_2, distilled)]
    files = [weight_bytes(folder) for folder in (DEMO_FOLDER / "text_encoder_2", options.distilled)]
    seconds = encode_times(pipeline.text_encoder_2, distilled, options.rounds)
    print(f"{'':<24}{'T5':>12}{'distilled':>12}{'ratio':>8}")
    for name, (first, second) in (("parameters", sizes), ("bytes of the file", files)):
        print(f"{name:<24}{first:>12,}{second:>12,}{first / second:>8.2f}")
    print(f"{'ms to encode a prompt':<24}{1000 * seconds[0]:>12.2f}{1000 * seconds[1]:>12.2f}{seconds[2]:>8.2f}")
    print()
    print(f"{'per cent right':<24}{'n':>5}{''.join(f'{heading:>11}' for heading in HEADINGS)}  {'95 % interval':>14}")
    for name, encode in ways.items():
        print(row(name, summary(paint(pipeline, encode, chosen, options.seed, options.steps))), flush=True)


if __name__ == "__main__":
    main()
