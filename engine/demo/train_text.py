"""The demo's text encoders, trained by supervision before the transformer's first step, then frozen.

Every output token of the T5 (pads too: FLUX has no attention mask) and the pooled output of the CLIP must tell,
through a linear head that is thrown away, what stands in each region of the picture and on which background.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from engine.demo import scenes
from engine.demo.grammar import describe
from engine.demo.optim import Clock, Muon, run_stage
from engine.demo.vocabulary import TOKEN_LIMIT, clip_tokenizer, t5_tokenizer

TEXT_WIDTH = 128
REGIONS = ("centre", "top", "bottom", "left", "right")
SIZES = (None, *(size for size in scenes.RADII if size != "medium"))
GROUPS = [len(scenes.COLOURS) + 1, len(scenes.SHAPES) + 1, len(SIZES) + 1] * len(REGIONS) + [len(scenes.BACKGROUNDS)]
FILLER_WORDS = ("happy", "wooden", "shiny", "my", "cat", "lovely", "4k", "detailed", "style", "cute", "old", "dog")


def new_encoders() -> tuple[T5EncoderModel, CLIPTextModel]:
    t5, clip = t5_tokenizer(), clip_tokenizer()
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5),
            d_model=TEXT_WIDTH,
            d_kv=32,
            num_heads=4,
            d_ff=256,
            num_layers=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            pad_token_id=t5.pad_token_id,
            eos_token_id=t5.eos_token_id,
            decoder_start_token_id=t5.pad_token_id,
        )
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=TEXT_WIDTH,
            intermediate_size=256,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKEN_LIMIT,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
    )
    return text_encoder_2, text_encoder


def region(item: scenes.Placed) -> str:
    """Where a placed thing stands: the middle, or the side that it is pushed to."""
    dx, dy = item.x - 0.5, item.y - 0.5
    if max(abs(dx), abs(dy)) <= 0.195:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def targets(scene: scenes.Scene, placed: tuple[scenes.Placed, ...]) -> list[int]:
    """Class indices in the order of `GROUPS`; 0 says that nothing stands in a region."""
    by_region = {region(item): item.thing for item in placed}
    classes = []
    for name in REGIONS:
        thing = by_region.get(name)
        if thing is None:
            classes += [0, 0, 0]
        else:
            colour = 1 + list(scenes.COLOURS).index(thing.colour)
            classes += [colour, 1 + scenes.SHAPES.index(thing.shape), 1 + SIZES.index(thing.size)]
    return [*classes, scenes.BACKGROUNDS.index(scene.drawn_background)]


def worded(scene: scenes.Scene, rng: np.random.Generator) -> str:
    """A wording of the scene, now and then with a word in it that the vocabulary lacks."""
    words = describe(scene, rng).split()
    while rng.random() < 0.12:
        words.insert(int(rng.integers(len(words) + 1)), FILLER_WORDS[rng.integers(len(FILLER_WORDS))])
    return " ".join(words)


def _loss(logits: Tensor, classes: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy summed over groups; the share of samples with every group right. logits [..., sum(GROUPS)]."""
    parts = logits.split(GROUPS, dim=-1)
    total = torch.stack([F.cross_entropy(p.flatten(0, -2), classes[..., k].flatten()) for k, p in enumerate(parts)])
    right = torch.stack([p.argmax(-1) == classes[..., k] for k, p in enumerate(parts)], -1).all(-1)
    return total.sum(), float(right.float().mean())


def train(work: Path, minutes: float) -> None:
    rng = np.random.default_rng(3)
    t5, clip = t5_tokenizer(), clip_tokenizer()
    text_encoder_2, text_encoder = new_encoders()
    if (work / "text_encoder").exists():
        text_encoder_2 = T5EncoderModel.from_pretrained(work / "text_encoder_2").train()
        text_encoder = CLIPTextModel.from_pretrained(work / "text_encoder").train()
    heads = nn.ModuleList([nn.Linear(TEXT_WIDTH, sum(GROUPS)) for _ in range(2)])
    modules = nn.ModuleList([text_encoder_2, text_encoder, heads])
    matrices = [
        p for name, p in modules.named_parameters() if p.ndim == 2 and "embed" not in name and "shared" not in name
    ]
    known = {id(p) for p in matrices}
    muon = Muon(matrices, lr=0.006, weight_decay=0.05)  # T5 does not scale its attention: larger steps saturate it
    adam = torch.optim.AdamW([p for p in modules.parameters() if id(p) not in known], lr=3e-3, weight_decay=0)
    peaks = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    clock, step = Clock(minutes, decay_from=0.2), 0
    while (progress := clock.progress) < 1:
        prompts, classes = [], []
        for _ in range(192):
            scene = scenes.training_scene(rng)
            prompts.append(worded(scene, rng))
            classes.append(targets(scene, scenes.place(scene, rng)))
        length = TOKEN_LIMIT if step % 2 else 22  # other numbers of pads must not change the reading
        ids = t5(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        ids_clip = clip(
            prompts, padding="max_length", max_length=TOKEN_LIMIT, truncation=True, return_tensors="pt"
        ).input_ids
        truth = torch.tensor(classes)
        sequence = text_encoder_2(input_ids=ids).last_hidden_state  # [B, S, 128]
        pooled = text_encoder(input_ids=ids_clip).pooler_output  # [B, 128]
        loss_t5, right_t5 = _loss(heads[0](sequence), truth[:, None].expand(-1, length, -1))
        loss_clip, right_clip = _loss(heads[1](pooled), truth)
        # Outputs of unit size: the transformer's first layers start on the scale that they were made for.
        scale = (sequence.square().mean() - 1).square() + (pooled.square().mean() - 1).square()
        (loss_t5 + loss_clip + 0.1 * scale).backward()
        for group, peak in peaks:
            group["lr"] = peak * clock.rate(step, progress)
        muon.step()
        adam.step()
        modules.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"text {progress:5.1%} step {step} t5 {float(loss_t5):.4f} {right_t5:.1%} "
                  f"clip {float(loss_clip):.4f} {right_clip:.1%} scale {float(scale):.3f}", flush=True)  # fmt: skip
        if step % 200 == 0:
            save(work, text_encoder_2, text_encoder)
    save(work, text_encoder_2, text_encoder)
    t5.save_pretrained(work / "tokenizer_2")
    clip.save_pretrained(work / "tokenizer")


def save(work: Path, text_encoder_2: T5EncoderModel, text_encoder: CLIPTextModel) -> None:
    text_encoder_2.save_pretrained(work / "text_encoder_2")
    text_encoder.save_pretrained(work / "text_encoder")


def run(work: Path, minutes: float) -> None:
    run_stage(train, 1, work=work, minutes=minutes)
