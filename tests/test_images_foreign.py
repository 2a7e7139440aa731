"""What is taken over from pictures of other programs, what is named as left out, and what their files cannot do."""

from __future__ import annotations

import json
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.images.metadata import read_record, read_settings
from engine.request import MAX_SEED, RequestError
from tests.elsewhere import SIGNATURE, SIMPLE, chunk, picture, refusal, said, values

LINE = "Steps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: {cfg}, Distilled CFG Scale: 2.5, Seed: 99, "
LINE += "Size: 512x768"


# Text


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Grüße, 赤い円".encode(), "Grüße, 赤い円"),
        ("Grüße".encode("latin-1"), "Grüße"),
        (b"plain", "plain"),
    ],
)
def test_a_text_that_is_utf_8_is_read_as_that_and_else_as_latin_1(
    kind: bytes, written: bytes, read: str, tmp_path: Path
) -> None:
    text = written + b"\n" + LINE.format(cfg=1).encode()
    body = text if kind == b"tEXt" else b"\0" + zlib.compress(text)
    path = tmp_path / "picture.png"
    path.write_bytes(SIGNATURE + chunk(kind, b"parameters\0" + body) + chunk(b"IEND", b""))
    assert read_record(path).request.prompt == read


# The line of A1111 and its relatives


def test_a_picture_of_stable_diffusion_cpp(tmp_path: Path) -> None:
    line = (
        "ein Kätzchen\nNegative prompt: dogs\nSteps: 20, CFG scale: 1.000000, Guidance: 2.500000, Eta: 0.000000, "
        "Seed: 42, Size: 512x512, Model: flux1-dev-q4_0.gguf, RNG: cuda, Sampler: euler simple, "
        "VAE: ae.safetensors, Version: stable-diffusion.cpp"
    )
    found = said(tmp_path, parameters=line)
    assert values(found.record.request) == {
        "prompt": "ein Kätzchen",
        "steps": 20,
        "seed": 42,
        "width": 512,
        "height": 512,
        "guidance": 2.5,
    }
    assert (found.left_out, found.model) == (("RNG cuda",), "flux1-dev-q4_0.gguf")


DETAILS = "Steps: 20, Sampler: DPM++ 2M, CFG scale: 3, Seed: 99, Size: 512x768"


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "left_out"),
    [
        (f"a cat, red Negative prompt: dogs {DETAILS}", "a cat, red", "dogs", ()),
        (f"a cat: red. Negative prompt: dogs. {DETAILS}", "a cat: red.", "dogs.", ()),
        (f"a cat.{DETAILS}, Distilled CFG Scale: 3", "a cat.", None, ()),
        (
            f"a cat\nin a hat Negative prompt: dogs, birds {DETAILS}, Hires Steps: 5, Hires upscale: 2",
            "a cat\nin a hat",
            "dogs, birds",
            ("hires fix",),
        ),
        (f"a cat\r\nNegative prompt: dogs\r\n{DETAILS}", "a cat", "dogs", ()),
        (
            f"a cat\nNegative prompt: dogs\n{DETAILS}\nTemplate: a {{cat|dog}}, x: y\nNegative Template: dogs",
            "a cat",
            "dogs",
            (),
        ),
        (f'a cat\nNegative prompt: dogs\n{DETAILS}, Template: "a, b", Negative Template: dogs', "a cat", "dogs", ()),
        (f'a cat\nNegative prompt: dogs\n{DETAILS}\n\nWildcard prompt: "a __x__"\nmore', "a cat", "dogs", ()),
        (
            f"a cat\nNegative prompt: dogs\n{DETAILS}\nwhat is this, Tiling: True",
            "a cat",
            "dogs",
            ("Tiling True", '"what is this"'),
        ),
        (f"a cat\nSteps: to heaven\nNegative prompt: dogs\n{DETAILS}", "a cat\nSteps: to heaven", "dogs", ()),
        (
            "a cat\nNegative prompt: dogs\nSampler: DPM++ 2M, Steps: 20, CFG scale: 3, Seed: 99, Size: 512x768",
            "a cat",
            "dogs",
            (),
        ),
    ],
)
def test_all_in_one_line_and_lines_after_the_last_are_read(
    text: str, prompt: str, negative: str | None, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    found = said(tmp_path, parameters=text)
    request = found.record.request
    assert (request.prompt, request.negative_prompt) == (prompt, negative)
    assert (request.steps, request.cfg, request.seed, request.width, request.height) == (20, 3.0, 99, 512, 768)
    assert found.left_out == ("sampler DPM++ 2M", *left_out)


def test_what_follows_very_long_details_is_named(tmp_path: Path) -> None:
    found = said(tmp_path, parameters=f"a cat\n{LINE.format(cfg=1)}, " + "x: 0, " * 2000 + "Tiling: True")
    assert found.record.request.seed == 99
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith('"x: 0, x: 0')


@pytest.mark.parametrize(
    ("version", "program"),
    [
        ("Version: f2.0.1v1.10.1-previous", "Forge"),
        ("Version: neo", "Forge"),
        ("App: SD.Next, Version: abc", "SD.Next"),
        ("Version: ComfyUI", "ComfyUI"),
        ("Version: v1.10.1", "A1111 or a relative"),
    ],
)
def test_what_is_taken_over_and_what_is_not_is_one_sentence(version: str, program: str, tmp_path: Path) -> None:
    found = said(tmp_path, parameters=f"a cat <lora:ink:1>\n{LINE.format(cfg=1)}, {version}")
    taken = f"taken over from {program}: prompt, size, steps, seed"
    assert found.account(found.left_out) == f"{taken}, guidance; left out: LoRA ink"
    assert found.account([]) == f"{taken}, guidance"
    assert (
        found.account(["guidance 2.5"], without=["seed"]) == f"{taken.removesuffix(', seed')}; left out: guidance 2.5"
    )
    changed = read_settings(tmp_path / "picture.png", {"steps": 3, "guidance": 1.0})
    assert changed.account([]) == taken.replace("steps, ", "")


@pytest.mark.parametrize(
    "name",
    ["Distilled CFG Scale", "Distilled CFG scale", "Guidance", "Guidance scale", "Flux Guidance", "FluxGuidance"],
)
def test_the_distilled_guidance_goes_by_many_names(name: str, tmp_path: Path) -> None:
    found = said(tmp_path, parameters=f"a cat\nSteps: 4, Seed: 1, Size: 64x64, {name}: 2.5")
    assert (found.record.request.guidance, found.left_out) == (2.5, ())


@pytest.mark.parametrize(
    ("negative", "line", "cfg", "kept", "left_out"),
    [
        ("dogs", LINE.format(cfg=3), 3.0, "dogs", ()),
        ("dogs", LINE.format(cfg=1), None, None, ()),
        ("", LINE.format(cfg=3), 3.0, None, ()),  # beside a distilled guidance
        ("", "Steps: 4, Seed: 1, Size: 64x64, CFG scale: 7", None, None, ("CFG scale 7",)),
        ("", "Steps: 4, Seed: 1, Size: 64x64, CFG scale: 7, Version: TextToImageTool v0.1", 7.0, None, ()),
        ("dogs", LINE.format(cfg=0.5), None, None, ("CFG scale 0.5", "negative prompt")),
    ],
)
def test_a_cfg_scale_above_one_is_true_guidance(
    negative: str, line: str, cfg: float | None, kept: str | None, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    found = said(tmp_path, parameters=f"a cat\n{f'Negative prompt: {negative}' if negative else ''}\n{line}")
    request = found.record.request
    assert (request.cfg, request.negative_prompt, found.left_out) == (cfg, kept, left_out)


def test_a_negative_prompt_without_effect_is_used_with_a_cfg_scale_that_is_given(tmp_path: Path) -> None:
    path = picture(tmp_path, parameters="a cat\nNegative prompt: dogs\n" + LINE.format(cfg=1))
    request = read_settings(path, {"cfg": 2.0}).record.request
    assert (request.cfg, request.negative_prompt) == (2.0, "dogs")
    request = read_settings(path, {"negative_prompt": "birds"}).record.request
    assert (request.cfg, request.negative_prompt) == (None, "birds")


def test_what_has_no_counterpart_is_named_and_what_changes_nothing_is_not(tmp_path: Path) -> None:
    line = (
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 5, "
        "Size: 1024x1024, Model hash: abcdef0123, Model: flux1-dev, Denoising strength: 0.4, Clip skip: 1, "
        "Hires upscale: 2, Hires steps: 10, Hires upscaler: 4x-Ultra, ADetailer model: face.pt, "
        'ADetailer prompt: "a, b", Variation seed: 7, Lora hashes: "style: 0123", RNG: CPU, Tiling: True, '
        "Module 1: ae, Module 2: clip_l, Version: f2.0.1"
    )
    found = said(tmp_path, parameters=f"a ((red) cat:1.2), (blue:1.1) sky <lora:style:0.8><lora:other:1>\n{line}")
    assert found.record.request.prompt == "a ((red) cat:1.2), blue sky"
    assert found.left_out == (
        *("LoRA style", "LoRA other", "weights of words", "sampler DPM++ 2M", "scheduler Karras", "hires fix"),
        *("ADetailer", "variation seed", "Tiling True"),
    )


@pytest.mark.parametrize(
    ("line", "left_out"),
    [
        (
            'Sampler: Undefined, Clip skip: 1, Created Date: 2026-01-01T00:00:00.000Z, Civitai resources: [{"type":'
            '"checkpoint","modelVersionId":691639,"modelName":"FLUX","modelVersionName":"Dev"},{"type":"lora",'
            '"weight":0.8,"modelName":"Ink"}], Civitai metadata: {"baseModel":"Flux1 D","a":[1,2]}, Tiling: True',
            ("LoRA Ink", "Tiling True"),
        ),
        ("App: SD.Next, Version: abc, Pipeline: FluxPipeline, Operations: txt2img, Model: flux.1-dev", ()),
    ],
)
def test_where_the_cfg_scale_of_flux_is_the_distilled_guidance(
    line: str, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    text = f"a cat\nNegative prompt: dogs\nSteps: 25, CFG scale: 3.5, Seed: 1, Size: 832x1216, {line}"
    found = said(tmp_path, parameters=text)
    assert values(found.record.request) == {
        "prompt": "a cat",
        "steps": 25,
        "guidance": 3.5,
        "seed": 1,
        "width": 832,
        "height": 1216,
    }
    assert found.left_out == left_out


def test_names_from_a_file_are_short_and_cannot_touch_the_terminal(tmp_path: Path) -> None:
    found = said(tmp_path, parameters=f"a cat\n{LINE.format(cfg=1)}, x\x1b: \x1b[31m, Strange: {'y' * 500}\u202e")
    assert all(text.isprintable() and len(text) <= 60 for text in found.left_out), found.left_out
    path = picture(tmp_path, parameters=f"a cat <lora:\x1b]0;x\x07:1>\n{LINE.format(cfg=1)}")
    assert read_settings(path).left_out == ("LoRA \\x1b]0;x\\x07",)


def test_numbers_without_end_are_none(tmp_path: Path) -> None:
    numbers: list[Any] = [1e308, 10**4000, 0.5, True, []]
    for number in numbers:
        text = {"steps": 4, "seed": 1, "width": number, "height": number, "prompt": "a cat"}
        assert "does not say its size" in refusal(picture(tmp_path, parameters=text))


# What is given replaces what is said


@pytest.mark.parametrize(
    ("size", "nearest"), [("1000x1000", "1008x1008"), ("1440x904", "1440x912"), ("9x5000", "64x2048")]
)
def test_a_size_that_cannot_be_is_refused_with_the_nearest_or_replaced(size: str, nearest: str, tmp_path: Path) -> None:
    path = picture(tmp_path, parameters=f"a cat\nSteps: 4, Seed: 1, Size: {size}")
    assert f"add --size {nearest}, the nearest one" in refusal(path)
    request = read_settings(path, {"width": 128, "height": 64}).record.request
    assert (request.width, request.height, request.seed) == (128, 64, 1)
    found = read_settings(path, lenient=True)
    assert (found.left_out, found.record.request.width, found.record.request.seed) == ((f"size {size}",), None, 1)


def test_seeds_of_64_bits_are_read_and_minus_one_is_a_random_one(tmp_path: Path) -> None:
    for seed, read in ((2**64 - 1, MAX_SEED), (2**63, 2**63), (-1, None)):
        path = picture(tmp_path, parameters=f"a cat\nSteps: 4, Seed: {seed}, Size: 64x64")
        assert read_settings(path).record.request.seed == read
    path = picture(tmp_path, parameters=f"a cat\nSteps: 4, Seed: {2**64}, Size: 64x64")
    assert "seed must be a whole number from 0 to 2**64 - 1" in refusal(path)
    assert read_settings(path, {"seed": 3}).record.request.seed == 3
    assert read_settings(path, {"seed": None}).record.request.seed is None


def test_what_is_not_said_can_be_given(tmp_path: Path) -> None:
    path = picture(tmp_path, parameters="a cat\nSteps: 4, Sampler: Euler")
    assert "does not say its seed and size; add --seed NUMBER and --size 1024x1024." in refusal(path)
    request = read_settings(path, {"seed": 1, "width": 64, "height": 64}).record.request
    assert values(request) == {"prompt": "a cat", "steps": 4, "seed": 1, "width": 64, "height": 64}


def test_a_value_that_was_given_is_refused_as_that(tmp_path: Path) -> None:
    path = picture(tmp_path, parameters=f"a cat\nSteps: 4, Seed: {2**64 - 1}, Size: 64x64")
    with pytest.raises(RequestError, match="take a smaller seed") as refused:
        read_settings(path, {"count": 2})
    assert refused.value.field == "from"  # the picture's seed, not the count, is at fault


# Objects of other programs


@pytest.mark.parametrize(
    ("texts", "program", "expected", "left_out"),
    [
        (
            {
                "invokeai_metadata": {
                    "app_version": "5.6.0",
                    "generation_mode": "flux_txt2img",
                    "positive_prompt": "a (cat)+",
                    "negative_prompt": None,
                    "width": 1024,
                    "height": 768,
                    "seed": 42,
                    "cfg_scale": 1.0,
                    "guidance": 2.5,
                    "steps": 30,
                    "scheduler": "euler",
                    "rand_device": "cpu",
                    "model": {"key": "x", "hash": "blake3:1", "name": "FLUX Dev", "base": "flux", "type": "main"},
                    "loras": [{"model": {"key": "y", "name": "Ink"}, "weight": 0.75}],
                    "vae": {"name": "ae"},
                    "t5_encoder": {"name": "t5"},
                    "controlnets": [],
                    "strength": 0.7,
                }
            },
            "InvokeAI",
            {"prompt": "a (cat)+", "steps": 30, "seed": 42, "width": 1024, "height": 768, "guidance": 2.5},
            ("LoRA Ink", "strength 0.7"),
        ),
        (
            {
                "parameters": {
                    "sui_image_params": {
                        "prompt": "a (red:1.2) cat <lora:ink>",
                        "negativeprompt": "",
                        "model": "Flux/flux1-dev",
                        "images": 1,
                        "seed": 7,
                        "steps": 20,
                        "cfgscale": 1.0,
                        "fluxguidancescale": 3.0,
                        "aspectratio": "1:1",
                        "width": 1024,
                        "height": 1024,
                        "sampler": "dpmpp_2m",
                        "scheduler": "simple",
                        "swarm_version": "0.9.7.0",
                        "automaticvae": True,
                        "loras": ["ink"],
                        "loraweights": ["1"],
                    },
                    "sui_extra_data": {"date": "2026-01-01"},
                }
            },
            "SwarmUI",
            {"prompt": "a red cat", "steps": 20, "seed": 7, "width": 1024, "height": 1024, "guidance": 3.0},
            ("sampler dpmpp_2m", "LoRA ink", "weights of words"),
        ),
        (
            {
                "Software": "NovelAI",
                "Description": "a cat",
                "Comment": {
                    "prompt": "a cat",
                    "steps": 28,
                    "height": 1216,
                    "width": 832,
                    "scale": 5.0,
                    "uc": "dogs",
                    "uncond_scale": 0.0,
                    "cfg_rescale": 0.0,
                    "seed": 123,
                    "n_samples": 1,
                    "sm": False,
                    "noise_schedule": "karras",
                    "sampler": "k_euler_ancestral",
                    "request_type": "x",
                },
            },
            "NovelAI",
            {"prompt": "a cat", "steps": 28, "seed": 123, "width": 832, "height": 1216, "cfg": 5.0}
            | {"negative_prompt": "dogs"},
            ("scheduler karras", "sampler k_euler_ancestral"),
        ),
        (
            {
                "fooocus_scheme": "fooocus",
                "parameters": {
                    "prompt": "a cat",
                    "negative_prompt": "dogs",
                    "performance": "Speed",
                    "steps": 30,
                    "resolution": "(1152, 896)",
                    "guidance_scale": 4.0,
                    "sharpness": 2.0,
                    "seed": "99",
                    "base_model": "juggernautXL",
                    "base_model_hash": "x",
                    "refiner_model": "None",
                    "sampler": "dpmpp_2m_sde_gpu",
                    "scheduler": "karras",
                    "styles": "['Fooocus V2']",
                    "loras": [["ink.safetensors", 0.1, "hash"]],
                    "metadata_scheme": "fooocus",
                    "version": "v2.5",
                },
            },
            "Fooocus",
            {"prompt": "a cat", "steps": 30, "seed": 99, "width": 1152, "height": 896, "cfg": 4.0}
            | {"negative_prompt": "dogs"},
            (
                *("sharpness 2.0", "sampler dpmpp_2m_sde_gpu", "scheduler karras"),
                *("styles ['Fooocus V2']", "LoRA ink.safetensors"),
            ),
        ),
        (
            {
                "mold__parameters": {
                    "prompt": "a cat",
                    "model": "flux-dev:q4",
                    "seed": 3,
                    "steps": 4,
                    "guidance": 2.5,
                    "width": 512,
                    "height": 512,
                    "scheduler": None,
                    "version": "0.5",
                    "lora": "/m/ink.safetensors",
                }
            },
            "mold",
            {"prompt": "a cat", "steps": 4, "seed": 3, "width": 512, "height": 512, "guidance": 2.5},
            ("LoRA ink.safetensors",),
        ),
        (
            {
                "XML__com.adobe.xmp": (
                    '<x:xmpmeta><rdf:Description><exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">'
                    '{"c":"a \\&quot;cat\\&quot;","uc":"dogs","model":"flux_1_dev_q8p.ckpt",'
                    '"sampler":"Euler A Trailing","scale":3.5,"seed":5,"size":"1024x768","steps":20,'
                    '"strength":1,"v2":{"x":1},"shift":3.16}'
                    "</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></x:xmpmeta>"
                )
            },
            "Draw Things",
            {"prompt": 'a "cat"', "steps": 20, "seed": 5, "width": 1024, "height": 768, "guidance": 3.5},
            ("sampler Euler A Trailing", "shift 3.16"),
        ),
        (
            {
                "use_stable_diffusion_model": "flux1-dev",
                "prompt": "a cat",
                "seed": "5",
                "width": "512",
                "height": "512",
                "num_inference_steps": "4",
                "distilled_guidance_scale": "2.5",
                "sampler_name": "euler",
                "scheduler_name": "simple",
                "guidance_scale": "1",
            },
            "Easy Diffusion",
            {"prompt": "a cat", "steps": 4, "seed": 5, "width": 512, "height": 512, "guidance": 2.5},
            (),
        ),
        (
            {
                "parameters": {
                    "Prompt": "a cat",
                    "Negative": "ugly",
                    "steps": 24,
                    "cfg": 4.5,
                    "seed": 7,
                    "width": 1152,
                    "height": 896,
                    "sampler_name": "euler",
                    "scheduler": "simple",
                    "clip_skip": 1,
                    "base_model_name": "x.safetensors",
                    "base_model_hash": "abc",
                    "software": "RuinedFooocus",
                    "loras": [["BFA3", "0.5 - ink.safetensors"]],
                    "start_step": 0,
                    "denoise": None,
                }
            },
            "RuinedFooocus",
            {"prompt": "a cat", "steps": 24, "seed": 7, "width": 1152, "height": 896, "cfg": 4.5}
            | {"negative_prompt": "ugly"},
            ("LoRA 0.5 - ink.safetensors",),
        ),
        (
            {
                "UserComment": {
                    "mflux_version": "0.11",
                    "model": "dev",
                    "prompt": "a cat",
                    "seed": 42,
                    "steps": 20,
                    "guidance": 2.5,
                    "height": 768,
                    "width": 512,
                    "quantize": 8,
                    "precision": "mlx.core.bfloat16",
                    "lora_paths": ["/a/ink.safetensors"],
                    "lora_scales": [0.5],
                    "image_strength": None,
                }
            },
            "mflux",
            {"prompt": "a cat", "steps": 20, "seed": 42, "width": 512, "height": 768, "guidance": 2.5},
            ("LoRA ink.safetensors",),
        ),
        (
            {
                "sd-metadata": {
                    "model": "stable diffusion",
                    "model_weights": "sd-1.5",
                    "app_id": "invoke-ai/InvokeAI",
                    "image": {
                        "prompt": [{"prompt": "a cat", "weight": 1}],
                        "steps": 50,
                        "cfg_scale": 7.5,
                        "seed": 9,
                        "width": 512,
                        "height": 512,
                        "sampler": "k_lms",
                        "seamless": False,
                        "type": "txt2img",
                    },
                }
            },
            "InvokeAI",
            {"prompt": "a cat", "steps": 50, "seed": 9, "width": 512, "height": 512},
            ("sampler k_lms", "CFG scale 7.5"),
        ),
        (
            {
                "sd-metadata": {
                    "model_weights": "sd-1.5",
                    "image": {
                        "prompt": [{"prompt": "a cat, [dogs, ] red [birds]", "weight": 1}],
                        "steps": 50,
                        "cfg_scale": 7.5,
                        "seed": 9,
                        "width": 512,
                        "height": 512,
                        "sampler": "k_euler",
                        "type": "img2img",
                        "postprocessing": [{"type": "esrgan", "scale": 4}],
                    },
                }
            },
            "InvokeAI",
            {"prompt": "a cat,  red", "negative_prompt": "dogs, birds", "cfg": 7.5}
            | {"steps": 50, "seed": 9, "width": 512, "height": 512},
            ("type img2img", "postprocessing"),
        ),
        (
            {
                "Dream": '"a cat, red [dogs]" -s 50 -S 7 -W512 -H 768 -C 5.0 -A k_euler -G 0.9 -cf 0.75 -U 4 0.75 '
                "--seamless"
            },
            "InvokeAI",
            {"prompt": "a cat, red", "negative_prompt": "dogs", "cfg": 5.0}
            | {"steps": 50, "seed": 7, "width": 512, "height": 768},
            ("face restoration 0.9", "upscaling", "seamless on"),
        ),
        (
            {
                "Software": "NovelAI",
                "Description": "a cat ",
                "Source": "Stable Diffusion 1D44365E",
                "Comment": {"steps": 28, "sampler": "k_euler", "seed": 5, "strength": 0.4, "noise": 0.0, "scale": 10.0}
                | {"uc": "dogs", "width": 512, "height": 768},
            },
            "NovelAI",
            {"prompt": "a cat", "negative_prompt": "dogs", "cfg": 10.0}
            | {"steps": 28, "seed": 5, "width": 512, "height": 768},
            ("strength 0.4",),
        ),
        (
            {
                "Software": "NovelAI",
                "Comment": {
                    "prompt": "a cat",
                    "steps": 28,
                    "sampler": "k_euler",
                    "seed": 5,
                    "width": 512,
                    "height": 768,
                }
                | {"v4_prompt": {"caption": {"base_caption": "a cat", "char_captions": [{"char_caption": "a dog"}]}}},
            },
            "NovelAI",
            {"prompt": "a cat", "steps": 28, "seed": 5, "width": 512, "height": 768},
            ("prompts of characters",),
        ),
        (
            {
                "fooocus_scheme": "a1111",
                "parameters": "a cat, cinematic\nSteps: 30, Sampler: Euler, Seed: 5, Size: 512x768, "
                'ADM Guidance: "(1.5, 0.8)", '
                "Raw prompt: a (cat:1.2), Styles: \"['Sharp']\", Version: Fooocus v2.5.3",
            },
            "Fooocus",
            {"prompt": "a cat", "steps": 30, "seed": 5, "width": 512, "height": 768},
            ("weights of words", "ADM Guidance (1.5, 0.8)", "Styles ['Sharp']"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_of_other_programs_give_their_settings(
    texts: dict[str, Any], program: str, expected: dict[str, Any], left_out: tuple[str, ...], tmp_path: Path
) -> None:
    found = said(tmp_path, **texts)
    assert (found.program, values(found.record.request), found.left_out) == (program, expected, left_out)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"Dream": "a cat -s 50 -S 1"}, "an old InvokeAI"),
        ({"Software": "NovelAI", "Comment": "none"}, "NovelAI"),
        ({"Description": "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"}, "Midjourney"),
        ({"XML__com.adobe.xmp": "<x><xmp:CreatorTool>Draw Things</xmp:CreatorTool></x>"}, "Draw Things"),
    ],
)
def test_a_program_whose_settings_cannot_be_read_is_named(texts: dict[str, str], named: str, tmp_path: Path) -> None:
    assert f"was made by {named}, whose settings cannot be read here" in refusal(picture(tmp_path, **texts))


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"sdparams": "x"}, "sdparams"),
        ({"parameters": "a cat"}, "parameters"),
        ({"postprocessing": "Upscale by: 4", "date:create": "2026", "x\x1b": "y"}, "postprocessing, x\\x1b"),
        ({"Comment": '{"positive": "x", "Seed": 1}'}, "Comment"),
        ({"Description": "a cat, Seed=5, 20 steps"}, "Description"),
        ({"prompt": "{"}, "prompt"),
    ],
)
def test_settings_of_an_unknown_program_are_not_called_none(texts: dict[str, str], named: str, tmp_path: Path) -> None:
    sentence = refusal(picture(tmp_path, **texts))
    assert sentence.endswith(
        f"has no settings that TextToImageTool can read, but texts of another program ({named}); "
        "say them with --prompt and more."
    )


@pytest.mark.parametrize("texts", [{}, {"Title": "A holiday", "Description": "the seed of a tree"}, {"exif:Make": "x"}])
def test_a_picture_without_settings_is_called_that(texts: dict[str, str], tmp_path: Path) -> None:
    assert "has no settings in it, sharing or editing removes them" in refusal(picture(tmp_path, **texts))


@pytest.mark.parametrize(
    "text",
    [
        *('"' + "[" * 500_000 + '"', '"a"' + " -s" * 200_000, '"a"' + " " * 500_000 + "x", '"' + "\\" * 500_000),
        *(
            ". Steps: 1 " * 50_000,
            "Negative prompt:" * 50_000 + " Steps: 1, ",
            "x: 1,y" * 1600,
            " Steps: 1," + "a" * 900_000,
        ),
        *(
            "a\nSteps: 1, " + "Template:" * 90_000,
            "a\nSteps: 1, Hashes: " + "{" * 9_000,
            "a\nSteps: 1, " + 'x: "' * 2_400,
        ),
        *("{" * 900_000, "seed " * 200_000),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("name", ["parameters", "Dream", "Comment"])
def test_no_long_text_takes_more_than_a_moment(name: str, text: str, tmp_path: Path) -> None:
    """A careless pattern takes quadratic time for these and would not come back."""
    refusal(picture(tmp_path, **{name: text}))


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[" * 100_000, "{" + '"a":' * 5000 + "1", '{"c": 1, "uc": 2}', '{"sui_image_params": []}'),
        '{"steps": 1e999}',
        '{"prompt": "x", "seed": {}, "steps": [], "width": "9"}',
        '{"sui_image_params": {"prompt": "\\ud800", "seed": 1}}',
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("name", ["parameters", "prompt", "workflow", "Comment", "invokeai_metadata", "sd-metadata"])
def test_an_object_that_is_none_is_refused_in_one_sentence(name: str, text: str, tmp_path: Path) -> None:
    refusal(picture(tmp_path, **{name: text}))


# JPEG and WebP


def exif(comment: bytes, order: str = ">", **texts: bytes) -> bytes:
    tags = {0x0131: texts.get("software"), 0x0110: texts.get("model")}
    first = [(tag, 2, text + b"\0") for tag, text in sorted(tags.items()) if text is not None]
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    end = 8 + 2 + 12 * (len(first) + 1) + 4
    entries, blobs = b"", b""
    for tag, kind, text in first:
        entries += struct.pack(order + "HHII", tag, kind, len(text), end + len(blobs))
        blobs += text
    below = end + len(blobs)
    entries += struct.pack(order + "HHII", 0x8769, 4, 1, below)
    directory = struct.pack(order + "H", len(first) + 1) + entries + bytes(4)
    comment_entry = struct.pack(order + "HHHII", 1, 0x9286, 7, len(comment), below + 2 + 12 + 4) + bytes(4)
    return head + directory + blobs + comment_entry + comment


PARAMETERS = "Grüße 赤\nNegative prompt: dogs\n" + LINE.format(cfg=3)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + PARAMETERS.encode("utf-16-be"),
        b"UNICODE\0" + PARAMETERS.encode("utf-16-le"),
        b"UNICODE\0" + PARAMETERS.encode("utf-16"),
        b"UNICODE\0" + PARAMETERS.encode(),
        b"ASCII\0\0\0" + PARAMETERS.encode(),
        bytes(8) + PARAMETERS.encode(),
    ],
    ids=["BE", "LE", "BOM", "UTF-8", "ASCII", "unknown"],
)
def test_settings_in_exif_are_read(format: str, comment: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    for order in "<>":
        Image.new("RGB", (32, 32)).save(path, format, exif=b"Exif\0\0" + exif(comment, order, software=b"x"))
        request = read_settings(path).record.request
        assert values(request) == {
            "prompt": "Grüße 赤",
            "negative_prompt": "dogs",
            "cfg": 3.0,
            "guidance": 2.5,
            "steps": 20,
            "seed": 99,
            "width": 512,
            "height": 768,
        }


def test_a_webp_of_comfyui_and_a_jpeg_of_mold_are_read(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    block = exif(b"ASCII\0\0\0", "<", model=b"prompt:" + json.dumps(SIMPLE).encode())
    Image.new("RGB", (32, 32)).save(path, "WEBP", exif=block)
    assert read_settings(path).record.request.seed == 7
    buffer = BytesIO()
    said = {"prompt": "a cat", "model": "flux-dev", "seed": 3, "steps": 4, "guidance": 2.5, "width": 64, "height": 64}
    Image.new("RGB", (32, 32)).save(buffer, "JPEG", comment=b"mold:parameters " + json.dumps(said).encode())
    path.write_bytes(buffer.getvalue())
    assert read_settings(path).record.request.guidance == 2.5


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_jpeg_or_webp_without_settings_or_damaged_anywhere_is_one_sentence(format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    Image.new("RGB", (32, 32)).save(path, format)
    assert "has no settings in it" in refusal(path)
    comment = b"UNICODE\0" + PARAMETERS.encode("utf-16-le")
    Image.new("RGB", (32, 32)).save(path, format, exif=exif(comment, "<", software=b"a program"))
    whole = path.read_bytes()
    start = whole.index(b"II*\0")
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:n] + bytes([byte]) + whole[n + 1 :] for n in range(start, start + 100) for byte in (0, 127, 255)]
    for data in damaged:
        path.write_bytes(data)
        with suppress(RequestError):  # and nothing else; some bytes are of no importance
            read_settings(path)
