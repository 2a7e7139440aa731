"""The settings inside a picture: written into the PNG with the pixels, read back for `t2i generate --from`.

A picture carries two texts: `parameters`, the form that A1111 and Forge write and most galleries read, and
`texttoimagetool`, a JSON `Record` with everything that is needed to paint the same picture again.

Writing trusts its input. Reading does not: see `engine.images.texts` for the files and `engine.images.foreign` for what
other programs write into them.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.folders import shown_path
from engine.images import foreign
from engine.images.foreign.requested import LABELS, requested
from engine.images.texts import USER_COMMENT, UnreadableError, read_names, read_texts
from engine.request import AUTO, Request, RequestError
from engine.text import some_of
from engine.untrusted import open_file

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1
SOFTWARE = "TextToImageTool"
RECORD_KEY = "texttoimagetool"
PARAMETERS_KEY = "parameters"

MAX_NESTING = 8  # levels of lists and objects in `Record.reproduce`
MAX_NUMBER_CHARACTERS = 32  # Python's own longest float has 24

# Characters that move the cursor, colour the screen or reverse the reading order. No name needs them.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Record:
    """All that it takes to paint one picture again, bit for bit, on the same machine.

    Raises `ValueError` where a value has the wrong type. A record read from another tool's `parameters` text has an
    empty model and leaves open what that text does not say; every other record is complete.
    """

    request: Request  # no open choice (guidance is None for a model that takes none), count 1, this picture's seed
    model: str  # as opened: "demo", a catalog name or a folder
    model_hash: str  # SHA-256 of the weights, 64 hex digits; "" where nobody knows it
    versions: dict[str, str]  # engine, torch, diffusers, transformers, python
    seconds_by_phase: dict[str, float]
    device: str  # "cpu", "cuda:0", ...
    reproduce: dict[str, Any]  # whatever else changes bits, as plain JSON values: {"batching": 1, "threads": 2}
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if type(self.schema) is not int or self.schema != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}")
        for name in ("model", "model_hash", "device"):
            if not _is_text(getattr(self, name)):
                raise ValueError(f"{name} must be text")
        if not re.fullmatch("([0-9a-f]{64})?", self.model_hash):
            raise ValueError("model_hash must be 64 hex digits")
        for name, is_right, kind in (
            ("versions", _is_text, "texts"),
            ("seconds_by_phase", _is_duration, "numbers of seconds"),
        ):
            values = getattr(self, name)
            if not isinstance(values, dict) or not all(_is_text(k) and is_right(v) for k, v in values.items()):
                raise ValueError(f"{name} must map names to {kind}")
        if not isinstance(self.reproduce, dict) or not _is_plain(self.reproduce, MAX_NESTING):
            raise ValueError(f"reproduce must be an object of plain values, at most {MAX_NESTING} levels deep")
        if not isinstance(self.request, Request) or self.request.count != 1:
            raise ValueError("request must be for one picture")
        if self.model:
            for name in ("steps", "seed", "width", "height", "precision"):
                if getattr(self.request, name) in (None, AUTO):
                    raise ValueError(f"request must say {name}")

    def to_json(self) -> str:
        """This record as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record in `text`, which nobody vouches for. Raises `ValueError` for anything but a complete record."""
        try:
            values = json.loads(text, parse_int=_read_integer, parse_float=_read_float, parse_constant=_refuse_constant)
            values = values if isinstance(values, dict) else {}
            schema, request = values.get("schema"), values.get("request")
            if isinstance(schema, int) and schema > SCHEMA:
                raise ValueError(f"a newer {SOFTWARE} wrote it, update to read it")
            if values.keys() != {field.name for field in fields(cls)}:
                raise ValueError("it has missing or unknown fields")
            record = cls(**{**values, "request": Request.from_dict(request if isinstance(request, dict) else {})})
        except json.JSONDecodeError:
            raise ValueError("it is not valid JSON") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not record.model:
            raise ValueError("it names no model")
        names = [record.model, record.device, record.versions, record.seconds_by_phase, record.reproduce]
        if _has_hidden_characters(names):
            raise ValueError("it has control characters in a name")
        return record


def parameters_text(record: Record) -> str:
    """`record` as A1111 and Forge write a FLUX picture: the prompt, then one line that starts with `Steps: `."""
    request = record.request
    details = {
        "Steps": request.steps,
        "Sampler": "Euler",
        "Schedule type": "Simple",
        "CFG scale": 1 if request.cfg is None else _short_number(request.cfg),
        "Distilled CFG Scale": None if request.guidance is None else _short_number(request.guidance),
        "Seed": request.seed,
        "Size": request.crop or f"{request.width}x{request.height}",
        "Model hash": record.model_hash[:10] or None,
        "Model": re.split(r"[\\/]", record.model.rstrip("\\/"))[-1] or None,  # a folder's name, not the way to it
        "Template": request.template,
        "Version": f"{SOFTWARE} v{record.versions.get('engine', '?')}",
    }
    line = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in details.items() if value is not None)
    negative = f"Negative prompt: {request.negative_prompt}\n" if request.negative_prompt else ""
    return f"{request.prompt}\n{negative}{line}"


def encode_png(image: Image, record: Record) -> bytes:
    """The PNG file of `image` with `record` in it, in one encoding pass."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PARAMETERS_KEY, parameters_text(record).replace("\0", ""))  # PNG texts end at a NUL
    info.add_itxt(RECORD_KEY, record.to_json())
    info.add_text("Software", SOFTWARE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Said:
    """What a picture says, and what of it has no counterpart here."""

    record: Record
    left_out: tuple[str, ...] = ()  # settings, each in a word or two
    program: str = ""  # that made it; "" for this one
    model: str = ""  # as that program calls it
    taken: tuple[str, ...] = ()  # settings that are in the record's request

    def account(self, left_out: Sequence[str], without: Collection[str] = (), most: int = 150) -> str:
        """What is taken over and what is not, in one sentence; "" where that goes without saying.

        `without`: fields of a request that are not taken over. `most`: characters of what is left out.
        """
        rest = f"left out: {some_of(left_out, most)}" if left_out else ""
        taken = [
            name
            for name in self.taken
            if name not in {LABELS.get(each, each) for each in without}
            and not any(f"{each} ".startswith(f"{name} ") for each in left_out)
        ]
        if not self.program or not taken:
            return rest
        return f"taken over from {self.program}: {', '.join(taken)}" + (f"; {rest}" if rest else "")


def read_settings(
    path: str | os.PathLike[str], changes: Mapping[str, Any] | None = None, *, lenient: bool = False
) -> Said:
    """What the picture at `path` says, be it PNG, JPEG or WebP: the file is not trusted, no pixel is decoded.

    A picture of another program gives what it says of a request's fields, with an empty `model` and `model_hash`.
    There, `changes` take the place of what it says before that is judged; what cannot be used is left out where
    `lenient`. A picture whose pixels are damaged still gives its record. Raises `RequestError("from", ...)` in every
    other case.
    """
    try:
        return _read_picture(path, changes or {}, lenient=lenient)
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        problem = f"cannot be read ({reason}); check the path and its permissions."
    except RequestError as error:
        if error.field in (changes or {}):
            raise
        problem = f"holds settings that cannot be used: {error}"
    except UnreadableError as error:
        problem = str(error)
    except ValueError:  # from the operating system's interface: a NUL or a lone surrogate in the path
        problem = "is not a path that this system knows; check its spelling."
    raise RequestError("from", f"{shown_path(path)} {problem}") from None


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record of the picture at `path`, see `read_settings`; of another program's, what can be used here."""
    return read_settings(path, lenient=True).record


def read_parameters(path: str | os.PathLike[str]) -> str:
    """The `parameters` text in the picture at `path` as it is there; "" where there is none or it cannot be read."""
    try:
        with _open(path) as file:
            texts, _ = read_texts(file, (PARAMETERS_KEY, USER_COMMENT))
            return texts.get(PARAMETERS_KEY, texts.get(USER_COMMENT, ""))
    except (OSError, ValueError, UnreadableError):
        return ""


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    """An ordinary file: a pipe or a device could block or never end."""
    if os.path.isdir(path):
        raise UnreadableError("is a folder; give the PNG picture itself.")
    try:
        return open_file(Path(path))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnreadableError("is not an ordinary file; give a PNG picture.") from None
        raise


def _read_picture(path: str | os.PathLike[str], changes: Mapping[str, Any], *, lenient: bool) -> Said:
    with _open(path) as file:
        texts, problem = read_texts(file, (RECORD_KEY,))
        if RECORD_KEY in texts:
            try:
                return Said(Record.from_json(texts[RECORD_KEY]))
            except RequestError:
                raise
            except ValueError as error:
                raise UnreadableError(f"has settings that cannot be read: {error}.") from None
        if problem is not None:
            raise problem
        texts, problem = read_texts(file, foreign.NAMES)
        settings = foreign.read_settings(texts)
        if settings is None:
            raise problem or UnreadableError(foreign.describe_unknown(texts, read_names(file)))
    request, taken, left_out = requested(settings, changes, lenient=lenient)
    record = Record(request, model="", model_hash="", versions={}, seconds_by_phase={}, device="", reproduce={})
    return Said(record, tuple(left_out), "" if settings.ours else settings.program, settings.model, tuple(taken))


def _quoted(value: str) -> str:
    """A value of the details line, quoted where A1111 quotes it (and where it would be taken for quoted)."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n]|^"', value) else value


def _short_number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63


def _is_duration(value: Any) -> bool:
    return _is_number(value) and bool(value >= 0)


def _is_plain(value: object, levels: int) -> bool:
    """Whether JSON gives `value` back as it is, and within so many levels of nesting."""
    if isinstance(value, dict):
        return levels > 0 and all(_is_text(k) and _is_plain(v, levels - 1) for k, v in value.items())
    if isinstance(value, list):
        return levels > 0 and all(_is_plain(item, levels - 1) for item in value)
    return value is None or isinstance(value, bool) or _is_number(value) or _is_text(value)


def _has_hidden_characters(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_hidden_characters(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return any(map(_has_hidden_characters, value))
    return isinstance(value, str) and HIDDEN.search(value) is not None


def _read_integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARACTERS:  # int() of many digits takes quadratic time
        raise ValueError("it has a number that is too long")
    return int(digits)


def _read_float(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_NUMBER_CHARACTERS else math.inf
    if not math.isfinite(value):  # "1e999" is valid JSON
        raise ValueError("it has a number that is too long or too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
