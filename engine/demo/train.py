"""Train the demo model from scratch: `python -m engine.demo.train STAGE --work DIR`, then `export`.

The stages, in order, are `STAGES`; `minutes` is what the embedded weights had on two CPU cores (two hours in all,
the decoder on one core beside the others). Each stage resumes from what lies in the work folder, so that it can be
repeated, or stopped and begun again. The schedules follow the clock, so a run repeats the recipe, not the bits; and the
embedded text encoders had larger Muon steps in their first half, which did not help.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

CONTENTS = 0.1  # weight of telling what stands at each patch, while binding is learned
STAGES: dict[str, dict[str, Any]] = {
    "vae": {"minutes": 13},
    "text": {"minutes": 8},
    "decoder": {"minutes": 20},  # the encoder, and so the latents, stay as they are
    "bind": {
        "minutes": 11, "size": 64, "tokens": 20, "batch_size": 128, "rate": 1.0,
        "decay_from": 1.0, "four_steps": 0.1, "contents_weight": CONTENTS, "distil": False,
    },
    "paint": {
        "minutes": 30, "size": 128, "tokens": 20, "batch_size": 96, "rate": 1.0,
        "decay_from": 1.0, "four_steps": 0.1, "contents_weight": CONTENTS, "distil": False,
    },
    "finish": {
        "minutes": 28, "size": 128, "tokens": 32, "batch_size": 96, "rate": 0.7,
        "decay_from": 0.0, "four_steps": 0.5, "contents_weight": 0.02, "distil": False,
    },
    "distil": {
        "minutes": 9, "size": 128, "tokens": 32, "batch_size": 48, "rate": 0.3,
        "decay_from": 0.0, "four_steps": 0.7, "contents_weight": 0.0, "distil": True,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "export"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="instead of the stage's own")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", type=Path, default=Path(__file__).parent / "weights", help="of export")
    parser.add_argument("--guidance", type=float, default=1.0, help="the default that export writes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    from engine.demo import export, train_flow, train_text, train_vae

    if options.stage == "export":
        export.export(options.work, options.target, options.guidance)
        return
    settings = dict(STAGES[options.stage])
    stage_minutes = settings.pop("minutes")
    minutes = options.minutes or stage_minutes
    if options.stage in ("vae", "decoder"):
        train_vae.run(options.work, minutes, options.processes, decoder_only=options.stage == "decoder")
    elif options.stage == "text":
        train_text.run(options.work, minutes)
    else:
        train_flow.run(options.work, minutes, options.processes, seed=options.seed, **settings)


if __name__ == "__main__":
    main()
