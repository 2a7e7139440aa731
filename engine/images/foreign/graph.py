"""A graph of ComfyUI: its nodes, what leads to them, and the numbers and texts that nodes pass on.

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
TEXTS = ("text", "string", "value", "prompt", "t5xxl", "text_g", "populated_text", "wildcard_text")
JOINTS = ("delimiter", "separator")
ONE_VALUE = ("primitive", "constant", "int", "float", "seed", "number", "value")  # in the name of a node that is one


def read_graph(prompt: Any, workflow: Any) -> Graph:
    """The nodes of a picture's two texts, as JSON gives them; empty where they are no graph."""
    found: Graph = {}
    for number, node in prompt.items() if isinstance(prompt, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            found[number] = Node(str(node.get("class_type", "")), node["inputs"])
    if not found and isinstance(workflow, dict):
        found = _of_editor(workflow)
    return found


def walk(nodes: Graph, link: Any, before: Any) -> Iterator[tuple[Node, int]]:
    """Node after node against the links, none twice."""
    seen: set[str] = set()
    while is_link(link) and str(link[0]) in nodes and str(link[0]) not in seen:
        seen.add(str(link[0]))
        node, slot = nodes[str(link[0])], link[1]
        yield node, slot
        link = before(node, slot)


def walk_numbers(nodes: Graph, link: Any, names: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, Node]]:
    """As `walk`, through the first linked input of these names; those seen are remembered by the caller."""
    while is_link(link) and str(link[0]) in nodes and str(link[0]) not in seen:
        number = str(link[0])
        seen.add(number)
        yield number, nodes[number]
        inputs = nodes[number].inputs
        link = next((inputs[name] for name in names if is_link(inputs.get(name))), None)


def linked(nodes: Graph, node: Node, name: str) -> Node | None:
    """The node behind an input."""
    return next((found for found, _ in walk(nodes, node.inputs.get(name), lambda *_: None)), None)


def number_of(nodes: Graph, node: Node, name: str) -> Any:
    """A number, given here or by a node that is nothing but one."""
    value = node.inputs.get(name)
    if is_link(value):
        source = linked(nodes, node, name)
        if source is None or not any(word in source.kind.lower() for word in ONE_VALUE):
            return None
        numbers = [each for each in source.inputs.values() if _is_number(each)]
        value = numbers[0] if len(numbers) == 1 else source.inputs.get(name)
    return value if _is_number(value) else None


def text_of(nodes: Graph, value: Any, found: Found) -> str | None:
    """A text, given here or by nodes."""
    if isinstance(value, str):
        return value
    if not is_link(value) or found.texts_left == 0 or str(value[0]) not in nodes:
        return None
    found.texts_left -= 1
    node = nodes[str(value[0])]
    kind = node.kind.lower()
    if kind.startswith("dp"):  # of Dynamic Prompts: what it chose is written nowhere
        found.left_out.append((f"the choice of {node.kind}", ""))
    if "concat" in kind or "join" in kind:
        return _joined(nodes, node, found)
    texts = (text_of(nodes, node.inputs.get(name), found) for name in (*TEXTS, "positive"))
    return next((text for text in texts if text is not None), None)


def _joined(nodes: Graph, node: Node, found: Found) -> str | None:
    """The text of a node that joins others, in the order of its inputs."""
    between = next((value for name in JOINTS if isinstance(value := node.inputs.get(name), str)), "")
    others = (*JOINTS, "clean_whitespace")
    inputs = [value for name, value in node.inputs.items() if name not in others and isinstance(value, str | list)]
    parts = [text_of(nodes, value, found) for value in inputs]
    return None if None in parts or not parts else between.join(part for part in parts if part)


def is_link(value: Any) -> bool:
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
