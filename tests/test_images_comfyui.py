"""What is taken over from graphs of ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.images.metadata import read_settings
from tests.elsewhere import SIMPLE, node, picture, refusal, said, values

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


@pytest.mark.parametrize(
    ("nodes", "prompt", "left_out"),
    [
        (
            {"8": node("JoinStrings", delimiter=" ", string1="a cat", string2=["9", 0]), "9": node("Text", text="red")},
            "a cat red",
            (),
        ),
        (
            {
                "8": node(
                    "Text Concatenate", delimiter=", ", clean_whitespace="true", text_a=["9", 0], text_b=["10", 0]
                ),
                "9": node("Text Multiline", text="a cat"),
                "10": node("Text Multiline", text="red"),
            },
            "a cat, red",
            (),
        ),
        ({"8": node("easy positive", positive="a cat")}, "a cat", ()),
        (
            {"8": node("DPRandomGenerator", text="a {cat|dog}", seed=4)},
            "a {cat|dog}",
            ("the choice of DPRandomGenerator",),
        ),
    ],
)
def test_prompts_of_nodes_for_texts_are_put_together(
    nodes: dict[str, Any], prompt: str, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    found = said(tmp_path, prompt=changed(SIMPLE, "2", text=["8", 0]) | nodes)
    assert (found.record.request.prompt, found.left_out) == (prompt, left_out)


def test_a_join_of_what_cannot_be_read_or_of_itself_is_no_prompt(tmp_path: Path) -> None:
    for parts in ({"a": ["99", 0], "b": "red"}, {"a": ["8", 0], "b": ["8", 0]}, {}):
        graph = changed(SIMPLE, "2", text=["8", 0]) | {"8": node("Join", **parts)}
        assert "does not say its prompt" in refusal(picture(tmp_path, prompt=graph))


def test_a_sampler_of_another_name_is_known_by_its_inputs(tmp_path: Path) -> None:
    graph = SIMPLE | {"5": SIMPLE["5"] | {"class_type": "Painter"}}
    assert said(tmp_path, prompt=graph).record.request.seed == 7


@pytest.mark.parametrize(
    ("loader", "left_out"),
    [
        (
            node("Power Lora Loader (rgthree)", lora_1={"on": True, "lora": "ink.safetensors", "strength": 1}),
            "LoRA ink.safetensors",
        ),
        (
            node("LoraLoader|pysssss", lora_name={"content": "ink.safetensors"}, strength_model=1),
            "LoRA ink.safetensors",
        ),
        (node("CR Apply LoRA Stack", lora_stack=["9", 0]), "CR Apply LoRA Stack"),
        (node("LoraTagLoader", text="<lora:ink:1>"), "LoraTagLoader"),
        (node("Lora Stacker", lora_name_1="None", lora_name_2="ink.safetensors"), "LoRA ink.safetensors"),
        (node("Power Lora Loader (rgthree)", lora_1={"on": False, "lora": "ink.safetensors", "strength": 1}), None),
        (node("LoraLoaderModelOnly", lora_name="ink.safetensors", strength_model=0), None),
        (node("Odd Patch"), "Odd Patch"),
    ],
    ids=lambda value: value["class_type"] if isinstance(value, dict) else str(value),
)
def test_adapters_are_named_however_they_are_listed(loader: Any, left_out: str | None, tmp_path: Path) -> None:
    loader = {**loader, "inputs": {**loader["inputs"], "model": ["1", 0]}}
    found = said(tmp_path, prompt=changed(SIMPLE, "5", model=["8", 0]) | {"8": loader})
    assert found.left_out == (() if left_out is None else (left_out,))
    assert found.model == "flux1-dev-fp8.safetensors"


def test_an_adapter_in_a_loader_of_everything_is_named(tmp_path: Path) -> None:
    found = said(tmp_path, prompt=changed(SIMPLE, "1", lora_name="ink.safetensors"))
    assert (found.left_out, found.model) == (("LoRA ink.safetensors",), "flux1-dev-fp8.safetensors")


def test_what_comes_from_nodes_that_are_not_known_is_named(tmp_path: Path) -> None:
    inputs = {name: ["8", 0] for name in ("cfg", "denoise", "sampler_name", "scheduler", "model")}
    found = said(tmp_path, prompt=changed(SIMPLE, "5", **inputs) | {"8": node("Odd")})
    assert found.left_out == ("scheduler", "denoise", "sampler", "CFG scale", "Odd", "model")


def test_what_python_writes_instead_of_json_does_not_matter(tmp_path: Path) -> None:
    graph = SIMPLE | {"9": {**node("Random"), "is_changed": [float("nan")]}}
    assert said(tmp_path, prompt=graph).record.request.prompt == "a cat"
    assert "does not say its steps" in refusal(picture(tmp_path, prompt=changed(graph, "5", steps=float("nan"))))


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
