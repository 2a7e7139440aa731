"""Weights converted to 8 bits, kept in a cache: half the bytes to read, and the conversion is paid once.

A cache file is a safetensors file, named after the content that it was made from, so that a model which was moved or
copied finds it again; see `engine.models.conversions`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.files import Temporary, make_folder, remove_leftovers, write_whole
from engine.folders import shown_path
from engine.models.conversions import FORMAT, cache_file, index_file, indexed_content, weights_folder
from engine.models.weights import DTYPES, StoredTensor, WeightFiles, is_finite, not_finite
from engine.quantization.forms import Form, dequantize
from engine.quantization.fp8 import SCALE_SUFFIX
from engine.request import RequestError

PIECE_BYTES = 4 * 2**20  # of the source, converted at a time
PROGRESS_EVERY_BYTES = 32 * 2**20
DROP_EVERY_BYTES = 64 * 2**20  # written, until the system is asked to forget it
SPARE_BYTES = 256 * 2**20  # of the disk, left to everybody else
ALIGNMENT = 64
FP8_FORM = Form("fp8")
NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}


def converted_files(
    component: str, files: Sequence[Path], dtype: torch.dtype, notices: list[str], form: Form = FP8_FORM
) -> Generator[tuple[int, int], None, WeightFiles | None]:
    """A component's weights with its linear layers in 8 bits: from the cache, or converted into it now.

    What has more bits is stored in `dtype`. Yields (bytes read, bytes to read) while it converts, and returns the
    opened cache file; or None where the cache cannot be written, with a sentence for the person added to `notices`.
    Raises `RequestError` where the model's own files cannot be used. Closing the generator leaves no trace.
    """
    folder = weights_folder()
    with WeightFiles.open(files, component, drop_pages=True) as source:
        layout = _layout(source, component, dtype, form)
        index = index_file(files, component, str(dtype), form.name)
        content, salience = indexed_content(index) or ("", "")
        outdated = bool(content) and salience != form.digest  # made with another calibration
        if content and not outdated and (known := _opened(layout, content, notices)) is not None:
            return known
        try:
            make_folder(folder)
            remove_leftovers(folder)
            remove_leftovers(folder / "index")
            needed = len(layout.header()) + layout.data_bytes + SPARE_BYTES
            free = shutil.disk_usage(folder).free
            if needed > free:
                notices.append(
                    f"there is no room for {form.kind.upper()} weights in {shown_path(folder)}: "
                    f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free. They are converted anew "
                    "each time."
                )
                return None
            if outdated:
                with suppress(OSError):
                    cache_file(content, form.kind).unlink()
            content = yield from _convert(source, layout, folder, notices)
            with suppress(OSError):  # without it the content is found all the same, only later
                write_whole(index, json.dumps({"content": content, "salience": form.digest}).encode())
        except OSError as error:
            notices.append(
                f"{form.kind.upper()} weights cannot be kept in {shown_path(folder)} ({error.strerror or error}), "
                "so they are converted anew each time."
            )
            return None
    return _opened(layout, content, notices)


def quantize_into(files: WeightFiles, name: str, quantized: Tensor, scale: Tensor, form: Form = FP8_FORM) -> None:
    """Fill `quantized` (8 bits [out, in]) and `scale` (float32 [out]) on the CPU from a stored weight of any float
    dtype.

    They get the bits that the cache holds. Raises `RequestError` where the weight is not finite.
    """
    tensor = files.tensors[name]
    if tuple(quantized.shape) != tensor.shape or tuple(scale.shape) != tensor.shape[:1]:
        raise ValueError(f"{name} has shape {list(tensor.shape)}")
    for start, stop in _row_pieces(tensor):
        quantized[start:stop], scale[start:stop] = _rows(files, name, start, stop, form)


def rounding_errors(files: WeightFiles, component: str, form: Form = FP8_FORM) -> Iterator[tuple[str, float, float]]:
    """What 8 bits cost, by linear layer: its weight's name, the relative RMS error, and the largest error of a weight
    relative to the largest weight of its row."""
    for name, tensor in files.tensors.items():
        if not _becomes(component, tensor, form):
            continue
        squared_error, squared_weight, largest_error = 0.0, 0.0, 0.0
        for start, stop in _row_pieces(tensor):
            weight = files.rows(name, start, stop).float()
            error = dequantize(*_rows(files, name, start, stop, form), torch.float32).sub_(weight)
            row_max = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny)
            squared_error += float(error.square().sum(dtype=torch.float64))
            squared_weight += float(weight.square_().sum(dtype=torch.float64))
            largest_error = max(largest_error, float((error.abs_().amax(dim=1) / row_max).max()))
        yield name, (squared_error / squared_weight) ** 0.5 if squared_weight else 0.0, largest_error


def column_maxima(files: WeightFiles, name: str) -> Tensor:
    """The largest number of each column of a stored weight: float32 [in]."""
    tensor = files.tensors[name]
    pieces = [files.rows(name, start, stop).float().abs_().amax(dim=0) for start, stop in _row_pieces(tensor)]
    return torch.stack(pieces).amax(dim=0)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a cache file holds, by the module's names; offsets count from the beginning of the data."""

    component: str
    form: Form
    tensors: dict[str, StoredTensor]
    data_bytes: int

    @property
    def about(self) -> dict[str, str]:
        """What the file says of itself, besides its content."""
        about = {"format": "pt", "component": self.component, "t2i_format": FORMAT, "form": self.form.name}
        return about | ({"salience": self.form.digest} if self.form.digest else {})

    def is_8_bits(self, name: str) -> bool:
        """Whether a tensor becomes a weight in 8 bits."""
        return name + SCALE_SUFFIX in self.tensors

    def header(self, content: str = "0" * 32) -> bytes:
        """The file's first bytes; `content` has 32 digits, so that their number is known before it is."""
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


def _layout(source: WeightFiles, component: str, dtype: torch.dtype, form: Form) -> _Layout:
    """Tensors whose size is a multiple of the alignment first, so that they are aligned: the format allows no gaps."""
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in source.tensors.items():
        kind = dtype if tensor.dtype.is_floating_point else tensor.dtype
        if _becomes(component, tensor, form):
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
    return _Layout(component, form, placed, end)


def _becomes(component: str, tensor: StoredTensor, form: Form) -> bool:
    return (
        form.covers(component, tensor.name)
        and len(tensor.shape) == 2
        and tensor.dtype.is_floating_point
        and tensor.count > 0
    )


def _convert(
    source: WeightFiles, layout: _Layout, folder: Path, notices: list[str]
) -> Generator[tuple[int, int], None, str]:
    """Write the cache file and return its content's hash; a thread reads and hashes while this one converts."""
    described = [(tensor.name, str(tensor.dtype), tensor.shape) for tensor in source.tensors.values()]
    header = layout.header()
    digest = hashlib.sha256(header + json.dumps(described).encode())

    def fetch(piece: _Piece) -> _Data:
        tensor, scale = piece.tensor, None
        if layout.is_8_bits(tensor.name) and tensor.is_stored_in(layout.form.dtype):
            width = tensor.shape[1]
            rows, scale = source.quantized_rows(tensor.name, piece.start // width, piece.stop // width)
            data = rows.view(-1)
            digest.update(scale.numpy().data)
        else:
            data = source.elements(tensor.name, piece.start, piece.stop)
        digest.update(data.view(torch.uint8).numpy().data)
        return _Data(data, scale)

    pieces = (piece for tensor in source.tensors.values() for piece in _pieces(tensor, layout))
    done = reported = dropped = 0
    total = sum(tensor.nbytes for tensor in source.tensors.values())
    with Temporary(folder) as temporary:
        with ThreadPoolExecutor(1) as reader:
            stream = temporary.stream
            yield 0, total
            for piece, data in _fetched_ahead(pieces, fetch, reader):
                for tensor, offset in _converted(piece, data, layout):
                    _write_at(stream, tensor.view(torch.uint8).numpy().data, len(header) + offset)
                done += piece.nbytes
                if done - dropped >= DROP_EVERY_BYTES:
                    dropped = done
                    _drop_pages(stream)
                if done - reported >= PROGRESS_EVERY_BYTES:
                    reported = done
                    yield done, total
            yield total, total
            content = digest.hexdigest()[:32]
            _write_at(stream, memoryview(layout.header(content)), 0)
            os.fsync(stream.fileno())
            _drop_pages(stream)
            temporary.finish()
        if (same := _opened(layout, content, notices)) is not None:  # made from a copy of this model
            same.close()
        else:
            temporary.replace(cache_file(content, layout.form.kind))
    return content


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some elements of a stored tensor; whole rows where it becomes 8 bits."""

    tensor: StoredTensor
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """What it takes in its file."""
        return self.tensor.nbytes * (self.stop - self.start) // max(1, self.tensor.count)


@dataclass(frozen=True, slots=True)
class _Data:
    """The elements of a piece, 1-D; 8 bits with a scale for each row where they are to stay as they are."""

    elements: Tensor
    scale: Tensor | None


def _pieces(tensor: StoredTensor, layout: _Layout) -> Iterator[_Piece]:
    if layout.is_8_bits(tensor.name):
        width = tensor.shape[1]
        for start, stop in _row_pieces(tensor):
            yield _Piece(tensor, start * width, stop * width)
    else:
        step = PIECE_BYTES // tensor.dtype.itemsize
        for start in range(0, tensor.count, step):
            yield _Piece(tensor, start, min(start + step, tensor.count))


def _fetched_ahead(
    pieces: Iterator[_Piece], fetch: Callable[[_Piece], _Data], reader: ThreadPoolExecutor
) -> Iterator[tuple[_Piece, _Data]]:
    """Pieces with their data; the next two are fetched while one is used."""
    coming: deque[tuple[_Piece, Future[_Data]]] = deque()
    for following in pieces:
        coming.append((following, reader.submit(fetch, following)))
        if len(coming) > 2:
            piece, data = coming.popleft()
            yield piece, data.result()
    for piece, data in coming:
        yield piece, data.result()


def _converted(piece: _Piece, data: _Data, layout: _Layout) -> Iterator[tuple[Tensor, int]]:
    """What becomes of a piece, as 1-D tensors, and where in the data they go."""
    target = layout.tensors[piece.tensor.name]
    if not layout.is_8_bits(piece.tensor.name):
        if not is_finite(data.elements):
            raise not_finite(piece.tensor)
        elements = layout.form.other(piece.tensor.name, data.elements, piece.start)
        yield elements.to(target.dtype), target.offset + piece.start * target.dtype.itemsize
        return
    width = target.shape[1]
    if data.scale is not None:
        quantized, scale = data.elements, data.scale
    else:
        quantized, scale = _quantized(piece.tensor, data.elements.view(-1, width), piece.start // width, layout.form)
    scales = layout.tensors[piece.tensor.name + SCALE_SUFFIX]
    yield quantized.view(-1), target.offset + piece.start
    yield scale, scales.offset + piece.start // width * scales.dtype.itemsize


def _row_pieces(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    rows = tensor.shape[0]
    step = max(1, PIECE_BYTES * rows // max(1, tensor.nbytes))  # not less than a row
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _rows(files: WeightFiles, name: str, start: int, stop: int, form: Form) -> tuple[Tensor, Tensor]:
    """Rows of a weight in 8 bits with their scales; those that are so already stay as they are."""
    tensor = files.tensors[name]
    if tensor.is_stored_in(form.dtype):
        return files.quantized_rows(name, start, stop)
    return _quantized(tensor, files.rows(name, start, stop), start, form)


def _quantized(tensor: StoredTensor, rows: Tensor, start: int, form: Form) -> tuple[Tensor, Tensor]:
    try:
        return form.quantize(tensor.name, rows, start)
    except ValueError:
        raise not_finite(tensor) from None


def is_converted_already(files: WeightFiles, component: str, form: Form = FP8_FORM) -> bool:
    """Whether nothing need be converted: every weight that is to have this form has it in these files."""
    becoming = [tensor for tensor in files.tensors.values() if _becomes(component, tensor, form)]
    return all(tensor.is_stored_in(form.dtype) for tensor in becoming)


def _opened(layout: _Layout, content: str, notices: list[str]) -> WeightFiles | None:
    """The cache file of this content, opened; None where there is none, or a damaged one, which is removed."""
    cache = cache_file(content, layout.form.kind)
    if not os.path.exists(cache):
        return None
    with suppress(RequestError, OSError):
        whole = cache.stat().st_size == len(layout.header()) + layout.data_bytes
        files = WeightFiles.open([cache], layout.component)
        if whole and _is_sound(files, layout, content):
            return files
        files.close()
    notices.append(f"the {layout.form.kind.upper()} weights in {shown_path(cache)} were damaged; they are made anew.")
    with suppress(OSError):
        cache.unlink()
    return None


def _is_sound(files: WeightFiles, layout: _Layout, content: str) -> bool:
    if files.metadata != {**layout.about, "content": content}:
        return False
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, tensor in files.tensors.items():
        assert tensor.entry is not None
        for info, shown in ((tensor.entry.stored, name), (tensor.entry.scale, name + SCALE_SUFFIX)):
            if info is not None:
                found[shown] = DTYPES[info.kind], info.shape
    return found == {name: (tensor.dtype, tensor.shape) for name, tensor in layout.tensors.items()}


def _write_at(stream: io.FileIO, data: memoryview, offset: int) -> None:
    stream.seek(offset)
    while len(data):
        data = data[stream.write(data) :]


def _drop_pages(stream: io.FileIO) -> None:
    """Begin to write to the disk what was written, and forget what is there already."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
