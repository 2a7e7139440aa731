"""The demo's autoencoder: FLUX's 8x AutoencoderKL, small. First all of it, then the decoder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from engine.demo import scenes
from engine.demo.optim import Average, Clock, Muon, mean_gradients, rank, run_stage

LATENT_CHANNELS = 8
SAMPLE_SIZE = 128


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SAMPLE_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def draw_batch(count: int, rng: np.random.Generator, size: int = SAMPLE_SIZE) -> Tensor:
    """Random scenes as pictures [count, 3, size, size] in -1..1."""
    pictures = []
    for _ in range(count):
        scene = scenes.random_scene(rng)
        placed = scenes.place(scene, rng)
        pictures.append(scenes.render(scene, placed, size, size, rng))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).mul(2).sub(1).contiguous()


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 with more weight near edges, plus L1 on differences between neighbours: outlines decide what a shape is."""
    dx, dy = target.diff(dim=-1), target.diff(dim=-2)
    edges = F.pad(dx.abs(), (0, 1)).amax(1, keepdim=True) + F.pad(dy.abs(), (0, 0, 0, 1)).amax(1, keepdim=True)
    weight = 1 + 4 * F.max_pool2d(edges.clamp(max=0.5), 5, 1, 2)
    sharpness = (output.diff(dim=-1) - dx).abs().mean() + (output.diff(dim=-2) - dy).abs().mean()
    return (weight * (output - target).abs()).mean() + 0.5 * sharpness


def crop(pictures: Tensor, size: int) -> Tensor:
    """The same random window of `size` pixels from every picture, kept off the rim (mostly background)."""
    span = pictures.shape[-1] - size
    top, left = (int(torch.randint(span // 4, span - span // 4 + 1, ())) for _ in range(2))
    return pictures[:, :, top : top + size, left : left + size]


def train(work: Path, minutes: float, decoder_only: bool) -> None:
    """Train for `minutes`; saves `vae` (and, the first time, the latents' statistics) under `work`."""
    rng = np.random.default_rng([rank(), int(decoder_only), 7])
    folder = work / "vae"
    vae = AutoencoderKL.from_pretrained(folder) if folder.exists() else new_autoencoder()
    vae.train()
    if decoder_only:
        vae.encoder.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    muon = Muon([p for p in trained if p.ndim > 1], lr=0.02 if not decoder_only else 0.01)
    adam = torch.optim.AdamW([p for p in trained if p.ndim == 1], lr=3e-3, weight_decay=0)
    peaks = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    average = Average(vae, 0.995)
    clock, step, images = Clock(minutes, decay_from=0.5), 0, 0
    scale = float(vae.config.scaling_factor)
    while (progress := clock.progress) < 1:
        # Windows first (four times the pictures a second), whole pictures to finish.
        window = 64 if progress < (0.55 if not decoder_only else 0.35) else SAMPLE_SIZE
        pictures = draw_batch(32 if window == 64 else 12, rng)
        target = crop(pictures, window) if window < SAMPLE_SIZE else pictures
        with torch.autocast("cpu", torch.bfloat16):
            if decoder_only:
                with torch.no_grad():
                    latents = vae.encode(target).latent_dist.mode()
                latents = latents + torch.randn_like(latents) * 0.08 / scale  # the flow's latents are not exact
                divergence = torch.zeros(())
            else:
                posterior = vae.encode(target).latent_dist
                latents = posterior.sample()
                divergence = posterior.kl().mean() / latents[0].numel()
            output = vae.decode(latents).sample
        loss = reconstruction_loss(output.float(), target) + 2e-4 * divergence
        loss.backward()
        mean_gradients(trained)
        for group, peak in peaks:
            group["lr"] = peak * clock.rate(step, progress)
        muon.step()
        adam.step()
        vae.zero_grad(set_to_none=True)
        average.update(vae)
        step, images = step + 1, images + len(target)
        if rank() == 0 and step % 50 == 0:
            mse = float(F.mse_loss(output.float(), target)) / 4
            print(f"vae {progress:5.1%} step {step} images {images} loss {float(loss):.4f} kl {float(divergence):.2f} "
                  f"psnr {-10 * np.log10(mse):.1f} dB", flush=True)  # fmt: skip
        if rank() == 0 and step % 500 == 0:
            save(average.module, folder, decoder_only)
    if rank() == 0:
        save(average.module, folder, decoder_only)


def save(vae: AutoencoderKL, folder: Path, decoder_only: bool) -> None:
    """Save with the latents' statistics, which the decoder stage must not change."""
    if not decoder_only:
        mean, std = latent_statistics(vae)
        vae.register_to_config(scaling_factor=round(1 / std, 5), shift_factor=round(mean, 5))
    vae.save_pretrained(folder)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, count: int = 512) -> tuple[float, float]:
    """Mean and standard deviation of the latents over fresh scenes."""
    rng = np.random.default_rng(11)
    latents = torch.cat([vae.encode(draw_batch(64, rng)).latent_dist.mode() for _ in range(count // 64)])
    return float(latents.mean()), float(latents.std())


def run(work: Path, minutes: float, processes: int, decoder_only: bool = False) -> None:
    run_stage(train, processes, work=work, minutes=minutes, decoder_only=decoder_only)
