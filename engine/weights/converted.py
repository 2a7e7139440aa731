"""Weights converted to 8 bits, kept in a cache: half the bytes to read, and the conversion is paid once.

A cache file is a safetensors file. A model that was moved finds it by samples of its own files, and one that was
copied by what was made of it: the same bytes are never kept twice. See `engine.weights.conversions` for the names, and
`engine.weights.converting` for how it is filled.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from engine.files import Temporary, make_folder, remove_abandoned, remove_leftovers
from engine.folders import shown_path
from engine.quantization.fp8 import SCALE_SUFFIX
from engine.request import RequestError
from engine.untrusted import open_file
from engine.weights.conversions import (
    being_filled,
    cache_file,
    cache_files,
    content_name,
    index_file,
    indexed_content,
    indexed_source,
    weights_folder,
    write_index,
)
from engine.weights.converting import Layout, becomes_8_bits, convert, layout_of, row_pieces, rows_in
from engine.weights.forms import Form, dequantize
from engine.weights.reading import DTYPES, WeightFiles

COMPARED_BYTES = 8 * 2**20  # at a time
SPARE_BYTES = 256 * 2**20  # of the disk, left to everybody else
LOOK_SECONDS = 0.2  # between two looks at what another process converts


def converted_files(
    component: str,
    files: Sequence[Path],
    dtype: torch.dtype,
    notices: list[str],
    form: Form,
    what_could_go: Callable[[], str] = str,
) -> Generator[tuple[int, int], None, WeightFiles | None]:
    """A component's weights with its linear layers in 8 bits: from the cache, or converted into it now.

    What has more bits is stored in `dtype`. Yields (bytes read, bytes to read) while it converts, or while another
    process converts the same, and returns the opened cache file; or None where the cache cannot be written, with a
    sentence for the person added to `notices`. Raises `RequestError` where the model's own files cannot be used.
    `what_could_go` is asked for a sentence where there is no room. Closing the generator leaves no trace.
    """
    folder = weights_folder()
    with WeightFiles.open(files, component, families=[form.family]) as source:
        layout = layout_of(source, component, dtype, form)
        index = index_file(files, component, str(dtype), form.precision)
        content, salience = indexed_content(index) or ("", form.digest)
        outdated = salience != form.digest  # made with another calibration
        name = content_name(index, form.digest)
        if not outdated and (known := _known(layout, index, content, name, files[0], notices)) is not None:
            return known
        try:
            make_folder(folder)
            remove_leftovers(folder)
            remove_leftovers(folder / "index")
            temporary = yield from _taken(folder, name, source)
            with temporary:
                # Another process may have made it meanwhile.
                content, salience = indexed_content(index) or ("", form.digest)
                if (
                    salience == form.digest
                    and (known := _known(layout, index, content, name, files[0], notices)) is not None
                ):
                    return known
                if outdated:  # its room is for what takes its place
                    with suppress(OSError):
                        cache_file(content, form.kind).unlink()
                needed = layout.file_bytes + SPARE_BYTES
                free = shutil.disk_usage(folder).free - being_filled()
                if needed > free:
                    notices.append(
                        f"there is no room for {form.kind.upper()} weights in {shown_path(folder)}: "
                        f"{needed / 2**30:.1f} GiB are needed, {max(0, free) / 2**30:.1f} GiB are free. They are "
                        f"converted anew each time.{what_could_go()}"
                    )
                    return None
                yield from convert(source, layout, temporary, name)
                content = (yield from _same(layout, temporary, source)) or name
                if content == name:
                    temporary.finish()
                    temporary.replace(cache_file(name, form.kind))
            with suppress(OSError):  # without it the content is found all the same
                write_index(index, content, form.digest, files[0])
        except OSError as error:
            notices.append(
                f"{form.kind.upper()} weights cannot be kept in {shown_path(folder)} ({error.strerror or error}), "
                "so they are converted anew each time."
            )
            return None
    return _opened(layout, content, notices)


def quantize_into(
    files: WeightFiles,
    name: str,
    quantized: Tensor,
    scale: Tensor,
    form: Form,
    rows: tuple[int, int] | None = None,
) -> None:
    """Fill `quantized` (8 bits [out, in]) and `scale` (float32 [out]) on the CPU from a stored weight of any float
    dtype, or these rows of them.

    They get the bits that the cache holds. Raises `RequestError` where the weight is not finite.
    """
    tensor = files.tensors[name]
    if tuple(quantized.shape) != tensor.shape or tuple(scale.shape) != tensor.shape[:1]:
        raise ValueError(f"{name} has shape {list(tensor.shape)}")
    if tensor.is_stored_in(form.dtype):
        first, last = rows or (0, tensor.shape[0])
        scale[first:last] = files.quantized_rows(name, first, last, quantized[first:last])[1]
        return
    for start, stop in row_pieces(tensor, *(rows or ())):
        quantized[start:stop], scale[start:stop] = rows_in(files, name, start, stop, form)


def rounding_errors(files: WeightFiles, component: str, form: Form) -> Iterator[tuple[str, float, float]]:
    """What 8 bits cost, by linear layer: its weight's name, the relative RMS error, and the largest error of a weight
    relative to the largest weight of its row."""
    for name, tensor in files.tensors.items():
        if not becomes_8_bits(component, tensor, form):
            continue
        squared_error, squared_weight, largest_error = 0.0, 0.0, 0.0
        for start, stop in row_pieces(tensor):
            weight = files.rows(name, start, stop).float()
            error = dequantize(*rows_in(files, name, start, stop, form), torch.float32).sub_(weight)
            row_max = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny)
            squared_error += float(error.square().sum(dtype=torch.float64))
            squared_weight += float(weight.square_().sum(dtype=torch.float64))
            largest_error = max(largest_error, float((error.abs_().amax(dim=1) / row_max).max()))
        yield name, (squared_error / squared_weight) ** 0.5 if squared_weight else 0.0, largest_error


def column_maxima(files: WeightFiles, name: str) -> Tensor:
    """The largest number of each column of a stored weight: float32 [in]."""
    tensor = files.tensors[name]
    pieces = [files.rows(name, start, stop).float().abs_().amax(dim=0) for start, stop in row_pieces(tensor)]
    return torch.stack(pieces).amax(dim=0)


def _known(
    layout: Layout, index: Path, content: str, name: str, source: Path, notices: list[str]
) -> WeightFiles | None:
    """The cache file that the index names, or the one that files without an index would have."""
    if content and (known := _opened(layout, content, notices)) is not None:
        if not os.path.exists(indexed_source(index)):  # the model was moved: it is not to pass for one that is gone
            with suppress(OSError):
                write_index(index, content, layout.form.digest, source)
        return known
    if content != name and (known := _opened(layout, name, notices)) is not None:
        with suppress(OSError):
            write_index(index, name, layout.form.digest, source)
        return known
    return None


def _taken(folder: Path, name: str, source: WeightFiles) -> Generator[tuple[int, int], None, Temporary]:
    """The temporary file of a conversion, once no other process has it. Yields how far the other one is.

    Raises `OSError` where one lies there that nobody writes and that cannot be removed: it would be waited for forever.
    """
    total = source.nbytes
    while True:
        try:
            return Temporary(folder, name=name)
        except FileExistsError as error:
            done = 0
            with suppress(OSError):
                about = os.stat(error.filename)
                done = total * getattr(about, "st_blocks", 0) * 512 // max(1, about.st_size)
            yield min(done, total), total
            time.sleep(LOOK_SECONDS)
            with suppress(FileNotFoundError):  # it is done
                remove_abandoned(Path(error.filename))  # should it have been killed


def _same(layout: Layout, made: Temporary, source: WeightFiles) -> Generator[tuple[int, int], None, str | None]:
    """The content of a cache file that holds what was made: a copy of this model was converted before.

    What differs does so in the first block in most cases, so that little is read.
    """
    start, total = len(layout.header()), source.nbytes
    for path in cache_files(layout.form.kind):
        content = path.name[:32]
        with (
            suppress(RequestError, OSError),
            WeightFiles.open([path], layout.component, families=[layout.form.family]) as files,
        ):
            if path.stat().st_size != layout.file_bytes or not _is_sound(files, layout, content):
                continue
            with open_file(path) as other, open_file(made.path) as mine:
                other.seek(start)
                mine.seek(start)
                while (piece := mine.read(COMPARED_BYTES)) and piece == other.read(COMPARED_BYTES):
                    yield total, total
                if not piece:
                    return content
    return None


def is_converted_already(files: WeightFiles, component: str, form: Form) -> bool:
    """Whether nothing need be converted: every weight that is to have this form has it in these files."""
    becoming = [tensor for tensor in files.tensors.values() if becomes_8_bits(component, tensor, form)]
    return all(tensor.is_stored_in(form.dtype) for tensor in becoming)


def _opened(layout: Layout, content: str, notices: list[str]) -> WeightFiles | None:
    """The cache file of this content, opened; None where there is none, or a damaged one, which is removed."""
    cache = cache_file(content, layout.form.kind)
    if not os.path.exists(cache):
        return None
    with suppress(RequestError, OSError):
        whole = cache.stat().st_size == layout.file_bytes
        files = WeightFiles.open([cache], layout.component, families=[layout.form.family])
        if whole and _is_sound(files, layout, content):
            return files
        files.close()
    notices.append(f"the {layout.form.kind.upper()} weights in {shown_path(cache)} were damaged; they are made anew.")
    with suppress(OSError):
        cache.unlink()
    return None


def _is_sound(files: WeightFiles, layout: Layout, content: str) -> bool:
    if files.metadata != {**layout.about, "content": content}:
        return False
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, tensor in files.tensors.items():
        assert tensor.entry is not None
        for info, shown in ((tensor.entry.stored, name), (tensor.entry.scale, name + SCALE_SUFFIX)):
            if info is not None:
                found[shown] = DTYPES[info.kind], info.shape
    return found == {name: (tensor.dtype, tensor.shape) for name, tensor in layout.tensors.items()}
