"""Weights converted to FP8, kept in a cache: half the bytes to read, and the conversion is paid once.

A cache file is a safetensors file, named after the content that it was made from, so that a model which was moved or
copied finds it again. What a set of files contains is known without reading them from an index, by the files' names,
sizes, times and samples of their content.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.files import write_whole
from engine.folders import cache_dir, shown_path
from engine.models.folder import SAMPLE_BYTES, SAMPLES, add_samples
from engine.models.weights import DTYPES, StoredTensor, WeightFiles, unreadable
from engine.quantization.fp8 import FP8, SCALE_SUFFIX, dequantize, is_fp8, quantize_rows
from engine.request import RequestError

FORMAT = "1"  # to be raised when the same weights would give another file
PIECE_BYTES = 4 * 2**20  # of the source, converted at a time
PROGRESS_EVERY_BYTES = 32 * 2**20
DROP_EVERY_BYTES = 64 * 2**20  # written, until the system is asked to forget it
SPARE_BYTES = 256 * 2**20  # of the disk, left to everybody else
STALE_SECONDS = 24 * 60 * 60
ALIGNMENT = 64
NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}


def converted_files(
    component: str, files: Sequence[Path], names: Mapping[str, str], dtype: torch.dtype, notices: list[str]
) -> Generator[tuple[int, int], None, WeightFiles | None]:
    """A component's weights with its linear layers in FP8: from the cache, or converted into it now.

    `names` gives the module's name for a stored one; stored tensors without a name are left out. What is not FP8 is
    stored in `dtype`. Yields (bytes read, bytes to read) while it converts, and returns the opened cache file; or None
    where the cache cannot be written, with a sentence for the person added to `notices`. Raises `RequestError` where
    the model's own files cannot be used. Closing the generator leaves no trace.
    """
    folder = cache_dir() / "weights"
    with WeightFiles.open(files, drop_pages=True) as source:
        layout = _layout(source, component, names, dtype)
        index = folder / "index" / f"{_quick_key(files, component, names, dtype)}.json"
        content = _indexed_content(index)
        if content is not None and (known := _opened(folder, layout, content, notices)) is not None:
            return known
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            needed = len(layout.header()) + layout.data_bytes + SPARE_BYTES
            free = shutil.disk_usage(folder).free
            if needed > free:
                notices.append(
                    f"there is no room for FP8 weights in {shown_path(folder)} ({needed / 2**30:.1f} GiB are needed, "
                    f"{free / 2**30:.1f} GiB are free), so they are converted anew each time."
                )
                return None
            content = yield from _convert(source, names, layout, folder, notices)
            with suppress(OSError):  # without it the content is found all the same, only later
                write_whole(index, json.dumps({"content": content}).encode())
        except OSError as error:
            notices.append(
                f"FP8 weights cannot be kept in {shown_path(folder)} ({error.strerror or error}), "
                "so they are converted anew each time."
            )
            return None
    return _opened(folder, layout, content, notices)


def quantize_into(files: WeightFiles, stored: str, quantized: Tensor, scale: Tensor) -> None:
    """Fill `quantized` (FP8 [out, in]) and `scale` (float32 [out]) on the CPU from a stored weight of any float dtype.

    They get the bits that the cache holds. Raises `RequestError` where the weight is not finite.
    """
    tensor = files.tensors[stored]
    if tuple(quantized.shape) != tensor.shape or tuple(scale.shape) != tensor.shape[:1]:
        raise ValueError(f"{stored} has shape {list(tensor.shape)}")
    for start, stop in _row_pieces(tensor):
        quantized[start:stop], scale[start:stop] = _quantized(tensor, files.rows(stored, start, stop))


def fp8_errors(files: WeightFiles, component: str, names: Mapping[str, str]) -> Iterator[tuple[str, float, float]]:
    """What FP8 costs, by linear layer: its weight's name, the relative RMS error, and the largest error of a weight
    relative to the largest weight of its row."""
    for stored, tensor in files.tensors.items():
        name = names.get(stored)
        if name is None or not _becomes_fp8(component, name, tensor):
            continue
        squared_error, squared_weight, largest_error = 0.0, 0.0, 0.0
        for start, stop in _row_pieces(tensor):
            rows = files.rows(stored, start, stop)
            weight = rows.float()
            error = dequantize(*_quantized(tensor, rows), torch.float32).sub_(weight)
            row_max = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny)
            squared_error += float(error.square().sum(dtype=torch.float64))
            squared_weight += float(weight.square_().sum(dtype=torch.float64))
            largest_error = max(largest_error, float((error.abs_().amax(dim=1) / row_max).max()))
        yield name, (squared_error / squared_weight) ** 0.5 if squared_weight else 0.0, largest_error


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a cache file holds, by the module's names; offsets count from the beginning of the data."""

    component: str
    tensors: dict[str, StoredTensor]
    data_bytes: int

    def header(self, content: str = "0" * 32) -> bytes:
        """The file's first bytes; `content` has 32 digits, so that their number is known before it is."""
        about = {"format": "pt", "component": self.component, "t2i_format": FORMAT, "content": content}
        described = {
            name: {
                "dtype": NAMES_OF_DTYPES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": [tensor.offset, tensor.offset + tensor.nbytes],
            }
            for name, tensor in self.tensors.items()
        }
        text = json.dumps({"__metadata__": about, **described}, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def _layout(source: WeightFiles, component: str, names: Mapping[str, str], dtype: torch.dtype) -> _Layout:
    """Tensors whose size is a multiple of the alignment first, so that they are aligned: the format allows no gaps."""
    tensors: dict[str, StoredTensor] = {}
    for stored, tensor in source.tensors.items():
        name = names.get(stored)
        if name is None:
            continue
        if name in tensors:
            raise RequestError("model", f"{str(tensor.file)!r} holds {name!r} a second time, as {stored!r}; remove it.")
        kind = dtype if tensor.dtype.is_floating_point else tensor.dtype
        if _becomes_fp8(component, name, tensor):
            if stored + SCALE_SUFFIX in source.tensors:
                raise RequestError(
                    "model",
                    f"{stored!r} in {str(tensor.file)!r} has FP8 scales of its own, which cannot be used; "
                    "get the model in BF16, F16 or F32.",
                )
            rows = tensor.shape[0]
            kind = FP8
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
    return _Layout(component, placed, end)


def _becomes_fp8(component: str, name: str, tensor: StoredTensor) -> bool:
    return is_fp8(component, name) and len(tensor.shape) == 2 and tensor.dtype.is_floating_point and tensor.count > 0


def _convert(
    source: WeightFiles, names: Mapping[str, str], layout: _Layout, folder: Path, notices: list[str]
) -> Generator[tuple[int, int], None, str]:
    """Write the cache file and return its content's hash; a thread reads and hashes while this one converts."""
    described = [
        (tensor.name, names.get(tensor.name), str(tensor.dtype), tensor.shape) for tensor in source.tensors.values()
    ]
    header = layout.header()
    digest = hashlib.sha256(header + json.dumps(described).encode())

    def fetch(piece: _Piece) -> Tensor:
        data = source.elements(piece.tensor.name, piece.start, piece.stop)
        digest.update(data.view(torch.uint8).numpy().data)
        return data

    pieces = (piece for tensor in source.tensors.values() for piece in _pieces(tensor, names.get(tensor.name), layout))
    done = reported = dropped = 0
    total = sum(tensor.nbytes for tensor in source.tensors.values())
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with open(handle, "wb", buffering=0) as stream, ThreadPoolExecutor(1) as reader:
            yield 0, total
            for piece, data in _fetched_ahead(pieces, fetch, reader):
                for tensor, offset in _converted(piece, data, layout):
                    _write_at(stream, tensor.view(torch.uint8).numpy().data, len(header) + offset)
                done += data.nbytes
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
        if (same := _opened(folder, layout, content, notices)) is not None:  # made from a copy of this model
            same.close()
        else:
            os.replace(temporary, _cache_file(folder, content))
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return content


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some elements of a stored tensor; whole rows where it becomes FP8. Without a name it is hashed only."""

    tensor: StoredTensor
    name: str | None
    start: int
    stop: int


def _pieces(tensor: StoredTensor, name: str | None, layout: _Layout) -> Iterator[_Piece]:
    if name is not None and layout.tensors[name].dtype == FP8:
        width = tensor.shape[1]
        for start, stop in _row_pieces(tensor):
            yield _Piece(tensor, name, start * width, stop * width)
    else:
        step = PIECE_BYTES // tensor.dtype.itemsize
        for start in range(0, tensor.count, step):
            yield _Piece(tensor, name, start, min(start + step, tensor.count))


def _fetched_ahead(
    pieces: Iterator[_Piece], fetch: Callable[[_Piece], Tensor], reader: ThreadPoolExecutor
) -> Iterator[tuple[_Piece, Tensor]]:
    """Pieces with their data; the next two are fetched while one is used."""
    coming: deque[tuple[_Piece, Future[Tensor]]] = deque()
    for following in pieces:
        coming.append((following, reader.submit(fetch, following)))
        if len(coming) > 2:
            piece, data = coming.popleft()
            yield piece, data.result()
    for piece, data in coming:
        yield piece, data.result()


def _converted(piece: _Piece, data: Tensor, layout: _Layout) -> Iterator[tuple[Tensor, int]]:
    """What becomes of a piece, as 1-D tensors, and where in the data they go."""
    if piece.name is None:
        return
    target = layout.tensors[piece.name]
    if target.dtype != FP8:
        yield data.to(target.dtype), target.offset + piece.start * target.dtype.itemsize
        return
    width = target.shape[1]
    quantized, scale = _quantized(piece.tensor, data.view(-1, width))
    scales = layout.tensors[piece.name + SCALE_SUFFIX]
    yield quantized.view(-1), target.offset + piece.start
    yield scale, scales.offset + piece.start // width * scales.dtype.itemsize


def _row_pieces(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    rows = tensor.shape[0]
    step = max(1, PIECE_BYTES * rows // max(1, tensor.nbytes))  # not less than a row
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _quantized(tensor: StoredTensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return quantize_rows(rows)
    except ValueError:
        raise RequestError(
            "model", f"{tensor.name!r} in {str(tensor.file)!r} holds numbers that are not finite; download it again."
        ) from None


def _cache_file(folder: Path, content: str) -> Path:
    return folder / f"{content}-fp8.safetensors"


def _opened(folder: Path, layout: _Layout, content: str, notices: list[str]) -> WeightFiles | None:
    """The cache file of this content, opened; None where there is none, or a damaged one, which is removed."""
    cache = _cache_file(folder, content)
    if not os.path.exists(cache):
        return None
    with suppress(RequestError, OSError):
        whole = cache.stat().st_size == len(layout.header()) + layout.data_bytes
        files = WeightFiles.open([cache])
        if whole and _is_sound(files, layout, content):
            return files
        files.close()
    notices.append(f"the FP8 weights in {shown_path(cache)} were damaged; they are made anew.")
    with suppress(OSError):
        cache.unlink()
    return None


def _is_sound(files: WeightFiles, layout: _Layout, content: str) -> bool:
    about = files.metadata
    if (about.get("t2i_format"), about.get("component"), about.get("content")) != (FORMAT, layout.component, content):
        return False
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in files.tensors.items()}
    return found == {name: (tensor.dtype, tensor.shape) for name, tensor in layout.tensors.items()}


def _quick_key(files: Sequence[Path], component: str, names: Mapping[str, str], dtype: torch.dtype) -> str:
    """A hash that is as good as the content's: names, sizes, times and samples of the files."""
    digest = hashlib.sha256(json.dumps([FORMAT, component, str(dtype), sorted(names.items())]).encode())
    for file in files:
        try:
            with file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                digest.update(
                    f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
                )
                if status.st_size <= SAMPLES * SAMPLE_BYTES:
                    digest.update(stream.read(SAMPLES * SAMPLE_BYTES))
                    continue
                add_samples(digest, stream, status.st_size)
        except OSError as error:
            raise unreadable(file, error) from None
    return digest.hexdigest()[:32]


def _indexed_content(index: Path) -> str | None:
    """The content that an index file names; None where there is none that can be believed."""
    try:
        content = json.loads(index.read_bytes())["content"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if isinstance(content, str) and re.fullmatch("[0-9a-f]{32}", content) else None


def _remove_stale(folder: Path) -> None:
    """Remove what conversions left behind that were killed."""
    for file in (*folder.glob("*.tmp"), *(folder / "index").glob("*.tmp")):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink()


def _write_at(stream: io.FileIO, data: memoryview, offset: int) -> None:
    stream.seek(offset)
    while len(data):
        data = data[stream.write(data) :]


def _drop_pages(stream: io.FileIO) -> None:
    """Begin to write to the disk what was written, and forget what is there already."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
