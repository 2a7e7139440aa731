"""Does the demo model paint what its prompts say? `python -m tests.bench.accuracy` prints the table.

Random scenes of the grammar are described in random words, painted by the real engine, and judged by
`engine.demo.checker`. Every share is of all pictures; the interval is Wilson's for the strict score, 95 %.
"""

from __future__ import annotations

import argparse
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from engine import Engine, Request
from engine.demo import scenes
from engine.demo.checker import Verdict, check
from engine.demo.grammar import describe
from engine.demo.scenes import Scene
from tests.painting import painted

ATTRIBUTES = ("background", "colours", "places", "sizes", "shapes", "clean", "places_and_colours", "strict")
HEADINGS = ("background", "colours", "places", "sizes", "shapes", "clean", "col+place", "strict")
SHEET_PICTURES, SHEET_COLUMNS = 60, 10


@dataclass(frozen=True, slots=True)
class Picture:
    """A painted prompt and what the checker says of it. `image` is uint8 [H, W, 3]."""

    scene: Scene
    prompt: str
    image: NDArray[np.uint8]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Settings:
    """How to paint. None leaves the choice to the model; picture k of a run has seed `seed` + k."""

    steps: int | None = 4
    guidance: float | None = None
    seed: int = 0

    def request(self, prompt: str, seed: int) -> Request:
        return Request(prompt, steps=self.steps, guidance=self.guidance, seed=seed)


def measure(engine: Engine, chosen: Sequence[Scene], settings: Settings = Settings()) -> dict[str, float]:
    """Paint one picture for each scene: the share that is right in each attribute (see `summary`)."""
    return summary(list(paint(engine, chosen, settings)))


def draw_scenes(
    rng: np.random.Generator, count: int, things: int | None, wanted: Callable[[Scene], bool]
) -> list[Scene]:
    """`count` random scenes of the grammar that are `wanted`."""
    chosen: list[Scene] = []
    while len(chosen) < count:
        scene = scenes.random_scene(rng, things)
        if wanted(scene):
            chosen.append(scene)
    return chosen


def paint(engine: Engine, chosen: Sequence[Scene], settings: Settings) -> Iterator[Picture]:
    """Describe, paint and judge each scene. Raises `RuntimeError` where the engine fails."""
    rng = np.random.default_rng(settings.seed)
    for k, scene in enumerate(chosen):
        prompt = describe(scene, rng)
        image = painted(engine, settings.request(prompt, settings.seed + k))
        yield Picture(scene, prompt, image, check(image, scene))


def summary(pictures: Sequence[Picture]) -> dict[str, float]:
    """`n`, the share 0..1 that is right in each of `ATTRIBUTES`, and the strict share's 95 % interval."""
    result = {"n": float(len(pictures))}
    for name in ATTRIBUTES:
        result[name] = sum(getattr(picture.verdict, name) for picture in pictures) / max(1, len(pictures))
    result["strict_low"], result["strict_high"] = wilson(result["strict"], len(pictures))
    return result


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a share of `count` trials (E. B. Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def spread(engine: Engine, settings: Settings, prompts: int = 10, seeds: int = 8) -> dict[str, float]:
    """How much the place of a single thing varies over seeds where the prompt leaves it free.

    `spread` is the standard deviation over seeds of the found centre, averaged over both axes and all prompts, in
    parts of the width; `found` is the share of pictures in which the thing was found.
    """
    rng = np.random.default_rng([settings.seed, 1])
    deviations, found = [], 0
    for scene in draw_scenes(rng, prompts, 1, lambda scene: scene.place is None):
        prompt = describe(scene, rng)
        centres = []
        for seed in range(settings.seed, settings.seed + seeds):
            image = painted(engine, settings.request(prompt, seed))
            height, width = image.shape[:2]
            thing = check(image, scene).found[0]
            if thing is not None:
                centres.append((thing.x, thing.y * height / width))
        found += len(centres)
        if len(centres) > 1:
            deviations.append(float(np.std(centres, axis=0, ddof=1).mean()))
    return {"spread": float(np.mean(deviations)) if deviations else 0.0, "found": found / (prompts * seeds)}


def reconstruction(vae_folder: Path, count: int = 300, size: int = 128) -> dict[str, float]:
    """The share of true renders that are strictly right after the autoencoder, and its error (`psnr`, in dB)."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(vae_folder).to(torch.float32).eval()
    rng = np.random.default_rng(17)
    right, errors = 0, []
    for _ in range(count):
        scene = scenes.random_scene(rng)
        drawn = scenes.render(scene, scenes.place(scene, rng), size, size, rng)
        with torch.no_grad():
            pixels = torch.from_numpy(drawn).permute(2, 0, 1)[None] * 2 - 1  # [1, 3, H, W] in -1..1
            output = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        image = (output[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        errors.append(float(np.mean((image / 255 - drawn) ** 2)))
        right += check(image, scene).strict
    return {"strict": right / count, "n": float(count), "psnr": -10 * math.log10(float(np.mean(errors)))}


def contact_sheet(pictures: Sequence[Picture]) -> Image.Image:
    """Pictures with their prompts, for one's own eyes: failing ones framed in red, with what is wrong."""
    height, width = pictures[0].image.shape[:2]
    frame, text_height, columns = 4, 80, max(8, width // 6)  # pixels, pixels, characters
    cell = (width + 2 * frame, height + 2 * frame + text_height)
    sheet = Image.new("RGB", (SHEET_COLUMNS * cell[0], math.ceil(len(pictures) / SHEET_COLUMNS) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for k, picture in enumerate(pictures):
        left, top = k % SHEET_COLUMNS * cell[0], k // SHEET_COLUMNS * cell[1]
        right = picture.verdict.strict
        outer = (left, top, left + cell[0] - 1, top + height + 2 * frame - 1)
        draw.rectangle(outer, fill="white" if right else (220, 0, 0))
        sheet.paste(Image.fromarray(picture.image), (left + frame, top + frame))
        wrong = " ".join(name for name in ATTRIBUTES[:6] if not getattr(picture.verdict, name))
        for text, colour, y in ((picture.prompt, "black", height + 2 * frame), (wrong, "red", cell[1] - 30)):
            lines = textwrap.wrap(text, columns)[:4]
            draw.multiline_text((left + frame, top + y), "\n".join(lines), fill=colour, spacing=1)
    return sheet


def row(name: str, result: dict[str, float]) -> str:
    """One line of the table, in per cent."""
    shares = "".join(f"{100 * result[attribute]:>11.1f}" for attribute in ATTRIBUTES)
    interval = f"{100 * result['strict_low']:.1f} to {100 * result['strict_high']:.1f}"
    return f"{name:<24}{result['n']:>5.0f}{shares}  {interval:>14}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200, help="random prompts, half with one thing, half with two")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo", help="a model that has a name")
    parser.add_argument("--weights", type=Path, default=None, help="a model's folder in diffusers' layout, instead")
    parser.add_argument("--sheet", type=Path, default=None, help="write the first 60 pictures to this PNG")
    parser.add_argument("--reconstructions", type=int, default=300, help="true renders for the autoencoder; 0 for none")
    options = parser.parse_args()
    settings = Settings(options.steps, options.guidance, options.seed)

    rng = np.random.default_rng(options.seed)
    half = options.prompts // 2
    groups = {
        "one thing": draw_scenes(rng, half, 1, lambda scene: True),
        "two things": draw_scenes(rng, options.prompts - half, 2, lambda scene: True),
        "held-out combinations": draw_scenes(rng, options.prompts // 2, None, scenes.held_out),
        "scenery backgrounds": draw_scenes(
            rng, options.prompts // 4, None, lambda scene: scene.background in scenes.SCENERY
        ),
    }
    began = time.perf_counter()
    print(f"{'per cent right':<24}{'n':>5}{''.join(f'{heading:>11}' for heading in HEADINGS)}  {'95 % interval':>14}")
    with Engine.open(options.weights or options.model) as engine:
        painted: dict[str, list[Picture]] = {}
        for name, chosen in groups.items():
            painted[name] = list(paint(engine, chosen, settings))
            print(row(name, summary(painted[name])), flush=True)
            if name == "two things":
                both = painted["one thing"] + painted["two things"]
                print(row("all (one and two)", summary(both)), flush=True)
        if options.sheet is not None:
            # As many of either kind as there is room for.
            mixed = [
                picture for pair in zip(painted["one thing"], painted["two things"], strict=False) for picture in pair
            ]
            contact_sheet(mixed[:SHEET_PICTURES]).save(options.sheet)
        varied = spread(engine, settings)
        print(f"diversity: centres spread by {100 * varied['spread']:.1f} % of the width over 8 seeds of 10 prompts")
        print(f"           (the thing was found in {100 * varied['found']:.1f} % of these pictures)", flush=True)
        vae_folder = engine.source.path / "vae"
    if options.reconstructions:
        result = reconstruction(vae_folder, options.reconstructions)
        low, high = wilson(result["strict"], int(result["n"]))
        print(
            f"reconstruction: {100 * result['strict']:.1f} % of {result['n']:.0f} true renders pass strictly after the "
            f"autoencoder ({100 * low:.1f} to {100 * high:.1f}), {result['psnr']:.1f} dB"
        )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
