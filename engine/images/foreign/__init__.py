"""What other programs wrote into a picture, as far as it has a meaning here: one reader a form, tried in their order.

`names` says what settings are called, `settings` takes them over or names them as left out; `a1111`, `programs` and
`comfyui` read the forms; `requested` makes a request of what is found. All of it is strangers' text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from engine.images.foreign import comfyui, programs
from engine.images.foreign.a1111 import read_lines
from engine.images.foreign.graph import Graph, read_graph
from engine.images.foreign.settings import OURS, Settings, parsed
from engine.images.texts import COMMENT, SOFTWARE_TAG, USER_COMMENT, XMP, UnreadableError
from engine.text import some_of

NAMES = (  # of the texts that say something
    *("parameters", "invokeai_metadata", "sd-metadata", "Dream", "mold:parameters", "prompt", "workflow", "Comment"),
    *("Description", "Source", "generation_data", "smproj", SOFTWARE_TAG, USER_COMMENT, COMMENT, XMP),
    *("use_stable_diffusion_model", "negative_prompt", "seed", "num_inference_steps", "width", "height"),
    *("guidance_scale", "distilled_guidance_scale", "sampler_name", "scheduler_name", "use_lora_model"),
)
SAY_THEM = "say them with --prompt and more"

# Texts that any picture may have: those that PNG names, and what converters write.
ORDINARY = re.compile(
    "title|author|description|copyright|creation time|software|disclaimer|warning|source|comment|usercomment"
    "|xml:com.adobe.xmp|(raw profile type |exif:|date:|icc:|png:|jpeg:|thumb::|xmp:|tiff:).*",
    re.IGNORECASE,
)
SETTING = re.compile(r"\b(prompt|seed|steps|sampler|cfg|guidance|lora)\b", re.IGNORECASE)
MAX_SEARCHED = 20_000  # characters


def read_settings(texts: Mapping[str, str]) -> Settings | None:
    """What the texts of a picture say; None where they are no settings of any program that is known.

    Raises `UnreadableError` for those of a program that is known, and that cannot be read.
    """
    found = programs.easy_diffusion(texts)
    found = found or next((said for name, read in READERS if (said := read(texts.get(name, ""))) is not None), None)
    found = found or programs.novelai(texts.get("Comment", ""), texts.get("Description", ""))
    if found is not None and "guidance" in found.values:
        return found
    if graph := read_graph(parsed(texts.get("prompt", "")), parsed(texts.get("workflow", ""))):
        return _comfyui(graph) if found is None else _with_guidance(found, graph)
    if found is None and (program := _maker(texts)) is not None:
        raise UnreadableError(f"was made by {program}, whose settings cannot be read here; {SAY_THEM}.")
    return found


def describe_unknown(texts: Mapping[str, str], others: Collection[str]) -> str:
    """What to say of a picture without settings that are known, after its name. `others`: names of further texts."""
    unknown = [name for name in dict.fromkeys((*texts, *others)) if not ORDINARY.fullmatch(name)]
    for name, text in texts.items():
        words = {word.lower() for word in SETTING.findall(text[:MAX_SEARCHED])}
        if name not in unknown and len(words) > (0 if text.lstrip().startswith("{") else 1):
            unknown.append(name)
    if not unknown:
        return "has no settings in it, sharing or editing removes them; give the picture as it was saved."
    return f"has no settings that {OURS} can read, but texts of another program ({some_of(unknown)}); {SAY_THEM}."


def _object_or_lines(text: str) -> Settings | None:
    return programs.read_object(text) if text.lstrip().startswith("{") else read_lines(text)


def _comment(text: str) -> Settings | None:
    start = "mold:parameters "
    return programs.mold(text.removeprefix(start)) if text.startswith(start) else _object_or_lines(text)


READERS: tuple[tuple[str, Callable[[str], Settings | None]], ...] = (
    ("invokeai_metadata", programs.invokeai),
    ("parameters", _object_or_lines),
    ("mold:parameters", programs.mold),
    ("sd-metadata", programs.invokeai_2),
    ("Dream", programs.invokeai_1),
    (USER_COMMENT, _object_or_lines),
    (COMMENT, _comment),
    (XMP, programs.xmp),
    ("generation_data", programs.read_object),
)


def _comfyui(graph: Graph) -> Settings:
    found = comfyui.follow(graph)
    if found is None:
        raise UnreadableError(
            f"was made by ComfyUI, whose settings cannot be read here (no sampler that is known); {SAY_THEM}."
        )
    settings = Settings("ComfyUI")
    for setting, value in found.values:
        settings.take(setting, value)
    for name, value in found.left_out:
        settings.leave(name, value)
    settings.read_emphasis()
    return settings


def _with_guidance(settings: Settings, graph: Graph) -> Settings:
    """What a node of ComfyUI wrote in the form of A1111, which has no name for the guidance; the graph has."""
    said = comfyui.follow(graph)
    if said is not None and ("seed", settings.values.get("seed")) in said.values:
        for setting, value in said.values:
            if setting in ("guidance", "sampler", "scheduler"):
                settings.take(setting, value)
        for name, value in said.left_out:
            settings.leave(name, value)
    return settings


def _maker(texts: Mapping[str, str]) -> str | None:
    """Which program made a picture whose settings are not read; None where nothing says so."""
    if "Dream" in texts:
        return "an old InvokeAI"
    if "smproj" in texts:
        return "Stability Matrix"
    if re.search(r"\bJob ID: [0-9a-f-]{36}", texts.get("Description", "")):
        return "Midjourney"
    known = ("NovelAI", "Draw Things", "Adobe Firefly", "Midjourney", "Fooocus", "DiffusionBee", "InvokeAI")
    everything = (texts.get(SOFTWARE_TAG, ""), texts.get("Source", ""), texts.get(XMP, "")[:MAX_SEARCHED])
    return next((name for name in known if any(name in text for text in everything)), None)
