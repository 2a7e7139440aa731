"""The settings of a picture that another program made, as far as they have a meaning here.

A setting is taken over, or its name goes into `left_out`; what changes nothing (a version, a hash) is passed over. All
of it comes from strangers' files: no value is judged here, and each name is short and printable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from xml.sax.saxutils import unescape

from engine.images import comfyui
from engine.images.texts import COMMENT, SOFTWARE_TAG, USER_COMMENT, XMP, UnreadableError
from engine.text import printable
from engine.untrusted import MalformedError, parse_json

NAMES = (  # of the texts that say something
    *("parameters", "invokeai_metadata", "sd-metadata", "Dream", "mold:parameters", "prompt", "workflow", "Comment"),
    *("Description", "Source", "generation_data", "smproj", SOFTWARE_TAG, USER_COMMENT, COMMENT, XMP),
    *("use_stable_diffusion_model", "negative_prompt", "seed", "num_inference_steps", "width", "height"),
    *("guidance_scale", "distilled_guidance_scale", "sampler_name", "scheduler_name", "use_lora_model"),
)
OURS = "TextToImageTool"
MAX_DETAILS_CHARACTERS = 10_000  # of the last line of a `parameters` text
SAY_THEM = "say them with --prompt and more"
MAX_NAME_CHARACTERS = 60

DETAIL = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
WHOLE = re.compile(r"\s*(-?[0-9]{1,20})(?:\.0{1,6})?\s*")
NUMBER = re.compile(r"\s*-?[0-9]{1,9}(\.[0-9]{0,20})?\s*")
SIDES = re.compile(r"\s*\(?\s*([0-9]{1,6})\s*[x\u00d7,]\s*([0-9]{1,6})\s*\)?\s*", re.IGNORECASE)
LORA_TAG = re.compile(r"<(?:lora|lyco|lycoris|hypernet):([^<>:\n]{1,200})(?::[^<>\n]{0,100})?>", re.IGNORECASE)
WEIGHTED = re.compile(r"\(([^()\[\]\\\n:]{1,1000}):\s*-?[0-9]{0,2}\.?[0-9]{1,6}\s*\)")
LIST_ITEM = re.compile(r"<rdf:li[^<>]{0,100}>([^<>]{0,20000})</rdf:li>")

# What a setting is called, without case and marks.
CALLED: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "positiveprompt"),
    "negative_prompt": ("negativeprompt", "negative"),
    "steps": ("steps", "numinferencesteps"),
    "seed": ("seed", "noiseseed"),
    "width": ("width",),
    "height": ("height",),
    "size": ("size", "resolution"),
    "cfg": ("cfgscale", "cfg", "truecfgscale", "truecfg"),
    "guidance": (
        *("distilledcfgscale", "distilledguidance", "distilledguidancescale", "guidance", "guidancescale"),
        *("fluxguidance", "fluxguidancescale", "embeddedguidance", "embeddedguidancescale"),
    ),
    "sampler": ("sampler", "samplername"),
    "scheduler": ("scheduler", "scheduletype", "noiseschedule"),
    "model": ("model", "modelname", "basemodel", "basemodelname", "usestablediffusionmodel"),
    "loras": ("loras", "lora", "uselorasmodel", "useloramodel", "lorapaths"),
    "strengths": ("loraweights", "lorascale", "lorascales", "loraalpha"),  # of those
    "resources": ("civitairesources",),
    "adapters": ("lorahashes",),
}
KNOWN = {name: setting for setting, names in CALLED.items() for name in names}

# Changes no pixel, or is part of the model, which is chosen here.
WITHOUT_EFFECT = frozenset(
    "version swarmversion appversion mfluxversion date createddate createdat generationtime generationtimeseconds "
    "hashes modelhash basemodelhash vaehash tihashes vae vaemodel usevaemodel unet te t5encoder clipembedmodel "
    "module1 module2 module3 module4 template software metadatascheme fooocusscheme imagenumber images batchsize "
    "batchpos batchcount nsamples requesttype signedhash imageformat outputformat outputquality nopreviews aspectratio "
    "originalprompt usedwildcards wildcardseed automaticvae fullprompt fullnegativeprompt app backend parser user "
    "civitaimetadata pipeline numoutputs samplerindex usedtemplate canvasv2metadata seedmode profile numimages".split()
)
# Settings in their off position, as text.
OFF = frozenset(("", "none", "null", "false", "0", "-1", "off", "no", "automatic", "auto", "default", "[]", "{}"))
NEUTRAL = {  # the values of others that change nothing
    "clipskip": ("1",),
    "denoisingstrength": ("1",),
    "strength": ("1",),
    "denoise": ("1",),
    "rng": ("cpu",),
    "randdevice": ("cpu",),
    "generationmode": ("txt2img", "flux_txt2img"),
    "operations": ("txt2img",),
    "cfgrescalemultiplier": ("0",),
    "performance": ("speed", "quality"),  # names for the steps
    "uncondscale": ("1",),
    "startstep": ("1",),
}
# Extensions and second passes with many settings each: one name for all.
GROUPS = {
    "hires": "hires fix",
    "adetailer": "ADetailer",
    "controlnet": "ControlNet",
    "refiner": "refiner",
    "variationseed": "variation seed",
    "regional": "regional prompts",
    "mask": "inpainting",
    "inpaint": "inpainting",
    "freeu": "FreeU",
    "initimage": "image to image",
    "sourceimage": "image to image",
    "upscale": "upscaling",
}


@dataclass(slots=True)
class Settings:
    """What a picture says. `values` are fields of a request as they were written; a seed of None is a random one."""

    program: str
    values: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, None] = field(default_factory=dict)  # names, in order
    model: str = ""  # as the program calls it

    @property
    def ours(self) -> bool:
        """Whether this program wrote them, in the form of others."""
        return self.program == OURS

    def take(self, setting: str, value: Any) -> None:
        """One setting by our name. What cannot be read as what it is, is left out."""
        if setting in ("sampler", "scheduler"):
            self._take_method(setting, str(value))
        elif setting == "size":
            sides = SIDES.fullmatch(str(value)[:40])
            if sides is None:
                self.leave("size", value)
            else:
                self.values |= {"width": int(sides[1]), "height": int(sides[2])}
        elif setting == "model":
            name = value.get("name", value.get("model_name", "")) if isinstance(value, dict) else value
            self.model = shown(PurePath(str(name)[:200].replace("\\", "/")).name)
        elif setting in ("prompt", "negative_prompt"):
            if isinstance(value, str):
                self.values[setting] = value
        elif setting in ("steps", "seed", "width", "height"):
            number = whole(value)
            if number is None:
                self.leave(setting, value)
            else:
                self.values[setting] = None if setting == "seed" and number == -1 else number
        else:
            amount = decimal(value)
            if amount is None:
                self.leave({"cfg": "CFG scale"}.get(setting, setting), value)
            else:
                self.values[setting] = amount

    def leave(self, name: str, value: Any = "") -> None:
        """Name a setting that has no counterpart here."""
        self.left_out[shown(f"{name} {value}".strip() if isinstance(value, str | int | float) else name)] = None

    def read_emphasis(self) -> None:
        """Take out of the prompts what other programs do not give to the model: LoRAs, and weights of words."""
        for name in ("prompt", "negative_prompt"):
            text = self.values.get(name)
            if text is None:
                continue
            for adapter in LORA_TAG.findall(text):
                self.leave("LoRA", adapter)
            text = LORA_TAG.sub("", text)
            for _ in range(4):  # within each other
                text, count = WEIGHTED.subn(r"\1", text)
                if not count:
                    break
                self.leave("weights of words")
            self.values[name] = text.strip()

    def _take_method(self, setting: str, name: str) -> None:
        plain = _plain(name).removeprefix("k")
        if setting == "sampler":
            for schedule in ("karras", "exponential", "simple", "normal", "beta", "discrete"):
                if plain.endswith(schedule) and plain != schedule:
                    plain = plain.removesuffix(schedule)
                    if schedule not in ("simple", "discrete"):
                        self.leave("scheduler", schedule)
                    break
            ours = plain in ("euler", "flowmatcheuler", "flowmatcheulerdiscretescheduler", "linear", "undefined")
        else:
            ours = plain == "simple"
        if not ours and plain not in OFF:
            self.leave(setting, name)


def read_settings(texts: Mapping[str, str]) -> Settings | None:
    """What the texts of a picture say; None where they are no settings of any program that is known.

    Raises `UnreadableError` for those of a program that is known, and that cannot be read.
    """
    if "use_stable_diffusion_model" in texts:
        return _easy_diffusion(texts)
    found = next((found for name, read in READERS if (found := read(texts.get(name, ""))) is not None), None)
    if found is not None and "guidance" in found.values:
        return found
    if graph := comfyui.graph(_parsed(texts.get("prompt", "")), _parsed(texts.get("workflow", ""))):
        return _comfyui(graph) if found is None else _with_guidance(found, graph)
    if found is not None:
        return found
    program = _maker(texts)
    if program is None:
        return None
    raise UnreadableError(
        f"was made by {program}, whose settings cannot be read here; say them with --prompt and more."
    )


def shown(text: str) -> str:
    """A name from a file, for a sentence."""
    text = printable(text)
    return text if len(text) <= MAX_NAME_CHARACTERS else text[: MAX_NAME_CHARACTERS - 3] + "..."


def whole(value: Any) -> int | None:
    """A whole number, also one in a text or with zeros behind its point."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, str):
        match = WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def decimal(value: Any) -> float | None:
    """A number, also one in a text."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 else None


# The form of A1111, which Forge, SD.Next, stable-diffusion.cpp, Civitai and many others write


def _a1111(text: str) -> Settings | None:
    """A prompt, a negative one, and a line of details that starts with `Steps: ` or is the last one."""
    text = text.strip()
    place = text.rfind("\nSteps: ")
    words, line = (text[:place], text[place + 1 :]) if place >= 0 else text.rpartition("\n")[::2]
    details = _details(line.replace("\n", ", "))
    if not any(KNOWN.get(_plain(key)) in ("steps", "seed", "size") for key in details):
        return None
    prompt, *negative = re.split(r"^Negative prompt:", words, maxsplit=1, flags=re.MULTILINE)
    version = details.get("Version", "") or details.get("App", "")
    settings = Settings("stable-diffusion.cpp" if "stable-diffusion.cpp" in version else "A1111 or a relative")
    settings.values["prompt"] = prompt.strip()
    if negative and negative[0].strip():
        settings.values["negative_prompt"] = negative[0].strip()
    if version.startswith(OURS):
        settings.program = OURS
        if "Template" in details:
            settings.values["template"] = _unquoted(details["Template"])
    else:
        settings.read_emphasis()
    _take_all(settings, {key: _unquoted(value) for key, value in details.items()})
    if "guidance" not in settings.values and _says_guidance(details):
        settings.values.pop("negative_prompt", None)  # of no effect there
        if "cfg" in settings.values:
            settings.values["guidance"] = settings.values.pop("cfg")
    return settings


def _says_guidance(details: Mapping[str, str]) -> bool:
    """Whether FLUX.1 was painted by a program that calls the distilled guidance CFG scale: SD.Next, Civitai's own."""
    resources = _list(_parsed(details.get("Civitai resources", "")))
    said = [details.get("Civitai metadata", ""), *(str(each) for each in resources if _kind(each) == "checkpoint")]
    return details.get("Pipeline", "").startswith("Flux") or any("flux" in each.lower() for each in said)


def _details(line: str) -> dict[str, str]:
    """The pairs of a line such as `Steps: 4, Model: "a, b"`, quotes included; the first of equal keys counts."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(line) <= MAX_DETAILS_CHARACTERS:
        match = DETAIL.match(line, position)
        if match is None:
            break
        value, position = match[2].strip(), match.end()
        if value[:1] in ("[", "{"):  # an object has commas of its own
            with suppress(ValueError, RecursionError):
                _, end = json.JSONDecoder().raw_decode(line, match.start(2))
                value, position = line[match.start(2) : end], end + 1
        pairs.setdefault(match[1], value)
    return pairs


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        plain = _parsed(value)
        return plain if isinstance(plain, str) else value
    return value


# Those that write an object of JSON


def _take_all(settings: Settings, details: Mapping[str, Any], **renamed: str) -> None:
    """Every pair of an object or a line of details. `renamed`: what a name means in this program alone."""
    plains = [_plain(key) for key in details]
    hires = any(plain.startswith("hires") for plain in plains)
    for plain, (key, value) in zip(plains, details.items(), strict=True):
        setting = renamed.get(plain) or KNOWN.get(plain)
        if setting == "loras":
            _leave_adapters(settings, value)
        elif setting == "resources":
            _leave_adapters(settings, [each for each in _list(_parsed(str(value))) if _kind(each) != "checkpoint"])
        elif setting == "adapters":
            for adapter in str(value).split(","):
                settings.leave("LoRA", adapter.partition(":")[0].strip())
        elif setting == "strengths" or plain in WITHOUT_EFFECT or setting == "nothing":
            continue
        elif setting is not None:
            if value is not None and (setting in ("seed", "negative_prompt", "prompt") or value != ""):
                settings.take(setting, value)
        elif not _is_off(value) and _off_text(value) not in NEUTRAL.get(plain, ()):
            group = next((title for start, title in GROUPS.items() if plain.startswith(start)), None)
            if group is not None:
                settings.leave(group)
            elif plain != "denoisingstrength" or not hires:
                settings.leave(key.replace("_", " "), value)


def _leave_adapters(settings: Settings, value: Any) -> None:
    """Name LoRAs, which programs list in many ways; one of strength 0 is none."""
    for each in _list(value)[:100]:
        name: Any = each
        if isinstance(each, list):
            name = next((part for part in each if isinstance(part, str) and "." in part), each[:1])
            name = name[0] if isinstance(name, list) and name else name
        elif isinstance(each, dict):
            if decimal(each.get("weight", 1)) == 0:
                continue
            name = each.get("model") or each.get("lora") or each.get("modelName") or each.get("name") or ""
            name = name.get("name", name.get("model_name", "")) if isinstance(name, dict) else name
        settings.leave("LoRA", PurePath(str(name)[:200].replace("\\", "/")).name)


def _json(text: str) -> Settings | None:
    """A `parameters` text or a comment that is an object: SwarmUI, Fooocus, RuinedFooocus, mflux, or one alike."""
    value = _parsed(text)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("sui_image_params"), dict):
        settings = Settings("SwarmUI")
        _take_all(settings, value["sui_image_params"])
        settings.read_emphasis()
        return settings
    if "c" in value and "uc" in value:
        return _draw_things(value)
    if "metadata_scheme" in value or value.get("software") == "RuinedFooocus":
        settings = Settings("RuinedFooocus" if "software" in value else "Fooocus")
        _take_all(settings, value, guidancescale="cfg")
        settings.read_emphasis()
        return settings
    settings = Settings("mflux" if "mflux_version" in value else "another program")
    _take_all(settings, value, quantize="nothing", precision="nothing")
    return settings if settings.values.keys() & {"steps", "seed", "width"} else None


def _a1111_or_json(text: str) -> Settings | None:
    return _json(text) if text.lstrip().startswith("{") else _a1111(text)


def _invokeai(text: str) -> Settings | None:
    value = _parsed(text)
    if not isinstance(value, dict):
        return None
    settings = Settings("InvokeAI")
    _take_all(settings, value, scheduler="sampler", rectifiedflow="nothing")
    return settings


def _old_invokeai(text: str) -> Settings | None:
    value = _parsed(text)
    image = value.get("image") if isinstance(value, dict) else None
    if not isinstance(image, dict):
        return None
    prompt = image.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = prompt[0].get("prompt")
    settings = Settings("InvokeAI", model=shown(str(value.get("model_weights", ""))))
    _take_all(settings, {**image, "prompt": prompt}, type="nothing", postprocessing="nothing")
    return settings


def _mold(text: str) -> Settings | None:
    value = _parsed(text)
    if not isinstance(value, dict):
        return None
    settings = Settings("mold")
    flux = "flux" in str(value.get("model", "")).lower()
    _take_all(settings, value, guidance="guidance" if flux else "cfg")
    return settings


def _mold_comment(text: str) -> Settings | None:
    return _mold(text.removeprefix("mold:parameters ")) if text.startswith("mold:parameters ") else _a1111_or_json(text)


def _novelai(text: str) -> Settings | None:
    value = _parsed(text)
    if not isinstance(value, dict) or "prompt" not in value or not ({"uc", "sampler"} & value.keys()):
        return None
    settings = Settings("NovelAI")
    parts = {"v4prompt": "nothing", "v4negativeprompt": "nothing", "uc": "negative_prompt", "scale": "cfg"}
    _take_all(settings, value, **parts)
    return settings


def _draw_things(value: dict[str, Any]) -> Settings:
    settings = Settings("Draw Things")
    flux = "flux" in str(value.get("model", "")).lower()
    names = {"c": "prompt", "uc": "negative_prompt", "scale": "guidance" if flux else "cfg"}
    _take_all(settings, value, **names, v2="nothing", maskblur="nothing")  # v2: all of it once more
    if flux and "guidance" in settings.values:
        settings.values.pop("negative_prompt", None)  # of no effect beside the distilled guidance alone
    return settings


def _xmp(text: str) -> Settings | None:
    comment = text.partition("<exif:UserComment>")[2].partition("</exif:UserComment>")[0]
    item = LIST_ITEM.search(comment)
    return _json(unescape(item[1], {"&quot;": '"', "&apos;": "'", "&#34;": '"'})) if item else None


READERS: tuple[tuple[str, Callable[[str], Settings | None]], ...] = (
    ("invokeai_metadata", _invokeai),
    ("parameters", _a1111_or_json),
    ("mold:parameters", _mold),
    ("sd-metadata", _old_invokeai),
    ("Comment", _novelai),
    (USER_COMMENT, _a1111_or_json),
    (COMMENT, _mold_comment),
    (XMP, _xmp),
    ("generation_data", _json),
)


def _easy_diffusion(texts: Mapping[str, str]) -> Settings:
    """A text for each setting, under its own name."""
    settings = Settings("Easy Diffusion")
    said = {name: text for name, text in texts.items() if name not in (SOFTWARE_TAG, "Source", "Description")}
    _take_all(settings, said, guidancescale="cfg", schedulername="scheduler")
    settings.read_emphasis()
    return settings


def _with_guidance(settings: Settings, graph: comfyui.Graph) -> Settings:
    """What a node of ComfyUI wrote in the form of A1111, which has no name for the guidance; the graph has."""
    said = comfyui.follow(graph)
    if said is not None and ("seed", settings.values.get("seed")) in said.values:
        for setting, value in said.values:
            if setting in ("guidance", "sampler", "scheduler"):
                settings.take(setting, value)
        for name, value in said.left_out:
            settings.leave(name, value)
    return settings


def _comfyui(graph: comfyui.Graph) -> Settings:
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


def _maker(texts: Mapping[str, str]) -> str | None:
    """Which program made a picture whose settings are not read; None where nothing says so."""
    software = texts.get(SOFTWARE_TAG, "")
    if "Dream" in texts:
        return "an old InvokeAI"
    if "smproj" in texts:
        return "Stability Matrix"
    if re.search(r"\bJob ID: [0-9a-f-]{36}", texts.get("Description", "")):
        return "Midjourney"
    known = ("NovelAI", "Draw Things", "Adobe Firefly", "Midjourney", "Fooocus", "DiffusionBee", "InvokeAI")
    everything = (software, texts.get("Source", ""), texts.get(XMP, "")[:20_000])
    return next((name for name in known if any(name in text for text in everything)), None)


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()


def _parsed(text: str) -> Any:
    """The value that a text of JSON holds; None where it is none that is accepted."""
    try:
        return parse_json(text.encode("utf-8", "replace"))
    except MalformedError:
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if _is_off(value) else [value]


def _kind(resource: Any) -> str:
    return str(resource.get("type", "")).lower() if isinstance(resource, dict) else ""


def _off_text(value: Any) -> str:
    text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    number = decimal(value) if not isinstance(value, bool) else None
    return f"{number:g}" if number is not None else text


def _is_off(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, dict | list) and not value)
        or (isinstance(value, str | int | float) and _off_text(value) in OFF)
    )
