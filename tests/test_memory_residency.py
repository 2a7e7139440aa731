"""Where weights lie changes no bit of a picture, and everything the plan promises holds in a real run on the CPU."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from engine import Engine, Request, RequestError
from engine.cli.commands import main
from engine.events import Cancelled, Encoded, Event, Failed, ImageSaved, LoadProgress, Noticed, Planned, StepFinished
from engine.families.flux1.latents import image_position_ids, noise
from engine.families.flux1.networks import NETWORKS
from engine.images.metadata import read_record
from engine.images.save import plan_output
from engine.jobs.runtime import Repeat
from engine.memory.components import Components
from engine.memory.ledger import counted
from engine.memory.measure import META, Activations
from engine.memory.needs import CPU_PROCESS_BYTES
from engine.memory.placement import Device, Placement
from engine.precision import BF16, FP8, FP32, INT8, Precision
from engine.sampling import flow
from engine.sampling.denoise import Prompt, denoise
from engine.sampling.modulation import Tables, compute
from tests.painting import painted
from tests.tiny import flux_size, save_tiny

PROMPT = "a large red circle above a small blue square"
REQUEST = Request(PROMPT, seed=3, steps=3)
SMALL = replace(REQUEST, width=64, height=64)  # for precisions that many CPUs decode slowly
MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(folder, guided=True)
    return folder


def events_of(engine: Engine, request: Request = REQUEST, folder: Path | None = None) -> list[Event]:
    return list(engine.generate(request, plan_output(folder, 1)))


def last(events: list[Event]) -> ImageSaved:
    assert isinstance(events[-1], ImageSaved), events[-1]
    return events[-1]


def tight_vram(precision: str) -> str:
    """A card's size that is just enough for the demo's loop with all blocks streamed, or for its decoder."""
    with Engine.open("demo", device="cpu", vram="1MiB") as engine, pytest.raises(RequestError) as refused:
        engine.plan(replace(REQUEST, precision=precision))
    return re.search(r"--vram ([0-9.]+[MG]iB)", str(refused.value))[1]  # type: ignore[index]


def little_ram() -> str:
    """Too little to keep the demo's components in RAM between phases."""
    return f"{CPU_PROCESS_BYTES / MIB + 28:.0f}MiB"


def test_streamed_blocks_give_the_resident_picture(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu", vram=tight_vram("fp32")) as engine:
        events = events_of(engine, REQUEST, tmp_path)
        plan = next(event.plan for event in events if isinstance(event, Planned))
        assert plan.phases[1].streamed_bytes_per_step > 10**6
        moved = last(events).moved_bytes
        assert moved == 3 * plan.phases[1].streamed_bytes_per_step + plan.phases[0].loaded_bytes
    with Engine.open("demo", device="cpu", repeat=Repeat(tile=plan.tile)) as engine:
        assert engine.plan(REQUEST).phases[1].streamed_bytes_per_step == 0
        assert np.array_equal(np.asarray(_image(last(events).path)), painted(engine, REQUEST))


def latents_of(
    folder: Path, streamed: bool, kept: bool, precision: Precision, guidance: float | None = 2.0
) -> torch.Tensor:
    """The loop's result with every block streamed or none, from host copies or from the files."""
    components = Components(Engine.open(folder).source, torch.device("cpu"))
    component = components.component("transformer", precision)
    names = frozenset(unit.name for unit in component.units)
    blocks = frozenset(unit.name for unit in component.of_role("block")) if streamed else frozenset()
    placement = Placement(blocks, 2, names if kept else frozenset(), in_place=kept)
    sigmas = torch.linspace(1, 0, 4)
    generator = torch.Generator().manual_seed(0)
    pooled, sequence = (torch.randn(*shape, generator=generator) for shape in ((1, 32), (1, 24, 48)))
    kernel = "float32" if precision.is_int8 else None
    with components.lend("transformer", precision, placement, lambda: None, passes=3, kernel=kernel) as loan:
        for _ in loan.read():
            pass
        reader = component.reader
        assert reader is not None
        told = None if guidance is None else [guidance] * 3
        told_all = {"pooled": pooled, "sequence": sequence}
        where = NETWORKS, loan.device, loan.dtype, lambda: None
        (tables,) = compute(reader, loan.visit, [told_all], sigmas, told, *where)
        prompt = Prompt(loan.folded(tables), told_all)
        for _ in loan.load():
            pass
        start, size = noise(1, 4, 64, 64), flux_size(64, 64, 4, 24)
        given = (NETWORKS, loan.module, reader, [prompt], start, sigmas, size)
        for step in denoise(*given, lambda: None, loan.device, loan.dtype):
            latents = step.latents
    assert components.device.placed_bytes == 0
    assert all(unit.pieces[0].owner._parameters[unit.pieces[0].leaf].numel() == 0 for unit in component.units)  # type: ignore[union-attr]
    return latents


@pytest.mark.parametrize("precision", [FP32, BF16, FP8, INT8], ids=str)
def test_latents_are_the_same_to_the_last_bit_whatever_the_residency(model: Path, precision: Precision) -> None:
    whole = latents_of(model, streamed=False, kept=True, precision=precision)
    assert whole.isfinite().all()
    for streamed, kept in ((True, True), (True, False), (False, False)):
        assert torch.equal(latents_of(model, streamed, kept, precision), whole), (streamed, kept)


def test_t5_streamed_gives_what_t5_whole_gives() -> None:
    components = Components(Engine.open("demo").source, torch.device("cpu"))
    results = []
    for streamed in (False, True):
        component = components.component("text_encoder_2", FP32)
        blocks = frozenset(unit.name for unit in component.of_role("block")) if streamed else frozenset()
        with components.lend("text_encoder_2", FP32, Placement(blocks, 2), lambda: None) as loan:
            from engine.families.flux1.encode import sequence_embedding

            for _ in loan.load():
                pass
            embedded = loan.embedded(torch.arange(32)[None])
            results.append(sequence_embedding(loan.module, embedded, loan.device))
    assert torch.equal(*results)
    assert results[0].std() > 0.01


@pytest.mark.parametrize("guided", [False, True], ids=["schnell", "dev"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modulation_tables_are_what_the_loop_would_compute(guided: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """Against diffusers' own transformer in a plain Euler loop: no bit differs."""
    pipeline: FluxPipeline = save_tiny(tmp_path, guided)
    transformer = pipeline.transformer.to(dtype)
    generator = torch.Generator().manual_seed(0)
    pooled, sequence = (torch.randn(*shape, generator=generator) for shape in ((1, 32), (1, 24, 48)))
    sigmas, latents = torch.linspace(1, 0, 4), noise(1, 4, 64, 64)
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            velocity = transformer(
                hidden_states=latents.to(dtype),
                encoder_hidden_states=sequence.to(dtype),
                pooled_projections=pooled.to(dtype),
                timestep=sigma.to(dtype).expand(1),
                guidance=torch.full((1,), 2.0) if guided else None,
                img_ids=image_position_ids(64, 64).to(dtype),
                txt_ids=torch.zeros(24, 3, dtype=dtype),
                return_dict=False,
            )[0]
            latents = flow.euler_step(latents, velocity, sigma, following)
    precision = FP32 if dtype == torch.float32 else BF16
    ours = latents_of(tmp_path, streamed=True, kept=True, precision=precision, guidance=2.0 if guided else None)
    assert torch.equal(ours, latents)


def test_no_two_components_lie_on_the_device_and_the_plan_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is kept in RAM here, so every live byte is a lent component's or an activation: the ledger sees all."""
    placed: list[tuple[str | None, int]] = []
    place = Device.place

    def watched(self: Device, nbytes: int) -> None:
        place(self, nbytes)
        placed.append((engine.runtime().components.resident, self.placed_bytes))

    monkeypatch.setattr(Device, "place", watched)
    with Engine.open("demo", device="cpu", ram=little_ram()) as engine:
        plan = engine.plan(REQUEST)
        events_of(engine, replace(REQUEST, prompt="a star"), tmp_path)  # imports and first times
        placed.clear()
        with counted("cpu") as ledger:
            saved = last(events_of(engine, REQUEST, tmp_path))
        components = [name for (name, _), (_, before) in zip(placed, [(None, 0), *placed], strict=False) if not before]
        assert components == ["text_encoder", "text_encoder_2", "transformer", "transformer", "vae"]
        assert all(name is not None for name, _ in placed), "weights are placed for a component that is lent"
        kept = sum(
            unit.nbytes for unit in engine.runtime().components.component("transformer", FP32).of_role("modulation")
        )
        assert ledger.peak_bytes <= plan.peak_bytes + kept
    everything = sum(phase.resident_bytes for phase in plan.phases)
    assert ledger.peak_bytes < everything + sum(phase.activation_bytes for phase in plan.phases)
    assert saved.predicted_peak_bytes == plan.peak_bytes
    assert saved.measured_peak_bytes is None


def test_a_second_picture_of_a_prompt_loads_no_text_encoder_and_a_new_prompt_reads_nothing(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu") as engine:
        first = events_of(engine, REQUEST, tmp_path)
        plan = next(event.plan for event in first if isinstance(event, Planned))
        assert last(first).disk_bytes > 10**7
        same = events_of(engine, replace(REQUEST, seed=4), tmp_path)
        assert [event.cached for event in same if isinstance(event, Encoded)] == [True]
        assert last(same).disk_bytes == plan.same_prompt.disk_bytes == 0
        other = events_of(engine, replace(REQUEST, prompt="a green star"), tmp_path)
        assert [event.cached for event in other if isinstance(event, Encoded)] == [False]
        assert last(other).disk_bytes == plan.new_prompt.disk_bytes == 0
        assert not any(isinstance(event, LoadProgress) for event in (*same, *other))


def test_with_little_ram_the_weights_are_read_again_as_the_plan_says(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu", ram=little_ram()) as engine:
        first = events_of(engine, REQUEST, tmp_path)
        plan = next(event.plan for event in first if isinstance(event, Planned))
        assert plan.host_bytes <= plan.ram_budget_bytes
        again = last(events_of(engine, replace(REQUEST, seed=4), tmp_path))
        assert plan.same_prompt.disk_bytes > 0
        stored_in_bf16 = 2 * again.disk_bytes  # the files are half of what lies in memory
        assert stored_in_bf16 == pytest.approx(plan.same_prompt.disk_bytes, rel=0.05)
    with Engine.open("demo", device="cpu") as roomy:
        assert np.array_equal(painted(roomy, REQUEST), np.asarray(_image(last(first).path)))


def host_bytes(engine: Engine) -> dict[str, int]:
    opened = engine.runtime().components._open
    return {name: sum(memory.numel() for memory in one.copies.values()) for name, one in opened.items() if one.copies}


def test_changing_size_or_precision_keeps_no_more_in_ram_than_the_new_plan_says(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu") as engine:
        requests = [replace(SMALL, steps=1, precision=precision) for precision in ("fp32", "fp8", "fp32", "fp8")]
        held = []
        for request in requests:
            last(events_of(engine, request, tmp_path))
            held.append(sum(host_bytes(engine).values()))
        assert held[0] >= held[2] > 2 * held[1], "the third finds its prompt encoded"
        assert held[1] >= held[3] > 0
        components, before = engine.runtime().components, host_bytes(engine)
        engine.plan(replace(SMALL, precision="bf16"))
        assert host_bytes(engine) == before, "to plan something else costs the open model nothing"
        components.arrange(FP8, {name: Placement(kept=frozenset({""})) for name in components._open})
        assert sum(host_bytes(engine).values()) < sum(before.values())
        assert all(opened.copies.keys() <= {""} for opened in components._open.values())


def test_a_stream_of_steps_is_in_the_turnaround(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu", vram=tight_vram("fp32")) as engine:
        first = events_of(engine, REQUEST, tmp_path)
        plan = next(event.plan for event in first if isinstance(event, Planned))
        again = last(events_of(engine, replace(REQUEST, seed=4), tmp_path))
        other = last(events_of(engine, replace(REQUEST, prompt="a star"), tmp_path))
    assert again.moved_bytes == plan.same_prompt.moved_bytes > 0
    assert other.moved_bytes == plan.new_prompt.moved_bytes


def test_our_own_fp8_files_in_a_models_folder_give_the_same_picture(
    model: Path, own_folders: Path, tmp_path: Path
) -> None:
    small = replace(SMALL, precision="fp8")
    with Engine.open(model, device="cpu") as engine:
        converted = last(events_of(engine, small, tmp_path))
    folder = tmp_path / "copied"
    shutil.copytree(model, folder)
    (cache,) = (
        file for file in (own_folders / "cache" / "weights").glob("*.safetensors") if file.stat().st_size > 60_000
    )
    shutil.copy(cache, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(own_folders / "cache" / "weights")
    with Engine.open(folder, device="cpu") as engine:
        assert engine.defaults.precision == "fp8"
        copied = last(events_of(engine, small, tmp_path))
    assert _image(copied.path).tobytes() == _image(converted.path).tobytes()


def _image(path: Path) -> Any:
    from PIL import Image

    return Image.open(path)


def test_activations_are_predicted_within_one_per_cent(model: Path) -> None:
    """The measure on meta against the ledger of real phases, and the decoder against the allocator itself."""
    from engine.memory.measure import run_encoder

    for name_of_model, precision, kernel in (
        ("demo", FP32, None),
        ("demo", FP8, None),
        (str(model), BF16, None),
        *(("demo", INT8, kernel) for kernel in ("float32", "int_mm", "dequantize")),
    ):
        folder = Engine.open(name_of_model).source
        components = Components(folder, torch.device("cpu"))
        activations = Activations(Components(folder, META, simulated=True))
        for name in ("text_encoder", "text_encoder_2"):
            with components.lend(name, precision, Placement(), lambda: None) as loan:
                for _ in loan.load():
                    pass
                weights = [loan._arena] if loan._arena is not None else []
                run_encoder(loan, folder)
                with counted("cpu") as ledger:
                    ledger.ignore(weights)
                    run_encoder(loan, folder)
            predicted = activations.encode(name, precision)
            assert predicted == pytest.approx(ledger.peak_bytes, rel=0.01), (name_of_model, name)
        with components.lend(
            "transformer", precision, Placement(slots=2), lambda: None, passes=2, kernel=kernel
        ) as loan:
            for _ in loan.load():
                pass
            loop, inputs = real_loop(loan, folder, 128, 128)
            with counted("cpu") as ledger:
                assert loan._arena is not None
                ledger.ignore([loan._arena, *inputs])
                loop()
        predicted = activations.denoise(
            precision, folder.size(Request("any", width=128, height=128).resolved(folder.defaults)), kernel
        )
        assert predicted == pytest.approx(ledger.peak_bytes, rel=0.01), (name_of_model, precision, kernel)


def real_loop(loan: Any, folder: Any, width: int, height: int) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """Two steps with real tensors, to be run, and what on a card would lie on the host."""
    size = folder.size(Request("any", width=width, height=height))
    latents = NETWORKS.noise(0, size)
    text = {"sequence": NETWORKS.unread(folder.configs, size, loan.dtype)["sequence"].zero_()}
    tables = Tables(torch.zeros(2, loan.component.reader.total, dtype=loan.component.reader.dtype))
    sigmas = torch.linspace(1, 0, 3)
    where = loan.device, loan.dtype

    def run() -> None:
        reader = loan.component.reader
        for _ in denoise(
            NETWORKS, loan.module, reader, [Prompt(tables, text)], latents, sigmas, size, lambda: None, *where
        ):
            pass

    return run, [tables.rows, sigmas]


@contextmanager
def small_decoder(limit_bytes: int) -> Iterator[list[int]]:
    """A card that is full at this many bytes while it decodes; the tiles that were tried."""
    import engine.sampling.decode

    tried, decode = [], engine.sampling.decode.decode

    def limited(*arguments: Any, **named: Any) -> Any:
        tried.append(named["tile"])
        with counted("cpu", limit_bytes):
            return decode(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.sampling.decode, "decode", limited)
        yield tried


def notices(events: list[Event]) -> list[str]:
    """What was noticed, but for the size, which the demo was not made for."""
    said = [event.message for event in events if isinstance(event, Noticed)]
    return [text for text in said if "was made for 128x128" not in text]


def test_a_decoder_that_runs_out_of_memory_takes_smaller_tiles_and_says_so(tmp_path: Path) -> None:
    request = replace(REQUEST, width=256, height=256, steps=1)
    with Engine.open("demo", device="cpu") as engine:
        whole = last(events_of(engine, request, tmp_path))
        activation = engine.plan(request).phases[2].activation_bytes
        with small_decoder(int(0.95 * activation)) as tried:
            events = events_of(engine, replace(request, seed=4), tmp_path)
            saved = last(events_of(engine, request, tmp_path))
    assert tried[:2] == [0, 192]
    (notice,) = notices(events)
    assert re.search(
        r"decode ran out of memory inside a budget of .*predicted .*report it; trying tiles of 192", notice
    )
    record = read_record(saved.path)
    assert record.reproduce["tile"] == tried[-1] > 0
    difference = np.abs(np.asarray(_image(saved.path)).astype(int) - np.asarray(_image(whole.path)).astype(int))
    assert difference.max() <= 2


def test_when_no_tile_is_small_enough_the_latents_stay_for_another_try(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu") as engine:
        with small_decoder(1000):
            failed = events_of(engine, REQUEST, tmp_path)[-1]
        assert isinstance(failed, Failed)
        assert "ran out of memory inside a budget" in failed.message
        again = events_of(engine, REQUEST, tmp_path)
        assert not any(isinstance(event, StepFinished) for event in again)
        last(again)


def test_cancelling_in_the_middle_of_a_prefetch_leaves_nothing_behind(tmp_path: Path) -> None:
    with Engine.open("demo", device="cpu", vram=tight_vram("fp32")) as engine:
        last(events_of(engine, REQUEST, tmp_path))
        components = engine.runtime().components
        block = components.component("transformer", FP32).of_role("block")[3].module
        hook = block.register_forward_hook(lambda *_: engine.cancel())
        cancelled = events_of(engine, replace(REQUEST, seed=4), tmp_path)[-1]
        hook.remove()
        assert isinstance(cancelled, Cancelled)
        assert components.device.placed_bytes == 0
        last(events_of(engine, REQUEST, tmp_path))


def test_a_model_whose_files_shrink_while_it_is_open_fails_with_a_sentence(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with (
        Engine.open(folder, device="cpu") as engine,
        closing(engine.generate(SMALL, plan_output(tmp_path, 1))) as job,
    ):
        for event in job:
            if isinstance(event, Encoded):
                with open(file, "r+b") as stream:
                    stream.truncate(file.stat().st_size // 2)
            final = event
    assert isinstance(final, Failed)
    assert "transformer" in final.message
    assert "\n" not in final.message


def test_a_cache_that_cannot_be_written_is_said_once(own_folders: Path, tmp_path: Path) -> None:
    (own_folders / "cache").mkdir(exist_ok=True)
    (own_folders / "cache" / "weights").write_text("a file where the folder should be")
    with Engine.open("demo", device="cpu") as engine:
        events = events_of(engine, replace(SMALL, precision="fp8"), tmp_path)
    assert len([event for event in events if isinstance(event, Noticed) and "cannot be kept in" in event.message]) == 1


def test_fp8_weights_are_made_once_and_a_damaged_cache_is_rebuilt_and_told(own_folders: Path, tmp_path: Path) -> None:
    request = replace(SMALL, precision="fp8")
    with Engine.open("demo", device="cpu") as engine:
        first = events_of(engine, request, tmp_path)
    caches = sorted((own_folders / "cache" / "weights").glob("*.safetensors"))
    assert len(caches) == 2
    assert notices(first) == []
    caches[0].write_bytes(caches[0].read_bytes()[:-100])
    with Engine.open("demo", device="cpu", encodings="off") as engine:
        again = events_of(engine, request, tmp_path)
        other = events_of(engine, replace(request, seed=9), tmp_path)
    assert any("damaged" in notice for notice in notices(again))
    assert notices(other) == []
    assert _image(last(first).path).tobytes() == _image(last(again).path).tobytes()


def test_without_room_for_the_cache_fp8_runs_all_the_same(
    own_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(SMALL, precision="fp8")
    with Engine.open("demo", device="cpu") as engine:
        with_cache = last(events_of(engine, request, tmp_path))
    shutil.rmtree(own_folders / "cache")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with Engine.open("demo", device="cpu") as engine:
        events = events_of(engine, request, tmp_path)
    assert any("no room" in event.message for event in events if isinstance(event, Noticed))
    assert not list((own_folders / "cache" / "weights").glob("*.safetensors"))
    assert _image(last(events).path).tobytes() == _image(with_cache.path).tobytes()


def test_what_changes_bits_is_in_the_picture_and_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = replace(SMALL, width=128, height=96, precision="fp8", steps=1)
    with Engine.open("demo", device="cpu", repeat=Repeat(tile=64)) as engine:
        record = read_record(last(events_of(engine, request, tmp_path)).path)
    assert record.reproduce["tile"] == 64
    assert record.reproduce["kernel"] == "dequantize"
    assert record.reproduce["encoder_device"] == record.reproduce["decoder_device"] == "cpu"
    assert record.reproduce["batch"] == 1
    picture, again = next(tmp_path.glob("*.png")), tmp_path / "b.png"
    assert main(["generate", "--from", str(picture), "-o", str(again), "--quiet"]) == 0
    assert capsys.readouterr() == (f"{again}\n", "")
    assert read_record(again).reproduce == record.reproduce
    assert _image(picture).tobytes() == _image(again).tobytes()
