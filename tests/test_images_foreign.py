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

from engine.images.metadata import Said, read_record, read_settings
from engine.request import MAX_SEED, Request, RequestError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LINE = "Steps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: {cfg}, Distilled CFG Scale: 2.5, Seed: 99, "
LINE += "Size: 512x768"


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def picture(folder: Path, **texts: Any) -> Path:
    """A PNG with these texts as they are written: bytes, text as UTF-8, anything else as JSON."""
    data = SIGNATURE + chunk(b"IHDR", b"\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0")
    for name, text in texts.items():
        body = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
        data += chunk(b"tEXt", name.replace("__", ":").encode() + b"\0" + body)
    path = folder / "picture.png"
    path.write_bytes(data + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    return path


def said(folder: Path, **texts: Any) -> Said:
    return read_settings(picture(folder, **texts))


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(RequestError) as refused:
        read_settings(path, changes)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400
    return str(refused.value)


def values(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.to_dict().items() if value not in (None, False) and name != "count"}


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


# ComfyUI


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


TURBO: dict[str, Any] = {
    "1": node("UNETLoader", unet_name="FLUX1/flux1-dev.safetensors", weight_dtype="default"),
    "2": node("DualCLIPLoader", clip_name1="t5xxl_fp16.safetensors", clip_name2="clip_l.safetensors", type="flux"),
    "3": node("CLIPTextEncode", text="a red (cat:1.3)", clip=["2", 0]),
    "4": node("FluxGuidance", guidance=2.5, conditioning=["3", 0]),
    "5": node("LoraLoaderModelOnly", lora_name="styles/ink.safetensors", strength_model=0.8, model=["1", 0]),
    "6": node("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=1024, height=1024, model=["5", 0]),
    "7": node("BasicGuider", model=["6", 0], conditioning=["4", 0]),
    "8": node("RandomNoise", noise_seed=2**64 - 1),
    "9": node("KSamplerSelect", sampler_name="euler"),
    "10": node("BasicScheduler", scheduler="beta", steps=24, denoise=1, model=["6", 0]),
    "11": node("EmptySD3LatentImage", width=1024, height=768, batch_size=1),
    "12": node(
        "SamplerCustomAdvanced",
        noise=["8", 0],
        guider=["7", 0],
        sampler=["9", 0],
        sigmas=["10", 0],
        latent_image=["11", 0],
    ),
    "13": node("VAEDecode", samples=["12", 0], vae=["14", 0]),
    "14": node("VAELoader", vae_name="ae.safetensors"),
    "15": node("SaveImage", filename_prefix="x", images=["13", 0]),
}
SIMPLE: dict[str, Any] = {
    "1": node("CheckpointLoaderSimple", ckpt_name="flux1-dev-fp8.safetensors"),
    "2": node("CLIPTextEncode", text="a cat", clip=["1", 1]),
    "3": node("CLIPTextEncode", text="dogs", clip=["1", 1]),
    "4": node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "5": node(
        "KSampler",
        seed=7,
        steps=20,
        cfg=1,
        sampler_name="euler",
        scheduler="simple",
        denoise=1,
        model=["1", 0],
        positive=["2", 0],
        negative=["3", 0],
        latent_image=["4", 0],
    ),
    "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
    "7": node("SaveImage", images=["6", 0]),
}


def changed(graph: dict[str, Any], number: str, **inputs: Any) -> dict[str, Any]:
    return graph | {number: {**graph[number], "inputs": graph[number]["inputs"] | inputs}}


def test_a_graph_of_custom_samplers_is_followed(tmp_path: Path) -> None:
    found = said(tmp_path, prompt=TURBO, workflow={"nodes": []})
    assert values(found.record.request) == {
        "prompt": "a red cat",
        "steps": 24,
        "seed": 2**64 - 1,
        "width": 1024,
        "height": 768,
        "guidance": 2.5,
    }
    assert (found.program, found.model) == ("ComfyUI", "flux1-dev.safetensors")
    assert set(found.left_out) == {"LoRA ink.safetensors", "scheduler beta", "weights of words"}


def test_a_graph_with_a_plain_sampler_is_followed(tmp_path: Path) -> None:
    found = said(tmp_path, prompt=SIMPLE)
    assert values(found.record.request) == {"prompt": "a cat", "steps": 20, "seed": 7, "width": 512, "height": 768}
    assert (found.left_out, found.model) == ((), "flux1-dev-fp8.safetensors")
    guided = said(tmp_path, prompt=changed(SIMPLE, "5", cfg=3.5)).record.request
    assert (guided.cfg, guided.negative_prompt) == (3.5, "dogs")


def test_prompts_and_numbers_of_other_nodes_are_found(tmp_path: Path) -> None:
    graph = changed(SIMPLE, "5", seed=["8", 0], positive=["11", 0]) | {
        "8": node("PrimitiveInt", value=11),
        "9": node("StringConcatenate", string_a="a cat", string_b=["10", 0], delimiter=", "),
        "10": node("PrimitiveStringMultiline", value="red"),
        "11": node("CLIPTextEncodeFlux", clip_l="short", t5xxl=["9", 0], guidance=4.0, clip=["1", 1]),
    }
    found = said(tmp_path, prompt=graph)
    request = found.record.request
    assert (request.prompt, request.seed, request.guidance) == ("a cat, red", 11, 4.0)
    assert found.left_out == ("another prompt for CLIP",)


def test_second_passes_and_pictures_that_were_changed_are_named(tmp_path: Path) -> None:
    first = SIMPLE["5"]["inputs"]
    graph = SIMPLE | {
        "8": node("LatentUpscale", samples=["5", 0], width=1024, height=1536),
        "9": node("KSampler", **{**first, "seed": 8, "denoise": 0.5, "latent_image": ["8", 0]}),
        "6": node("VAEDecode", samples=["9", 0]),
        "7": node("SaveImage", images=["10", 0]),
        "10": node("ImageUpscaleWithModel", image=["6", 0]),
    }
    found = said(tmp_path, prompt=graph)
    assert (found.record.request.seed, found.record.request.width) == (7, 512)
    assert found.left_out == ("ImageUpscaleWithModel", "LatentUpscale", "second pass 0.5")
    image = SIMPLE | {"4": node("VAEEncode", pixels=["9", 0])}
    assert "does not say its size" in refusal(picture(tmp_path, prompt=changed(image, "5", denoise=0.6)))
    found = read_settings(picture(tmp_path, prompt=changed(image, "5", denoise=0.6)), {"width": 64, "height": 64})
    assert found.left_out == ("image to image", "denoise 0.6")


def test_what_lies_between_prompt_and_sampler_is_named(tmp_path: Path) -> None:
    control = {
        "8": node("ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], strength=1, control_net=["77", 0]),
        "9": node("FluxGuidance", guidance=3.0, conditioning=["8", 0]),
    }
    graph = changed(SIMPLE, "5", positive=["9", 0], negative=["8", 1], cfg=2) | control
    found = said(tmp_path, prompt=graph)
    request = found.record.request
    assert (request.prompt, request.negative_prompt, request.guidance) == ("a cat", "dogs", 3.0)
    assert found.left_out == ("ControlNetApplyAdvanced",)
    unknown = SIMPLE | {"2": node("Odd Text Encode", words=["9", 0])}
    assert "does not say its prompt in a way that is known; add --prompt" in refusal(picture(tmp_path, prompt=unknown))
    found = read_settings(picture(tmp_path, prompt=unknown), {"prompt": "a dog"})
    assert (found.record.request.prompt, found.left_out) == ("a dog", ("Odd Text Encode",))


def test_a_graph_of_the_editor_alone_is_read(tmp_path: Path) -> None:
    def entry(number: int, kind: str, widgets: list[Any], **links: int) -> dict[str, Any]:
        inputs = [{"name": name, "type": "X", "link": link} for name, link in links.items()]
        return {"id": number, "type": kind, "mode": 0, "widgets_values": widgets, "inputs": inputs}

    workflow = {
        "nodes": [
            entry(1, "CLIPTextEncode", ["a cat"]),
            entry(2, "CLIPTextEncode", [""]),
            entry(3, "EmptyLatentImage", [512, 768, 1]),
            entry(4, "KSampler", [7, "randomize", 20, 1, "euler", "simple", 1], positive=1, negative=2, latent_image=3),
            entry(5, "VAEDecode", [], samples=4),
            entry(6, "SaveImage", ["x"], images=5),
        ],
        "links": [
            [1, 1, 0, 4, 1, "X"],
            [2, 2, 0, 4, 2, "X"],
            [3, 3, 0, 4, 3, "X"],
            [4, 4, 0, 5, 0, "X"],
            [5, 5, 0, 6, 0, "X"],
        ],
        "version": 0.4,
    }
    found = said(tmp_path, workflow=workflow)
    assert values(found.record.request) == {"prompt": "a cat", "steps": 20, "seed": 7, "width": 512, "height": 768}


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_image": ["5", 0]},
        {"positive": ["5", 0]},
        {"positive": ["99", 0]},
        {"model": ["5", 0], "positive": ["3", "x"]},
        {"seed": ["5", 0]},
        {"positive": [["5"], 0]},
        {"latent_image": None},
        {"steps": {"a": []}},
    ],
)
def test_cycles_and_missing_nodes_of_a_graph_come_to_an_end(changes: dict[str, Any], tmp_path: Path) -> None:
    refusal(picture(tmp_path, prompt=changed(changed(SIMPLE, "2", text=["2", 0]), "5", **changes)))


def test_a_graph_of_many_nodes_in_a_circle_is_walked_once(tmp_path: Path) -> None:
    count = 8000
    circle = {
        str(n): node("FluxGuidance", text=[str((n + 1) % count), 0], conditioning=[str((n + 1) % count), 0])
        for n in range(count)
    }
    sampler = changed(SIMPLE, "5", positive=["0", 0], latent_image=["0", 0])["5"]
    path = picture(tmp_path, prompt=circle | {"s": sampler})
    assert "does not say its prompt" in refusal(path)


@pytest.mark.parametrize("prompt", [{"1": node("LoadImage", image="x")}, {"1": node("VAEDecode", samples=["1", 0])}])
def test_a_graph_without_a_sampler_is_called_what_it_is(prompt: Any, tmp_path: Path) -> None:
    assert "was made by ComfyUI, whose settings cannot be read here" in refusal(picture(tmp_path, prompt=prompt))


def test_a_loader_that_gives_the_prompts_and_the_size_is_read(tmp_path: Path) -> None:
    loader = {"ckpt_name": "x.safetensors", "positive": "a cat", "negative": "dogs", "batch_size": 1}
    graph = {
        "1": node("Efficient Loader", empty_latent_width=512, empty_latent_height=768, **loader),
        "2": node(
            "KSampler (Efficient)",
            seed=7,
            steps=20,
            cfg=2.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=["1", 0],
            positive=["1", 1],
            negative=["1", 2],
            latent_image=["1", 3],
        ),
        "3": node("SaveImage", images=["2", 5]),
    }
    found = said(tmp_path, prompt=graph)
    assert values(found.record.request) == {
        "prompt": "a cat",
        "negative_prompt": "dogs",
        "cfg": 2.0,
        "steps": 20,
        "seed": 7,
        "width": 512,
        "height": 768,
    }
    assert (found.left_out, found.model) == ((), "x.safetensors")


def test_a_line_beside_a_graph_takes_the_guidance_from_it(tmp_path: Path) -> None:
    line = f"a red cat\nSteps: 24, Sampler: Euler Simple, CFG scale: 1, Seed: {2**64 - 1}, Size: 1024x768"
    found = said(tmp_path, parameters=line, prompt=TURBO)
    assert (found.record.request.guidance, found.left_out) == (2.5, ("scheduler beta", "LoRA ink.safetensors"))
    other = line.replace(str(2**64 - 1), "5")
    assert said(tmp_path, parameters=other, prompt=TURBO).record.request.guidance is None


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
        ({"Dream": '"a cat" -s 50 -S 1'}, "an old InvokeAI"),
        ({"Software": "NovelAI", "Comment": "none"}, "NovelAI"),
        ({"Description": "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"}, "Midjourney"),
        ({"XML__com.adobe.xmp": "<x><xmp:CreatorTool>Draw Things</xmp:CreatorTool></x>"}, "Draw Things"),
    ],
)
def test_a_program_whose_settings_cannot_be_read_is_named(texts: dict[str, str], named: str, tmp_path: Path) -> None:
    assert f"was made by {named}, whose settings cannot be read here" in refusal(picture(tmp_path, **texts))


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
