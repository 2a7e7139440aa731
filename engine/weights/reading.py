"""Tensors of safetensors and GGUF files, read on demand and by the names that diffusers and transformers have for them.

The files are read, not mapped: a mapped file that shrinks ends the process without a word, a read that comes back short
is a sentence; and what was read lies in the system's page cache, never twice in this process.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from engine.families.all import FAMILIES
from engine.families.family import Family
from engine.folders import shown_path
from engine.quantization.fp8 import widen
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import open_unbuffered, parse_json
from engine.untrusted.headers import Header, TensorInfo, broken, read_header, unreadable
from engine.weights import layouts
from engine.weights.layouts import Entry

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
READ_BYTES = 64 * 2**20  # the most that one system call is asked for
PART_BYTES = 4 * 2**20  # of a stored tensor, which one thread reads
CONVERTED_BYTES = 2**20  # what is read at a time where it has to be converted: it stays in the processor's cache
SHARED_BYTES = 4 * 2**20  # more than the pages that the system treats as one
MAX_NOTE_BYTES = 4096
FINITE_ELEMENTS = 2**18  # that are looked at in one go: they stay in the processor's cache
RESIDENCY_PROBES = 16  # places of a file that tell whether the system's cache has it
_LARGEST_BITS = {  # integers of the same width, without the sign, of the largest finite number
    torch.float64: (torch.int64, 2**63 - 1, 0x7FEF_FFFF_FFFF_FFFF),
    torch.float32: (torch.int32, 2**31 - 1, 0x7F7F_FFFF),
    torch.float16: (torch.int16, 2**15 - 1, 0x7BFF),
    torch.bfloat16: (torch.int16, 2**15 - 1, 0x7F7F),
    torch.float8_e4m3fn: (torch.uint8, 0x7F, 0x7E),
    torch.float8_e5m2: (torch.uint8, 0x7F, 0x7B),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. `dtype` is what its elements come in: float32 where they are dequantized while they are read.

    `nbytes` is what it takes in the file, and `offset` where that begins. `entry` tells the rest; None for a tensor
    that is yet to be written.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    entry: Entry | None = None

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> str:
        """What the file calls it, for messages."""
        return self.entry.stored.name if self.entry else self.name

    def is_stored_in(self, dtype: torch.dtype) -> bool:
        """Whether its elements are these in the file, with or without scales."""
        return self.entry is not None and DTYPES.get(self.entry.stored.kind) == dtype


class WeightFiles:
    """The tensors of some files, in the order in which they lie there. Several threads may read at once.

    With `drop_pages` the system is asked to forget what was read, so that a pass over a large file evicts nothing else.
    """

    def __init__(
        self,
        sources: dict[Path, _Source],
        entries: Mapping[str, Entry],
        metadata: dict[str, str],
        drop_pages: bool,
    ) -> None:
        self.tensors: Mapping[str, StoredTensor] = {name: _tensor(entry) for name, entry in entries.items()}
        self.metadata = metadata
        self.bytes_read = 0
        self.drop_pages = drop_pages
        self._sources = sources
        self._counting, self._reading_scales = Lock(), Lock()
        self._scales: dict[str, Tensor] = {}
        self._finite: set[tuple[str, int, int]] = set()

    @classmethod
    def open(
        cls,
        files: Sequence[Path],
        component: str = "",
        drop_pages: bool = False,
        families: Sequence[Family] = FAMILIES,
    ) -> WeightFiles:
        """Read and check the headers. With a `component` its tensors are there, by diffusers' and transformers' names;
        without one all tensors, by the files' own.

        Raises `RequestError` that names the file, and the tensor where it is one, and what is wrong with it.
        """
        headers = [read_header(file) for file in files]
        entries = layouts.entries(headers, component, families) if component else dict(_as_they_are(headers))
        sources: dict[Path, _Source] = {}
        try:
            for file in files:
                sources[file] = _Source(file)
            if component:
                _check_formats(headers, sources)
        except BaseException:
            for source in sources.values():
                source.close()
            raise
        metadata = {key: value for header in headers for key, value in header.metadata.items()}
        return cls(sources, entries, metadata, drop_pages)

    @property
    def nbytes(self) -> int:
        """What all tensors take in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out` (on the CPU, contiguous, of the tensor's shape), converted where it is of another float dtype.

        Raises `RequestError` for weights that are not finite; they are looked at when they are read for the first time.
        """
        for start, stop in self.parts(name):
            self.read_part(name, start, stop, out)

    def parts(self, name: str) -> list[tuple[int, int]]:
        """A tensor's elements in pieces of a few MiB, which threads may share."""
        tensor = self.tensors[name]
        step = max(1, PART_BYTES * tensor.count // max(1, tensor.nbytes))
        return [(start, min(start + step, tensor.count)) for start in range(0, max(1, tensor.count), step)]

    def read_part(self, name: str, start: int, stop: int, out: Tensor) -> None:
        """Fill the elements `start:stop` of `out`, which is as `read` takes it. Raises as that does."""
        tensor = self.tensors[name]
        if out.device.type != "cpu" or not out.is_contiguous() or tuple(out.shape) != tensor.shape:
            raise ValueError(f"{name} needs a contiguous CPU tensor of shape {list(tensor.shape)}")
        flat = out.detach().view(-1)[start:stop]
        unseen = (name, start, stop) not in self._finite
        if out.dtype == tensor.dtype:
            self._fill(tensor, start, flat, unseen)
        elif not (out.dtype.is_floating_point and tensor.dtype.is_floating_point):
            raise ValueError(f"{name} is stored as {tensor.dtype} and cannot be read as {out.dtype}")
        else:
            step = CONVERTED_BYTES // tensor.dtype.itemsize
            for at in range(start, stop, step):
                elements = torch.empty(min(step, stop - at), dtype=tensor.dtype)
                self._fill(tensor, at, elements, unseen)
                self._convert(tensor, elements, flat[at - start : at - start + step], unseen)
        if unseen:
            if not is_finite(flat):
                raise not_finite(tensor)
            self._finite.add((name, start, stop))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """`tensor[start:stop]` of the first dimension, in the tensor's dtype, in memory of its own."""
        shape = self.tensors[name].shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"{name} of shape {list(shape)} has no rows {start}:{stop}")
        width = math.prod(shape[1:])
        return self.elements(name, start * width, stop * width).view(stop - start, *shape[1:])

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        """`tensor.flatten()[start:stop]`, in the tensor's dtype, in memory of its own."""
        tensor = self.tensors[name]
        if not 0 <= start <= stop <= tensor.count:
            raise ValueError(f"{name} of shape {list(tensor.shape)} has no elements {start}:{stop}")
        out = torch.empty(stop - start, dtype=tensor.dtype)
        self._fill(tensor, start, out, True)
        return out

    def quantized_rows(self, name: str, start: int, stop: int, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows of a weight in 8 bits as they are, [stop - start, in], and the scale of each, float32.

        `out`: contiguous memory for the rows.
        """
        tensor = self.tensors[name]
        assert tensor.entry is not None and len(tensor.shape) == 2
        width = tensor.shape[1]
        if out is None:
            out = torch.empty((stop - start) * width, dtype=DTYPES[tensor.entry.stored.kind])
        out = out.view(-1)
        for first, last, place in _stored_pieces(tensor.entry, start * width, stop * width):
            self._read_into(tensor.entry.stored, first, out[place : place + last - first].view(torch.uint8))
        if not is_finite(out):
            raise not_finite(tensor)
        scales = [self._row_scales(tensor.entry, first, last) for first, last in tensor.entry.pieces]
        return out.view(-1, width), torch.cat(scales)[start:stop]

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """Tell the system that these elements are read next."""
        for stored, offset, count in self._places(name, start, stop):
            self._sources[stored.file].prefetch(offset, count)

    def drop(self, name: str) -> None:
        """Tell the system that this tensor need not stay in its cache."""
        for stored, offset, count in self._places(name, 0, self.tensors[name].count):
            self._sources[stored.file].drop_pages(offset, count)

    def is_cached(self) -> bool:
        """Whether most of these files is in the system's cache, as far as that can be known."""
        return all(source.is_cached() for source in self._sources.values())

    def _places(self, name: str, start: int, stop: int) -> Iterator[tuple[TensorInfo, int, int]]:
        """Where the bytes of elements lie: the stored tensor, the offset in its file, how many."""
        entry = self.tensors[name].entry
        assert entry is not None
        stored = entry.stored
        for first, last, _ in _stored_pieces(entry, start, stop):
            begin, end = (stored.nbytes * at // max(1, stored.count) for at in (first, last))
            yield stored, stored.offset + begin, end - begin

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        for source in self._sources.values():
            source.close()

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self, tensor: StoredTensor, start: int, out: Tensor, unseen: bool) -> None:
        """Read elements from `start` on into the 1-D `out`, which has the tensor's dtype.

        `unseen`: what cannot be told from `out` any more is looked at, whether it is finite.
        """
        entry = tensor.entry
        assert entry is not None
        for first, last, place in _stored_pieces(entry, start, start + len(out)):
            piece = out[place : place + last - first]
            if entry.stored.blocks:
                self._dequantize_blocks(entry.stored, first, piece)
            elif entry.scale is not None:
                self._dequantize(entry, first, piece, unseen)
            else:
                self._read_into(entry.stored, first, piece.view(torch.uint8))

    def _convert(self, tensor: StoredTensor, elements: Tensor, out: Tensor, unseen: bool) -> None:
        """Elements of a tensor into `out`, which has another float dtype."""
        if elements.dtype.itemsize > 1 or elements.dtype == torch.int8 or out.dtype == torch.float64:
            out.copy_(elements)
            return
        if unseen and not is_finite(elements):
            raise not_finite(tensor)
        widen(elements, out)

    def _dequantize(self, entry: Entry, first: int, out: Tensor, unseen: bool) -> None:
        """8-bit elements from `first` on, times their scales, into `out` (float32)."""
        width = max(1, entry.stored.count // entry.stored.shape[0])
        step = max(1, CONVERTED_BYTES // width) * width
        at = first
        while at < first + len(out):
            stop = min(first + len(out), at - at % width + step)
            raw = torch.empty(stop - at, dtype=DTYPES[entry.stored.kind])
            self._read_into(entry.stored, at, raw.view(torch.uint8))
            piece = out[at - first : stop - first]
            self._convert(_tensor(entry), raw, piece, unseen)
            before = at % width
            rows = self._row_scales(entry, at - before, -(-stop // width) * width)
            if len(piece) == len(rows) * width:
                piece.view(-1, width).mul_(rows[:, None])
            else:
                piece.mul_(rows.repeat_interleave(width)[before : before + len(piece)])
            at = stop

    def _row_scales(self, entry: Entry, first: int, last: int) -> Tensor:
        """float32, one for each row of the stored tensor between these elements, which are whole rows."""
        width = max(1, entry.stored.count // entry.stored.shape[0])
        start, stop = first // width, last // width
        if entry.scale is None:
            return torch.ones(stop - start)
        with self._reading_scales:
            if entry.scale.name not in self._scales:
                self._scales[entry.scale.name] = self._whole_scale(entry.scale)
        scale = self._scales[entry.scale.name]
        return scale.expand(stop - start) if len(scale) == 1 else scale[start:stop]

    def _whole_scale(self, stored: TensorInfo) -> Tensor:
        scale = torch.empty(stored.count, dtype=DTYPES[stored.kind])
        self._read_into(stored, 0, scale.view(torch.uint8))
        if not bool(scale.float().isfinite().all()):
            raise RequestError(
                "model",
                f"{quoted(stored.name)} in {shown_path(stored.file)} holds numbers that are not finite; "
                "download it again.",
            )
        return scale.float()

    def _dequantize_blocks(self, stored: TensorInfo, first: int, out: Tensor) -> None:
        """Elements of ggml's blocks from `first` on into `out` (float32)."""
        gguf = _gguf(stored.file)
        kind = gguf.GGMLQuantizationType[stored.kind]
        elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
        step = CONVERTED_BYTES // elements * elements
        at = first
        while at < first + len(out):
            stop = min(first + len(out), at - at % elements + step)
            begin, end = at // elements, -(-stop // elements)
            raw = torch.empty((end - begin) * nbytes, dtype=torch.uint8)
            self._read_bytes(stored, begin * nbytes, raw)
            try:
                # As one long row: the package works on sixteen rows at a time.
                plain = gguf.quants.dequantize(raw.numpy().reshape(1, -1), kind)
            except NotImplementedError:
                raise RequestError(
                    "model",
                    f"{quoted(stored.name)} in {shown_path(stored.file)} is quantized as {stored.kind}, which "
                    f"cannot be read; "
                    "take a Q8_0 or Q4_K file.",
                ) from None
            out[at - first : stop - first] = torch.from_numpy(plain.reshape(-1))[at - begin * elements :][: stop - at]
            at = stop

    def _read_into(self, stored: TensorInfo, first: int, out: Tensor) -> None:
        """The bytes of stored elements from `first` on into `out` (uint8)."""
        self._read_bytes(stored, first * DTYPES[stored.kind].itemsize, out)

    def _read_bytes(self, stored: TensorInfo, start: int, out: Tensor) -> None:
        source = self._sources[stored.file]
        memory: memoryview[int] = out.numpy().data
        first = stored.offset + start
        for at in range(0, len(memory), READ_BYTES):
            piece = memory[at : at + READ_BYTES]
            source.read_into(piece, first + at)
            if self.drop_pages:
                source.drop_pages(first + at, len(piece))
            with self._counting:
                self.bytes_read += len(piece)


def is_finite(values: Tensor) -> bool:
    """Whether all elements of a contiguous CPU tensor are finite.

    By their bits: without its sign a number that is not finite is larger than all others, and integers are compared ten
    times as fast as torch looks at 16-bit floats.
    """
    if values.dtype not in _LARGEST_BITS:
        return True
    integer, mask, largest = _LARGEST_BITS[values.dtype]
    bits = values.view(-1).view(integer)
    scratch = torch.empty(min(len(bits), FINITE_ELEMENTS), dtype=integer)
    for piece in bits.split(FINITE_ELEMENTS):
        if len(piece) and int(torch.bitwise_and(piece, mask, out=scratch[: len(piece)]).max()) > largest:
            return False
    return True


def not_finite(tensor: StoredTensor) -> RequestError:
    """What to tell the person about weights that are no numbers."""
    return RequestError(
        "model",
        f"{quoted(tensor.stored)} in {shown_path(tensor.file)} holds numbers that are not finite; download it again.",
    )


def _tensor(entry: Entry) -> StoredTensor:
    stored = entry.stored
    dtype = torch.float32 if stored.blocks or entry.scale is not None else DTYPES[stored.kind]
    count = sum(stop - start for start, stop in entry.pieces)
    nbytes = (stored.nbytes + (entry.scale.nbytes if entry.scale else 0)) * count // max(1, stored.count)
    return StoredTensor(entry.name, dtype, entry.shape, stored.file, stored.offset, nbytes, entry)


def _as_they_are(headers: Sequence[Header]) -> Iterator[tuple[str, Entry]]:
    files: dict[str, Path] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if name in files:
                raise layouts.twice(name, files[name], header.path)
            files[name] = header.path
            yield name, Entry(name, info.shape, info, ((0, info.count),))


def _stored_pieces(entry: Entry, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Elements `start:stop` of a tensor as (first, last) elements of the stored one, and where they go."""
    begin = 0
    for first, last in entry.pieces:
        end = begin + last - first
        low, high = max(start, begin), min(stop, end)
        if low < high:
            yield first + low - begin, first + high - begin, low - start
        begin = end


def _check_formats(headers: Sequence[Header], sources: Mapping[Path, _Source]) -> None:
    """What newer ComfyUI files say of each quantized layer must be something that is read rightly."""
    for info in layouts.format_notes(headers):
        text = bytearray(min(info.nbytes, MAX_NOTE_BYTES))
        sources[info.file].read_into(memoryview(text), info.offset)
        try:
            said = dict(parse_json(bytes(text)))
        except (ValueError, TypeError):
            raise broken(info.file, f"{quoted(info.name)} is not JSON") from None
        layouts.check_format(said, info.name.removesuffix(f".{layouts.FORMAT_NOTE}"), info.file)


def _gguf(file: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise RequestError(
            "model",
            f"{shown_path(file)} is a GGUF file, which needs one more package: pip install 'texttoimagetool[gguf]'.",
        ) from None
    return gguf


class _Source:
    """An open file that is read at given positions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seeking = Lock()
        try:
            self._stream = open_unbuffered(path)
            self.size = os.fstat(self._stream.fileno()).st_size
        except OSError as error:
            raise unreadable(path, error) from None

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory`. Raises `RequestError` where the file ends before that, or cannot be read."""
        filled = 0
        while filled < len(memory):
            try:
                count = self._read_some(memory[filled:], offset + filled)
            except OSError as error:
                raise unreadable(self.path, error) from None
            if not count:
                raise RequestError(
                    "model",
                    f"{shown_path(self.path)} has changed while it was in use; wait until it is complete, then retry.",
                )
            filled += count

    def prefetch(self, offset: int, count: int) -> None:
        """Tell the system that these bytes are read next."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._stream.fileno(), offset, count, os.POSIX_FADV_WILLNEED)

    def is_cached(self) -> bool:
        """Whether the system's cache has most of the file; False where nobody can tell (Linux can)."""
        if sys.platform != "linux":
            return False
        byte, found = bytearray(1), 0
        for place in range(RESIDENCY_PROBES):
            with suppress(OSError):  # it would have to be read from the disk
                found += os.preadv(self._stream.fileno(), [byte], self.size * place // RESIDENCY_PROBES, os.RWF_NOWAIT)
        return found > RESIDENCY_PROBES // 2

    def drop_pages(self, offset: int, count: int) -> None:
        """Tell the system that these bytes need not stay in its cache."""
        if hasattr(os, "posix_fadvise"):
            start = max(0, offset - SHARED_BYTES)  # pages that were shared with the piece before can go by now
            with suppress(OSError):
                os.posix_fadvise(self._stream.fileno(), start, offset - start + count, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._stream.close()

    def _read_some(self, memory: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._stream.fileno(), [memory], offset)
        with self._seeking:  # Windows: a file has one position for all threads
            self._stream.seek(offset)
            return self._stream.readinto(memory) or 0
