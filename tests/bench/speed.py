"""What the engine costs beside diffusers, each pair measured in turn in the same run.

    python -m tests.bench.speed [--rounds 7]

Prints seconds and ratios: the step loop against diffusers' FluxPipeline on the demo model, a whole `t2i generate`
against a Python that only imports the same six classes, `import engine` alone, and the largest pixel differences from
diffusers. Quote them from an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine import Engine, PhaseFinished, Request
from engine.images.save import plan_output
from engine.library.catalog import DEMO_FOLDER
from tests.painting import largest_difference, latents_by_diffusers, open_pipeline, painted, painted_by_diffusers
from tests.tiny import save_tiny

PROMPT = "a large red circle above a small blue square on a white background"
SIX_CLASSES = (
    "from diffusers import AutoencoderKL, FluxTransformer2DModel;"
    "from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast"
)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median seconds of each side of pairs measured in turn, and the median of the pairs' ratios."""
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return mine, other, statistics.median(a / b for a, b in pairs)


def step_loop(rounds: int, steps: int = 20) -> tuple[float, float, float]:
    """The sampler loop with its events, cancel checks and previews against the pipeline's loop, same conditioning."""
    pipeline = open_pipeline(DEMO_FOLDER)
    embeds, pooled, _ = pipeline.encode_prompt(PROMPT, None, max_sequence_length=32)
    with Engine.open("demo", device="cpu") as engine, tempfile.TemporaryDirectory() as folder:
        destination = plan_output(Path(folder), 1)
        seconds: list[float] = []

        def ours() -> None:
            events = list(engine.generate(Request(PROMPT, steps=steps, seed=1), destination))
            finished = [event for event in events if isinstance(event, PhaseFinished)]
            seconds.extend(event.seconds for event in finished if event.phase == "denoise")

        def theirs() -> None:
            latents_by_diffusers(pipeline, (embeds, pooled), engine.resolve(Request(PROMPT, steps=steps, seed=1)))

        ours()
        theirs()
        pairs = []
        for _ in range(rounds):
            ours()
            pairs.append((seconds[-1], timed(theirs)))
    return medians([(a / steps, b / steps) for a, b in pairs])


def whole_command(rounds: int) -> tuple[float, float, float]:
    """`t2i generate` of a demo picture against importing the same six classes, each in a fresh interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        generate = [sys.executable, "-m", "engine", "generate", "--prompt", PROMPT, "--seed", "1", "--output", folder]

        def run(command: list[str]) -> Callable[[], object]:
            return lambda: subprocess.run(command, check=True, capture_output=True)

        ours, theirs = run(generate), run([sys.executable, "-c", SIX_CLASSES])
        ours(), theirs()
        return medians([(timed(ours), timed(theirs)) for _ in range(rounds)])


def import_engine(rounds: int) -> float:
    """Milliseconds of `import engine` inside a fresh interpreter."""
    code = "import time; s = time.perf_counter(); import engine; print(time.perf_counter() - s)"
    runs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(rounds)
    ]
    return 1000 * statistics.median(float(run.stdout) for run in runs)


def difference_from_diffusers(folder: Path, guidance: float | None, width: int = 128, height: int = 128) -> int:
    """The engine's picture against diffusers' own with the same weights, seed and steps, in levels of 255, fp32."""
    request = Request(PROMPT, seed=3, steps=4, width=width, height=height, guidance=guidance, precision="fp32")
    with Engine.open(folder, device="cpu") as engine:
        return largest_difference(painted(engine, request), painted_by_diffusers(open_pipeline(folder), request))


def regenerated_difference() -> int:
    """A demo picture against the one that its own PNG regenerates, in levels of 255."""
    with tempfile.TemporaryDirectory() as folder:
        first, again = Path(folder) / "first.png", Path(folder) / "again.png"
        command = [sys.executable, "-m", "engine", "generate", "--quiet"]
        subprocess.run([*command, "--prompt", PROMPT, "-o", str(first)], check=True, capture_output=True)
        subprocess.run([*command, "--from", str(first), "-o", str(again)], check=True, capture_output=True)
        return largest_difference(np.asarray(Image.open(first)), np.asarray(Image.open(again)))


def parity() -> dict[str, int]:
    """Largest differences from diffusers, by model: random ones of schnell's and dev's kind, and the demo."""
    with tempfile.TemporaryDirectory() as folder:
        schnell, dev = Path(folder) / "schnell", Path(folder) / "dev"
        save_tiny(schnell, guided=False)
        save_tiny(dev, guided=True)
        return {
            "schnell's kind (even steps)": difference_from_diffusers(schnell, None, 192, 96),
            "dev's kind (dynamic shift, embedded guidance)": difference_from_diffusers(dev, 3.5, 192, 96),
            "demo": difference_from_diffusers(DEMO_FOLDER, 2.0),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {rounds} rounds in turn")
    for name, (ours, theirs, ratio) in (
        ("step loop, seconds a step: ours, diffusers' pipeline", step_loop(rounds)),
        ("whole command, seconds: t2i generate, six imports", whole_command(rounds)),
    ):
        print(f"{name:55} {ours:8.4f} {theirs:8.4f}   ratio {ratio:.3f}")
    print(f"{'import engine, milliseconds':55} {import_engine(rounds):8.1f}")
    for name, difference in parity().items():
        print(f"{'largest difference from FluxPipeline, of 255: ' + name:91} {difference:2d}")
    print(f"{'largest difference after regenerating from the PNG, of 255':91} {regenerated_difference():2d}")


if __name__ == "__main__":
    main()
