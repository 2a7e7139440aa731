"""The demo's transformer: rectified flow on the latents of drawn scenes, then distilled guidance.

Noise is sigma = 1, data sigma = 0: x = (1 - sigma) * data + sigma * noise, and the model predicts noise - data
(Liu et al., "Flow Straight and Fast", 2022; Esser et al., "Scaling Rectified Flow Transformers", 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from engine.demo import scenes
from engine.demo.optim import Average, Clock, Muon, mean_gradients, rank, run_stage, world_size
from engine.demo.train_text import TEXT_WIDTH, worded
from engine.demo.train_vae import LATENT_CHANNELS, SAMPLE_SIZE
from engine.demo.vocabulary import TOKEN_LIMIT, clip_tokenizer, t5_tokenizer
from engine.families.flux1.latents import pack

PATCH = 16  # pixels a side of an image token: 8x autoencoder, 2x2 packing
FOUR_STEPS = (1.0, 0.9, 0.75, 0.5)  # the sigmas of four steps at shift 3
DROPOUT = 0.1  # prompts replaced by the empty one, so that true CFG works


def new_transformer() -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=True,
    )
    for name, p in transformer.named_parameters():
        # adaLN-zero: every block starts as the identity, the output as zero.
        if p.ndim == 2 and (("norm" in name and "linear" in name) or name.startswith("proj_out")):
            nn.init.zeros_(p)
        elif p.ndim == 2:
            nn.init.xavier_uniform_(p)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    return transformer


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as two matrix products: on a CPU in bf16 its backward is five times faster than the fused kernel's."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        scores = (query * query.shape[-1] ** -0.5).contiguous() @ key.transpose(-1, -2)
        attended: Tensor = scores.softmax(-1).to(value.dtype) @ value.contiguous()
        return attended

    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def position_ids(size: int) -> Tensor:
    """[L, 3] ids (0, row, column) of the packed grid, spread over the full-size grid so that places keep their ids."""
    grid = size // PATCH
    at = (torch.arange(grid) + 0.5) * (SAMPLE_SIZE // PATCH / grid) - 0.5
    ids = torch.zeros(grid, grid, 3)
    ids[..., 1], ids[..., 2] = at[:, None], at[None]
    return ids.view(-1, 3)


@dataclass
class Pool:
    """Encoded scenes to draw batches from; it grows as training goes on, then replaces its oldest."""

    vae: AutoencoderKL
    rng: np.random.Generator
    size: int
    limit: int
    tokens: int

    def __post_init__(self) -> None:
        count = (self.size // PATCH) ** 2
        self.latents = torch.empty(self.limit, count, 4 * LATENT_CHANNELS, dtype=torch.bfloat16)
        self.ids = torch.empty(self.limit, self.tokens, dtype=torch.long)
        self.ids_clip = torch.empty(self.limit, TOKEN_LIMIT, dtype=torch.long)
        self.contents = torch.empty(self.limit, count, 2, dtype=torch.uint8)
        self.t5, self.clip = t5_tokenizer(), clip_tokenizer()
        self.written = 0

    @torch.no_grad()
    def add(self, count: int) -> None:
        pictures, prompts, contents = [], [], []
        for _ in range(count):
            scene = scenes.training_scene(self.rng)
            placed = scenes.place(scene, self.rng)
            pictures.append(scenes.render(scene, placed, self.size, self.size, self.rng))
            prompts.append(worded(scene, self.rng))
            contents.append(patch_contents(placed, self.size))
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).mul(2).sub(1).contiguous()
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(images).latent_dist.mode().float()
        latents = pack((latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor)
        at = torch.arange(self.written, self.written + count) % self.limit
        self.latents[at] = latents.bfloat16()
        self.ids[at] = self._ids(self.t5, prompts, self.tokens)
        self.ids_clip[at] = self._ids(self.clip, prompts, TOKEN_LIMIT)
        self.contents[at] = torch.from_numpy(np.stack(contents))
        self.written += count

    @staticmethod
    def _ids(tokenizer: Any, prompts: list[str], length: int) -> Tensor:
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = batch.input_ids
        return ids

    def batch(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = torch.randint(min(self.written, self.limit), (count,))
        return self.latents[at].float(), self.ids[at], self.ids_clip[at], self.contents[at].long()


def patch_contents(placed: tuple[scenes.Placed, ...], size: int) -> np.ndarray[Any, Any]:
    """What stands at each patch: uint8 [L, 2] of colour and shape, counted from 1; 0 is background."""
    grid = size // PATCH
    x = (np.arange(grid) + 0.5) / grid
    contents = np.zeros((grid, grid, 2), dtype=np.uint8)
    for item in placed:
        reach = max(item.radius, 0.5 / grid)
        near = (np.abs(x[None] - item.x) < reach) & (np.abs(x[:, None] - item.y) < reach)
        contents[near] = (
            1 + list(scenes.COLOURS).index(item.thing.colour),
            1 + scenes.SHAPES.index(item.thing.shape),
        )
    return contents.reshape(-1, 2)


class Text:
    """The frozen encoders, and the empty prompt for dropout."""

    def __init__(self, work: Path, tokens: int) -> None:
        self.t5 = T5EncoderModel.from_pretrained(work / "text_encoder_2").eval()
        self.clip = CLIPTextModel.from_pretrained(work / "text_encoder").eval()
        self.empty = Pool._ids(t5_tokenizer(), [""], tokens)
        self.empty_clip = Pool._ids(clip_tokenizer(), [""], TOKEN_LIMIT)

    @torch.no_grad()
    def encode(self, ids: Tensor, ids_clip: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            sequence = self.t5(input_ids=ids).last_hidden_state
            pooled = self.clip(input_ids=ids_clip).pooler_output
        return sequence.float(), pooled.float()


def random_sigmas(count: int, four_steps: float) -> Tensor:
    """Flow times: a share on the four-step schedule, the rest mostly at high noise, where the prompt decides."""
    normal = torch.sigmoid(torch.randn(count) * 1.2 + 1.2)
    sigma = torch.where(torch.rand(count) < 0.25, torch.rand(count), normal)
    sigma = torch.where(torch.rand(count) < 0.08, torch.ones(count), sigma)
    exact = torch.tensor(FOUR_STEPS)[torch.randint(len(FOUR_STEPS), (count,))]
    return torch.where(torch.rand(count) < four_steps, exact, sigma)


def train(
    work: Path,
    minutes: float,
    size: int,
    tokens: int,
    batch_size: int,
    rate: float,
    decay_from: float,
    four_steps: float,
    contents_weight: float,
    distil: bool,
    seed: int,
) -> None:
    """Train for `minutes`; resumes from, and saves, `flow/raw` and the averaged `transformer` under `work`."""
    rng = np.random.default_rng([seed, rank()])
    torch.manual_seed(seed * 100 + rank())
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().requires_grad_(False)
    text = Text(work, tokens)
    raw, averaged = work / "flow" / "raw", work / "transformer"
    begin = averaged if distil else raw
    transformer = FluxTransformer2DModel.from_pretrained(begin) if begin.exists() else new_transformer()
    transformer.train()
    average = Average(transformer, 0.998)
    if averaged.exists():
        average.module.load_state_dict(FluxTransformer2DModel.from_pretrained(averaged).state_dict())
        average.updates = 500
    teacher = FluxTransformer2DModel.from_pretrained(averaged).eval().requires_grad_(False) if distil else None

    head = nn.Linear(transformer.inner_dim, len(scenes.COLOURS) + 1 + len(scenes.SHAPES) + 1)
    features: list[Tensor] = []
    hook = transformer.single_transformer_blocks[2].register_forward_hook(lambda *call: features.append(call[2][1]))

    matrices = [
        p
        for name, p in transformer.named_parameters()
        if p.ndim == 2 and "transformer_blocks" in name and not ("norm" in name and "linear" in name)
    ]
    known = {id(p) for p in matrices}
    others = [p for p in [*transformer.parameters(), *head.parameters()] if id(p) not in known]
    muon = Muon(matrices, lr=0.02 * rate, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=2e-3 * rate, betas=(0.9, 0.98), weight_decay=0.0)
    peaks = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    parameters = [*matrices, *others]

    pool = Pool(vae, rng, size, limit=60_000, tokens=tokens)
    for _ in range(20):
        pool.add(100)
    img_ids, txt_ids = position_ids(size), torch.zeros(tokens, 3)
    clock, step, images, losses = Clock(minutes, decay_from=decay_from, warmup_steps=60), 0, 0, []
    while (progress := clock.progress) < 1:
        pool.add(batch_size // 2 if pool.written < 20_000 else batch_size // 6)
        data, ids, ids_clip, contents = pool.batch(batch_size)
        drop = torch.rand(batch_size) < DROPOUT
        ids[drop], ids_clip[drop] = text.empty, text.empty_clip
        sequence, pooled = text.encode(ids, ids_clip)
        noise = torch.randn_like(data)
        sigma = random_sigmas(batch_size, four_steps)
        x = torch.lerp(data, noise, sigma[:, None, None])
        guidance = torch.ones(batch_size)
        velocity = noise - data
        if teacher is not None:
            guidance = torch.where(torch.rand(batch_size) < 0.25, 1.0, 1 + 3 * torch.rand(batch_size))
            velocity = guided_velocity(teacher, text, x, sigma, sequence, pooled, guidance, img_ids, txt_ids)
        features.clear()
        with plain_attention(), torch.autocast("cpu", torch.bfloat16):
            output = transformer(
                hidden_states=x,
                encoder_hidden_states=sequence,
                pooled_projections=pooled,
                timestep=sigma,
                guidance=guidance,
                img_ids=img_ids,
                txt_ids=txt_ids,
                return_dict=False,
            )[0].float()
            logits = head(features[0]).float()
        loss = F.mse_loss(output, velocity)
        colours, shapes = logits.split([len(scenes.COLOURS) + 1, len(scenes.SHAPES) + 1], dim=-1)
        told = ~drop
        contents_loss = F.cross_entropy(colours[told].flatten(0, 1), contents[told][..., 0].flatten())
        contents_loss = contents_loss + F.cross_entropy(shapes[told].flatten(0, 1), contents[told][..., 1].flatten())
        (loss + contents_weight * contents_loss).backward()
        mean_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for group, peak in peaks:
            group["lr"] = peak * clock.rate(step, progress)
        muon.step()
        adam.step()
        for p in parameters:
            p.grad = None
        average.update(transformer)
        step, images = step + 1, images + batch_size * world_size()
        losses.append(float(loss))
        if rank() == 0 and step % 50 == 0:
            print(f"flow {progress:5.1%} step {step} images {images} loss {np.mean(losses[-50:]):.4f} "
                  f"contents {float(contents_loss):.3f} pool {pool.written}", flush=True)  # fmt: skip
        if rank() == 0 and step % 200 == 0:
            transformer.save_pretrained(raw)
            average.module.save_pretrained(averaged)
    hook.remove()
    if rank() == 0:
        transformer.save_pretrained(raw)
        average.module.save_pretrained(averaged)


@torch.no_grad()
def guided_velocity(
    teacher: FluxTransformer2DModel,
    text: Text,
    x: Tensor,
    sigma: Tensor,
    sequence: Tensor,
    pooled: Tensor,
    guidance: Tensor,
    img_ids: Tensor,
    txt_ids: Tensor,
) -> Tensor:
    """The teacher's classifier-free guidance, v_empty + g (v_prompt - v_empty), that one pass learns to give."""
    empty, empty_pooled = text.encode(text.empty, text.empty_clip)
    count = len(x)
    with plain_attention(), torch.autocast("cpu", torch.bfloat16):
        both = teacher(
            hidden_states=torch.cat([x, x]),
            encoder_hidden_states=torch.cat([sequence, empty.expand(count, -1, -1)]),
            pooled_projections=torch.cat([pooled, empty_pooled.expand(count, -1)]),
            timestep=torch.cat([sigma, sigma]),
            guidance=torch.ones(2 * count),
            img_ids=img_ids,
            txt_ids=txt_ids,
            return_dict=False,
        )[0].float()
    told, untold = both.chunk(2)
    velocity: Tensor = untold + guidance[:, None, None] * (told - untold)
    return velocity


def run(work: Path, minutes: float, processes: int, **options: Any) -> None:
    run_stage(train, processes, work=work, minutes=minutes, **options)
