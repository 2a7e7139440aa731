"""A small model of FLUX.1's kind, and the folders in which users of other programs have it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from engine.families.flux1 import published as flux1
from engine.library.catalog import DEMO_FOLDER
from tests import checkpoints
from tests.checkpoints import State, save, tiny_transformer
from tests.tiny import tiny_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Kit:
    """The parts of one small model, as other programs' files have them, and as diffusers' pipeline."""

    pipeline: FluxPipeline
    transformer: State
    vae: State
    clip: State
    t5: State

    def all_in_one(self) -> State:
        return checkpoints.all_in_one(self.transformer, self.vae, self.clip, self.t5)


def small_kit(guided: bool = True, seed: int = 0) -> Kit:
    """A model whose configurations follow from its tensors' shapes, as FLUX.1's do; the tokenizers are the demo's."""
    pipeline = tiny_pipeline(guided, seed)
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        **{key: value for key, value in flux1.VAE.items() if key != "_class_name"}
        | {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8},
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pipeline.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=32,
            bos_token_id=pipeline.tokenizer.bos_token_id,
            eos_token_id=pipeline.tokenizer.eos_token_id,
            pad_token_id=pipeline.tokenizer.pad_token_id,
        )
    )
    pipeline.register_modules(transformer=tiny_transformer(guided, seed=seed), vae=vae.eval(), text_encoder=clip.eval())
    return Kit(
        pipeline,
        checkpoints.bfl_state(pipeline.transformer),
        checkpoints.ldm_state(vae),
        checkpoints.clip_state(clip),
        checkpoints.t5_state(pipeline.text_encoder_2),
    )


def copy_tokenizers(folder: Path) -> None:
    """The demo's two, as diffusers calls their folders."""
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(DEMO_FOLDER / name, folder / name, dirs_exist_ok=True)


def comfyui(root: Path, kit: Kit) -> Path:
    """A ComfyUI with a transformer in each of two layouts, and the parts in folders of their own."""
    models = root / "models"
    save(kit.transformer, models / "unet" / "flux1-dev.safetensors")
    save(checkpoints.scaled_fp8(kit.transformer)[0], models / "diffusion_models" / "flux1-dev-fp8.safetensors")
    save(kit.all_in_one(), models / "checkpoints" / "flux1-dev-all.safetensors")
    save(kit.vae, models / "vae" / "ae.safetensors")
    save(kit.clip, models / "clip" / "clip_l.safetensors")
    save(kit.t5, models / "text_encoders" / "t5xxl_fp16.safetensors")
    for name, to in (("tokenizer", "sd1_tokenizer"), ("tokenizer_2", "text_encoders/t5_tokenizer")):
        shutil.copytree(DEMO_FOLDER / name, root / "comfy" / to)
    return root


def forge(root: Path, kit: Kit) -> Path:
    """A Forge, which has tokenizers and configurations of FLUX.1 in a folder in diffusers' layout without weights."""
    models = root / "models"
    save(kit.transformer, models / "Stable-diffusion" / "flux1-dev-bnb.safetensors")
    save(kit.vae, models / "VAE" / "ae.safetensors")
    save(kit.clip, models / "text_encoder" / "clip_l.safetensors")
    save(kit.t5, models / "text_encoder" / "t5xxl_fp16.safetensors")
    own = root / "backend" / "huggingface" / "black-forest-labs" / "FLUX.1-dev"
    copy_tokenizers(own)
    (own / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    for component in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        (own / component).mkdir()
        (own / component / "config.json").write_text("{}")
    return root


def invokeai(root: Path, kit: Kit) -> Path:
    """An InvokeAI: single files, and folders of parts in transformers' layout, T5 in shards."""
    models = root / "models"
    save(kit.transformer, models / "flux" / "main" / "FLUX Dev" / "flux1-dev.safetensors")
    save(kit.vae, models / "flux" / "vae" / "FLUX.1-schnell_ae" / "ae.safetensors")
    clip = models / "any" / "clip_embed" / "clip-vit-large-patch14"
    kit.pipeline.text_encoder.save_pretrained(clip / "text_encoder")
    shutil.copytree(DEMO_FOLDER / "tokenizer", clip / "tokenizer")
    t5 = models / "any" / "t5_encoder" / "t5-v1_1-xxl"
    kit.pipeline.text_encoder_2.save_pretrained(t5 / "text_encoder_2", max_shard_size="60KB")
    shutil.copytree(DEMO_FOLDER / "tokenizer_2", t5 / "tokenizer_2")
    assert len(list((t5 / "text_encoder_2").glob("*.safetensors"))) > 1
    return root


def hub_cache(cache: Path, repository: str, folder: Path, commit: str = COMMIT) -> Path:
    """The files of a folder as the hub's cache has them, by links; the snapshot."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        pointer = snapshot / file.relative_to(folder)
        blob = place / "blobs" / f"{abs(hash(file.read_bytes())):064x}"
        for path in (pointer, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            shutil.copyfile(file, blob)
        pointer.symlink_to(Path(*[".."] * (len(pointer.relative_to(place).parts) - 1)) / blob.relative_to(place))
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    return snapshot


def lora(file: Path) -> Path:
    state = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 4)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)
    return file
