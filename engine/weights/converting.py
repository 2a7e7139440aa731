"""How a cache file of 8-bit weights is filled: its layout, and the blocks that threads make of it.

Rows are independent. A block of the file is made from the rows that lie in it, by one thread from reading to writing;
a row that lies in two blocks is converted twice. The scales of a weight, which lie before it, are written at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from engine.files import LEFTOVER, Temporary
from engine.quantization.fp8 import SCALE_SUFFIX
from engine.weights.conversions import FORMAT
from engine.weights.direct import Output, page_aligned
from engine.weights.forms import Form
from engine.weights.reading import DTYPES, StoredTensor, WeightFiles, is_finite, not_finite
from engine.weights.workers import in_turn, workers

BLOCK_BYTES = 4 * 2**20  # of the result
PIECE_BYTES = 2**20  # of the source, converted in one go: what comes of it stays in the processor's cache
PROGRESS_EVERY_BYTES = 32 * 2**20
ALIGNMENT = 64
NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a cache file holds, by the module's names; offsets count from the beginning of the data."""

    component: str
    form: Form
    tensors: dict[str, StoredTensor]
    data_bytes: int

    @property
    def about(self) -> dict[str, str]:
        """What the file says of itself, besides its content."""
        about = {"format": "pt", "component": self.component, "t2i_format": FORMAT, "form": str(self.form.precision)}
        return about | ({"salience": self.form.digest} if self.form.digest else {})

    def is_8_bits(self, name: str) -> bool:
        """Whether a tensor becomes a weight in 8 bits."""
        return name + SCALE_SUFFIX in self.tensors

    def header(self, content: str = "0" * 32) -> bytes:
        """The file's first bytes; `content` has 32 digits."""
        described = {
            name: {
                "dtype": NAMES_OF_DTYPES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": [tensor.offset, tensor.offset + tensor.nbytes],
            }
            for name, tensor in self.tensors.items()
        }
        text = json.dumps(
            {"__metadata__": {**self.about, "content": content}, **described}, separators=(",", ":")
        ).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def file_bytes(self) -> int:
        """The whole file's size."""
        return len(self.header()) + self.data_bytes


def layout_of(source: WeightFiles, component: str, dtype: torch.dtype, form: Form) -> Layout:
    """Tensors whose size is a multiple of the alignment first, so that they are aligned: the format allows no gaps."""
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in source.tensors.items():
        kind = dtype if tensor.dtype.is_floating_point else tensor.dtype
        if becomes_8_bits(component, tensor, form):
            rows = tensor.shape[0]
            kind = form.dtype
            tensors[name + SCALE_SUFFIX] = StoredTensor(
                name + SCALE_SUFFIX, torch.float32, (rows,), tensor.file, 0, rows * torch.float32.itemsize
            )
        tensors[name] = StoredTensor(name, kind, tensor.shape, tensor.file, 0, tensor.count * kind.itemsize)

    def place(tensor: StoredTensor) -> tuple[bool, int]:
        odd = tensor.nbytes % ALIGNMENT != 0
        return odd, -tensor.dtype.itemsize if odd else 0

    placed, end = {}, 0
    for tensor in sorted(tensors.values(), key=place):
        placed[tensor.name] = StoredTensor(tensor.name, tensor.dtype, tensor.shape, tensor.file, end, tensor.nbytes)
        end += tensor.nbytes
    return Layout(component, form, placed, end)


def becomes_8_bits(component: str, tensor: StoredTensor, form: Form) -> bool:
    """Whether a stored tensor is a weight that gets this form."""
    return (
        form.covers(component, tensor.name)
        and len(tensor.shape) == 2
        and tensor.dtype.is_floating_point
        and tensor.count > 0
    )


def convert(
    source: WeightFiles, layout: Layout, temporary: Temporary, content: str
) -> Generator[tuple[int, int], None, None]:
    """Fill the cache file; yields (bytes read, bytes to read).

    Raises `RequestError` for a source that cannot be used, and `OSError` for a disk that takes no more.
    """
    header = layout.header(content)
    scales = {name: torch.empty(tensor.shape[0]) for name, tensor in source.tensors.items() if layout.is_8_bits(name)}
    total = source.nbytes
    leftover = _Leftover(source, temporary.path)
    done = reported = 0
    with Output(temporary, len(header) + layout.data_bytes) as output, workers() as pool:
        threads = pool._max_workers
        buffers: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            buffers.put(page_aligned(BLOCK_BYTES))

        def make(block: _Block) -> None:
            memory = buffers.get()
            try:
                start, length = block.start, block.stop - block.start
                if start < len(header):
                    text = header[start : block.stop]
                    memory[: len(text)] = text
                filled = torch.frombuffer(memory, dtype=torch.uint8)
                for part in block.parts:
                    source.prefetch(part.name, *part.elements(source, layout))
                for part in block.parts:
                    at = len(header) + layout.tensors[part.name].offset + part.start - start
                    _fill(source, layout, part, filled[at : at + part.stop - part.start], scales)
                output.write(memoryview(memory)[:length], start)
            finally:
                buffers.put(memory)

        yield 0, total
        for block, _ in in_turn(pool, make, _blocks(source, layout, len(header)), 2 * threads):
            done += block.source_bytes
            leftover.passed(block)
            if done - reported >= PROGRESS_EVERY_BYTES and done < total:
                reported = done
                yield done, total
        for name, scale in scales.items():
            offset = len(header) + layout.tensors[name + SCALE_SUFFIX].offset
            output.write_through_cache(scale.view(torch.uint8).numpy().data, offset)
    yield total, total


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a tensor in the result that lie in one block; of its scales none is meant."""

    name: str
    start: int
    stop: int
    is_last: bool  # of its tensor

    def elements(self, source: WeightFiles, layout: Layout) -> tuple[int, int]:
        """The stored elements that they are made of: whole rows where it becomes 8 bits."""
        size = layout.tensors[self.name].dtype.itemsize
        if not layout.is_8_bits(self.name):
            return self.start // size, self.stop // size
        width = source.tensors[self.name].shape[1]
        return self.start // width * width, -(-self.stop // width) * width


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of the file, `start` and `stop` counted from its beginning, with what it takes of the source's bytes."""

    start: int
    stop: int
    parts: tuple[_Part, ...]
    source_bytes: int


def _blocks(source: WeightFiles, layout: Layout, header_bytes: int) -> Iterator[_Block]:
    """The whole file. Tensors without elements are in none of them."""
    tensors = [tensor for name, tensor in layout.tensors.items() if name in source.tensors and tensor.nbytes]
    end, first = header_bytes + layout.data_bytes, 0
    for start in range(0, end, BLOCK_BYTES):
        stop = min(start + BLOCK_BYTES, end)
        parts, nbytes = [], 0
        while first < len(tensors) and header_bytes + tensors[first].offset + tensors[first].nbytes <= start:
            first += 1
        for tensor in tensors[first:]:
            begin = header_bytes + tensor.offset
            if begin >= stop:
                break
            low, high = max(begin, start) - begin, min(begin + tensor.nbytes, stop) - begin
            parts.append(_Part(tensor.name, low, high, high == tensor.nbytes))
            stored = source.tensors[tensor.name].nbytes
            nbytes += stored * high // tensor.nbytes - stored * low // tensor.nbytes
        yield _Block(start, stop, tuple(parts), nbytes)


def _fill(source: WeightFiles, layout: Layout, part: _Part, out: Tensor, scales: dict[str, Tensor]) -> None:
    """Make a part of the result in `out` (uint8)."""
    tensor, target, form = source.tensors[part.name], layout.tensors[part.name], layout.form
    first, last = part.elements(source, layout)
    if layout.is_8_bits(part.name):
        width = tensor.shape[1]
        for start, stop in row_pieces(tensor, first // width, last // width):
            quantized, scales[part.name][start:stop] = rows_in(source, part.name, start, stop, form)
            low, high = max(start * width, part.start), min(stop * width, part.stop)
            made = quantized.view(torch.uint8).view(-1)
            out[low - part.start : high - part.start] = made[low - start * width : high - start * width]
        return
    size = target.dtype.itemsize
    step = max(1, PIECE_BYTES // tensor.dtype.itemsize)
    for start in range(first, last, step):
        stop = min(start + step, last)
        elements = source.elements(part.name, start, stop)
        if not is_finite(elements):
            raise not_finite(tensor)
        made = form.other(part.name, elements, start).to(target.dtype)
        out[(start - first) * size : (stop - first) * size] = made.view(torch.uint8)


def row_pieces(tensor: StoredTensor, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
    """Rows `first:last` of a stored weight, a few at a time, not less than one."""
    rows = tensor.shape[0]
    last = rows if last is None else last
    step = max(1, PIECE_BYTES * rows // max(1, tensor.nbytes))
    for start in range(first, last, step):
        yield start, min(start + step, last)


def rows_in(files: WeightFiles, name: str, start: int, stop: int, form: Form) -> tuple[Tensor, Tensor]:
    """Rows of a weight in 8 bits with their scales; those that are so already stay as they are.

    Raises `RequestError` where the weight is not finite.
    """
    tensor = files.tensors[name]
    if tensor.is_stored_in(form.dtype):
        return files.quantized_rows(name, start, stop)
    rows = files.rows(name, start, stop)
    try:
        return form.quantize(tensor.name, rows, start)
    except ValueError:
        raise not_finite(tensor) from None


class _Leftover:
    """What a pass over a large file leaves in the system's cache: what was there, and what another conversion needs."""

    def __init__(self, source: WeightFiles, temporary: Path) -> None:
        self._source, self._temporary = source, temporary
        self._was_cached = source.is_cached()

    def passed(self, block: _Block) -> None:
        """A block was made, and all before it."""
        for part in block.parts:
            if part.is_last and not self._was_cached and not self._is_shared():
                self._source.drop(part.name)

    def _is_shared(self) -> bool:
        """Whether somebody else converts: perhaps this very model, into another form."""
        with suppress(OSError), os.scandir(self._temporary.parent) as entries:
            return any(LEFTOVER.fullmatch(entry.name) and entry.name != self._temporary.name for entry in entries)
        return False
