"""Tensors of safetensors files, read on demand, and their FP8 form in the cache."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.families.family import Family
from engine.families.flux1 import FLUX1
from engine.families.flux1.cuts import inputs
from engine.files import Temporary, clean_up
from engine.folders import cache_dir
from engine.library import caches
from engine.library.caches import what_could_go
from engine.precision import INT8
from engine.quantization.fp8 import FP8, dequantize, quantize_rows
from engine.quantization.salience import Folds
from engine.request import RequestError
from engine.weights import converting
from engine.weights import reading as weights
from engine.weights.converted import converted_files, quantize_into, rounding_errors
from engine.weights.forms import Form
from engine.weights.reading import WeightFiles
from tests.tiny import FP8_FORM

LINEAR = "single_transformer_blocks.0.attn.to_q.weight"
OTHER_LINEAR = "single_transformer_blocks.0.proj_mlp.weight"


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def raw(header: object, data: bytes = b"") -> bytes:
    """A safetensors file byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class TestReading:
    @pytest.mark.parametrize("dtype", [*weights.DTYPES.values()], ids=str)
    def test_every_dtype_is_read_as_it_was_written(self, tmp_path, dtype):
        written = normal(33, 7, dtype=torch.float32).mul_(50).to(dtype)
        save_file({"a": written, "b": written[:1].clone()}, tmp_path / "w.safetensors")
        with WeightFiles.open([tmp_path / "w.safetensors"]) as files:
            out = torch.empty(33, 7, dtype=dtype)
            files.read("a", out)
            assert torch.equal(out.view(torch.uint8), written.view(torch.uint8))
            assert torch.equal(files.rows("a", 5, 9).view(torch.uint8), written[5:9].view(torch.uint8))
            assert files.bytes_read == 37 * 7 * dtype.itemsize
            assert files.tensors["a"].shape == (33, 7)
            assert files.tensors["a"].dtype == dtype

    @pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (1,), (3, 1, 2)])
    def test_scalars_and_empty_tensors_are_read(self, tmp_path, shape):
        written = normal(*shape)
        save_file({"a": written}, tmp_path / "w.safetensors")
        with WeightFiles.open([tmp_path / "w.safetensors"]) as files:
            same, wider = torch.empty_like(written), torch.empty(shape, dtype=torch.float32)
            files.read("a", same)
            files.read("a", wider)
            assert torch.equal(same, written)
            assert torch.equal(wider, written.float())
            if shape:
                assert torch.equal(files.rows("a", 0, shape[0]), written)

    def test_a_file_without_tensors_is_sound(self, tmp_path):
        save_file({}, tmp_path / "w.safetensors", metadata={"made": "by hand"})
        with WeightFiles.open([tmp_path / "w.safetensors"]) as files:
            assert not files.tensors
            assert files.metadata == {"made": "by hand"}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, FP8], ids=str)
    def test_weights_are_converted_while_they_are_read(self, tmp_path, monkeypatch, dtype):
        monkeypatch.setattr(weights, "CONVERTED_BYTES", 1000)  # rows of 1400 bytes and more: none fits
        written = normal(5, 700, dtype=torch.float32).to(dtype)
        save_file({"a": written}, tmp_path / "w.safetensors")
        with WeightFiles.open([tmp_path / "w.safetensors"], drop_pages=True) as files:
            out = torch.empty(5, 700, dtype=torch.bfloat16)
            files.read("a", out)
        assert torch.equal(out, written.to(torch.bfloat16))

    def test_large_tensors_are_read_in_pieces(self, tmp_path, monkeypatch):
        monkeypatch.setattr(weights, "READ_BYTES", 4099)
        written = normal(100, 321)
        save_file({"a": written}, tmp_path / "w.safetensors")
        with WeightFiles.open([tmp_path / "w.safetensors"], drop_pages=True) as files:
            out = torch.empty_like(written)
            files.read("a", out)
        assert torch.equal(out, written)

    def test_parameters_and_reserved_memory_are_filled(self, tmp_path):
        written = normal(4, 4, dtype=torch.float32)
        save_file({"a": written}, tmp_path / "w.safetensors")
        parameter = torch.nn.Parameter(torch.empty(4, 4))
        with WeightFiles.open([tmp_path / "w.safetensors"]) as files:
            files.read("a", parameter)
        assert torch.equal(parameter.detach(), written)

    @pytest.mark.parametrize("positioned", [True, False], ids=["preadv", "seek"])
    def test_threads_read_at_once(self, tmp_path, monkeypatch, positioned):
        if not positioned:
            monkeypatch.delattr(os, "preadv", raising=False)  # as on Windows
        written = {str(index): normal(50, 40, seed=index) for index in range(20)}
        save_file(written, tmp_path / "w.safetensors")

        def agrees(name: str) -> bool:
            return torch.equal(files.rows(name, 10, 40), written[name][10:40])

        with WeightFiles.open([tmp_path / "w.safetensors"]) as files, ThreadPoolExecutor(4) as threads:
            assert all(threads.map(agrees, [*written] * 10))
            assert files.bytes_read == 200 * 30 * 80

    def test_tensors_come_from_several_files(self, tmp_path):
        first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
        save_file({"a": normal(3)}, first, metadata={"one": "1"})
        save_file({"b": normal(4)}, second, metadata={"two": "2"})
        with WeightFiles.open([first, second]) as files:
            assert [(tensor.name, tensor.file) for tensor in files.tensors.values()] == [("a", first), ("b", second)]
            assert files.metadata == {"one": "1", "two": "2"}
            assert torch.equal(files.rows("b", 1, 3), normal(4)[1:3])

    @pytest.mark.parametrize(
        "out",
        [
            torch.empty(4, 3),
            torch.empty(4, 3).t(),
            torch.empty(3, 4, device="meta"),
            torch.empty(3, 4, dtype=torch.int64),
        ],
        ids=["shape", "strides", "device", "dtype"],
    )
    def test_memory_that_does_not_fit_is_refused(self, tmp_path, out):
        save_file({"a": normal(3, 4)}, tmp_path / "w.safetensors")
        with WeightFiles.open([tmp_path / "w.safetensors"]) as files, pytest.raises(ValueError, match=r"^a (is|needs)"):
            files.read("a", out)

    def test_rows_that_are_not_there_are_refused(self, tmp_path):
        save_file({"a": normal(3, 4), "scalar": normal()}, tmp_path / "w.safetensors")
        with WeightFiles.open([tmp_path / "w.safetensors"]) as files:
            for name, start, stop in (("a", 0, 4), ("a", -1, 2), ("a", 2, 1), ("scalar", 0, 1)):
                with pytest.raises(ValueError, match="has no rows"):
                    files.rows(name, start, stop)


@pytest.mark.parametrize("dtype", [dtype for dtype in weights.DTYPES.values() if dtype.is_floating_point], ids=str)
def test_one_number_that_is_not_finite_is_seen(dtype, monkeypatch):
    monkeypatch.setattr(weights, "FINITE_ELEMENTS", 64)
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest, -largest, 0.0, -0.0, torch.finfo(dtype).tiny] * 30, dtype=torch.float64).to(dtype)
    assert weights.is_finite(values)
    assert weights.is_finite(values[:0])
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = values.clone()
        broken[149] = bad
        if not broken.float().isfinite().all():  # E4M3 has no infinity
            assert not weights.is_finite(broken)


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "it is empty"),
            (b"\x07\0\0\0\0\0\0", "it ends too early"),
            ((200 * 10**6).to_bytes(8, "little") + b"{}", "its header is too long"),
            ((100).to_bytes(8, "little") + b"{}", "it ends too early"),
            (raw(b"{"), "its header is not valid JSON"),
            (raw(b"\xff\xff"), "its header is not valid JSON"),
            (raw(b"[" * 100_000), "its header is nested without end"),
            (raw([]), "its header is not a JSON object"),
            (raw({"__metadata__": {"a": 1}}), "its metadata is not text"),
            (raw({"__metadata__": "text"}), "its metadata is not text"),
            (raw({"a": []}), "'a' is not described"),
            (raw({"a": {"dtype": "F32", "shape": [1]}}), "'a' is not described"),
            (raw({"a": entry("F32", [1], 0, 4)}), "it ends too early"),
            (raw({"a": entry("F32", [2], 0, 4)}, b"1234"), "'a' has a size that does not fit its shape"),
            (raw({"a": entry("F32", [-1], 0, 4)}, b"1234"), "'a' has a wrong shape or place"),
            (raw({"a": entry("F32", [True], 0, 4)}, b"1234"), "'a' has a wrong shape or place"),
            (raw({"a": entry("F32", [2**70, 0], 0, 0)}), "'a' has a wrong shape or place"),
            (raw({"a": entry("U8", [0], 4, 0)}, b"1234"), "'a' has a size that does not fit its shape"),
            (raw({"a": entry("U8", [2], 2, 4)}, b"1234"), "'a' does not begin where the tensor before it ends"),
            (
                raw({"a": entry("U8", [4], 0, 4), "b": entry("U8", [2], 2, 4)}, b"1234"),
                "'b' does not begin where the tensor before it ends",
            ),
        ],
    )
    def test_a_broken_file_is_named_with_the_reason(self, tmp_path, content, reason):
        file = tmp_path / "w.safetensors"
        file.write_bytes(content)
        with pytest.raises(RequestError) as error:
            WeightFiles.open([file])
        assert str(error.value) == f"{str(file)!r} is broken ({reason}); download it again."
        assert error.value.field == "model"

    def test_a_truncated_file_is_named(self, tmp_path):
        file = tmp_path / "w.safetensors"
        save_file({"a": normal(100)}, file)
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(RequestError, match=r"is broken \(it ends too early\); download it again"):
            WeightFiles.open([file])

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(RequestError, match=r"w.safetensors' cannot be read: No such file or directory\."):
            WeightFiles.open([tmp_path / "w.safetensors"])

    def test_an_unknown_dtype_is_named(self, tmp_path):
        file = tmp_path / "w.safetensors"
        file.write_bytes(raw({"a": entry("F4", [2], 0, 1)}, b"1"))
        with pytest.raises(RequestError, match="holds 'a' in the format 'F4', which cannot be read; get the model in"):
            WeightFiles.open([file])

    def test_a_tensor_in_two_files_is_refused(self, tmp_path):
        first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
        save_file({"a": normal(3)}, first)
        save_file({"a": normal(3)}, second)
        with pytest.raises(RequestError, match=r"'a' is both in .*1.safetensors' and in .*2.safetensors'"):
            WeightFiles.open([first, second])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_a_file_that_shrinks_while_it_is_open_gives_a_sentence(self, tmp_path, dtype):
        file = tmp_path / "w.safetensors"
        save_file({"a": normal(1000, 1000)}, file)
        with WeightFiles.open([file]) as files:
            os.truncate(file, 100_000)
            with pytest.raises(RequestError, match=r"w.safetensors' has changed while it was in use"):
                files.read("a", torch.empty(1000, 1000, dtype=dtype))
            with pytest.raises(RequestError, match="has changed while it was in use"):
                files.rows("a", 900, 901)


def some_weights() -> dict[str, Tensor]:
    """Of every kind that a checkpoint has: linears, vectors, odd sizes, integers, spare tensors."""
    return {
        LINEAR: normal(96, 64),
        OTHER_LINEAR: normal(33, 7, dtype=torch.float32, seed=1) * 1e-3,
        "transformer_blocks.0.attn.norm_q.weight": normal(64),
        "transformer_blocks.0.attn.to_q.bias": normal(96, dtype=torch.float32),
        "x_embedder.weight": normal(3, 5, dtype=torch.float16),
        "scalar": normal(),
        "empty": normal(0, 4),
        "position_ids": torch.arange(3),
        "spare": normal(10),
    }


def form_of(kind: str) -> Form:
    config = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32}
    return Form(FLUX1, INT8, Folds(inputs(config), {})) if kind == "int8" else FP8_FORM


class Model:
    """A folder with a component's file, and what converting it did."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
        tensors = some_weights() if tensors is None else tensors
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "model.safetensors"
        save_file(tensors, self.file)
        self.form = FP8_FORM
        self.notices: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def convert(self) -> WeightFiles | None:
        self.notices, self.progress = [], []
        conversion = converted_files("transformer", [self.file], torch.bfloat16, self.notices, self.form, what_could_go)
        while True:
            try:
                self.progress.append(next(conversion))
            except StopIteration as end:
                result: WeightFiles | None = end.value
                return result

    def path(self) -> Path:
        """The cache file, opened and closed."""
        files = self.convert()
        assert files is not None
        files.close()
        (path,) = {tensor.file for tensor in files.tensors.values()}
        return path


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "model")


def left_in_cache() -> list[str]:
    return sorted(file.relative_to(cache_dir()).as_posix() for file in cache_dir().rglob("*") if file.is_file())


class TestConversion:
    def test_linears_become_fp8_and_all_else_is_stored_in_the_compute_dtype(self, model):
        files = model.convert()
        stored = load_file(model.path())
        source = some_weights()
        assert files is not None
        assert set(files.tensors) == set(source)
        assert set(stored) == {*source, f"{LINEAR}_scale", f"{OTHER_LINEAR}_scale"}
        for name in (LINEAR, OTHER_LINEAR):
            quantized, scale = quantize_rows(source[name])
            assert torch.equal(stored[name].view(torch.uint8), quantized.view(torch.uint8))
            assert torch.equal(stored[f"{name}_scale"], scale)
        for name in source.keys() - {LINEAR, OTHER_LINEAR, "position_ids"}:
            assert stored[name].dtype == torch.bfloat16
            assert torch.equal(stored[name], source[name].to(torch.bfloat16))
        assert torch.equal(stored["position_ids"], source["position_ids"])
        assert model.notices == []

    def test_the_cache_is_a_sound_safetensors_file(self, model):
        path = model.path()
        with safe_open(path, "pt") as file:
            assert file.metadata()["component"] == "transformer"
            assert file.metadata()["content"] == path.name[:32]
        assert left_in_cache() == [
            f"weights/{path.name}",
            *(f for f in left_in_cache() if f.startswith("weights/index/")),
        ]
        with WeightFiles.open([path]) as files:
            assert files.tensors[LINEAR].offset % 64 == 0
            assert all(tensor.offset % tensor.dtype.itemsize == 0 for tensor in files.tensors.values())

    @pytest.mark.parametrize(
        ("kind", "bits"),
        [
            ("fp8", "935238fa37a3ec8ba6d8f722e33b0a30fb5acae9bacf607817b7e5fcc76e0ee6"),
            ("int8", "c34d46cb8ef6a8e91dbc3c24bc72e376b5158eb8e63b6f4dae01e4d3e31c6a53"),
        ],
    )
    def test_the_bits_are_those_of_the_first_version(self, model, kind, bits):
        """Hashes of what follows the header, of files that one thread wrote in one pass."""
        model.form = form_of(kind)
        written = model.path().read_bytes()
        assert hashlib.sha256(written[8 + int.from_bytes(written[:8], "little") :]).hexdigest() == bits

    def test_pieces_change_no_bit(self, model, monkeypatch, tmp_path):
        whole = model.path().read_bytes()
        shutil.rmtree(cache_dir())
        monkeypatch.setattr(converting, "PIECE_BYTES", 200)
        monkeypatch.setattr(converting, "BLOCK_BYTES", 4096)
        assert model.path().read_bytes() == whole

    def test_quantizing_without_the_cache_gives_the_same_bits(self, model, monkeypatch):
        stored = load_file(model.path())
        monkeypatch.setattr(converting, "PIECE_BYTES", 300)
        with WeightFiles.open([model.file]) as files:
            for name in (LINEAR, OTHER_LINEAR):
                quantized, scale = torch.empty_like(stored[name]), torch.empty_like(stored[f"{name}_scale"])
                quantize_into(files, name, quantized, scale, FP8_FORM)
                assert torch.equal(quantized.view(torch.uint8), stored[name].view(torch.uint8))
                assert torch.equal(scale, stored[f"{name}_scale"])
            with pytest.raises(ValueError, match="has shape"):
                quantize_into(files, LINEAR, quantized, scale, FP8_FORM)

    def test_names_are_the_modules_own(self, tmp_path):
        prefixed = Model(tmp_path / "model", {f"model.diffusion_model.{LINEAR}": normal(16, 16)})
        assert set(load_file(prefixed.path())) == {LINEAR, f"{LINEAR}_scale"}

    def test_nothing_to_convert_is_no_trouble(self, tmp_path):
        files = Model(tmp_path / "model", {"single_transformer_blocks.0.attn.norm_q.weight": normal(16)}).convert()
        assert files is not None
        assert len(files.tensors) == 1

    def test_progress_ends_at_all_that_is_read(self, model, monkeypatch):
        monkeypatch.setattr(converting, "BLOCK_BYTES", 1024)
        monkeypatch.setattr(converting, "PROGRESS_EVERY_BYTES", 2000)
        model.convert()
        total = sum(tensor.nbytes for tensor in some_weights().values())
        assert model.progress[0] == (0, total)
        assert model.progress[-1] == (total, total)
        assert model.progress == sorted(model.progress)
        assert len(model.progress) > 5

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_weights_that_are_not_finite_are_refused_by_name(self, tmp_path, bad):
        tensors = {LINEAR: normal(16, 16)}
        tensors[LINEAR][3, 5] = bad
        broken = Model(tmp_path / "model", tensors)
        with pytest.raises(RequestError, match=f"{LINEAR}' in .*model.safetensors' holds numbers that are not finite"):
            broken.convert()
        assert left_in_cache() == []

    @pytest.mark.parametrize("scale", [normal().abs(), normal(16, dtype=torch.float32).abs()], ids=["tensor", "row"])
    def test_fp8_weights_and_their_own_scales_stay_as_they_are(self, tmp_path, scale):
        plain = normal(16, 16, dtype=FP8)
        tensors = {LINEAR: plain, f"{LINEAR}_scale": scale, OTHER_LINEAR: normal(16, 16)}
        stored = load_file(Model(tmp_path / "model", tensors).path())
        assert torch.equal(stored[LINEAR].view(torch.uint8), plain.view(torch.uint8))
        assert torch.equal(stored[f"{LINEAR}_scale"], scale.float().expand(16))
        assert stored[OTHER_LINEAR].dtype == FP8

    def test_weights_that_are_fp8_already_lose_nothing(self, tmp_path):
        plain = normal(64, 64, dtype=FP8)
        stored = load_file(Model(tmp_path / "model", {LINEAR: plain}).path())
        assert torch.equal(dequantize(stored[LINEAR], stored[f"{LINEAR}_scale"], torch.float32), plain.float())

    def test_errors_are_told_by_layer(self, model):
        with WeightFiles.open([model.file], "transformer") as files:
            errors = {name: (rms, largest) for name, rms, largest in rounding_errors(files, "transformer", FP8_FORM)}
        assert set(errors) == {LINEAR, OTHER_LINEAR}
        for rms, largest in errors.values():
            assert 0.02 < rms < 0.03
            assert 0.01 < largest <= 1 / 16


class TestCache:
    def test_known_files_are_not_read_again(self, model, monkeypatch):
        model.path()
        sources = []
        opened = WeightFiles.open

        def watched(files: Sequence[Path], component: str, *, families: Sequence[Family]) -> WeightFiles:
            sources.append(opened(files, component, families=families))
            return sources[-1]

        monkeypatch.setattr(WeightFiles, "open", watched)
        files = model.convert()
        assert files is sources[1]
        assert sources[0].bytes_read == 0
        assert model.progress == []
        assert torch.equal(files.rows("x_embedder.weight", 0, 3), some_weights()["x_embedder.weight"].bfloat16())

    def test_a_moved_model_is_known_at_once(self, model, tmp_path):
        path = model.path()
        moved = tmp_path / "elsewhere"
        shutil.move(model.file.parent, moved)
        model.file = moved / model.file.name
        assert model.path() == path
        assert model.progress == []
        (cached,) = caches.listed()
        assert (cached.reason, cached.source) == ("", str(model.file))

    def test_a_copied_model_is_known_by_its_content(self, model, tmp_path):
        path = model.path()
        before = path.stat()
        copy = Model(tmp_path / "copy")
        os.utime(copy.file, ns=(0, 0))
        assert copy.path() == path
        total = sum(tensor.nbytes for tensor in some_weights().values())
        assert copy.progress[-1] == (total, total)
        assert copy.progress == sorted(copy.progress)
        assert path.stat().st_ino == before.st_ino
        assert len(left_in_cache()) == 3  # one cache file, two index entries
        assert copy.path() == path
        assert copy.progress == []

    def test_a_file_that_an_older_version_named_by_its_content_is_found_by_a_copy(self, model, tmp_path):
        path = model.path()
        named = path.with_name("8a3e7102f43bd00c21e8b7b4ca6ce7b0-fp8.safetensors")
        named.write_bytes(path.read_bytes().replace(path.name[:32].encode(), named.name[:32].encode()))
        path.unlink()
        for index in (cache_dir() / "weights" / "index").iterdir():
            index.write_text(json.dumps({"content": named.name[:32], "salience": ""}))
        assert model.path() == named
        assert model.progress == []
        copy = Model(tmp_path / "copy")
        os.utime(copy.file, ns=(0, 0))
        assert copy.path() == named
        assert [*(cache_dir() / "weights").glob("*.safetensors")] == [named]

    def test_without_an_index_it_is_found_by_its_own_name(self, model):
        path = model.path()
        shutil.rmtree(cache_dir() / "weights" / "index")
        assert model.path() == path
        assert model.progress == []

    def test_a_copy_with_other_numbers_at_its_end_is_another(self, model, tmp_path, monkeypatch):
        from engine.weights import converted

        monkeypatch.setattr(converted, "COMPARED_BYTES", 512)
        other = some_weights()
        other[LINEAR][-1, -1] += 1
        assert Model(tmp_path / "other", other).path() != model.path()

    def test_other_weights_have_another_cache(self, model, tmp_path):
        other = some_weights()
        other["scalar"] += 1
        assert Model(tmp_path / "other", other).path() != model.path()

    def test_a_changed_file_is_converted_anew(self, model):
        before = model.path()
        changed = some_weights() | {LINEAR: normal(96, 64, seed=9)}
        save_file(changed, model.file)
        os.utime(model.file, ns=(0, 0))
        assert model.path() != before

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: os.truncate(path, path.stat().st_size - 1),
            lambda path: os.truncate(path, 20),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(path.read_bytes() + b"more"),
            lambda path: path.write_bytes(path.read_bytes().replace(path.name[:32].encode(), b"0" * 32)),
            lambda path: save_file({"a": normal(3)}, path),
        ],
        ids=["one byte short", "cut in its header", "empty", "too long", "another's", "other tensors"],
    )
    def test_a_damaged_cache_is_made_anew_and_said(self, model, damage: Callable[[Path], object]):
        path = model.path()
        sound = path.read_bytes()
        damage(path)
        assert model.path() == path
        assert path.read_bytes() == sound
        assert model.notices == [f"the FP8 weights in {str(path)!r} were damaged; they are made anew."]
        assert model.convert() is not None
        assert model.notices == []

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"content": 3}', b'{"content": "../../x"}', b"\xff"])
    def test_a_damaged_index_is_made_anew(self, model, content):
        path = model.path()
        (index,) = (cache_dir() / "weights" / "index").iterdir()
        good = index.read_bytes()
        index.write_bytes(content)
        assert model.path() == path
        assert index.read_bytes() == good

    def test_a_deleted_cache_is_made_anew_without_a_word(self, model):
        path = model.path()
        path.unlink()
        assert model.path() == path
        assert model.notices == []

    def test_too_little_room_is_said_before_anything_is_written(self, model, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2**20))
        assert model.convert() is None
        assert model.notices == [
            f"there is no room for FP8 weights in {str(cache_dir() / 'weights')!r}: 0.3 GiB are needed, "
            "0.0 GiB are free. They are converted anew each time."
        ]
        assert model.progress == []
        assert left_in_cache() == []

    def test_a_disk_that_fills_up_is_said_and_left_clean(self, model, monkeypatch):
        def full(*args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        assert model.convert() is None
        assert model.notices == [
            f"FP8 weights cannot be kept in {str(cache_dir() / 'weights')!r} (No space left on device), "
            "so they are converted anew each time."
        ]
        assert left_in_cache() == []

    def test_a_file_size_limit_ends_a_conversion_in_the_middle_cleanly(self, tmp_path):
        resource = pytest.importorskip("resource")
        large = Model(tmp_path / "model", {LINEAR: normal(1024, 4096)})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        try:
            assert large.convert() is None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "cannot be kept" in large.notices[0]
        assert left_in_cache() == []

    @pytest.mark.unmeasured
    def test_a_cache_folder_that_cannot_be_made_is_said(self, model):
        cache_dir().parent.mkdir(exist_ok=True)
        cache_dir().write_text("a file where the folder should be")
        assert model.convert() is None
        assert "FP8 weights cannot be kept in" in model.notices[0]

    def test_a_cache_on_a_disk_that_is_read_only_is_said_and_what_it_has_is_used(self, model, monkeypatch):
        path = model.path()
        opened = os.open

        def read_only(name: str, flags: int, *rest: int) -> int:
            if flags & os.O_CREAT:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return opened(name, flags, *rest)

        monkeypatch.setattr(os, "open", read_only)
        assert model.path() == path
        path.unlink()
        assert model.convert() is None
        assert "cannot be kept in" in model.notices[0]
        assert os.strerror(errno.EROFS) in model.notices[0]

    @pytest.mark.skipif(os.name != "posix", reason="deletes a folder that is in use")
    def test_a_cache_that_vanishes_while_it_is_written_is_said(self, model):
        notices: list[str] = []
        conversion = converted_files("transformer", [model.file], torch.bfloat16, notices, FP8_FORM)
        next(conversion)
        shutil.rmtree(cache_dir())
        assert len([*conversion]) == 1  # the last of the progress
        assert "FP8 weights cannot be kept in" in notices[0]

    @pytest.mark.parametrize("direct", [True, False])
    def test_past_the_systems_cache_or_through_it_the_bits_are_the_same(self, tmp_path, monkeypatch, direct):
        if not direct:
            monkeypatch.delattr(os, "O_DIRECT", raising=False)
        elif not hasattr(os, "O_DIRECT"):
            pytest.skip("the system has no such writes")
        monkeypatch.setattr(converting, "BLOCK_BYTES", 2**16)
        weight = normal(300, 1000)
        stored = load_file(Model(tmp_path / "model", {LINEAR: weight, "spare": normal(999)}).path())
        quantized, scale = quantize_rows(weight)
        assert torch.equal(stored[LINEAR].view(torch.uint8), quantized.view(torch.uint8))
        assert torch.equal(stored[f"{LINEAR}_scale"], scale)
        assert torch.equal(stored["spare"], normal(999))

    @pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the system has no such writes")
    def test_a_file_system_that_refuses_such_writes_gets_others(self, model, monkeypatch):
        whole = model.path().read_bytes()
        shutil.rmtree(cache_dir())
        monkeypatch.setattr(converting, "BLOCK_BYTES", 4096)
        written, refused = os.pwrite, []

        def refusing(descriptor: int, data: memoryview, offset: int) -> int:
            import fcntl

            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                refused.append(offset)
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return written(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", refusing)
        assert model.path().read_bytes() == whole
        assert refused or not _has_direct_writes(model.file.parent)

    def test_closing_the_conversion_leaves_nothing(self, model, monkeypatch):
        monkeypatch.setattr(converting, "BLOCK_BYTES", 1024)
        monkeypatch.setattr(converting, "PROGRESS_EVERY_BYTES", 1000)
        conversion = converted_files("transformer", [model.file], torch.bfloat16, [], FP8_FORM)
        next(conversion)
        next(conversion)
        assert any(name.endswith(".tmp") for name in left_in_cache())
        conversion.close()
        assert left_in_cache() == []

    def test_a_source_that_shrinks_while_it_is_converted_gives_a_sentence(self, tmp_path):
        large = Model(tmp_path / "model", {LINEAR: normal(4096, 4096)})
        conversion = converted_files("transformer", [large.file], torch.bfloat16, [], FP8_FORM)
        next(conversion)
        os.truncate(large.file, 10_000)
        with pytest.raises(RequestError, match="has changed while it was in use"):
            list(conversion)
        assert left_in_cache() == []

    def test_leavings_of_killed_conversions_are_removed_at_once(self, model):
        folder = cache_dir() / "weights"
        folder.mkdir(parents=True)
        left, other = folder / ".t2i-0123456789abcdef.tmp", folder / "tmp_0new123.tmp"  # the second may be anybody's
        for file in (left, other):
            file.write_bytes(b"half")
        model.path()
        assert not left.exists()
        assert other.exists()

    def test_what_others_have_yet_to_fill_is_no_room(self, model, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2**30))
        (cache_dir() / "weights").mkdir(parents=True)
        with Temporary(cache_dir() / "weights") as other:
            other.stream.truncate(2**30)
            assert model.convert() is None
            assert "are needed, 0.0 GiB are free" in model.notices[0]
        assert model.convert() is not None

    def test_weights_of_another_calibration_make_room_for_the_new_ones(self, model, monkeypatch):
        model.form = replace(form_of("int8"), digest="the first")
        old = model.path()
        nbytes = old.stat().st_size

        def nearly_full(path: object) -> object:
            free = 256 * 2**20 if old.exists() else 256 * 2**20 + nbytes + 4096
            return shutil._ntuple_diskusage(0, 0, free)

        monkeypatch.setattr(shutil, "disk_usage", nearly_full)
        model.form = replace(form_of("int8"), digest="the second")
        assert model.path() != old
        assert model.notices == []

    def test_what_could_go_is_said_where_there_is_no_room(self, model, monkeypatch):
        model.convert()
        model.file.write_bytes(b"gone")
        save_file({LINEAR: normal(16, 16)}, model.file)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2**20))
        assert model.convert() is None
        assert model.notices[0].endswith("are of no use any more: t2i models cache --remove unused.")


class TestOthers:
    """Several processes at work in the same cache."""

    def test_the_second_waits_for_the_first_and_takes_what_it_made(self, model, monkeypatch):
        monkeypatch.setattr(converting, "BLOCK_BYTES", 4096)
        monkeypatch.setattr(converting, "PROGRESS_EVERY_BYTES", 1)
        first = converted_files("transformer", [model.file], torch.bfloat16, [], FP8_FORM)
        second = converted_files("transformer", [model.file], torch.bfloat16, [], FP8_FORM)
        assert next(first)[0] == 0
        waiting = [next(second) for _ in range(3)]
        assert {total for _, total in waiting} == {sum(tensor.nbytes for tensor in some_weights().values())}
        assert len([*(cache_dir() / "weights").glob(".t2i-*")]) == 1
        made = finished(first)
        before = made.stat().st_ino
        assert finished(second) == made
        assert made.stat().st_ino == before

    def test_the_second_takes_over_where_the_first_was_given_up(self, model):
        first = converted_files("transformer", [model.file], torch.bfloat16, [], FP8_FORM)
        second = converted_files("transformer", [model.file], torch.bfloat16, [], FP8_FORM)
        next(first)
        next(second)
        first.close()
        assert finished(second).exists()
        assert [*(cache_dir() / "weights").glob(".t2i-*")] == []

    @pytest.mark.skipif(os.name != "posix", reason="on Windows there is no telling")
    @pytest.mark.parametrize("kind", ["a folder", "a file on a disk that is read-only"])
    def test_what_cannot_be_removed_is_not_waited_for(self, model, kind, monkeypatch):
        path = model.path()
        left = path.with_name(f".t2i-{path.name[:32]}.tmp")
        path.unlink()
        if kind == "a folder":
            left.mkdir()
        else:
            left.write_bytes(b"half")
            opened = os.open

            def read_only(name: str, flags: int, *rest: int) -> int:
                if flags & (os.O_RDWR | os.O_WRONLY) and not (flags & os.O_EXCL and os.path.lexists(name)):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
                return opened(name, flags, *rest)

            monkeypatch.setattr(os, "open", read_only)
        conversion = converted_files("transformer", [model.file], torch.bfloat16, model.notices, FP8_FORM)
        assert len([*islice(conversion, 3)]) < 3, "it is waited for"
        assert "FP8 weights cannot be kept in" in model.notices[0]

    @pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
    def test_a_killed_conversion_leaves_nothing_for_the_next_start(self, tmp_path, own_folders):
        large = Model(tmp_path / "model", {LINEAR: normal(1024, 8192).repeat(4, 1)})
        command = [sys.executable, "-c", HALTED, str(large.file)]
        root = Path(__file__).parent.parent
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            (left,) = (cache_dir() / "weights").glob(".t2i-*")
            clean_up()
            assert left.exists(), "somebody is at work on it"
            process.kill()
        assert left.exists()
        clean_up()
        assert left_in_cache() == []
        assert large.path().exists()

    @pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what it has in its cache")
    @pytest.mark.parametrize("shared", [True, False])
    def test_what_another_conversion_needs_stays_in_the_systems_cache(self, tmp_path, shared, monkeypatch):
        dropped = []
        monkeypatch.setattr(WeightFiles, "drop", lambda self, name: dropped.append(name))
        monkeypatch.setattr(WeightFiles, "is_cached", lambda self: False)
        model = Model(tmp_path / "model")
        (cache_dir() / "weights").mkdir(parents=True)
        with Temporary(cache_dir() / "weights") if shared else nullcontext():
            model.convert()
        assert (dropped == []) == shared

    def test_a_source_that_was_in_the_systems_cache_stays_there(self, tmp_path, monkeypatch):
        dropped = []
        monkeypatch.setattr(WeightFiles, "drop", lambda self, name: dropped.append(name))
        monkeypatch.setattr(WeightFiles, "is_cached", lambda self: True)
        Model(tmp_path / "model").convert()
        assert dropped == []


def _has_direct_writes(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "tried", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def finished(conversion: Generator[tuple[int, int], None, WeightFiles | None]) -> Path:
    """Let a conversion end; its file."""
    while True:
        try:
            next(conversion)
        except StopIteration as end:
            end.value.close()
            return Path(next(iter(end.value.tensors.values())).file)


HALTED = """
import sys, time
from pathlib import Path
import torch
from engine.families.family import Family
from engine.families.flux1 import FLUX1
from engine.precision import FP8
from engine.weights import converting
from engine.weights.converted import converted_files
from engine.weights.forms import Form
converting.BLOCK_BYTES = 2**20
converting.PROGRESS_EVERY_BYTES = 2**21
conversion = converted_files("transformer", [Path(sys.argv[1])], torch.bfloat16, [], Form(FLUX1, FP8))
for _ in range(3):
    next(conversion)
print("under way", flush=True)
time.sleep(600)
"""

MEASURED = """
import sys, time
from pathlib import Path
import torch
from engine.families.family import Family
from engine.families.flux1 import FLUX1
from engine.precision import FP8
from engine.weights.converted import converted_files
from engine.quantization.fp8 import quantize_rows
from engine.weights.forms import Form
from engine.weights.reading import WeightFiles

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))

torch.set_num_threads(1)
quantize_rows(torch.ones(4, 4))
file = Path(sys.argv[1])
before = peak = anonymous()
start = time.perf_counter()
for done, total in converted_files("transformer", [file], torch.bfloat16, [], Form(FLUX1, FP8)):
    peak = max(peak, anonymous())
print(peak - before, round(total / 1e6 / (time.perf_counter() - start)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_converting_needs_little_memory_whatever_the_checkpoints_size(tmp_path, own_folders):
    weight = normal(512, 8192).repeat(16, 1)
    file = tmp_path / "model.safetensors"
    save_file({LINEAR: weight, OTHER_LINEAR: weight.clone(), "x_embedder.weight": weight[:2048].float()}, file)
    assert file.stat().st_size > 300e6
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", MEASURED, str(file)]
    measured = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=True)
    mebibytes, megabytes_per_second = map(int, measured.stdout.split())
    print(f"{mebibytes} MiB, {megabytes_per_second} MB/s")
    assert mebibytes < 200
