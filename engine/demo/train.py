"""Train the demo model from scratch: `python -m engine.demo.train STAGE --work DIR --minutes M`, then `export`.

The stages, in order, with the minutes that gave the embedded weights on two CPU cores, are listed in `STAGES`.
Each resumes from what lies in the work folder, so that a stage can be repeated or stopped at any time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

STAGES: dict[str, dict[str, Any]] = {
    "vae": {},
    "text": {},
    "decoder": {},  # may run beside the flow stages: the encoder, and so the latents, stay as they are
    "bind": {"size": 64, "tokens": 20, "batch_size": 128, "rate": 1.0, "decay_from": 1.0, "four_steps": 0.1},
    "paint": {"size": 128, "tokens": 20, "batch_size": 96, "rate": 1.0, "decay_from": 1.0, "four_steps": 0.1},
    "finish": {"size": 128, "tokens": 32, "batch_size": 96, "rate": 0.7, "decay_from": 0.0, "four_steps": 0.5},
    "distil": {"size": 128, "tokens": 32, "batch_size": 64, "rate": 0.25, "decay_from": 0.0, "four_steps": 0.6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "export"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", type=Path, default=Path(__file__).parent / "weights", help="of export")
    parser.add_argument("--guidance", type=float, default=1.0, help="the default that export writes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    from engine.demo import export, train_flow, train_text, train_vae

    if options.stage in ("vae", "decoder"):
        train_vae.run(options.work, options.minutes, options.processes, decoder_only=options.stage == "decoder")
    elif options.stage == "export":
        export.export(options.work, options.target, options.guidance)
    elif options.stage == "text":
        train_text.run(options.work, options.minutes)
    else:
        train_flow.run(
            options.work,
            options.minutes,
            options.processes,
            contents_weight=0.1 if options.stage in ("bind", "paint") else 0.02,
            distil=options.stage == "distil",
            seed=options.seed,
            **STAGES[options.stage],
        )


if __name__ == "__main__":
    main()
