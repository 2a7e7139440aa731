"""Tensors of safetensors files, read on demand.

The files are read, not mapped: a mapped file that shrinks ends the process without a word, a read that comes back short
is a sentence; and what was read lies in the system's page cache, never twice in this process. The format is described
at https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from engine.request import RequestError

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
MAX_HEADER_BYTES = 100 * 10**6  # the format's own limit
READ_BYTES = 64 * 2**20  # the most that one system call is asked for
CONVERTED_BYTES = 4 * 2**20  # what is read at a time where it has to be converted
SHARED_BYTES = 4 * 2**20  # more than the pages that the system treats as one


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `nbytes` bytes at `offset`, counted from the beginning of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class WeightFiles:
    """The tensors of some safetensors files, in the order in which they lie there. Several threads may read at once.

    With `drop_pages` the system is asked to forget what was read, so that a pass over a large file evicts nothing else.
    """

    def __init__(
        self, sources: dict[Path, _Source], tensors: dict[str, StoredTensor], metadata: dict[str, str], drop_pages: bool
    ) -> None:
        self.tensors: Mapping[str, StoredTensor] = tensors
        self.metadata = metadata
        self.bytes_read = 0
        self.drop_pages = drop_pages
        self._sources = sources
        self._counting = Lock()

    @classmethod
    def open(cls, files: Sequence[Path], drop_pages: bool = False) -> WeightFiles:
        """Read and check the headers. Raises `RequestError` that names the file and what is wrong with it."""
        sources: dict[Path, _Source] = {}
        tensors: dict[str, StoredTensor] = {}
        metadata: dict[str, str] = {}
        try:
            for file in files:
                sources[file] = _Source(file)
                found, said = _read_header(sources[file])
                for tensor in found:
                    if tensor.name in tensors:
                        raise RequestError(
                            "model",
                            f"{tensor.name!r} is both in {str(tensors[tensor.name].file)!r} and in {str(file)!r}; "
                            "download the model again.",
                        )
                    tensors[tensor.name] = tensor
                metadata.update(said)
        except BaseException:
            for source in sources.values():
                source.close()
            raise
        return cls(sources, tensors, metadata, drop_pages)

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out` (on the CPU, contiguous, of the tensor's shape), converted where it is of another float dtype."""
        stored = self.tensors[name]
        if out.device.type != "cpu" or not out.is_contiguous() or tuple(out.shape) != stored.shape:
            raise ValueError(f"{name} needs a contiguous CPU tensor of shape {list(stored.shape)}")
        flat = out.detach().view(-1)
        if out.dtype == stored.dtype:
            self._fill(stored, 0, flat)
            return
        if not (out.dtype.is_floating_point and stored.dtype.is_floating_point):
            raise ValueError(f"{name} is stored as {stored.dtype} and cannot be read as {out.dtype}")
        step = CONVERTED_BYTES // stored.dtype.itemsize
        for start in range(0, stored.count, step):
            stop = min(start + step, stored.count)
            flat[start:stop].copy_(self.elements(name, start, stop))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """`tensor[start:stop]` of the first dimension, in the stored dtype, in memory of its own."""
        shape = self.tensors[name].shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"{name} of shape {list(shape)} has no rows {start}:{stop}")
        width = math.prod(shape[1:])
        return self.elements(name, start * width, stop * width).view(stop - start, *shape[1:])

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        """`tensor.flatten()[start:stop]`, in the stored dtype, in memory of its own."""
        stored = self.tensors[name]
        if not 0 <= start <= stop <= stored.count:
            raise ValueError(f"{name} of shape {list(stored.shape)} has no elements {start}:{stop}")
        out = torch.empty(stop - start, dtype=stored.dtype)
        self._fill(stored, start, out)
        return out

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

    def _fill(self, stored: StoredTensor, start: int, out: Tensor) -> None:
        """Read elements from `start` on into the 1-D `out`, which has the stored dtype."""
        source = self._sources[stored.file]
        memory: memoryview[int] = out.view(torch.uint8).numpy().data
        first = stored.offset + start * stored.dtype.itemsize
        for at in range(0, len(memory), READ_BYTES):
            piece = memory[at : at + READ_BYTES]
            source.read_into(piece, first + at)
            if self.drop_pages:
                source.drop_pages(first + at, len(piece))
            with self._counting:
                self.bytes_read += len(piece)


class _Source:
    """An open file that is read at given positions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seeking = Lock()
        try:
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 (open for as long as the weights are)
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
                    f"{str(self.path)!r} has changed while it was in use; wait until it is complete, then retry.",
                )
            filled += count

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


def unreadable(file: Path, error: OSError) -> RequestError:
    """What to tell the person when the system refuses to read a file of weights."""
    return RequestError("model", f"{str(file)!r} cannot be read: {error.strerror or str(error)}.")


def _broken(file: Path, reason: str) -> RequestError:
    return RequestError("model", f"{str(file)!r} is broken ({reason}); download it again.")


def _read_header(source: _Source) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a file by their place, and its metadata. The file is untrusted: everything is checked."""
    if source.size < 8:
        raise _broken(source.path, "it ends too early")
    prefix = bytearray(8)
    source.read_into(memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(source.path, "its header is too long")
    if 8 + length > source.size:
        raise _broken(source.path, "it ends too early")
    text = bytearray(length)
    source.read_into(memoryview(text), 8)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _broken(source.path, "its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise _broken(source.path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(source.path, "its metadata is not text")

    tensors = sorted(_described(source.path, header, 8 + length), key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise _broken(source.path, f"{tensor.name!r} does not begin where the tensor before it ends")
        end += tensor.nbytes
    if end > source.size:
        raise _broken(source.path, "it ends too early")
    return tensors, metadata


def _described(file: Path, header: dict[str, Any], data_start: int) -> Iterator[StoredTensor]:
    for name, entry in header.items():
        match entry:
            case {"dtype": str(stored_as), "shape": list(shape), "data_offsets": [begin, end]}:
                numbers = (*shape, begin, end)
            case _:
                raise _broken(file, f"{name!r} is not described")
        if stored_as not in DTYPES:
            raise RequestError(
                "model",
                f"{str(file)!r} holds {name!r} in the format {stored_as!r}, which cannot be read; "
                "get the model in BF16, F16 or F32.",
            )
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise _broken(file, f"{name!r} has a wrong shape or place")
        dtype = DTYPES[stored_as]
        if begin > end or math.prod(shape) * dtype.itemsize != end - begin:
            raise _broken(file, f"{name!r} has a size that does not fit its shape")
        yield StoredTensor(name, dtype, tuple(shape), file, data_start + begin, end - begin)
