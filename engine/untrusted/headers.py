"""What a file of weights holds, read from its header alone: safetensors and GGUF. torch is not imported.

Files are untrusted: everything that a header claims is checked against the file before it is believed.
https://github.com/huggingface/safetensors#format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import codecs
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engine.folders import shown_path
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import MalformedError, open_file, parse_json

BYTES_OF = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
MAX_HEADER_BYTES = 32 * 2**20  # of FLUX.1's none has more than 1 MiB
MAX_HEADER_VALUES = 2_000_000  # in all of a header's JSON
MAX_DIMENSIONS = 8
MAX_TENSORS, MAX_FIELDS, MAX_TEXT, MAX_ARRAY = 100_000, 10_000, 2**20, 2**20  # of a GGUF file
MAX_KEPT_TEXT = 2**16  # characters of a GGUF field's value; longer ones (templates, vocabularies) are of no use here
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".gguf")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# ggml's types by number: name, elements of a block, bytes of a block.
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
}
_GGUF_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_GGUF_TEXT, _GGUF_ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes at `offset`, counted from the beginning of `file`.

    `kind` is safetensors' name of the elements' type ("BF16"), or ggml's of the blocks ("Q8_0"). `shape` counts
    elements, the outermost dimension first, in both formats.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> bool:
        """Whether the elements lie in quantized blocks, which only the gguf package can read."""
        return self.kind not in BYTES_OF


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file, in the order in which they lie there, and what the file says about itself."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    gguf: bool = False


def read_header(path: Path) -> Header:
    """Read and check a file's header. Raises `RequestError` that names the file and what is wrong with it."""
    try:
        with open_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            if what := sort_of_file(start + stream.peek(512)[:512]):
                raise RequestError("model", f"{shown_path(path)} {what}")
            if start.startswith(PICKLES) or (path.suffix.lower() in PICKLE_SUFFIXES and not start.startswith(b"GGUF")):
                raise RequestError(
                    "model",
                    f"{shown_path(path)} holds pickled weights, which are never loaded; get the safetensors file.",
                )
            if start.startswith(b"GGUF"):
                return _Gguf(path, stream, size).header()
            return _safetensors(path, stream, size, start)
    except OSError as error:
        raise unreadable(path, error) from None


# What people give in the place of weights, by how it begins, and what to do.
SORTS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"version https://git-lfs",), "is a Git LFS pointer, not the weights; get them with git lfs pull."),
    ((b"<!doctype", b"<html", b"<?xml"), "is a web page, not weights; the download asks for a login first."),
    ((b"\x89png", b"\xff\xd8\xff", b"gif8", b"riff"), "is a picture, not a model."),
    ((b"%pdf",), "is a document, not a model."),
    ((b"\x1f\x8b", b"7z\xbc\xaf", b"rar!", b"\xfd7zxz", b"bzh"), "is a packed archive; unpack it."),
    ((b"sqlite format",), "is a database, not a model."),
)


def sort_of_file(head: bytes) -> str:
    """What a file is that begins so and is no model, as the end of a sentence; empty where it may be one."""
    if int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES and head[8:9] == b"{":  # any number begins somehow
        return ""
    lowered = head.lower().lstrip()
    for beginnings, what in SORTS:
        if lowered.startswith(beginnings):
            return what
    if head.startswith(b"PK\x03\x04") and b".pkl" not in head and b"archive/" not in head:
        return "is a packed archive; unpack it."
    if head and not head.startswith((b"GGUF", *PICKLES)) and b"\0" not in head:  # a header's length has zeros in it
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a letter
            return "is a text file, not a model."
    return ""


def unreadable(file: Path, error: OSError) -> RequestError:
    """What to tell the person when the system refuses to read a file of weights."""
    return RequestError("model", f"{shown_path(file)} cannot be read: {error.strerror or str(error)}.")


def broken(file: Path, reason: str) -> RequestError:
    """What to tell the person about a file that is not what it should be."""
    return RequestError("model", f"{shown_path(file)} is broken ({reason}); download it again.")


def _safetensors(path: Path, stream: BinaryIO, size: int, start: bytes) -> Header:
    if len(start) < 8:
        raise broken(path, "it is empty" if not size else "it ends too early")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        if path.suffix.lower() not in WEIGHT_SUFFIXES:
            raise RequestError("model", f"{shown_path(path)} is neither a safetensors nor a GGUF file.")
        raise broken(path, "its header is too long")
    if 8 + length > size:
        raise broken(path, "it ends too early")
    try:
        header = parse_json(stream.read(length), MAX_HEADER_VALUES)
    except MalformedError as error:
        raise broken(path, f"its header {error}") from None
    if not isinstance(header, dict):
        raise broken(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken(path, "its metadata is not text")

    tensors = sorted(_described(path, header, 8 + length), key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise broken(path, f"{quoted(tensor.name)} does not begin where the tensor before it ends")
        end += tensor.nbytes
    if end > size:
        raise broken(path, "it ends too early")
    return Header(path, {tensor.name: tensor for tensor in tensors}, metadata)


def _described(file: Path, header: dict[str, Any], data_start: int) -> Iterator[TensorInfo]:
    for name, entry in header.items():
        match entry:
            case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]}:
                numbers = (*shape, begin, end)
            case _:
                raise broken(file, f"{quoted(name)} is not described")
        if kind not in BYTES_OF:
            raise RequestError(
                "model",
                f"{shown_path(file)} holds {quoted(name)} in the format {quoted(kind, 30)}, which cannot be read; "
                "get the model in BF16, F16 or F32.",
            )
        if len(shape) > MAX_DIMENSIONS or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise broken(file, f"{quoted(name)} has a wrong shape or place")
        if begin > end or math.prod(shape) * BYTES_OF[kind] != end - begin:
            raise broken(file, f"{quoted(name)} has a size that does not fit its shape")
        yield TensorInfo(name, kind, tuple(shape), file, data_start + begin, end - begin)


class _Gguf:
    """A GGUF file's header. The gguf package has a reader, too; a count that lies keeps that one busy for ever."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path, self.stream, self.size = path, stream, min(size, MAX_HEADER_BYTES)
        self.file_size = size

    def header(self) -> Header:
        self.stream.seek(4)
        version = self._number("<I")
        if version not in (2, 3):
            raise RequestError("model", f"{shown_path(self.path)} is GGUF of version {version}; 2 and 3 can be read.")
        tensor_count, field_count = self._number("<Q"), self._number("<Q")
        if tensor_count > MAX_TENSORS or field_count > MAX_FIELDS:
            raise broken(self.path, "its header is too long")
        metadata: dict[str, str] = {}
        for _ in range(field_count):
            key = self._text()
            if key in metadata:
                raise broken(self.path, f"its header has {quoted(key)} twice")
            metadata[key] = self._value(self._number("<I"))[:MAX_KEPT_TEXT]
        described = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", "32")
        step = int(alignment) if alignment.isdecimal() else 0
        if not 1 <= step <= 2**20:
            raise broken(self.path, "its alignment is wrong")
        start = -(-self.stream.tell() // step) * step
        return Header(self.path, dict(self._placed(described, start)), metadata, gguf=True)

    def _placed(self, described: list[tuple[str, int, tuple[int, ...], int]], start: int) -> Iterator[Any]:
        names: set[str] = set()
        end = start
        for name, number, shape, offset in sorted(described, key=lambda tensor: tensor[3]):
            if name in names:
                raise broken(self.path, f"its header has {quoted(name)} twice")
            names.add(name)
            if number not in GGML_TYPES:
                raise RequestError(
                    "model",
                    f"{shown_path(self.path)} holds {quoted(name)} in ggml's format {number}, which cannot be read.",
                )
            kind, elements, nbytes = GGML_TYPES[number]
            count = math.prod(shape)
            if not shape or (shape[-1] % elements):
                raise broken(self.path, f"{quoted(name)} has a size that does not fit its shape")
            if start + offset < end:
                raise broken(self.path, f"{quoted(name)} begins before the tensor before it ends")
            end = start + offset + count // elements * nbytes
            if end > self.file_size:
                raise broken(self.path, "it ends too early")
            yield name, TensorInfo(name, kind, shape, self.path, start + offset, count // elements * nbytes)

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._text(), self._number("<I")
        if not 1 <= dimensions <= 4:
            raise broken(self.path, f"{quoted(name)} has a wrong shape or place")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        number, offset = self._number("<I"), self._number("<Q")
        if not all(side < 2**48 for side in (*shape, offset)):
            raise broken(self.path, f"{quoted(name)} has a wrong shape or place")
        return name, number, shape[::-1], offset  # ggml has the innermost dimension first

    def _value(self, kind: int) -> str:
        """A field's value as text; of an array the length."""
        if kind == _GGUF_TEXT:
            return self._text()
        if kind in _GGUF_NUMBERS:
            return str(self._number(_GGUF_NUMBERS[kind]))
        if kind == _GGUF_ARRAY:
            element, count = self._number("<I"), self._number("<Q")
            if count > MAX_ARRAY:
                raise broken(self.path, "its header is too long")
            if element == _GGUF_TEXT:
                for _ in range(count):
                    self._skip_text()
                return f"{count} texts"
            if element in _GGUF_NUMBERS:
                self._read(count * struct.calcsize(_GGUF_NUMBERS[element]))
                return f"{count} numbers"
        raise broken(self.path, "its header has a value of an unknown kind")

    def _text(self) -> str:
        length = self._number("<Q")
        if length > MAX_TEXT:
            raise broken(self.path, "its header is too long")
        return self._read(length).decode("utf-8", "replace")

    def _skip_text(self) -> None:
        self._read(struct.unpack("<Q", self._read(8))[0])

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _read(self, count: int) -> bytes:
        if self.stream.tell() + count > self.size:
            raise broken(self.path, "it ends too early" if self.size == self.file_size else "its header is too long")
        return self.stream.read(count)
