"""The same weights by diffusers: resident, or offloaded in groups with streams."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import apply_group_offloading

from engine.families.flux1.latents import image_position_ids, noise
from engine.memory.budget import read_size
from engine.memory.driver import process_bytes
from engine.memory.enforce import CardMemory
from engine.memory.target import resolve
from engine.sampling import flow
from tests.bench.gpu.card import allocator_faults, reserved_peak, restart_peaks, synchronize


def diffusers_steps(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step of diffusers' own transformer in bf16: offloaded in groups under a cap, or whole on the card."""
    device = torch.device(spec["device"])
    if device.type == "cuda":
        vram = spec.get("vram")
        CardMemory(resolve(spec["device"], read_size(vram, "vram") if vram else None, None, simulated=False)).hold()
    transformer: Any = FluxTransformer2DModel.from_pretrained(
        Path(spec["model"]) / "transformer", torch_dtype=torch.bfloat16
    )
    transformer.eval().requires_grad_(False)
    if spec["way"] == "resident":
        transformer.to(device)
    else:
        options = {"low_cpu_mem_usage": True} if spec["way"] == "group, pinned as it goes" else {}
        apply_group_offloading(
            transformer,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
            **(options if device.type == "cuda" else {}),
        )
    config, side, dtype = transformer.config, spec["side"], torch.bfloat16
    latents = noise(1, config.in_channels // 4, side, side).to(device)
    given = {
        "encoder_hidden_states": torch.randn(1, 512, config.joint_attention_dim).to(device, dtype),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim).to(device, dtype),
        "guidance": torch.full((1,), 3.5, device=device, dtype=dtype) if config.guidance_embeds else None,
        "img_ids": image_position_ids(side, side).to(device, dtype),
        "txt_ids": torch.zeros(512, 3, device=device, dtype=dtype),
    }
    restart_peaks(spec["device"])
    seconds = []
    sigmas = torch.linspace(1, 0, spec["steps"] + 1)
    with torch.no_grad():
        for sigma, following in itertools.pairwise(sigmas):
            synchronize(spec["device"])
            start = time.perf_counter()
            velocity = transformer(
                hidden_states=latents.to(dtype), timestep=sigma.expand(1).to(device, dtype), return_dict=False, **given
            )[0]
            latents = flow.euler_step(latents, velocity, sigma, following)
            synchronize(spec["device"])
            seconds.append(time.perf_counter() - start)
    return {
        "steps_seconds": seconds,
        "reserved": reserved_peak(spec["device"]),
        "process_bytes": process_bytes(device) if device.type == "cuda" else None,
        "finite": bool(latents.isfinite().all()),
        **allocator_faults(spec["device"]),
    }
