"""What schedules of true classifier-free guidance do to the demo's pictures: `python -m tests.bench.guidance`.

For steps, scales and schedules: how many pictures of held-out prompts are right in everything (strict, judged as
`tests.bench.accuracy` judges), how different the pictures of one prompt are, how saturated, and how often the
transformer runs for one. The distilled guidance is 1 in all of them, which is the model without it, and the negative
prompt is empty; "none" has no guidance at all, "distilled" the demo's own. All rows have the same prompts and seeds.

The loop is the engine's with many pictures at once; the first picture of every row is compared with the engine's own.
Wilson's interval takes all pictures for independent. The difference from the constant schedule is of pairs, its
interval over prompts. Rows that the CSV file has already are not measured again. Where the cores have other work,
OMP_NUM_THREADS=1 is the fastest by far: without it, the checker's small matrix products wait for each other.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engine import Engine, Request
from engine.demo import scenes
from engine.demo.checker import check
from engine.demo.grammar import describe
from engine.demo.scenes import Scene
from engine.families.flux1.latents import image_position_ids, noise, unpack
from engine.library.catalog import DEMO_FOLDER
from engine.sampling import flow
from engine.sampling.guidance import Steering
from engine.sampling.true_cfg import TrueGuidance
from tests.bench.accuracy import Picture, draw_scenes, summary
from tests.painting import TOKENS, largest_difference, open_pipeline, painted

SCHEDULES = ("constant", "interval", "tv", "tv-anchored")
DISTILLED = 3.0  # the demo's own guidance
SIDE = 128  # pixels
BATCH, DECODED = 16, 4  # pictures at once, in the transformer and in the decoder
KEYS = ("prompts", "seeds", "seed", "steps", "scale", "kind")  # what tells rows apart

Row = dict[str, str]  # of the CSV file


@dataclass(frozen=True, slots=True)
class Setting:
    """How the pictures of a row are guided."""

    steps: int
    scale: float
    kind: str  # one of SCHEDULES, "none" or "distilled"

    def request(self, prompt: str, seed: int) -> Request:
        request = Request(prompt, steps=self.steps, seed=seed, width=SIDE, height=SIDE, guidance=1.0)
        if self.kind == "none":
            return request
        if self.kind == "distilled":
            return replace(request, guidance=self.scale)
        return replace(request, cfg=self.scale, negative_prompt="", guidance_schedule=self.kind)


class Painter:
    """The demo model, its prompts read and its noise drawn: what all rows share.

    Picture k shows prompt k // `seeds` and has seed `seed` + k.
    """

    def __init__(self, pipeline: FluxPipeline, prompts: Sequence[str], seeds: int, seed: int) -> None:
        self.pipeline, self.prompts, self.seeds, self.seed = pipeline, prompts, seeds, seed
        pipeline.vae.to(memory_format=torch.channels_last)  # a third faster
        channels = pipeline.vae.config.latent_channels
        self.noise = torch.cat([noise(seed + k, channels, SIDE, SIDE) for k in range(len(prompts) * seeds)])
        with torch.no_grad():
            self._positive = pipeline.encode_prompt(list(prompts), None, max_sequence_length=TOKENS)[:2]
            self._negative = pipeline.encode_prompt("", None, max_sequence_length=TOKENS)[:2]
        self._image_ids, self._text_ids = image_position_ids(SIDE, SIDE), torch.zeros(TOKENS, 3)
        self._unguided: dict[tuple[int, int, int, bool], Tensor] = {}

    @torch.inference_mode()
    def latents(self, start: int, steering: Steering, sigmas: Tensor) -> Tensor:
        """Pictures `start` to `start` + BATCH as tokens [B, L, C].

        Rows share what the model says of latents that no guidance has moved yet: they are the same in all of them.
        """
        assert steering.distilled is not None
        steps = len(sigmas) - 1
        guidance = TrueGuidance(steering.cfg or [1.0] * steps)
        latents, unguided = self.noise[start : start + BATCH], set(steering.distilled) == {1.0}

        def predicted(negative: bool) -> Tensor:
            key = (start, steps if step else 0, step, negative)  # all begin with the same noise at flow time 1
            if unguided and key in self._unguided:
                return self._unguided[key]
            velocity = self._velocity(start, latents, sigma, told, negative)
            if unguided:
                self._unguided[key] = velocity
            return velocity

        for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            told = steering.distilled[step]
            velocity = predicted(negative=False)
            if guidance.wants_negative(step):
                velocity = guidance.velocity(step, latents, sigma, velocity, predicted(negative=True))
                unguided = False
            latents = flow.euler_step(latents, velocity, sigma, sigma_next)
        return latents

    def _velocity(self, start: int, latents: Tensor, sigma: Tensor, told: float, negative: bool) -> Tensor:
        count = len(latents)
        of_picture = torch.arange(start, start + count) // self.seeds
        sequence, pooled = self._negative if negative else self._positive
        if negative:
            of_picture = torch.zeros_like(of_picture)
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=latents,
            encoder_hidden_states=sequence[of_picture],
            pooled_projections=pooled[of_picture],
            timestep=sigma.expand(count),
            guidance=torch.full((count,), told),
            img_ids=self._image_ids,
            txt_ids=self._text_ids,
            return_dict=False,
        )[0]
        return velocity

    @torch.inference_mode()
    def decoded(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Tokens [B, L, C] to pictures, uint8 [B, H, W, 3]."""
        config, pictures = self.pipeline.vae.config, []
        for few in tokens.split(DECODED):
            latents = unpack(few, SIDE, SIDE) / config.scaling_factor + config.shift_factor
            latents = latents.contiguous(memory_format=torch.channels_last)
            pixels = self.pipeline.vae.decode(latents, return_dict=False)[0]  # [B, 3, H, W] in -1..1
            pictures.append((pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(pictures).numpy()


def measure(painter: Painter, engine: Engine, chosen: Sequence[Scene], setting: Setting) -> Row:
    """Paint and judge all pictures of a setting. Raises `RuntimeError` where the engine paints another first one."""
    first = engine.resolve(setting.request(painter.prompts[0], painter.seed))
    steering, sigmas = engine.runtime().steering(first), engine.runtime().sigmas(first)
    tokens, images = [], []
    for start in range(0, len(painter.noise), BATCH):
        tokens.append(painter.latents(start, steering, sigmas))
        images.append(painter.decoded(tokens[-1]))
        if start == 0 and (far := largest_difference(images[0][0], painted(engine, first))) > 1:
            raise RuntimeError(f"{setting}: the engine's first picture is another one, by {far} of 255")
    pixels = np.concatenate(images)  # [P * seeds, H, W, 3]
    pictures = []
    for k, image in enumerate(pixels):
        scene = chosen[k // painter.seeds]
        pictures.append(Picture(scene, painter.prompts[k // painter.seeds], image, check(image, scene)))
    result = summary(pictures)
    numbers = {
        "passes": setting.steps + steering.negative_passes,
        **{name: share for name, share in result.items() if name != "n"},
        "pixels_apart": diversity(torch.from_numpy(pixels), painter.seeds),
        "latents_apart": diversity(torch.cat(tokens), painter.seeds),
        "clipped": float(np.mean((pixels == 0) | (pixels == 255))),
        "saturation": float(np.mean([saturation(image) for image in pixels])),
    }
    right = "".join(str(int(picture.verdict.strict)) for picture in pictures)
    return {name: f"{number:.6g}" for name, number in numbers.items()} | {"right": right}


def diversity(values: Tensor, seeds: int) -> float:
    """How far two pictures of a prompt are apart: RMS, the mean over pairs and prompts. `values` [P * seeds, ...]."""
    of_prompts = values.flatten(1).float().unflatten(0, (-1, seeds))  # [P, seeds, D]
    distances = torch.stack([torch.nn.functional.pdist(pictures) for pictures in of_prompts])
    return float(distances.mean()) / math.sqrt(of_prompts.shape[-1])


def saturation(image: NDArray[np.uint8]) -> float:
    """The mean S of HSV, 0..1."""
    return float(np.asarray(Image.fromarray(image).convert("HSV"))[..., 1].mean() / 255)


def gain(row: Row, other: Row) -> tuple[float, float]:
    """How much more of its pictures are right than of `other`'s, and half the 95 % interval over prompts."""
    right = [np.array([*each["right"]], dtype=float).reshape(-1, int(row["seeds"])) for each in (row, other)]
    difference = (right[0] - right[1]).mean(axis=1)  # [P]
    return float(difference.mean()), 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    headings = ("steps", "scale", "schedule", "passes", "strict, %", "95 % interval", "less constant's, points")
    more = ("colours and places, %", "pixels apart, of 255", "latents apart", "at 0 or 255, %", "saturation, %")
    lines = [f"| {' | '.join(headings + more)} |", "|" + "---|" * len(headings + more)]
    constant = {(row["steps"], row["scale"]): row for row in rows if row["kind"] == "constant"}
    for row in rows:
        number = {name: float(value) for name, value in row.items() if name not in ("kind", "right")}
        other = constant.get((row["steps"], row["scale"]))
        compared = ""
        if other is not None and row["kind"] in SCHEDULES[1:]:
            more_right, half = gain(row, other)
            compared = f"{100 * more_right:+.1f} ± {100 * half:.1f}"
        cells = (
            row["steps"],
            row["scale"],
            row["kind"],
            row["passes"],
            f"{100 * number['strict']:.1f}",
            f"{100 * number['strict_low']:.1f} to {100 * number['strict_high']:.1f}",
            compared,
            f"{100 * number['places_and_colours']:.1f}",
            f"{number['pixels_apart']:.1f}",
            f"{number['latents_apart']:.3f}",
            f"{100 * number['clipped']:.2f}",
            f"{100 * number['saturation']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_rows(file: Path | None) -> list[Row]:
    if file is None or not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def append_row(file: Path, row: Row) -> None:
    is_new = not file.is_file()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture, and what draws the prompts")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 20])
    parser.add_argument("--scales", type=float, nargs="+", default=[2, 4, 7])
    parser.add_argument("--csv", type=Path, default=None, help="append every row to this file when it is measured")
    parser.add_argument("--compile", action="store_true", help="the transformer, in a minute or two: a quarter faster")
    options = parser.parse_args()

    settings = []
    for steps in options.steps:
        settings += [Setting(steps, 1.0, "none"), Setting(steps, DISTILLED, "distilled")]
        settings += [Setting(steps, scale, kind) for scale in options.scales for kind in SCHEDULES]
    chosen = draw_scenes(np.random.default_rng(options.seed), options.prompts, None, scenes.held_out)
    rng = np.random.default_rng(options.seed)
    prompts = [describe(scene, rng) for scene in chosen]
    pipeline = open_pipeline(DEMO_FOLDER)
    if options.compile:
        pipeline.transformer.compile()
    painter = Painter(pipeline, prompts, options.seeds, options.seed)
    known = {tuple(row[key] for key in KEYS): row for row in read_rows(options.csv)}
    rows: list[Row] = []
    with Engine.open("demo", device="cpu") as engine:
        for setting in settings:
            shared = (options.prompts, options.seeds, options.seed, setting.steps)
            key = (*map(str, shared), f"{setting.scale:g}", setting.kind)
            if key not in known:
                began = time.perf_counter()
                known[key] = dict(zip(KEYS, key, strict=True)) | measure(painter, engine, chosen, setting)
                print(f"{setting}: {time.perf_counter() - began:.0f} s", flush=True)
                if options.csv is not None:
                    append_row(options.csv, known[key])
            rows.append(known[key])
    print(table(rows))


if __name__ == "__main__":
    main()
