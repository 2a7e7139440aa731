"""The settings of a picture that another program made, as far as they have a meaning here.

A setting is taken over, or its name goes into `left_out`; what changes nothing (a version, a hash) is passed over. All
of it comes from strangers' files: no value is judged here, and each name is short and printable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from engine.images.foreign.names import GROUPS, KNOWN, NEUTRAL, OFF, WITHOUT_EFFECT
from engine.text import printable
from engine.untrusted import MalformedError, parse_json

OURS = "TextToImageTool"
MAX_NAME_CHARACTERS = 60

WHOLE = re.compile(r"\s*(-?[0-9]{1,20})(?:\.0{1,6})?\s*")
NUMBER = re.compile(r"\s*-?[0-9]{1,9}(\.[0-9]{0,20})?\s*")
SIDES = re.compile(r"\s*\(?\s*([0-9]{1,6})\s*[x\u00d7,]\s*([0-9]{1,6})\s*\)?\s*", re.IGNORECASE)
LORA_TAG = re.compile(r"<(?:lora|lyco|lycoris|hypernet):([^<>:\n]{1,200})(?::[^<>\n]{0,100})?>", re.IGNORECASE)
WEIGHTED = re.compile(r"\(([^()\[\]\\\n:]{1,1000}):\s*-?[0-9]{0,2}\.?[0-9]{1,6}\s*\)")


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
        plain = plain_name(name).removeprefix("k")
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


def shown(text: str) -> str:
    """A name from a file, for a sentence."""
    text = printable(text)
    return text if len(text) <= MAX_NAME_CHARACTERS else text[: MAX_NAME_CHARACTERS - 3] + "..."


def whole(value: Any) -> int | None:
    """A whole number of at most 20 digits, also one in a text or with zeros behind its point."""
    if isinstance(value, str):
        match = WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e20:
        return None
    return int(value) if value == int(value) else None


def decimal(value: Any) -> float | None:
    """A number, also one in a text."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 else None


# The form of A1111, which Forge, SD.Next, stable-diffusion.cpp, Civitai and many others write


def take_all(settings: Settings, details: Mapping[str, Any], **renamed: str) -> None:
    """Every pair of an object or a line of details. `renamed`: what a name means in this program alone."""
    plains = [plain_name(key) for key in details]
    hires = any(plain.startswith("hires") for plain in plains)
    for plain, (key, value) in zip(plains, details.items(), strict=True):
        setting = renamed.get(plain) or KNOWN.get(plain)
        if setting == "loras":
            _leave_adapters(settings, value)
        elif setting == "resources":
            _leave_adapters(settings, [each for each in listed(parsed(str(value))) if kind_of(each) != "checkpoint"])
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
    for each in listed(value)[:100]:
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


def plain_name(key: str) -> str:
    """A setting's name without case and marks, as `CALLED` has it."""
    return re.sub(r"[\W_]", "", key).lower()


def parsed(text: str) -> Any:
    """The value that a text of JSON holds; None where it is none that is accepted."""
    try:
        return parse_json(text.rstrip("\0").encode("utf-8", "replace"), is_json=False)
    except MalformedError:
        return None


def listed(value: Any) -> list[Any]:
    """A list, also of one, or of none where the setting is off."""
    return value if isinstance(value, list) else [] if _is_off(value) else [value]


def kind_of(resource: Any) -> str:
    """What Civitai calls a resource: checkpoint, lora, ..."""
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
