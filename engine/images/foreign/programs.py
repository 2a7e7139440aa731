"""Programs that write an object of JSON, or a form of their own. One function each: a text in, its settings out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import unescape

from engine.images.foreign.settings import Settings, listed, parsed, shown, take_all
from engine.images.texts import SOFTWARE_TAG

LIST_ITEM = re.compile(r"<rdf:li[^<>]{0,100}>([^<>]{0,20000})</rdf:li>")
QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"')
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
OPTION = re.compile(r"(?<!\S)--?([A-Za-z_]+)[ =]?([^\s-]\S*|-[0-9]\S*)?")
OPTIONS = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "cfg_scale", "A": "sampler", "f": "strength"}
OPTIONS |= {"G": "face restoration", "U": "upscale", "I": "init_image", "cf": "nothing", "N": "nothing", "n": "nothing"}


def read_object(text: str) -> Settings | None:
    """A `parameters` text or a comment that is an object: SwarmUI, Fooocus, RuinedFooocus, mflux, or one alike."""
    value = parsed(text)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("sui_image_params"), dict):
        settings = Settings("SwarmUI")
        take_all(settings, value["sui_image_params"])
        settings.read_emphasis()
        return settings
    if "c" in value and "uc" in value:
        return _draw_things(value)
    if "metadata_scheme" in value or value.get("software") == "RuinedFooocus":
        settings = Settings("RuinedFooocus" if "software" in value else "Fooocus")
        take_all(settings, value, guidancescale="cfg")
        settings.read_emphasis()
        return settings
    settings = Settings("mflux" if "mflux_version" in value else "another program")
    take_all(settings, value, quantize="nothing", precision="nothing")
    return settings if settings.values.keys() & {"steps", "seed", "width"} else None


def invokeai(text: str) -> Settings | None:
    """InvokeAI since 3.0, in `invokeai_metadata`."""
    value = parsed(text)
    if not isinstance(value, dict):
        return None
    settings = Settings("InvokeAI")
    take_all(settings, value, scheduler="sampler", rectifiedflow="nothing")
    return settings


def invokeai_2(text: str) -> Settings | None:
    """InvokeAI 2, in `sd-metadata`."""
    value = parsed(text)
    image = value.get("image") if isinstance(value, dict) else None
    if not isinstance(image, dict):
        return None
    prompt = image.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = prompt[0].get("prompt")
    settings = Settings("InvokeAI", model=shown(str(value.get("model_weights", ""))))
    take_all(settings, {**image, **_without_brackets(prompt)})
    return settings


def invokeai_1(text: str) -> Settings | None:
    """The first InvokeAI, in `Dream`: what was typed (`"a cat [dogs]" -s 50 -S 7`)."""
    prompt = QUOTED.match(text.strip())
    if prompt is None:
        return None
    found = OPTION.findall(text.strip()[prompt.end() :])
    said = {OPTIONS.get(name, name): value or "on" for name, value in found}
    settings = Settings("InvokeAI")
    take_all(settings, {**_without_brackets(prompt[1]), **said}, nothing="nothing")
    return settings


def _without_brackets(prompt: Any) -> dict[str, Any]:
    """The first versions had the negative prompt in brackets within the other."""
    if not isinstance(prompt, str):
        return {"prompt": prompt}
    negative = ", ".join(part.strip(" ,") for part in BRACKETS.findall(prompt))
    return {"prompt": BRACKETS.sub("", prompt).strip(" ,"), **({"negative_prompt": negative} if negative else {})}


def mold(text: str) -> Settings | None:
    """mold, in a text of its own or in a comment."""
    value = parsed(text)
    if not isinstance(value, dict):
        return None
    settings = Settings("mold")
    flux = "flux" in str(value.get("model", "")).lower()
    take_all(settings, value, guidance="guidance" if flux else "cfg")
    return settings


def novelai(text: str, description: str) -> Settings | None:
    """NovelAI, in `Comment`; of old its prompt was in `Description` alone."""
    value = parsed(text)
    if not isinstance(value, dict) or not ({"uc", "sampler"} & value.keys()):
        return None
    settings = Settings("NovelAI")
    for part in ("v4_prompt", "v4_negative_prompt"):
        caption = value.get(part, {}).get("caption") if isinstance(value.get(part), dict) else None
        if isinstance(caption, dict) and listed(caption.get("char_captions")):
            settings.leave("prompts of characters")
    parts = {"v4prompt": "nothing", "v4negativeprompt": "nothing", "uc": "negative_prompt", "scale": "cfg"}
    take_all(settings, {"prompt": description.strip(), **value} if description else value, **parts)
    return settings


def _draw_things(value: dict[str, Any]) -> Settings:
    settings = Settings("Draw Things")
    flux = "flux" in str(value.get("model", "")).lower()
    names = {"c": "prompt", "uc": "negative_prompt", "scale": "guidance" if flux else "cfg"}
    take_all(settings, value, **names, v2="nothing", maskblur="nothing")  # v2: all of it once more
    if flux and "guidance" in settings.values:
        settings.values.pop("negative_prompt", None)  # of no effect beside the distilled guidance alone
    return settings


def xmp(text: str) -> Settings | None:
    """The comment in a packet of XMP, where Draw Things has it."""
    comment = text.partition("<exif:UserComment>")[2].partition("</exif:UserComment>")[0]
    item = LIST_ITEM.search(comment)
    return read_object(unescape(item[1], {"&quot;": '"', "&apos;": "'", "&#34;": '"'})) if item else None


def easy_diffusion(texts: Mapping[str, str]) -> Settings | None:
    """Easy Diffusion: a text for each setting, under its own name."""
    if "use_stable_diffusion_model" not in texts:
        return None
    settings = Settings("Easy Diffusion")
    said = {name: text for name, text in texts.items() if name not in (SOFTWARE_TAG, "Source", "Description")}
    take_all(settings, said, guidancescale="cfg", schedulername="scheduler")
    settings.read_emphasis()
    return settings
