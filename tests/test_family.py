"""The engine knows no family: a toy with other parts and another geometry is painted, streamed, rounded and planned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import Engine, ImageSaved, Request, RequestError
from engine.events import Planned, Simulated
from engine.families.all import FAMILIES
from engine.families.flux1 import FLUX1
from engine.families.networks import Conditioning, Tokens
from engine.images.save import plan_output
from engine.library import inventory, pairing
from engine.library.registry import Registry
from engine.memory import choice
from engine.memory.components import Components
from engine.memory.measure import META, Activations
from engine.precision import FP8, FP32, INT8
from engine.untrusted.headers import read_header
from engine.weights.forms import Form
from engine.weights.layouts import recognise
from engine.weights.model import open_folder
from engine.weights.reading import WeightFiles
from tests.tiny import save_tiny
from tests.toy import Toy, ToyNetworks, save_toy

Pixels = NDArray[np.uint8]


@pytest.fixture(params=["toy", "flux1"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small random model of each family."""
    toy = Toy()
    FAMILIES.append(toy)
    if request.param == "toy":
        save_toy(tmp_path / "model")
    else:
        save_tiny(tmp_path / "model", guided=True)
    try:
        yield tmp_path / "model"
    finally:
        FAMILIES.remove(toy)


def painted(engine: Engine, request: Request, folder: Path) -> Pixels:
    folder.mkdir(exist_ok=True)
    *_, last = engine.generate(request, plan_output(folder, 1))
    assert isinstance(last, ImageSaved), last
    return np.asarray(Image.open(last.path))


def wanted(precision: str, **others: object) -> Request:
    return Request("a red circle", width=64, height=128, steps=3, seed=5, precision=precision, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("model", ["toy"], indirect=True)
def test_a_streamed_model_paints_what_a_resident_one_does(model: Path, precision: str, tmp_path: Path) -> None:
    save_toy(model, width=512, layers=4)  # so that its blocks, not the decoder, are what a small budget has no room for
    request = wanted(precision)
    with Engine.open(model, device="cpu") as engine:
        whole, plan = painted(engine, request, tmp_path / "out"), engine.plan(request)
    denoise = plan.phases[1]
    assert whole.std() > 1
    assert denoise.streamed_bytes_per_step == 0
    budget = denoise.activation_bytes + denoise.allowance_bytes + 0.6 * denoise.resident_bytes
    with Engine.open(model, device="cpu", vram=f"{budget / 2**20:.4f}MiB") as engine:
        small = engine.plan(request)
        assert small.phases[1].streamed_bytes_per_step > 0.4 * denoise.resident_bytes
        assert small.tile == plan.tile == 0
        assert np.array_equal(painted(engine, request, tmp_path / "out"), whole)


def test_true_guidance_and_seeds_change_the_picture(model: Path, tmp_path: Path) -> None:
    with Engine.open(model, device="cpu") as engine:
        plain, guided, other = (
            painted(engine, request, tmp_path / "out")
            for request in (
                wanted("fp32"),
                wanted("fp32", cfg=3.0, negative_prompt="a"),
                replace(wanted("fp32"), seed=6),
            )
        )
    assert not np.array_equal(plain, guided)
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize("model", ["toy"], indirect=True)
def test_a_family_without_int8_is_not_asked_for_it(model: Path) -> None:
    with Engine.open(model, device="cpu") as engine:
        with pytest.raises(RequestError, match="cannot be painted in int8: take auto, fp32, bf16 or fp8"):
            engine.resolve(wanted("int8"))
        (precision,) = (option for option in engine.options if option.name == "precision")
        assert precision.choices == ("auto", "fp32", "bf16", "fp8")
    with Engine.open(model, simulate=True, vram="1GiB") as engine:
        assert engine.plan(replace(wanted("fp8"), precision=None)).precision == "fp32"
        assert choice.levels(engine.source, on_card=True)[-1] == ("fp8",)


def test_tables_are_kept_for_every_prompt_that_they_do_not_follow_from(model: Path, tmp_path: Path) -> None:
    with Engine.open(model, device="cpu") as engine:
        request = wanted("fp32", cfg=3.0, negative_prompt="a")
        for prompt in ("a red circle", "a blue square"):
            painted(engine, replace(request, prompt=prompt), tmp_path / "out")
        assert len(engine.runtime().tables) == (3 if engine.source.family.step_reads_prompt else 1)


def test_bands_decode_what_the_whole_decoder_does(model: Path, tmp_path: Path) -> None:
    from engine.jobs.runtime import Repeat

    with Engine.open(model, device="cpu") as engine:
        whole = painted(engine, wanted("fp32"), tmp_path / "out")
    with Engine.open(model, device="cpu", repeat=Repeat(tile=64)) as engine:
        assert engine.plan(wanted("fp32")).tile == 64
        banded = painted(engine, wanted("fp32"), tmp_path / "out")
    assert np.abs(whole.astype(int) - banded.astype(int)).max() <= 1


def test_what_is_simulated_is_what_is_planned(model: Path) -> None:
    with Engine.open(model, simulate=True, vram="2GiB") as engine:
        events = list(engine.generate(wanted("fp8")))
    (plan,) = (event.plan for event in events if isinstance(event, Planned))
    assert isinstance(events[-1], Simulated)
    assert events[-1].peak_bytes <= plan.peak_bytes
    assert plan.peak_bytes - events[-1].peak_bytes < 0.01 * plan.peak_bytes
    assert all(seconds > 0 for seconds in events[-1].seconds_by_phase.values())


@pytest.mark.parametrize(("title", "is_known"), [("Chroma", True), ("toy", False)])
def test_only_what_is_of_no_family_is_refused_by_name(title: str, is_known: bool, tmp_path: Path) -> None:
    toy, file = Toy(), tmp_path / "model" / "transformer" / "model.safetensors"
    toy.title = title
    save_toy(tmp_path / "model")
    save_file({**load_file(file), "distilled_guidance_layer.weight": torch.zeros(1)}, file)  # as Chroma has it
    if is_known:
        assert recognise([read_header(file)], [toy])[0].family is toy
    else:
        with pytest.raises(RequestError, match="is Chroma, which cannot be run here"):
            recognise([read_header(file)], [toy])


@pytest.mark.parametrize(("hasty", "steps"), [(False, 3), (True, 1)])
def test_the_index_tells_what_no_weights_tell(hasty: bool, steps: int, tmp_path: Path) -> None:
    toy = Toy()
    save_toy(tmp_path / "model", hasty=hasty)
    FAMILIES.append(toy)
    try:
        with Engine.open(tmp_path / "model", device="cpu") as engine:
            assert engine.defaults.steps == steps
    finally:
        FAMILIES.remove(toy)


@pytest.mark.parametrize("place", [0, 1])
def test_parts_of_one_name_keep_their_own_familys_forms(place: int, tmp_path: Path) -> None:
    toy = Toy()  # whose transformer takes no int8
    save_tiny(tmp_path / "model", guided=True)
    FAMILIES.insert(place, toy)
    try:
        with Engine.open(tmp_path / "model", device="cpu") as engine:
            assert painted(engine, wanted("int8"), tmp_path / "out").std() > 1
            component = engine.runtime().components.component("transformer", INT8)
    finally:
        FAMILIES.remove(toy)
    assert torch.int8 in {piece.dtype for unit in component.units for piece in unit.pieces}


def test_what_another_family_rounds_is_not_rounded_in_this_one() -> None:
    class Rounding(Toy):
        def eight_bit(self, part: str, name: str) -> bool:
            return name == "norm_out.linear.weight"

    other = Rounding()
    FAMILIES.append(other)
    try:
        assert [Form(family, FP8).covers("transformer", "norm_out.linear.weight") for family in (FLUX1, other)] == [
            False,
            True,
        ]
    finally:
        FAMILIES.remove(other)


class GreedyNetworks(ToyNetworks):
    """They read a prompt with more memory."""

    def encode(
        self, part: str, module: Any, tokens: Tokens, rows: Callable[[Tensor], Tensor], device: torch.device
    ) -> Conditioning:
        scratch = torch.empty(2**20, dtype=torch.uint8, device=device)
        read = super().encode(part, module, tokens, rows, device)
        del scratch
        return read


class Greedy(Toy):
    name, pipelines, networks = "greedy", ("GreedyPipeline",), GreedyNetworks()


def test_what_one_family_takes_is_not_what_another_took_with_the_same_configuration(tmp_path: Path) -> None:
    families, taken = (Toy(), Greedy()), []
    save_toy(tmp_path)
    FAMILIES.extend(families)
    try:
        for family in families:
            (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": family.pipelines[0]}))
            model = open_folder(tmp_path, family.name)
            taken.append(Activations(Components(model, META, simulated=True)).encode("text_encoder", FP32))
    finally:
        for family in families:
            FAMILIES.remove(family)
    assert taken[1] - taken[0] > 2**19


class Doubled(Toy):
    """A toy whose transformer has tensors that begin as FLUX.1's do."""

    parts = (replace(Toy.parts[0], prefixes=("model.diffusion_model.",)), *Toy.parts[1:])

    def part_of(self, names: Sequence[str]) -> str:
        return "transformer" if "double_blocks.toy" in names else super().part_of(names)


@pytest.mark.parametrize("place", [0, 1])
def test_what_a_file_is_does_not_follow_from_the_order_of_the_families(place: int, tmp_path: Path) -> None:
    other = Doubled()
    save_toy(tmp_path / "toy")
    save_tiny(tmp_path / "flux1", guided=True)
    model = tmp_path / "toy" / "transformer" / "model.safetensors"
    marked = {**load_file(model), "double_blocks.toy": torch.zeros(1)}
    save_file(marked, tmp_path / "alone.safetensors")
    save_file({f"model.diffusion_model.{name}": value for name, value in marked.items()}, tmp_path / "all.safetensors")
    shutil.copy(model, tmp_path / "toy.safetensors")
    shutil.copy(next((tmp_path / "toy" / "vae").glob("*.safetensors")), tmp_path / "vae.safetensors")
    FAMILIES.insert(place, other)
    try:
        found = {path: recognise([read_header(tmp_path / path)])[0].family.name for path in TOLD}
        pairs = pairing.paired(tmp_path / "toy.safetensors", {}, Registry())
        assert found == TOLD
        assert pairs.found["vae"].family is other, "a model asks for its own family's"
    finally:
        FAMILIES.remove(other)


TOLD = {
    "alone.safetensors": "toy",
    "all.safetensors": "toy",
    "flux1/transformer/diffusion_pytorch_model.safetensors": "flux1",
    "flux1/vae/diffusion_pytorch_model.safetensors": "flux1",
    "vae.safetensors": "flux1",  # either's; the first by name
}


class Reader(Toy):
    """A toy whose tokenizer has the name and the files of another family's."""

    def tokenizer_in(self, folder: Path) -> str:
        return "tokenizer"


def _check_letters(folder: Path) -> None:
    if "letters" not in (folder / "vocab.json").read_text():
        raise RequestError("model", f"the tokenizer in {folder} does not read letters.")


@pytest.mark.parametrize("place", [0, 1])
def test_tokenizers_of_one_name_are_told_apart(place: int, tmp_path: Path) -> None:
    reader = Reader()
    reader.tokenizers = (replace(Toy.tokenizers[0], check=_check_letters),)
    save_toy(tmp_path / "toy")
    save_tiny(tmp_path / "flux1", guided=True)
    (tmp_path / "toy" / "tokenizer" / "merges.txt").touch()
    FAMILIES.insert(place, reader)
    try:
        titles = {
            name: [part.title for part in inventory.show(str(tmp_path / name)).parts if "tokenizer" in part.component]
            for name in ("toy", "flux1", "toy/tokenizer")
        }
    finally:
        FAMILIES.remove(reader)
    assert titles == {
        "toy": ["letters"],
        "flux1": ["CLIP's tokenizer", "T5's tokenizer"],
        "toy/tokenizer": ["letters"],
    }


def test_a_file_is_told_by_its_tensors_whatever_families_there_are(model: Path) -> None:
    part = model / "transformer"
    with Engine.open(model) as engine:
        family = engine.source.family
    file = next(part.glob("*.safetensors"))
    with WeightFiles.open([file], "transformer") as files:
        assert files.tensors
    assert engine.source.found["transformer"].family is family
