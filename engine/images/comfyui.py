"""The settings in a graph of ComfyUI: from the saved picture back to its sampler, and from there to what it was given.

A picture has the graph twice: `prompt` is what ran (numbered nodes with their inputs), `workflow` what the editor
showed. Both are strangers' files: a graph may have cycles, links to nowhere and nodes of any kind, so that every walk
visits a node once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TEXTS = 128  # nodes that are asked for a text, in one graph


@dataclass(frozen=True, slots=True)
class Node:
    """What a node is, and its inputs: plain values, and links as pairs of a node's number and its output."""

    kind: str
    inputs: Mapping[str, Any]


@dataclass(slots=True)
class Found:
    """Settings by our names, and names of what has no counterpart here, each with its value."""

    values: list[tuple[str, Any]] = field(default_factory=list)
    left_out: list[tuple[str, Any]] = field(default_factory=list)
    texts_left: int = MAX_TEXTS


Graph = dict[str, Node]

# What the editor's list of values means; None: of no interest.
WIDGETS: dict[str, tuple[str | None, ...]] = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", None, "steps", "cfg", "sampler_name", "scheduler", "start_at_step"),
        *("end_at_step", "return_with_leftover_noise"),
    ),
    "SamplerCustom": ("add_noise", "noise_seed", None, "cfg"),
    "RandomNoise": ("noise_seed", None),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "FluxGuidance": ("guidance",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "ModelSamplingFlux": ("max_shift", "base_shift", "width", "height"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "UnetLoaderGGUF": ("unet_name",),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
}
SAME = ("VAEDecode", "VAEDecodeTiled", "PreviewImage", "Reroute")  # change nothing that a setting of ours could
MODEL_NAMES = ("unet_name", "ckpt_name", "model_path", "gguf_name", "model_name")
TEXTS = ("text", "string", "value", "prompt", "t5xxl", "text_g", "populated_text", "wildcard_text")
ONE_VALUE = ("primitive", "constant", "int", "float", "seed", "number", "value")  # in the name of a node that is one


def graph(prompt: Any, workflow: Any) -> Graph:
    """The nodes of a picture's two texts, as JSON gives them; empty where they are no graph."""
    found: Graph = {}
    for number, node in prompt.items() if isinstance(prompt, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            found[number] = Node(str(node.get("class_type", "")), node["inputs"])
    if not found and isinstance(workflow, dict):
        found = _of_editor(workflow)
    return found


def follow(nodes: Graph) -> Found | None:
    """What the sampler of a graph was given; None where there is no sampler."""
    found = Found()
    number = _last_sampler(nodes, found)
    if number is None:
        return None
    sampler = nodes[number]
    seen = {number}
    while (earlier := _latents(nodes, sampler, seen, found)) is not None:  # a second pass works on the first's latents
        found.left_out.append(("second pass", _number(nodes, sampler, "denoise") or ""))
        sampler = nodes[earlier]
    _read_sampler(nodes, sampler, found)
    return found


def _read_sampler(nodes: Graph, sampler: Node, found: Found) -> None:
    guider = _linked(nodes, sampler, "guider")
    noise = _linked(nodes, sampler, "noise")
    sigmas = _linked(nodes, sampler, "sigmas")
    method = _linked(nodes, sampler, "sampler")
    for name in ("steps", "scheduler", "denoise"):
        for node in (sampler, sigmas):
            if node is not None and name in node.inputs:
                _take(nodes, node, name, found)
                break
    if sigmas is not None and "scheduler" not in sigmas.inputs:
        found.left_out.append(("scheduler", sigmas.kind))
    seed = noise if noise is not None else sampler
    for name in ("seed", "noise_seed"):
        if name in seed.inputs:
            _take(nodes, seed, name, found, "seed")
            break
    if method is not None and "sampler_name" not in method.inputs:
        found.left_out.append(("sampler", method.kind))
    else:
        _take(nodes, method if method is not None else sampler, "sampler_name", found, "sampler")
    _read_steps_done(nodes, sampler, found)

    guide = guider if guider is not None else sampler
    cfg: Any = next((n for name in ("cfg", "true_gs") if (n := _number(nodes, guide, name)) is not None), None)
    if cfg is None and (guide.kind == "BasicGuider" or "conditioning" in guide.inputs):
        cfg = 1
    if cfg is not None:
        found.values.append(("cfg", cfg))
    if guider is not None and guider.kind not in ("BasicGuider", "CFGGuider"):
        found.left_out.append(("guider", guider.kind))
    for name in ("positive", "conditioning", "cond1"):
        if name in guide.inputs:
            _read_conditioning(nodes, guide.inputs[name], found, positive=True)
            break
    if cfg != 1:
        for name in ("negative", "neg_conditioning"):
            if name in guide.inputs:
                _read_conditioning(nodes, guide.inputs[name], found, positive=False)
                break
    model = guide if "model" in guide.inputs else sampler
    _read_model(nodes, model.inputs.get("model"), found)


def _read_steps_done(nodes: Graph, sampler: Node, found: Found) -> None:
    """Samplers can do a part of the steps."""
    steps, start, end = (_number(nodes, sampler, name) for name in ("steps", "start_at_step", "end_at_step"))
    if start:
        found.left_out.append(("start at step", start))
    if steps is not None and end is not None and end < steps:
        found.left_out.append(("end at step", end))
    if sampler.inputs.get("add_noise") in ("disable", False):
        found.left_out.append(("no noise", ""))


def _take(nodes: Graph, node: Node, name: str, found: Found, setting: str = "") -> None:
    value = _text(nodes, node.inputs.get(name), found) if name in ("sampler_name", "scheduler") else None
    if value is None:
        value = _number(nodes, node, name)
    if name == "denoise":
        if value is not None and value != 1:
            found.left_out.append(("denoise", value))
    elif value is not None:
        found.values.append((setting or name, value))


def _read_conditioning(nodes: Graph, link: Any, found: Found, *, positive: bool) -> None:
    """The prompt and the guidance, through whatever lies between."""
    wanted = "prompt" if positive else "negative_prompt"
    for node, slot in _walk(nodes, link, lambda node, slot: _conditioning_before(node, slot, positive)):
        if node.kind in ("ConditioningZeroOut", "Reroute"):
            if node.kind != "Reroute" and not positive:
                return
            continue
        guidance = _number(nodes, node, "guidance")
        if guidance is not None and positive:
            found.values.append(("guidance", guidance))
        other = "negative" if not positive or slot == 2 else "positive"
        written = node.inputs.get(other)  # by loaders; where it is a link, conditionings come in
        texts = (_text(nodes, each, found) for each in (*map(node.inputs.get, TEXTS), written))
        text = next((text for text in texts if text is not None), None) if not _is_link(written) else None
        if text is not None:
            found.values.append((wanted, text))
            clip = _text(nodes, node.inputs.get("clip_l", node.inputs.get("text_l")), found)
            if clip and clip != text:
                found.left_out.append(("another prompt for CLIP", ""))
            return
        if node.kind != "FluxGuidance":
            found.left_out.append((node.kind, ""))


def _conditioning_before(node: Node, slot: int, positive: bool) -> Any:
    names = ("conditioning", "conditioning_1", "conditioning_to", "base_positive" if positive else "base_negative")
    either = ("positive", "negative") if (positive and slot != 1) else ("negative", "positive")
    return next((node.inputs[name] for name in (*names, *either, "") if _is_link(node.inputs.get(name))), None)


def _read_model(nodes: Graph, link: Any, found: Found) -> None:
    """The model, and what changes it on its way to the sampler."""

    def before(node: Node, slot: int) -> Any:
        return next((node.inputs[name] for name in ("model", "unet", "") if _is_link(node.inputs.get(name))), None)

    for node, _slot in _walk(nodes, link, before):
        name = next((node.inputs[key] for key in MODEL_NAMES if isinstance(node.inputs.get(key), str)), None)
        adapters = list(_adapters(node))
        found.left_out += [("LoRA", adapter) for adapter in adapters]
        if name is not None and not adapters:
            found.values.append(("model", name))
        elif node.kind == "ModelSamplingFlux":
            shifts = _number(nodes, node, "max_shift"), _number(nodes, node, "base_shift")
            if shifts != (1.15, 0.5):  # else it is what FLUX.1 does by itself
                found.left_out.append((f"shift {shifts[0]} to {shifts[1]}", ""))
        elif "lora" not in node.kind.lower() and node.kind != "Reroute":
            found.left_out.append((node.kind, ""))


def _adapters(node: Node) -> Iterator[str]:
    if "lora" not in node.kind.lower():
        return
    for key, value in node.inputs.items():
        if isinstance(value, dict):  # a list with switches
            if value.get("on", True) and value.get("strength", 1) != 0:
                yield str(value.get("lora", ""))
        elif key.startswith("lora") and isinstance(value, str) and "." in value:
            strength = node.inputs.get(key.replace("lora_name", "strength_model"), 1)
            if strength != 0:
                yield value.replace("\\", "/").rpartition("/")[2]


def _latents(nodes: Graph, sampler: Node, seen: set[str], found: Found) -> str | None:
    """The sampler before this one, if it works on the latents of one; else where its latents come from is read."""
    link = next((sampler.inputs.get(n) for n in ("latent_image", "latent", "samples") if n in sampler.inputs), None)
    names = ("samples", "latent_image", "latent", "latents", "")
    for number, node in _walk_numbers(nodes, link, names, seen):
        if _is_sampler(node):
            return number
        whole_loader = "empty_latent_width" in node.inputs
        if whole_loader or (node.kind.startswith("Empty") and "Latent" in node.kind):
            for side in ("width", "height"):
                name = f"empty_latent_{side}" if whole_loader else side
                if (pixels := _number(nodes, node, name)) is not None:
                    found.values.append((side, pixels))
            count = _number(nodes, node, "batch_size")
            if count is not None and count > 1:
                found.left_out.append(("batch of", count))
        elif "VAEEncode" in node.kind:
            found.left_out.append(("image to image", ""))
        elif node.kind != "Reroute":
            found.left_out.append((node.kind, ""))
    return None


def _last_sampler(nodes: Graph, found: Found) -> str | None:
    """The number of the sampler that a saved picture comes from; what lies between is left out."""
    names = ("images", "image", "samples", "latent", "pixels", "")
    ends = [number for number, node in nodes.items() if _is_link(node.inputs.get("images")) and "Save" in node.kind]
    ends += [number for number, node in nodes.items() if "Preview" in node.kind]
    first: str | None = None
    between: list[str] = []
    several = False
    seen: set[str] = set()
    for end in ends:
        link = nodes[end].inputs.get("images", nodes[end].inputs.get("image"))
        passed: list[str] = []
        for number, node in _walk_numbers(nodes, link, names, seen):
            if _is_sampler(node):
                if first is None:
                    first, between = number, passed
                several |= number != first and "Save" in nodes[end].kind
                break
            if node.kind not in SAME:
                passed.append(node.kind)
    if first is None:  # saved by a node that is not known
        samplers = [number for number, node in nodes.items() if _is_sampler(node)]
        first, several = (samplers[-1] if samplers else None), len(samplers) > 1
    found.left_out += [(kind, "") for kind in between]
    if several:
        found.left_out.append(("other samplers of its graph", ""))
    return first


def _is_sampler(node: Node) -> bool:
    names = ("latent_image", "samples", "latent")
    known = "KSampler" in node.kind or node.kind in ("SamplerCustom", "SamplerCustomAdvanced", "XlabsSampler")
    return known and any(_is_link(node.inputs.get(name)) for name in names)


def _walk(nodes: Graph, link: Any, before: Any) -> Iterator[tuple[Node, int]]:
    """Node after node against the links, none twice."""
    seen: set[str] = set()
    while _is_link(link) and str(link[0]) in nodes and str(link[0]) not in seen:
        seen.add(str(link[0]))
        node, slot = nodes[str(link[0])], link[1]
        yield node, slot
        link = before(node, slot)


def _walk_numbers(nodes: Graph, link: Any, names: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, Node]]:
    """As `_walk`, through the first linked input of these names; those seen are remembered by the caller."""
    while _is_link(link) and str(link[0]) in nodes and str(link[0]) not in seen:
        number = str(link[0])
        seen.add(number)
        yield number, nodes[number]
        inputs = nodes[number].inputs
        link = next((inputs[name] for name in names if _is_link(inputs.get(name))), None)


def _linked(nodes: Graph, node: Node, name: str) -> Node | None:
    """The node behind an input."""
    return next((found for found, _ in _walk(nodes, node.inputs.get(name), lambda *_: None)), None)


def _number(nodes: Graph, node: Node, name: str) -> Any:
    """A number, given here or by a node that is nothing but one."""
    value = node.inputs.get(name)
    if _is_link(value):
        source = _linked(nodes, node, name)
        if source is None or not any(word in source.kind.lower() for word in ONE_VALUE):
            return None
        numbers = [each for each in source.inputs.values() if _is_number(each)]
        value = numbers[0] if len(numbers) == 1 else source.inputs.get(name)
    return value if _is_number(value) else None


def _text(nodes: Graph, value: Any, found: Found) -> str | None:
    """A text, given here or by nodes."""
    if isinstance(value, str):
        return value
    if not _is_link(value) or found.texts_left == 0 or str(value[0]) not in nodes:
        return None
    found.texts_left -= 1
    node = nodes[str(value[0])]
    if "string_a" in node.inputs and "string_b" in node.inputs:
        parts = [_text(nodes, node.inputs[name], found) for name in ("string_a", "string_b")]
        return None if None in parts else str(node.inputs.get("delimiter", "")).join(map(str, parts))
    texts = (_text(nodes, node.inputs.get(name), found) for name in TEXTS)
    return next((text for text in texts if text is not None), None)


def _is_link(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str | int) and type(value[1]) is int


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_editor(workflow: dict[str, Any]) -> Graph:
    """The graph that an editor's file shows, as far as its nodes are known by `WIDGETS`."""
    listed = [node for node in _list(workflow.get("nodes")) if isinstance(node, dict) and "id" in node]
    sources = {}
    for link in _list(workflow.get("links")):
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int):
            sources[link[0]] = [str(link[1]), link[2]]
    found: Graph = {}
    for node in listed:
        inputs: dict[str, Any] = {}
        kind = str(node.get("type", ""))
        values = node.get("widgets_values")
        if isinstance(values, dict):
            inputs |= values
        elif node.get("mode") not in (2, 4):  # muted, passed by
            inputs |= {name: value for name, value in zip(WIDGETS.get(kind, ()), _list(values), strict=False) if name}
        for entry in _list(node.get("inputs")):
            number = entry.get("link") if isinstance(entry, dict) else None
            if isinstance(number, int) and number in sources:
                inputs[str(entry.get("name", ""))] = sources[number]
        found[str(node["id"])] = Node("Reroute" if node.get("mode") in (2, 4) else kind, inputs)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
