"""The settings inside a picture: written into the PNG with the pixels, read back for `t2i generate --from`.

A picture carries two texts: `parameters`, the form that A1111 and Forge write and most galleries read, and
`texttoimagetool`, a JSON `Record` with everything that is needed to paint the same picture again.

Writing trusts its input. Reading does not: a PNG from the Internet can say anything, so the chunks are walked here
with hard limits, and neither pixels nor any text but the one looked for is ever loaded.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.folders import shown_path
from engine.request import Request, RequestError
from engine.untrusted import open_file

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1
SOFTWARE = "TextToImageTool"
RECORD_KEY = "texttoimagetool"
PARAMETERS_KEY = "parameters"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 2**20  # of one text, after decompression; our own texts stay below 100 kB
MAX_CHUNKS = 2**16  # libpng writes pixels 8 KiB a chunk: this is half a gigabyte of them
MAX_KEYWORD_BYTES = 79  # PNG specification, 11.3.3.2
MAX_DETAILS_CHARACTERS = 10_000  # of the last line of a `parameters` text
MAX_NESTING = 8  # levels of lists and objects in `Record.reproduce`
MAX_NUMBER_CHARACTERS = 32  # Python's own longest float has 24

# Characters that move the cursor, colour the screen or reverse the reading order. No name needs them.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
DETAIL = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


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
                if getattr(self.request, name) is None:
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
        "Size": f"{request.width}x{request.height}",
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


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record in the PNG at `path`, whatever is there: the file is not trusted and its pixels are not decoded.

    A picture that only has an A1111-style `parameters` text (another tool made it) gives prompt, steps, seed, size
    and distilled guidance, with an empty `model` and `model_hash`; a negative prompt is left out. A picture whose
    pixels are damaged still gives its record. Raises `RequestError("from", ...)` in every other case.
    """
    try:
        return _read_record(path)
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        problem = f"cannot be read ({reason}); check the path and its permissions."
    except RequestError as error:
        problem = f"holds settings that cannot be used: {error}"
    except _Unreadable as error:
        problem = str(error)
    except ValueError:  # from the operating system's interface: a NUL or a lone surrogate in the path
        problem = "is not a path that this system knows; check its spelling."
    raise RequestError("from", f"{shown_path(path)} {problem}") from None


def read_parameters(path: str | os.PathLike[str]) -> str:
    """The `parameters` text in the PNG at `path` as it is there; "" where there is none or it cannot be read."""
    try:
        with _open(path) as file:
            return _find_text(file, PARAMETERS_KEY) or ""
    except (OSError, ValueError, _Unreadable):
        return ""


class _Unreadable(Exception):
    """The picture gives no record: the message goes after the file's name and completes one sentence."""


_ENDS_EARLY = "ends too early, the file is damaged; use another copy of the picture."
_DAMAGED = "has damaged settings in it; use another copy of the picture."
_TOO_LONG = f"has more than {MAX_TEXT_BYTES // 2**20} MiB of text for its settings; no picture of {SOFTWARE} does."


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    """An ordinary file: a pipe or a device could block or never end."""
    if os.path.isdir(path):
        raise _Unreadable("is a folder; give the PNG picture itself.")
    try:
        return open_file(Path(path))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _Unreadable("is not an ordinary file; give a PNG picture.") from None
        raise


def _read_record(path: str | os.PathLike[str]) -> Record:
    with _open(path) as file:
        text = _find_text(file, RECORD_KEY)
        if text is not None:
            try:
                return Record.from_json(text)
            except RequestError:
                raise
            except ValueError as error:
                raise _Unreadable(f"has settings that cannot be read: {error}.") from None
        text = _find_text(file, PARAMETERS_KEY)
    if text is None:
        raise _Unreadable("has no settings in it, sharing or editing removes them; give the picture as it was saved.")
    return _record_of_other_tool(text)


def _find_text(file: BinaryIO, keyword: str) -> str | None:
    """The first text called `keyword`, or None. Reads that text and the chunk headers, no more."""
    file.seek(0)
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        raise _Unreadable(f"is not a PNG picture; give one that {SOFTWARE} saved.")
    wanted = keyword.encode("latin-1") + b"\0"
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise _Unreadable(_ENDS_EARLY)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if kind == b"IEND":
            return None
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        body = file.read(min(length, MAX_KEYWORD_BYTES + 1))
        if not body.startswith(wanted):
            file.seek(length - len(body) + 4, os.SEEK_CUR)
            continue
        if length > MAX_TEXT_BYTES:
            raise _Unreadable(_TOO_LONG)
        body += file.read(length - len(body))
        checksum = file.read(4)
        if len(body) < length or len(checksum) < 4:
            raise _Unreadable(_ENDS_EARLY)
        if zlib.crc32(kind + body) != int.from_bytes(checksum, "big"):
            raise _Unreadable(_DAMAGED)
        return _decode_text(kind, body[len(wanted) :])
    raise _Unreadable("has too many parts for a picture; use another copy of it.")


def _decode_text(kind: bytes, body: bytes) -> str:
    """The text of a chunk, from what follows its keyword (PNG specification, 11.3.3)."""
    if kind == b"tEXt":
        return body.decode("latin-1")
    if kind == b"zTXt":
        return _decompress(body[1:]).decode("latin-1")
    compressed, (_language, _, rest) = body[:1] == b"\x01", body[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    try:
        return (_decompress(text) if compressed else text).decode("utf-8")
    except UnicodeDecodeError:
        raise _Unreadable(_DAMAGED) from None


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_TEXT_BYTES + 1)  # stops there, however much there is to come
    except zlib.error:
        raise _Unreadable(_DAMAGED) from None
    if len(text) > MAX_TEXT_BYTES:
        raise _Unreadable(_TOO_LONG)
    if not stream.eof:
        raise _Unreadable(_DAMAGED)
    return text


def _record_of_other_tool(text: str) -> Record:
    """What an A1111-style `parameters` text says. Steps, seed and size must all be there."""
    prompt, _, line = text.strip().rpartition("\n")
    details = _details(line)
    steps, seed = (_digits(details.get(key, "")) for key in ("Steps", "Seed"))
    size = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", details.get("Size", ""))
    if steps is None or seed is None or size is None:
        raise _Unreadable(f"has no settings that {SOFTWARE} can read; give a picture that it saved.")
    guidance = details.get("Distilled CFG Scale", "")
    request = Request(
        prompt=re.split(r"^Negative prompt:", prompt, maxsplit=1, flags=re.MULTILINE)[0].strip(),
        steps=steps,
        seed=seed,
        width=int(size[1]),
        height=int(size[2]),
        guidance=float(guidance) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,20})?", guidance) else None,
    )
    return Record(request, model="", model_hash="", versions={}, seconds_by_phase={}, device="", reproduce={})


def _details(line: str) -> dict[str, str]:
    """The pairs of a line such as `Steps: 4, Model: "a, b"`, quotes included; the first of equal keys counts."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(line) <= MAX_DETAILS_CHARACTERS:
        match = DETAIL.match(line, position)
        if match is None:
            break
        pairs.setdefault(match[1], match[2].strip())
        position = match.end()
    return pairs


def _digits(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


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
