"""The settings in a graph of ComfyUI: from the saved picture back to its sampler, and from there to its inputs."""

from __future__ import annotations

from typing import Any

from engine.images.foreign.graph import (
    TEXTS,
    Found,
    Graph,
    Node,
    is_link,
    linked,
    number_of,
    text_of,
    walk,
    walk_numbers,
)

SAME = ("VAEDecode", "VAEDecodeTiled", "PreviewImage", "Reroute")  # change nothing that a setting of ours could
MODEL_NAMES = ("unet_name", "ckpt_name", "model_path", "gguf_name", "model_name")


def follow(nodes: Graph) -> Found | None:
    """What the sampler of a graph was given; None where there is no sampler."""
    found = Found()
    number = _last_sampler(nodes, found)
    if number is None:
        return None
    sampler = nodes[number]
    seen = {number}
    while (earlier := _latents(nodes, sampler, seen, found)) is not None:  # a second pass works on the first's latents
        found.left_out.append(("second pass", number_of(nodes, sampler, "denoise") or ""))
        sampler = nodes[earlier]
    _read_sampler(nodes, sampler, found)
    return found


def _read_sampler(nodes: Graph, sampler: Node, found: Found) -> None:
    guider = linked(nodes, sampler, "guider")
    noise = linked(nodes, sampler, "noise")
    sigmas = linked(nodes, sampler, "sigmas")
    method = linked(nodes, sampler, "sampler")
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
    named = next((name for name in ("cfg", "true_gs") if name in guide.inputs), "cfg")
    cfg = _number(nodes, guide, named, found, "CFG scale")
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
    steps, start, end = (number_of(nodes, sampler, name) for name in ("steps", "start_at_step", "end_at_step"))
    if start:
        found.left_out.append(("start at step", start))
    if steps is not None and end is not None and end < steps:
        found.left_out.append(("end at step", end))
    if sampler.inputs.get("add_noise") in ("disable", False):
        found.left_out.append(("no noise", ""))


def _take(nodes: Graph, node: Node, name: str, found: Found, setting: str = "") -> None:
    value: Any = text_of(nodes, node.inputs.get(name), found) if name in ("sampler_name", "scheduler") else None
    if value is None:
        value = _number(nodes, node, name, found, setting or name)
    if name == "denoise":
        if value is not None and value != 1:
            found.left_out.append(("denoise", value))
    elif value is not None:
        found.values.append((setting or name, value))


def _number(nodes: Graph, node: Node, name: str, found: Found, setting: str) -> Any:
    """A number that is an input of `node`; named as left out where it comes from a node that is not known."""
    value = number_of(nodes, node, name)
    if value is None and is_link(node.inputs.get(name)):
        found.left_out.append((setting, ""))
    return value


def _read_conditioning(nodes: Graph, link: Any, found: Found, *, positive: bool) -> None:
    """The prompt and the guidance, through whatever lies between."""
    wanted = "prompt" if positive else "negative_prompt"
    for node, slot in walk(nodes, link, lambda node, slot: _conditioning_before(node, slot, positive)):
        if node.kind in ("ConditioningZeroOut", "Reroute"):
            if node.kind != "Reroute" and not positive:
                return
            continue
        guidance = _number(nodes, node, "guidance", found, "guidance")
        if guidance is not None and positive:
            found.values.append(("guidance", guidance))
        other = "negative" if not positive or slot == 2 else "positive"
        written = node.inputs.get(other)  # by loaders; where it is a link, conditionings come in
        texts = (text_of(nodes, each, found) for each in (*map(node.inputs.get, TEXTS), written))
        text = next((text for text in texts if text is not None), None) if not is_link(written) else None
        if text is not None:
            found.values.append((wanted, text))
            clip = text_of(nodes, node.inputs.get("clip_l", node.inputs.get("text_l")), found)
            if clip and clip != text:
                found.left_out.append(("another prompt for CLIP", ""))
            return
        if node.kind != "FluxGuidance":
            found.left_out.append((node.kind, ""))


def _conditioning_before(node: Node, slot: int, positive: bool) -> Any:
    names = ("conditioning", "conditioning_1", "conditioning_to", "base_positive" if positive else "base_negative")
    either = ("positive", "negative") if (positive and slot != 1) else ("negative", "positive")
    return next((node.inputs[name] for name in (*names, *either, "") if is_link(node.inputs.get(name))), None)


def _read_model(nodes: Graph, link: Any, found: Found) -> None:
    """The model, and what changes it on its way to the sampler."""

    def before(node: Node, slot: int) -> Any:
        return next((node.inputs[name] for name in ("model", "unet", "") if is_link(node.inputs.get(name))), None)

    named = not is_link(link)
    for node, _slot in walk(nodes, link, before):
        name = next((node.inputs[key] for key in MODEL_NAMES if isinstance(node.inputs.get(key), str)), None)
        adapters = _adapters(node)
        found.left_out += [("LoRA", adapter) for adapter in adapters]
        if name is not None and not (adapters and "lora" in node.kind.lower()):
            found.values.append(("model", name))
            named = True
        elif node.kind == "ModelSamplingFlux":
            shifts = number_of(nodes, node, "max_shift"), number_of(nodes, node, "base_shift")
            if shifts != (1.15, 0.5):  # else it is what FLUX.1 does by itself
                found.left_out.append((f"shift {shifts[0]} to {shifts[1]}", ""))
        elif not adapters and not _lists_adapters(node) and node.kind != "Reroute":
            found.left_out.append((node.kind, ""))
    if not named:
        found.left_out.append(("model", ""))


def _lists_adapters(node: Node) -> bool:
    """Whether a node says which LoRAs it takes, be it none: a stack of them can come from elsewhere."""
    if "lora" not in node.kind.lower():
        return False
    lists = [value for key, value in node.inputs.items() if isinstance(value, dict) or key.startswith("lora")]
    return bool(lists) and not any(map(is_link, lists))


def _adapters(node: Node) -> list[str]:
    """The LoRAs that a node takes with a strength of more than 0."""
    found = []
    for key, value in node.inputs.items():
        if isinstance(value, dict) and "lora" in node.kind.lower():  # a list with switches
            name = value.get("lora", value.get("content", ""))
            if name and value.get("on", True) and value.get("strength", 1) != 0:
                found.append(str(name))
        elif key.startswith("lora") and isinstance(value, str) and "." in value:
            strength = node.inputs.get(key.replace("lora_name", "strength_model"), 1)
            if strength != 0:
                found.append(value.replace("\\", "/").rpartition("/")[2])
    return found


def _latents(nodes: Graph, sampler: Node, seen: set[str], found: Found) -> str | None:
    """The sampler before this one, if it works on the latents of one; else where its latents come from is read."""
    link = next((sampler.inputs.get(n) for n in ("latent_image", "latent", "samples") if n in sampler.inputs), None)
    names = ("samples", "latent_image", "latent", "latents", "")
    for number, node in walk_numbers(nodes, link, names, seen):
        if _is_sampler(node):
            return number
        whole_loader = "empty_latent_width" in node.inputs
        if whole_loader or (node.kind.startswith("Empty") and "Latent" in node.kind):
            for side in ("width", "height"):
                name = f"empty_latent_{side}" if whole_loader else side
                if (pixels := number_of(nodes, node, name)) is not None:
                    found.values.append((side, pixels))
            count = number_of(nodes, node, "batch_size")
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
    ends = [number for number, node in nodes.items() if is_link(node.inputs.get("images")) and "Save" in node.kind]
    ends += [number for number, node in nodes.items() if "Preview" in node.kind]
    first: str | None = None
    between: list[str] = []
    several = False
    seen: set[str] = set()
    for end in ends:
        link = nodes[end].inputs.get("images", nodes[end].inputs.get("image"))
        passed: list[str] = []
        for number, node in walk_numbers(nodes, link, names, seen):
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
    alike = "steps" in node.inputs and ("seed" in node.inputs or "noise_seed" in node.inputs)
    return (known or alike) and any(is_link(node.inputs.get(name)) for name in names)
