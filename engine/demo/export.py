"""Trained parts to the embedded model: a diffusers folder in bf16, with defaults and a fitted preview map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from engine.demo.train_vae import SAMPLE_SIZE, draw_batch
from engine.sampling.preview import PreviewMap

SHIFT = 3.0  # of the noise schedule: four steps at 1, 0.9, 0.75, 0.5
PREVIEW_SCENES = 256
PARTS = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "tokenizer_2": ("transformers", "PreTrainedTokenizerFast"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def export(work: Path, target: Path, guidance: float) -> None:
    """Write the parts under `work` as one model folder `target`, with `guidance` as its default."""
    modules = {
        "transformer": FluxTransformer2DModel.from_pretrained(work / "transformer"),
        "vae": AutoencoderKL.from_pretrained(work / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(work / "text_encoder"),
        "text_encoder_2": T5EncoderModel.from_pretrained(work / "text_encoder_2"),
    }
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fit_preview(modules["vae"]).save(
        fresh / "preview.json", f"least squares on {PREVIEW_SCENES} decoded scenes of this model's own autoencoder"
    )
    for name, module in modules.items():
        module.to(torch.bfloat16).save_pretrained(fresh / name)
        _clean(fresh / name / "config.json")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(work / name, fresh / name)
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(fresh / "scheduler")
    _write(fresh / "model_index.json", {"_class_name": "FluxPipeline", **{k: list(v) for k, v in PARTS.items()}})
    defaults = {"steps": 4, "width": SAMPLE_SIZE, "height": SAMPLE_SIZE, "guidance": guidance, "precision": "fp32"}
    _write(fresh / "t2i.json", {"defaults": defaults})
    for file in fresh.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


@torch.no_grad()
def fit_preview(vae: AutoencoderKL) -> PreviewMap:
    """The linear map from latents to RGB, by least squares on this autoencoder's own decodings."""
    fit = PreviewMap.empty(vae.config.latent_channels)
    rng = np.random.default_rng(17)
    for _ in range(PREVIEW_SCENES // 32):
        latents = vae.encode(draw_batch(32, rng)).latent_dist.mode()
        pixels = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        # The engine's latents: normalized as the transformer sees them.
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        for one, picture in zip(latents, pixels, strict=True):
            fit.add(one[None], picture.permute(1, 2, 0))
    return fit


def _clean(config: Path) -> None:
    """Drop where the weights lay on the machine that trained them."""
    values = json.loads(config.read_text("utf-8"))
    values.pop("_name_or_path", None)
    _write(config, values)


def _write(path: Path, values: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
